"""`gptlit predict --explain`: how well a model predicts a text, token by token."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from gptlit.generation.decoding import kept_tokens, window_starts
from gptlit.generation.generate import encode_prompt
from gptlit.messages import UsageError, opt
from gptlit.model.gpt import GPT
from gptlit.terminal import SEPARATOR, padded, printable, shortened, visible, width, wrapped
from gptlit.tokenizers.base import Tokenizer, Unknown

ALTERNATIVES = 5
LONGEST_TOKEN = 16  # columns
# from which probability on there is which colour: green, yellow, red, and red turned round
COLOURS = ((0.5, "32"), (0.1, "33"), (0.01, "31"), (0.0, "31;7"))


@dataclass(frozen=True)
class Alternative:
    """Another token that could have stood there; its log probability is in nats."""

    token: str
    id: int
    logprob: float


@dataclass(frozen=True)
class Scored:
    """A token of a text, and what the model thought of it.

    Args:
        token: What it spells; bytes that are no whole character as \\xe2.
        id: Its id.
        logprob: In nats, by the model itself; None for a first token that nothing stands before.
        rank: 1 for the likeliest; None likewise.
        alternatives: The likeliest others, in order.
    """

    token: str
    id: int
    logprob: float | None = None
    rank: int | None = None
    alternatives: list[Alternative] = field(default_factory=list)


@dataclass(frozen=True)
class Explained:
    """A text and its tokens.

    Args:
        text: As the model read it.
        pieces: What each token adds to it.
        tokens: One for each piece.
        start: What the first was predicted from, None if it wasn't.
        n_bytes: Of the text that was predicted, in UTF-8.
        block_size: The model's context.
    """

    text: str
    pieces: list[str]
    tokens: list[Scored]
    start: str | None
    n_bytes: int
    block_size: int

    @property
    def figures(self) -> dict[str, float | None]:
        """Of what was predicted: `loss` in nats per token, `perplexity`, `bits_per_byte`."""
        nats = [-token.logprob for token in self.tokens if token.logprob is not None]
        if not nats or not self.n_bytes:
            return dict.fromkeys(("loss", "perplexity", "bits_per_byte"))
        loss = math.fsum(nats) / len(nats)
        bits = math.fsum(nats) / math.log(2)
        return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits / self.n_bytes}


@torch.inference_mode()
def explain(model: GPT, tokenizer: Tokenizer, text: str, unknown: Unknown = "error") -> Explained:
    """The probability of each token of a text given those before it, and what was likelier.

    The context is that of `generate_step`: when block_size tokens are in it, the last
    block_size // 2 are kept. So a text has the probabilities that it would have when written.
    A first token is predicted from what closes a document, or else from a newline; where the
    model has neither, it isn't predicted.

    Args:
        model: Logits for (B, T) ids, in eval mode.
        tokenizer: The one it was trained with.
        text: Any.
        unknown: What to do with characters outside the vocabulary: "error" or "skip".

    Raises:
        UsageError: nothing to explain, or characters outside the vocabulary.
    """
    ids = encode_prompt(tokenizer, text, unknown).tolist()
    if not ids:
        raise UsageError(f"no text; give one by {opt('prompt')} or {opt('prompt_file')}", "explain")
    start = tokenizer.start_id
    is_start = start == tokenizer.eos_id or tokenizer.piece(start) == b"\n"
    scored = [] if is_start else [Scored(spelled(tokenizer, ids[0]), ids[0])]
    scored += _scored(model, tokenizer, [start, *ids] if is_start else ids)
    spell = tokenizer.incremental_decoder()
    pieces = [spell(id_) for id_ in ids]
    read = "".join(pieces)
    n_bytes = len(read.encode()) - (0 if is_start else len(tokenizer.piece(ids[0])))
    told_start = spelled(tokenizer, start) if is_start else None
    return Explained(read, pieces, scored, told_start, n_bytes, model.config.block_size)


def spelled(tokenizer: Tokenizer, id_: int) -> str:
    """What a token spells by itself; bytes that are no whole character as \\xe2."""
    return tokenizer.piece(id_).decode("utf-8", "backslashreplace")


def _scored(model: GPT, tokenizer: Tokenizer, ids: list[int]) -> Iterator[Scored]:
    """The tokens of some ids but the first, each with its probability."""
    size = model.config.block_size
    for start, predicted in window_starts(len(ids), size):
        window = torch.tensor(ids[start : start + size], device=model.lm_head.weight.device)
        following = ids[predicted : start + size + 1]
        logits = model(window[None])[0, predicted - start - 1 :][: len(following)]  # (n, V)
        logs = logits.float().log_softmax(dim=-1)
        own = logs.gather(1, torch.tensor(following, device=logs.device)[:, None])  # (n, 1)
        ranks = (logs > own).sum(dim=1) + 1
        best = logs.topk(min(ALTERNATIVES + 1, logs.size(1)), dim=1)
        rows = (own[:, 0].tolist(), ranks.tolist(), best.values.tolist(), best.indices.tolist())
        for id_, logprob, rank, values, others in zip(following, *rows, strict=True):
            alternatives = [
                Alternative(spelled(tokenizer, other), other, value)
                for other, value in zip(others, values, strict=True)
                if other != id_
            ]
            yield Scored(spelled(tokenizer, id_), id_, logprob, rank, alternatives[:ALTERNATIVES])


def as_jsonl(texts: Iterable[Explained]) -> Iterator[str]:
    """An object in a line for each text."""
    for text in texts:
        tokens = [dataclasses.asdict(token) for token in text.tokens]
        told = {"text": text.text, "start": text.start, **text.figures, "tokens": tokens}
        yield json.dumps(told) + "\n"


def as_text(texts: Iterable[Explained], columns: int, colour: bool) -> Iterator[str]:
    """A line for each token, and the figures of the whole; in colour, the text itself before.

    Args:
        texts: What to tell, parted by lines `---`.
        columns: The terminal's width.
        colour: Colour tokens by their probability.
    """
    for index, text in enumerate(texts):
        yield SEPARATOR if index else ""
        if colour:
            yield _heat(text)
        yield from _table(text, columns, colour)
        yield "\n" + "\n".join(wrapped(summary(text), columns)) + "\n"


def summary(text: Explained) -> str:
    """The figures of the whole in a line."""
    n_tokens = len(text.tokens)
    told = f"{n_tokens} token{'s' * (n_tokens > 1)}, the first "
    start = "a newline" if text.start == "\n" else text.start
    told += "not predicted" if start is None else f"predicted from {start}"
    if n_tokens > text.block_size:
        kept = kept_tokens(text.block_size)
        told += f"; context {text.block_size}, its last {kept} kept when full"
    loss, perplexity, bits = text.figures.values()
    if loss is None:
        return told
    return f"loss {loss:.4f} nats per token, perplexity {perplexity:.2f}, " + (
        f"{bits:.3f} bits per byte; {told}"
    )


def _table(text: Explained, columns: int, colour: bool) -> Iterator[str]:
    shown = [shortened(visible(token.token), LONGEST_TOKEN) for token in text.tokens]
    column = max(len("token"), *map(width, shown))
    yield f"{padded('token', column)}   prob   nats   rank  likeliest others\n"
    for token, told in zip(text.tokens, shown, strict=True):
        if token.logprob is None:
            yield f"{padded(told, column)}      -      -      -\n"
            continue
        left = f"{padded(told, column)}  {_percent(token.logprob):>5}"
        line = f"  {-token.logprob:5.2f}  {token.rank:5}"
        room = columns - width(left + line)
        others = ""
        for other in token.alternatives:
            name = shortened(visible(other.token), LONGEST_TOKEN)
            others += f"  {name} {_percent(other.logprob)}"
            if width(others) > room:
                break
            line += f"  {name} {_percent(other.logprob)}"
        yield _coloured(left, token.logprob, colour) + line + "\n"


def _percent(logprob: float) -> str:
    share = math.exp(logprob)
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}" if share >= 5e-4 else "<0.1%"


def _coloured(text: str, logprob: float | None, colour: bool = True) -> str:
    if not colour or logprob is None:
        return text
    code = next(code for least, code in COLOURS if math.exp(logprob) >= least)
    # a colour behind a line end would run on to the edge
    return re.sub(r"[^\n]+", lambda found: f"\x1b[{code}m{found[0]}\x1b[0m", text)


def _heat(text: Explained) -> str:
    pairs = zip(text.pieces, text.tokens, strict=True)
    told = "".join(_coloured(printable(piece), token.logprob) for piece, token in pairs)
    names = [f"{least:.0%} or more" for least, _ in COLOURS[:-1]] + ["less"]
    legend = zip(names, COLOURS, strict=True)
    key = ", ".join(_coloured(name, math.log(least or 1e-9)) for name, (least, _) in legend)
    return f"{told}\n\n{key}\n\n"
