"""`gptlit data`: what a text is, under one or more tokenizers, without training. No torch."""

import dataclasses
import os
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gptlit.corpora import catalog
from gptlit.corpora.catalog import CORPORA
from gptlit.corpora.cleaning import CleaningOptions
from gptlit.corpora.text_encodings import AUTO
from gptlit.data import prepare
from gptlit.data.splits import SPLITS, Splitting
from gptlit.data.token_file import TokenFile
from gptlit.messages import UsageError, note, shown
from gptlit.parser import OneLineErrors, from_environment
from gptlit.terminal import visible
from gptlit.tokenizers.base import Tokenizer, UnknownPieces, parse_options

COUNT_AT_ONCE = 1 << 20
MANY_WINDOWS = 500
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
        type=list[str] | str,
        default=None,
        help="One, or more side by side: [char, word, bpe:1024, tiktoken:gpt2].",
    )
    options.add_argument("--jsonl_field", type=str, default="text", help="As for fit.")
    options.add_argument("--column", type=str | None, default=None, help="As for fit.")
    options.add_argument("--encoding", type=str, default=AUTO, help="As for fit.")
    options.add_class_arguments(CleaningOptions, "cleaning")
    options.add_argument("--tokenize", type=str, default=None, help="Show the pieces of a string.")
    options.add_argument(
        "--eos", type=bool, default=False, help="Close each document by an end-of-sequence token."
    )
    options.add_class_arguments(Splitting)
    options.add_argument("--data_dir", type=str, default="data", help="As for fit.")
    return options


