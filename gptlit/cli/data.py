"""`gptlit data`: prepares a text and prints its statistics under one or more tokenizers.

Imports no torch.
"""

import dataclasses
import os
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from gptlit.cli import advising
from gptlit.corpora import catalog
from gptlit.corpora.catalog import CORPORA, Text
from gptlit.corpora.cleaning import CleaningOptions
from gptlit.corpora.reading import TextOptions
from gptlit.data import advice, prepare, small_texts
from gptlit.data.splits import SPLITS, Splitting
from gptlit.data.token_file import TokenFile
from gptlit.messages import UsageError, errors_naming, note
from gptlit.parser import OneLineErrors, from_environment
from gptlit.terminal import align_columns, columns, visible
from gptlit.tokenizers.base import Tokenizer, UnknownPieces, parse_options

TOKENS_PER_BLOCK = 1 << 20  # counted at a time
MIN_WINDOWS = 500  # of a suggested block size
# options of a text that `gptlit fit` has as well
OF_FIT = (
    *("format", "jsonl_field", "column", "encoding", "eos", "data_dir"),
    *("test_fraction", "val_spans", "split_by"),
)
DEFAULT_TOKENIZERS = ["char", "word", "bpe:1024", "tiktoken:gpt2"]


def parser() -> OneLineErrors:
    """Return the parser of `gptlit data`."""
    parser = OneLineErrors(prog="gptlit data", allow_abbrev=False)
    add = parser.add_argument
    text = "A corpus by name, a path (file, folder or glob), or list for all corpora."
    add("text", nargs="?", default="shakespeare", help=text)
    tokenizer = "A tokenizer, or several to compare: [char, word, bpe:1024, tiktoken:gpt2]."
    add("--tokenizer", type=list[str] | str, default=None, help=tokenizer)
    parser.add_class_arguments(TextOptions, skip={"corpus", "path"})
    add("--tokenize", type=str, default=None, help="Print the tokens of this string instead.")
    suggest = (
        "Print a config for gptlit fit instead, with sizes that suit the text and the time, and "
        "explain it on stderr."
    )
    add("--advise", type=bool, nargs="?", const=True, default=False, help=suggest)
    minutes = (
        f"Time of the run that --advise is for, on two CPU cores; {advising.MINUTES:g} by default."
    )
    add("--minutes", type=float | None, default=None, help=minutes)
    eos = "End each document with an end-of-sequence token."
    add("--eos", type=bool, default=False, help=eos)
    parser.add_class_arguments(Splitting)
    data_dir = "Folder for fetched texts and token files."
    add("--data_dir", type=str, default="data", help=data_dir)
    return parser


def entropy_bits(counts: np.ndarray) -> float:
    """Return the entropy in bits of the distribution with these counts (Shannon 1948)."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def statistics(file: TokenFile) -> dict[str, str]:
    """Return the formatted statistics of a text under one tokenizer, by name."""
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
        "characters per token": f"{n_chars / n_tokens:.3f}",
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
    """Return how often each token occurs, (vocab_size,), reading the file block by block."""
    counts = np.zeros(file.tokenizer.vocab_size, dtype=np.int64)
    for first in range(0, len(file.ids), TOKENS_PER_BLOCK):
        block = file.ids[first : first + TOKENS_PER_BLOCK]
        counts += np.bincount(block, minlength=len(counts))
    return counts


def suggested_block_sizes(file: TokenFile) -> list[int]:
    """Return the powers of two that suit a text as block sizes.

    An epoch has more than MIN_WINDOWS windows of each, and the smallest held-out split at least
    one. The largest is the first that holds 95% of the documents whole, since more context would
    remain unused.
    """
    long = np.percentile(file.document_lengths(), 95)
    n_held_out = min((n for n in map(file.size, SPLITS[1:]) if n), default=len(file.ids))
    return [
        size
        for size in (2**power for power in range(4, 14))
        if file.size("train") // size > MIN_WINDOWS and size <= n_held_out and size < 2 * long
    ]


def pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Return the string of each token id."""
    spell = tokenizer.incremental_decoder()
    return [spell(id_) for id_ in ids.tolist()]


def _tokenized(string: str, tokenizer: Tokenizer) -> str:
    ids = tokenizer.encode(string, "skip")
    line = f"{len(ids)} tokens: {'|'.join(map(visible, pieces(tokenizer, ids)))}"
    try:
        tokenizer.encode(string)
    except UnknownPieces as error:
        line += f"   unknown: {' '.join(map(visible, error.pieces))}"
    return line


def table(columns: dict[str, dict[str, str]]) -> str:
    """Return a table of statistics by name, with a column for each tokenizer."""
    names = next(iter(columns.values()))
    rows = [["", *columns], *([n, *(each[n] for each in columns.values())] for n in names)]
    return "\n".join(align_columns(rows))


def known_corpora(folder: Path) -> str:
    """Return a line for each known corpus, with its folder: GPTLIT_DATA_DIR or `folder`."""
    lines = []
    shared = os.environ.get("GPTLIT_DATA_DIR")
    places = [Path(shared), folder] if shared else [folder]
    for name, corpus in CORPORA.items():
        place = next((each for each in places if (each / corpus.filename).is_file()), None)
        cached = f"in {place}" if place else "not fetched yet"
        size = f"{corpus.n_bytes / 1e6:.1f} MB"
        lines.append(f"{name:<16}{size:<8}{corpus.about}; {corpus.licence}; {cached}")
    return "\n".join(lines)


