"""`gptlit predict --explain`: the scores of texts as tables, colours and JSON."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator

from gptlit.generation.decoding import kept_tokens
from gptlit.insight.passages import Explained
from gptlit.terminal import SEPARATOR, padded, printable, shortened, visible, width, wrapped

LONGEST_TOKEN = 16  # columns
# least probability and ANSI code of each colour: green, yellow, red, and inverted red
COLOURS = ((0.5, "32"), (0.1, "33"), (0.01, "31"), (0.0, "31;7"))


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
