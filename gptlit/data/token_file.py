"""A text as numbers, once: a flat memory-mapped file of token ids, and what is known of it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlit.files import sha256_of
from gptlit.messages import UsageError
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import from_state

DATA_DIR = "data"  # where any run keeps texts and tokens, under the current folder

Pieces = np.ndarray  # (n, 2) int64: first and last-plus-one token of each


@dataclass(frozen=True)
class TokenFile:
    """The tokens of a text, in its order, and behind them those of texts of their own.

    Args:
        ids: All token ids, memory-mapped.
        document_ends: How many tokens come up to each document's end, memory-mapped.
        spans: The first and last-plus-one token of each span of each split.
        text_starts: The tokens at which a text begins.
        tokenizer: What made the ids.
        provenance: The texts' names and hashes, splits and sizes, as plain data.
    """

    ids: np.ndarray
    document_ends: np.ndarray
    spans: dict[str, list[list[int]]]
    text_starts: list[int]
    tokenizer: Tokenizer
    provenance: dict[str, Any]

    def size(self, split: str) -> int:
        """The number of tokens in a split."""
        return sum(end - first for first, end in self.spans[split])

    def n_bytes(self, split: str) -> int:
        """The number of UTF-8 bytes of a split's text."""
        return int(self.provenance["sizes"][split]["bytes"])

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of a split's text per token of it."""
        return self.n_bytes(split) / self.size(split)

    def unknown_share(self, split: str) -> float:
        """The share of a split's tokens that stand for unknown words."""
        return self.provenance["sizes"][split]["unknown"] / max(1, self.size(split))

    def incomparable(self, split: str) -> str:
        """Why bits per byte of a split compare with no other tokenizer's; "" where they do."""
        if not self.size(split):
            return ""
        if share := self.unknown_share(split):
            return f"{share:.2%} of its tokens are unknown words"
        return "" if self.tokenizer.is_lossless else "its white space isn't predicted"

    def split(self, split: str) -> np.ndarray:
        """The ids of a split; a copy where it has several spans."""
        parts = [self.ids[first:end] for first, end in self.spans[split]]
        return parts[0] if len(parts) == 1 else np.concatenate([self.ids[:0], *parts])

    def pieces(self, split: str, by_document: bool = False) -> Pieces:
        """The stretches of a split in which tokens follow each other: its spans.

        Args:
            split: Which.
            by_document: Cut them at the ends of documents.
        """
        spans = np.array(self.spans[split], dtype=np.int64).reshape(-1, 2)
        if not by_document:
            return spans
        found = []
        for first, end in spans:
            after = np.searchsorted(self.document_ends, first, "right")
            until = np.searchsorted(self.document_ends, end, "left")
            cuts = np.concatenate([[first], self.document_ends[after:until], [end]])
            found.append(np.stack([cuts[:-1], cuts[1:]], axis=1))
        return np.concatenate([spans[:0], *found])

    def document_lengths(self) -> np.ndarray:
        """(n_documents,) tokens in each document."""
        return np.diff(self.document_ends, prepend=0)

    def inputs_before(self, positions: np.ndarray, by_document: bool = False) -> np.ndarray:
        """What the model sees before tokens: the one before each in the text, so that the first
        of a split is scored as any other; the tokenizer's start where a text begins.

        Args:
            positions: (n,) of the tokens.
            by_document: The start stands before each document as well.
        """
        before = self.ids[positions - 1].astype(np.int64)  # (n,)
        fresh = np.isin(positions, self.text_starts)
        if by_document:
            nearest = np.searchsorted(self.document_ends, positions)
            nearest = np.minimum(nearest, len(self.document_ends) - 1)
            fresh |= self.document_ends[nearest] == positions
        before[fresh] = self.tokenizer.start_id
        return before


def padding(n_bytes: int) -> int:
    """Bytes between the ids and the documents' ends, which are numbers of eight bytes."""
    return -n_bytes % 8


def write(facts: dict[str, Any], path: Path) -> None:
    """What `read` wants to know beside the ids, with a checksum of itself.

    Args:
        facts: "dtype", "n_tokens", "n_documents", "sha256" of the ids' file, "spans",
            "text_starts", "tokenizer", "provenance".
        path: Where to write it.
    """
    content = json.dumps(facts)
    path.write_text(f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}", encoding="utf-8")


def read(data_path: Path, facts_path: Path, check: bool = True) -> TokenFile | None:
    """The token file under these paths, or None where it is missing, truncated or altered.

    Args:
        data_path: Of the ids.
        facts_path: Of what `write` wrote.
        check: Read the ids once to compare their checksum.
    """
    try:
        sha256, content = facts_path.read_text(encoding="utf-8").split("\n", 1)
        if sha256 != hashlib.sha256(content.encode()).hexdigest():
            return None
        facts = json.loads(content)
        if check and facts["sha256"] != sha256_of(data_path):
            return None
    except (FileNotFoundError, ValueError):
        return None
    dtype, n_tokens = np.dtype(facts["dtype"]), facts["n_tokens"]
    # the ends of documents stand behind the ids
    raw = np.memmap(data_path, dtype=np.uint8, mode="r")
    n_bytes = n_tokens * dtype.itemsize
    return TokenFile(
        raw[:n_bytes].view(dtype),
        raw[n_bytes + padding(n_bytes) :].view(np.int64),
        facts["spans"],
        facts["text_starts"],
        from_state(facts["tokenizer"]),
        facts["provenance"],
    )


def check_data_dir(path: object, folder: Path) -> None:
    """Refuse a folder for texts that a checkpoint's hyperparameters name, and nobody else.

    Raises:
        UsageError: names the folder.
    """
    if str(folder) != DATA_DIR and not has_tokens(folder):
        raise UsageError(
            f"{path}: names {folder} as the folder for texts, which is none of gptlit's; give "
            "data_dir to say where instead"
        )


def has_tokens(folder: Path) -> bool:
    """Whether gptlit keeps texts in a folder already."""
    tokens = folder.expanduser() / "tokens"
    return any(each.with_suffix(".bin").is_file() for each in tokens.glob("*.json"))