def _prepared(text: Text, name: str, splitting: Splitting, options: Namespace) -> TokenFile:
    return prepare.prepare(
        text,
        Path(options.data_dir).expanduser() / "tokens",
        tokenizer=dataclasses.replace(parse_options(name), eos=options.eos),
        splitting=splitting,
        own_texts={},
    )


def _advise(options: Namespace, text: Text, splitting: Splitting, words: Sequence[str]) -> None:
    """Print an advised config, and explain it on stderr.

    Args:
        options: Options of `gptlit data`.
        words: The same, as they were given.
    """
    given = {word.partition("=")[0] for word in words}
    names = options.tokenizer or DEFAULT_TOKENIZERS[0]
    names = [names] if isinstance(names, str) else names
    if len(names) != 1:
        raise UsageError("must be one tokenizer with --advise", "tokenizer", names)
    if options.tokenize is not None:
        raise UsageError("is not used with --advise; leave it out", "tokenize", options.tokenize)
    minutes = advising.MINUTES if options.minutes is None else options.minutes
    file = _prepared(text, names[0], splitting, options)
    if "--val_fraction" not in given:
        n_chars = sum(each["characters"] for each in file.provenance["sizes"].values())
        splitting = dataclasses.replace(splitting, val_fraction=advice.val_fraction(n_chars))
        file = _prepared(text, names[0], splitting, options)
    advised = advice.advise(advising.text_size(file), minutes)
    for line in (*file.provenance["report"], *advising.explain(advised, file, minutes)):
        note(line)
    data = _data_options(options, text, names[0]) | {"val_fraction": splitting.val_fraction}
    config = advising.config(advised, data, small_texts.beginning(text))
    command = shlex.join(["gptlit", "data", *words])
    print(advising.as_yaml(config, command), end="")


def _data_options(options: Namespace, text: Text, tokenizer: str) -> dict[str, Any]:
    """Return the options of the text that differ from their defaults, for `gptlit fit`."""
    given: dict[str, Any] = {"corpus" if options.text in CORPORA else "path": text.name}
    if tokenizer != DEFAULT_TOKENIZERS[0]:
        given["tokenizer"] = tokenizer
    found, defaults = options.as_dict(), parser().get_defaults().as_dict()
    cleaning, usual = found["cleaning"], defaults["cleaning"]
    if changed := {name: each for name, each in cleaning.items() if each != usual[name]}:
        given["cleaning"] = changed
    return given | {name: found[name] for name in OF_FIT if found[name] != defaults[name]}


# this verb's options are those of fit without their group
@errors_naming(lambda name: f"--{name.removeprefix('data.')}")
def main(argv: Sequence[str]) -> None:
    """Run `gptlit data` with these arguments.

    Raises:
        UsageError: An argument or the text is invalid.
    """
    words = [*from_environment("data"), *argv]
    options = parser().parse_args(words)
    folder = Path(options.data_dir).expanduser()
    if options.text == "list":
        print(known_corpora(folder))
        return
    path = None if options.text in CORPORA else options.text
    if path and not Path(path).exists() and not set(path) & set("*?["):
        raise UsageError(
            f"{path}: no such file, and not one of the known {', '.join(CORPORA)}; "
            "gptlit data list describes them"
        )
    reading = {name: options[name] for name in ("format", "jsonl_field", "column", "encoding")}
    cleaning = CleaningOptions(**options.cleaning.as_dict())
    text_options = TextOptions(options.text, path, cleaning=cleaning, **reading)
    text = catalog.load(text_options, folder, path_option="gptlit data")
    splitting = Splitting(**{name: options[name] for name in Splitting.__dataclass_fields__})
    if options.format != "text":
        splitting = dataclasses.replace(splitting, split_by="documents")
    if options.advise:
        _advise(options, text, splitting, words)
        return
    if options.minutes is not None:
        raise UsageError("needs --advise; give that as well", "minutes", options.minutes)
    chosen = options.tokenizer or (["char"] if options.tokenize is None else DEFAULT_TOKENIZERS)
    files: dict[str, TokenFile] = {}
    failed: dict[str, str] = {}
    for name in [chosen] if isinstance(chosen, str) else chosen:
        try:
            files[name] = _prepared(text, name, splitting, options)
        except UsageError as error:
            if options.tokenizer or name == DEFAULT_TOKENIZERS[0]:
                raise
            failed[name] = str(error)  # of the tokenizers that are compared by default
    for line in next(iter(files.values())).provenance["report"]:
        note(line)
    if options.tokenize is None:
        print(f"{text.name}\n{table({name: statistics(file) for name, file in files.items()})}")
        return
    lines = {name: _tokenized(options.tokenize, file.tokenizer) for name, file in files.items()}
    lines |= failed
    indent = max(map(len, lines)) + 2
    for name, line in lines.items():
        wrapped = textwrap.wrap(line, max(20, columns() - indent), break_on_hyphens=False)
        print(name.ljust(indent) + f"\n{' ' * indent}".join(wrapped))
