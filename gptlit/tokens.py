"""A text as numbers, once: a flat memory-mapped file of token ids, and what is known of it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlit import tokenizer as tokenizers
from gptlit.assets import write_atomically
from gptlit.corpora import Text
from gptlit.messages import UsageError
from gptlit.tokenizer import Tokenizer, TokenizerOptions, UnknownPieces

FORMAT = 3
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TokenFile:
    """The tokens of a text's splits, one behind the other in one file.

    Args:
        ids: All token ids, memory-mapped.
        spans: First and last-plus-one token of each split.
        tokenizer: What made the ids.
        provenance: The texts' names and hashes, splits and sizes, as plain data.
    """

    ids: np.ndarray
    spans: dict[str, tuple[int, int]]
    tokenizer: Tokenizer
    provenance: dict[str, Any]

    def size(self, split: str) -> int:
        """The number of tokens in a split."""
        first, end = self.spans[split]
        return end - first

    def n_bytes(self, split: str) -> int:
        """The number of UTF-8 bytes of a split's text."""
        return int(self.provenance["sizes"][split]["bytes"])

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of a split's text per token of it."""
        return self.n_bytes(split) / self.size(split)

    def unknown_share(self, split: str) -> float:
        """The share of a split's tokens that stand for unknown words; no figure of such a
        split compares across tokenizers."""
        return self.provenance["sizes"][split]["unknown"] / self.size(split)

    def split(self, split: str) -> np.ndarray:
        """The ids of a split."""
        first, end = self.spans[split]
        return self.ids[first:end]

    def input_before(self, split: str) -> int:
        """What the model sees before a split's first token.

        The token before it in the text, so that the first one is scored as any other; the
        tokenizer's start where the split begins a text.
        """
        first, _ = self.spans[split]
        own_text = split in self.provenance["own_texts"]
        return self.tokenizer.start_id if first == 0 or own_text else int(self.ids[first - 1])


def split_text(text: str, val_fraction: float, test_fraction: float) -> dict[str, str]:
    """Training, validation and test characters, in this order in the text.

    The training split ends at int((1 - val_fraction - test_fraction) * len(text)).

    Raises:
        UsageError: a fraction outside [0, 1), or nothing left to train on.
    """
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise UsageError(f"--data.{name} {value}: must be at least 0 and below 1")
    if val_fraction + test_fraction >= 1:
        raise UsageError(
            f"--data.val_fraction {val_fraction} and --data.test_fraction {test_fraction} leave "
            "nothing to train on; their sum must be below 1"
        )
    train_end = int((1 - val_fraction - test_fraction) * len(text))
    val_end = int((1 - test_fraction) * len(text)) if test_fraction else len(text)
    return {"train": text[:train_end], "val": text[train_end:val_end], "test": text[val_end:]}


def prepare(
    text: Text,
    folder: Path,
    *,
    tokenizer: TokenizerOptions | Tokenizer,
    val_fraction: float,
    test_fraction: float,
    own_texts: dict[str, Text],
) -> TokenFile:
    """The token file of a text, made under `folder` unless it is there already.

    Args:
        text: What is trained on, and split unless there are texts of their own.
        folder: Where token files are kept.
        tokenizer: Options to make one by, or a finished tokenizer.
        val_fraction: The share of characters at the end of the text for validation.
        test_fraction: The same for the test split, behind the validation split.
        own_texts: Texts of their own for "val" or "test".

    Raises:
        UsageError: fractions that don't work, or characters that a finished tokenizer
            doesn't know.
    """
    state: Any = tokenizer.state() if isinstance(tokenizer, Tokenizer) else asdict(tokenizer)
    hashes = {name: own.sha256 for name, own in own_texts.items()}
    wanted = [FORMAT, text.sha256, hashes, state, val_fraction, test_fraction]
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    stem = f"{Path(text.name).stem}-{key}"
    data_path, facts_path = folder / f"{stem}.bin", folder / f"{stem}.json"
    if not (found := _open(data_path, facts_path)):
        splits = split_text(text.text, val_fraction, test_fraction)
        splits |= {name: own.text for name, own in own_texts.items()}
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = tokenizers.train(tokenizer, splits, folder.parent)
        _write(data_path, facts_path, text, splits, tokenizer, own_texts)
        found = _open(data_path, facts_path)
        if not found:
            raise OSError(f"{data_path} could not be read back")
    return found


def _write(
    data_path: Path,
    facts_path: Path,
    text: Text,
    splits: dict[str, str],
    tokenizer: Tokenizer,
    own_texts: dict[str, Text],
) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    try:
        parts = [tokenizer.encode(splits[name]).astype(dtype) for name in SPLITS]
    except UnknownPieces as error:
        raise UsageError(f"{text.name}: {error}; this model can't read that text") from error
    ends = np.cumsum([len(part) for part in parts]).tolist()
    spans = dict(zip(SPLITS, zip([0, *ends], ends, strict=False), strict=True))
    strange = -1 if tokenizer.unknown_id is None else tokenizer.unknown_id
    sizes = {
        name: {
            "characters": len(splits[name]),
            "bytes": len(splits[name].encode()),
            "unknown": int((part == strange).sum()),
        }
        for name, part in zip(SPLITS, parts, strict=True)
    }
    provenance = {
        "name": text.name,
        "sha256": text.sha256,
        "own_texts": {name: [own.name, own.sha256] for name, own in own_texts.items()},
        "sizes": sizes,
        "report": [line for each in (text, *own_texts.values()) for line in each.report],
    }
    facts = {
        "dtype": np.dtype(dtype).name,
        "spans": spans,
        "tokenizer": tokenizer.state(),
        "provenance": provenance,
    }
    # the facts come last: where they are, the ids are whole
    write_atomically(data_path, np.concatenate(parts).tobytes())
    write_atomically(facts_path, json.dumps(facts).encode())


def _open(data_path: Path, facts_path: Path) -> TokenFile | None:
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        dtype = np.dtype(facts["dtype"])
        spans = {name: (first, end) for name, (first, end) in facts["spans"].items()}
        n_tokens = max(end for _, end in spans.values())
        if data_path.stat().st_size != n_tokens * dtype.itemsize:
            return None
        ids = np.memmap(data_path, dtype=dtype, mode="r")
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    tokenizer = tokenizers.from_state(facts["tokenizer"])
    return TokenFile(ids, spans, tokenizer, facts["provenance"])