def entropy_bits(counts: np.ndarray) -> float:
    """The entropy of a distribution given by counts, in bits (Shannon 1948)."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def figures(file: TokenFile) -> dict[str, str]:
    """What there is to tell of a text under one tokenizer, by name."""
    sizes = file.provenance["sizes"].values()
    n_tokens, n_bytes = len(file.ids), sum(size["bytes"] for size in sizes)
    n_chars, n_unknown = (sum(size[name] for size in sizes) for name in ("characters", "unknown"))
    per_byte = n_tokens / n_bytes
    lengths = file.document_lengths()
    median, long = np.percentile(lengths, [50, 95])
    first = [visible(piece) for piece in pieces(file.tokenizer, file.ids[:6])]
    return {
        "characters": f"{n_chars:,}",
        "bytes": f"{n_bytes:,}",
        "distinct characters": f"{file.provenance['distinct']:,}",
        "vocabulary": f"{file.tokenizer.vocab_size:,}",
        "tokens": f"{n_tokens:,}",
        **{f"  {split}": f"{file.size(split):,}" for split in SPLITS if file.size(split)},
        "unknown": f"{n_unknown / n_tokens:.2%}",
        "characters a token": f"{n_chars / n_tokens:.3f}",
        "bits per byte, uniform": f"{np.log2(file.tokenizer.vocab_size) * per_byte:.3f}",
        "bits per byte, unigram": f"{entropy_bits(token_counts(file)) * per_byte:.3f}",
        "documents": f"{len(lengths):,}",
        "  median tokens": f"{median:,.0f}",
        "  95th percentile": f"{long:,.0f}",
        "suggested block sizes": _from_to(suggested_block_sizes(file)),
        "first tokens": "|".join(first),
        "first ids": " ".join(map(str, file.ids[:6].tolist())),
    }


def _from_to(sizes: list[int]) -> str:
    if len(sizes) < 2:
        return str(sizes[0]) if sizes else "none: too short"
    return f"{sizes[0]} to {sizes[-1]}"


def token_counts(file: TokenFile) -> np.ndarray:
    """(vocab_size,) how often each token occurs; the file is read block by block."""
    counts = np.zeros(file.tokenizer.vocab_size, dtype=np.int64)
    for first in range(0, len(file.ids), COUNT_AT_ONCE):
        block = file.ids[first : first + COUNT_AT_ONCE]
        counts += np.bincount(block, minlength=len(counts))
    return counts


def suggested_block_sizes(file: TokenFile) -> list[int]:
    """Powers of two that suit a text.

    Of each a pass has at least MANY_WINDOWS windows, and a validation split at least one. The
    largest is the first that holds 95 of 100 documents whole: more context would stay unused.
    """
    long = np.percentile(file.document_lengths(), 95)
    n_held_out = min((n for n in map(file.size, SPLITS[1:]) if n), default=len(file.ids))
    sizes = [2**power for power in range(4, 14)]
    return [
        size
        for size in sizes
        if file.size("train") // size > MANY_WINDOWS and size <= n_held_out and size < 2 * long
    ]


def pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """What each id spells."""
    spell = tokenizer.incremental_decoder()
    return [spell(id_) for id_ in ids.tolist()]


def _tokenized(string: str, tokenizer: Tokenizer) -> str:
    ids = tokenizer.encode(string, "skip")
    told = f"{len(ids)} tokens: {'|'.join(visible(piece) for piece in pieces(tokenizer, ids))}"
    try:
        tokenizer.encode(string)
    except UnknownPieces as error:
        told += f"   unknown: {' '.join(map(visible, error.pieces))}"
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
        own = os.environ.get("GPTLIT_DATA_DIR")
        places = [Path(own), folder] if own else [folder]
        at = [place for place in places if (place / corpus.filename).is_file()]
        cached = f"in {at[0]}" if at else "not fetched yet"
        size = f"{corpus.n_bytes / 1e6:.1f} MB"
        lines.append(f"{name:<16}{size:<8}{corpus.about}; {corpus.licence}; {cached}")
    return "\n".join(lines)


def _as_own(message: str) -> str:
    """A message with this verb's options, which have the names of fit's, but no group."""
    return shown(message).replace("--data.", "--")


def main(argv: Sequence[str]) -> None:
    """Run `gptlit data` with these options.

    Raises:
        UsageError: an option or a text that can't work.
    """
    try:
        _main(argv)
    except UsageError as error:
        raise UsageError(_as_own(str(error))) from error


def _main(argv: Sequence[str]) -> None:
    options = parser().parse_args([*from_environment("data"), *argv])
    folder = Path(options.data_dir).expanduser()
    if options.text == "list":
        print(known_corpora(folder))
        return
    path = None if options.text in CORPORA else options.text
    if path and not Path(path).exists() and not set(path) & set("*?["):
        raise UsageError(
            f"{path}: no such file, and not one of the known {', '.join(CORPORA)}; "
            "gptlit data list tells of them"
        )
    text = catalog.load(
        options.text,
        path,
        folder,
        path_option="gptlit data",
        jsonl_field=options.jsonl_field,
        column=options.column,
        encoding=options.encoding,
        cleaning=CleaningOptions(**options.cleaning.as_dict()),
    )
    splitting = Splitting(**{name: options[name] for name in Splitting.__dataclass_fields__})
    chosen = options.tokenizer or (["char"] if options.tokenize is None else SIDE_BY_SIDE)
    files: dict[str, TokenFile] = {}
    left_out: dict[str, str] = {}
    for short in [chosen] if isinstance(chosen, str) else chosen:
        try:
            files[short] = prepare.prepare(
                text,
                folder / "tokens",
                tokenizer=dataclasses.replace(parse_options(short), eos=options.eos),
                splitting=splitting,
                own_texts={},
            )
        except UsageError as error:
            if options.tokenizer or short == SIDE_BY_SIDE[0]:
                raise
            left_out[short] = str(error)  # none that was asked for
    for line in next(iter(files.values())).provenance["report"]:
        note(_as_own(line))
    if options.tokenize is None:
        print(f"{text.name}\n{table({short: figures(file) for short, file in files.items()})}")
        return
    told = {short: _tokenized(options.tokenize, file.tokenizer) for short, file in files.items()}
    _print_wrapped(told | left_out)


def _print_wrapped(
    lines: dict[str, str], columns: Callable[[], int] = lambda: shutil.get_terminal_size().columns
) -> None:
    indent = max(map(len, lines)) + 2
    for name, line in lines.items():
        wrapped = textwrap.wrap(line, max(20, columns() - indent), break_on_hyphens=False)
        print(name.ljust(indent) + f"\n{' ' * indent}".join(wrapped))
