"""`gptlit predict --explain`: the probability and rank of each token of a text."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch

from gptlit.generation.decoding import kept_tokens, window_starts
from gptlit.generation.prompts import encode_prompt
from gptlit.messages import UsageError, opt
from gptlit.model.gpt import GPT
from gptlit.terminal import SEPARATOR, padded, printable, shortened, visible, width, wrapped
from gptlit.tokenizers.base import Tokenizer, Unknown

ALTERNATIVES = 5
LONGEST_TOKEN = 16  # columns
# least probability and ANSI code of each colour: green, yellow, red, and inverted red
COLOURS = ((0.5, "32"), (0.1, "33"), (0.01, "31"), (0.0, "31;7"))


@dataclass(frozen=True)
class Alternative:
    """Another token that the model could have predicted; its log probability is in nats."""

    token: str
    id: int
    logprob: float


@dataclass(frozen=True)
class Scored:
    """A token of a text with the model's prediction.

    Args:
        token: Its text; bytes of an incomplete character are written as \\xe2.
        id: Its id.
        logprob: Log probability by the model, in nats; None for a first token without context.
        rank: 1 for the likeliest token; None as for logprob.
        alternatives: The likeliest other tokens, in order.
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
        text: The text as the model read it.
        pieces: Part of the text that each token adds.
        tokens: The tokens, one for each piece.
        start: Token that the first one was predicted from; None if it was not predicted.
        n_bytes: UTF-8 bytes of the predicted tokens.
        block_size: The model's context in tokens.
    """

    text: str
    pieces: list[str]
    tokens: list[Scored]
    start: str | None
    n_bytes: int
    block_size: int

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics of the predicted tokens: `loss` in nats, `perplexity`, `bits_per_byte`."""
        nats = [-token.logprob for token in self.tokens if token.logprob is not None]
        if not nats or not self.n_bytes:
            return dict.fromkeys(("loss", "perplexity", "bits_per_byte"))
        loss = math.fsum(nats) / len(nats)
        bits = math.fsum(nats) / math.log(2)
        return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits / self.n_bytes}


@torch.inference_mode()
def explain(model: GPT, tokenizer: Tokenizer, text: str, unknown: Unknown = "error") -> Explained:
    """Compute each token's probability given those before it, and the likeliest other tokens.

    The context is that of `generate_step`: when block_size tokens are in it, the last
    block_size // 2 are kept, so a generated text gets the probabilities it was drawn with.
    The first token is predicted from the end of sequence, or else from a newline; if the model has
    neither, it is not predicted.

    Args:
        model: The model, in eval mode.
        tokenizer: The tokenizer it was trained with.
        text: The text to explain.
        unknown: Handling of characters outside the vocabulary: "error" or "skip".

    Raises:
        UsageError: An empty text, or characters outside the vocabulary.
    """
    ids = encode_prompt(tokenizer, text, unknown).tolist()
    if not ids:
        raise UsageError(
            f"there is no text; give one by {opt('prompt')} or {opt('prompt_file')}", "explain"
        )
    decode = tokenizer.incremental_decoder()
    pieces = [decode(id_) for id_ in ids]
    text = "".join(pieces)
    n_bytes, size, start = len(text.encode()), model.config.block_size, tokenizer.start_id
    if start == tokenizer.eos_id or tokenizer.piece(start) == b"\n":
        scored = list(_scored(model, tokenizer, [start, *ids]))
        return Explained(text, pieces, scored, spelled(tokenizer, start), n_bytes, size)
    first = Scored(spelled(tokenizer, ids[0]), ids[0])
    n_bytes -= len(tokenizer.piece(ids[0]))
    return Explained(text, pieces, [first, *_scored(model, tokenizer, ids)], None, n_bytes, size)


def spelled(tokenizer: Tokenizer, id_: int) -> str:
    """Decode a single token; bytes of an incomplete character are written as \\xe2."""
    return tokenizer.piece(id_).decode("utf-8", "backslashreplace")


