"""`gptlit data`: what a text is, under one or more tokenizers, without training. No torch."""

import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gptlit import corpora, tokens
from gptlit.cleaning import CleaningOptions
from gptlit.corpora import CORPORA, Text
from gptlit.messages import UsageError, note
from gptlit.parser import OneLineErrors, from_environment
from gptlit.tokenizer import Tokenizer, UnknownPieces, parse_options
from gptlit.tokens import SPLITS, TokenFile

SIDE_BY_SIDE = ["char", "word", "bpe:1024", "tiktoken:gpt2"]


def parser() -> OneLineErrors:
    """The options of `gptlit data`."""
    options = OneLineErrors(
        prog="gptlit data",
        description="Prepare a text and tell what it is; `gptlit data list` tells the known ones.",
        allow_abbrev=False,
    )
    options.add_argument(
        "text", nargs="?", default="shakespeare", help="A corpus by name, a path of yours, or list."
    )
    options.add_argument(
        "--tokenizer",
        type=list[str],
        default=None,
        help="One or more, side by side: [char, word, bpe:1024, tiktoken:gpt2].",
    )
    options.add_argument("--jsonl_field", type=str, default="text", help="As for fit.")
    options.add_class_arguments(CleaningOptions, "cleaning")
    options.add_argument("--tokenize", type=str, default=None, help="Show the pieces of a string.")
    options.add_argument("--val_fraction", type=float, default=0.1, help="As for fit.")
    options.add_argument(
        "--test_fraction", type=float, default=0.0, help="As --data.test_fraction."
    )
    options.add_argument("--data_dir", type=str, default="data", help="As for fit.")
    return options


def entropy_bits(counts: np.ndarray) -> float:
    """The entropy of a distribution given by counts, in bits (Shannon 1948)."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def figures(text: Text, file: TokenFile) -> dict[str, str]:
    """What there is to tell of a text under one tokenizer, by name."""
    n_tokens, n_bytes = len(file.ids), sum(file.n_bytes(split) for split in SPLITS)
    per_byte = n_tokens / n_bytes
    counts = np.bincount(file.ids, minlength=file.tokenizer.vocab_size)
    unknown = counts[file.tokenizer.unknown_id] if file.tokenizer.unknown_id is not None else 0
    first = [shown(piece) for piece in pieces(file.tokenizer, file.ids[:6])]
    return {
        "characters": f"{len(text.text):,}",
        "bytes": f"{n_bytes:,}",
        "distinct characters": f"{len(set(text.text)):,}",
        "vocabulary": f"{file.tokenizer.vocab_size:,}",
        "tokens": f"{n_tokens:,}",
        **{f"  {split}": f"{file.size(split):,}" for split in SPLITS if file.size(split)},
        "unknown": f"{unknown / n_tokens:.2%}",
        "characters a token": f"{len(text.text) / n_tokens:.3f}",
        "bits per byte, uniform": f"{np.log2(file.tokenizer.vocab_size) * per_byte:.3f}",
        "bits per byte, unigram": f"{entropy_bits(counts) * per_byte:.3f}",
        "first tokens": "|".join(first),
        "first ids": " ".join(map(str, file.ids[:6].tolist())),
    }


def pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """What each id spells."""
    spell = tokenizer.speller()
    return [spell(id_) for id_ in ids.tolist()]


def shown(piece: str) -> str:
    """A piece with its white space visible; what spells less than a character is a dot."""
    visible = piece.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return visible or "·"


def _tokenized(string: str, tokenizer: Tokenizer) -> str:
    ids = tokenizer.encode(string, "skip")
    told = f"{len(ids)} tokens: {'|'.join(shown(piece) for piece in pieces(tokenizer, ids))}"
    try:
        tokenizer.encode(string)
    except UnknownPieces as error:
        told += f"   unknown: {' '.join(map(shown, error.pieces))}"
    return told


def table(columns: dict[str, dict[str, str]]) -> str:
    """Figures by name, a column for each tokenizer, at least two blanks between."""
    names = list(next(iter(columns.values())))
    rows = [["", *columns]]
    rows += [[name, *(column[name] for column in columns.values())] for name in names]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    padded = [
        [row[0].ljust(widths[0])]
        + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        for row in rows
    ]
    return "\n".join("  ".join(row) for row in padded)


def known_corpora(folder: Path) -> str:
    """The corpora known by name, a line each, with what is cached under `folder`."""
    lines = []
    for name, corpus in CORPORA.items():
        cached = "cached" if (folder / corpus.filename).is_file() else "not fetched yet"
        lines.append(f"{name:<16}{corpus.about}; {corpus.licence}; {cached}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run `gptlit data` with these options.

    Raises:
        UsageError: an option or a text that can't work.
    """
    options = parser().parse_args([*from_environment("data"), *argv])
    folder = Path(options.data_dir)
    if options.text == "list":
        print(known_corpora(folder))
        return
    path = None if options.text in CORPORA else options.text
    if path and not Path(path).exists() and not set(path) & set("*?["):
        raise UsageError(
            f"{path}: no such file, and not one of the known {', '.join(CORPORA)}; "
            "gptlit data list tells of them"
        )
    text = corpora.load(
        options.text,
        path,
        folder,
        path_option="gptlit data",
        jsonl_field=options.jsonl_field,
        cleaning=CleaningOptions(**options.cleaning.as_dict()),
    )
    for line in text.report:
        note(f"cleaning: {line}")
    default = ["char"] if options.tokenize is None else SIDE_BY_SIDE

    def prepared(short: str) -> TokenFile:
        return tokens.prepare(
            text,
            folder / "tokens",
            tokenizer=parse_options(short),
            val_fraction=options.val_fraction,
            test_fraction=options.test_fraction,
            own_texts={},
        )

    files = {short: prepared(short) for short in options.tokenizer or default}
    if options.tokenize is None:
        print(f"{text.name}\n{table({short: figures(text, f) for short, f in files.items()})}")
        return
    _print_wrapped(
        {short: _tokenized(options.tokenize, file.tokenizer) for short, file in files.items()}
    )


def _print_wrapped(
    lines: dict[str, str], columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns
) -> None:
    indent = max(map(len, lines)) + 2
    for name, line in lines.items():
        wrapped = textwrap.wrap(line, max(20, columns() - indent), break_on_hyphens=False)
        print(name.ljust(indent) + f"\n{' ' * indent}".join(wrapped))