def _scored(model: GPT, tokenizer: Tokenizer, ids: list[int]) -> Iterator[Scored]:
    """Score all ids but the first."""
    size = model.config.block_size
    for start, predicted in window_starts(len(ids), size):
        window = torch.tensor(ids[start : start + size], device=model.wte.weight.device)
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
    """Format each text as a line of JSON."""
    for text in texts:
        tokens = [dataclasses.asdict(token) for token in text.tokens]
        row = {"text": text.text, "start": text.start, **text.metrics, "tokens": tokens}
        yield json.dumps(row) + "\n"


def as_text(texts: Iterable[Explained], columns: int, colour: bool) -> Iterator[str]:
    """Format each text as a table of its tokens and a summary; in colour, after the text itself.

    Args:
        texts: The texts; lines `---` separate them.
        columns: Width of the terminal.
        colour: Colour tokens by their probability.
    """
    for index, text in enumerate(texts):
        yield SEPARATOR if index else ""
        if colour:
            yield _heat(text)
        yield from _table(text, columns, colour)
        yield "\n" + "\n".join(wrapped(summary(text), columns)) + "\n"


def summary(text: Explained) -> str:
    """Format the metrics of a text in a line."""
    n_tokens = len(text.tokens)
    line = f"{n_tokens} token{'s' * (n_tokens > 1)}, the first "
    start = "a newline" if text.start == "\n" else text.start
    line += "not predicted" if start is None else f"predicted from {start}"
    if n_tokens > text.block_size:
        line += (
            f"; context {text.block_size}, its last {kept_tokens(text.block_size)} kept when full"
        )
    loss, perplexity, bits = text.metrics.values()
    if loss is None:
        return line
    metrics = (
        f"loss {loss:.4f} nats per token, perplexity {perplexity:.2f}, {bits:.3f} bits per byte"
    )
    return f"{metrics}; {line}"


def _table(text: Explained, columns: int, colour: bool) -> Iterator[str]:
    shown = [shortened(visible(token.token), LONGEST_TOKEN) for token in text.tokens]
    column = max(len("token"), *map(width, shown))
    yield f"{padded('token', column)}   prob   nats   rank  likeliest others\n"
    for token, name in zip(text.tokens, shown, strict=True):
        if token.logprob is None:
            yield f"{padded(name, column)}      -      -      -\n"
            continue
        left = f"{padded(name, column)}  {_percent(token.logprob):>5}"
        right = f"  {-token.logprob:5.2f}  {token.rank:5}"
        for other in token.alternatives:
            cell = f"  {shortened(visible(other.token), LONGEST_TOKEN)} {_percent(other.logprob)}"
            if width(left + right + cell) > columns:
                break
            right += cell
        yield _coloured(left, token.logprob, colour) + right + "\n"


def _percent(logprob: float) -> str:
    share = math.exp(logprob)
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}" if share >= 5e-4 else "<0.1%"


def _coloured(text: str, logprob: float | None, colour: bool = True) -> str:
    if not colour or logprob is None:
        return text
    code = next(code for least, code in COLOURS if math.exp(logprob) >= least)
    # a background colour would extend from a line break to the edge
    return re.sub(r"[^\n]+", lambda found: f"\x1b[{code}m{found[0]}\x1b[0m", text)


def _heat(text: Explained) -> str:
    pairs = zip(text.pieces, text.tokens, strict=True)
    coloured = "".join(_coloured(printable(piece), token.logprob) for piece, token in pairs)
    names = [f"{least:.0%} or more" for least, _ in COLOURS[:-1]] + ["less"]
    legend = zip(names, COLOURS, strict=True)
    key = ", ".join(_coloured(name, math.log(least or 1e-9)) for name, (least, _) in legend)
    return f"{coloured}\n\n{key}\n\n"
