"""A token file: the memory-mapped token ids of a text, and a file of facts about them."""

import dataclasses
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

DATA_DIR = "data"  # for texts and token files, under the current folder

Pieces = np.ndarray  # (n, 2) int64: first and last-plus-one token of each


@dataclass(frozen=True)
class TokenFile:
    """The tokens of a text in order, followed by those of separate validation and test texts.

    Args:
        ids: All token ids, memory-mapped.
        document_ends: Number of tokens up to the end of each document, memory-mapped.
        spans: First and last-plus-one token of each span of each split.
        text_starts: Tokens at which a text begins.
        tokenizer: Tokenizer that made the ids.
        provenance: Names, hashes, splits and sizes of the texts, as plain data.
        part_ends: In a text of examples, tokens up to the end of each prompt and each answer, in
            turn; a document is a prompt with its answer. None in any other text.
    """

    ids: np.ndarray
    document_ends: np.ndarray
    spans: dict[str, list[list[int]]]
    text_starts: list[int]
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    part_ends: np.ndarray | None = None

    def of_examples(self) -> "TokenFile":
        """Return the same file, whose documents are prompts and answers in turn, as examples."""
        ends = self.document_ends
        return dataclasses.replace(self, document_ends=ends[1::2], part_ends=ends)

    def is_scored(self, positions: np.ndarray) -> np.ndarray:
        """Return whether the tokens at these positions are scored: in examples, answers are."""
        if self.part_ends is None:
            return np.ones(positions.shape, dtype=bool)
        return np.searchsorted(self.part_ends, positions, "right") % 2 == 1

    def size(self, split: str) -> int:
        """Return the number of tokens of a split."""
        return sum(end - first for first, end in self.spans[split])

    def n_bytes(self, split: str) -> int:
        """Return the number of UTF-8 bytes of a split's text."""
        return int(self.provenance["sizes"][split]["bytes"])

    def bytes_per_token(self, split: str) -> float:
        """Return the UTF-8 bytes per token that is scored in a split."""
        if self.part_ends is None:
            return self.n_bytes(split) / self.size(split)
        at = np.concatenate([np.arange(first, end) for first, end in self.spans[split]])
        ids, counts = np.unique(self.ids[at[self.is_scored(at)]], return_counts=True)
        sizes = [len(self.tokenizer.piece(int(id_))) for id_ in ids]
        return float(np.dot(sizes, counts) / counts.sum())

    def incomparable(self, split: str) -> str:
        """Return why bits per byte of a split don't compare across tokenizers; "" if they do."""
        if not (size := self.size(split)):
            return ""
        if n_unknown := self.provenance["sizes"][split]["unknown"]:
            return f"{n_unknown / size:.2%} of its tokens are unknown words"
        return "" if self.tokenizer.is_lossless else "its whitespace isn't predicted"

    def split(self, split: str) -> np.ndarray:
        """Return the ids of a split; a copy if it has several spans."""
        parts = [self.ids[first:end] for first, end in self.spans[split]]
        return parts[0] if len(parts) == 1 else np.concatenate([self.ids[:0], *parts])

    def pieces(self, split: str, by_document: bool = False) -> Pieces:
        """Return (n, 2) first and last-plus-one token of each contiguous piece of a split: of its
        spans, or, with `by_document`, of the documents in them."""
        spans = np.array(self.spans[split], dtype=np.int64).reshape(-1, 2)
        if not by_document:
            return spans
        pieces = [spans[:0]]
        for first, end in spans:
            after = np.searchsorted(self.document_ends, first, "right")
            until = np.searchsorted(self.document_ends, end, "left")
            cuts = np.concatenate([[first], self.document_ends[after:until], [end]])
            pieces.append(np.stack([cuts[:-1], cuts[1:]], axis=1))
        return np.concatenate(pieces)

    def document_lengths(self) -> np.ndarray:
        """Return (n_documents,) tokens of each document."""
        return np.diff(self.document_ends, prepend=0)

    def inputs_before(self, positions: np.ndarray, by_document: bool = False) -> np.ndarray:
        """Return (n,) int64 inputs that precede the tokens at (n,) positions.

        The input is the token before in the text, also for the first token of a split. At the
        start of a text, and with `by_document` of a document, it is the tokenizer's start id.
        """
        before = self.ids[positions - 1].astype(np.int64)  # (n,)
        is_start = np.isin(positions, self.text_starts)
        if by_document:
            nearest = np.searchsorted(self.document_ends, positions)
            nearest = np.minimum(nearest, len(self.document_ends) - 1)
            is_start |= self.document_ends[nearest] == positions
        before[is_start] = self.tokenizer.start_id
        return before


def padding(n_bytes: int) -> int:
    """Return the bytes between the ids and the document ends, which are aligned to 8 bytes."""
    return -n_bytes % 8


def write(facts: dict[str, Any], path: Path) -> None:
    """Write the facts about a file of ids, with their checksum, for `read`.

    Args:
        facts: "dtype", "n_tokens", "sha256" of the file of ids, "spans", "text_starts",
            "tokenizer", "provenance".
        path: Path to write.
    """
    content = json.dumps(facts)
    path.write_text(f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}", encoding="utf-8")


def read(data_path: Path, facts_path: Path, check: bool = True) -> TokenFile | None:
    """Return the token file at these paths, or None if it is missing, truncated or altered.

    `check` compares the checksum of the ids.
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
    # the document ends follow the ids
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
    """Refuse a folder for texts that only a checkpoint names and that gptlit did not make.

    Raises:
        UsageError: Names the folder.
    """
    if str(folder) != DATA_DIR and not has_tokens(folder):
        raise UsageError(
            f"{path}: names {folder} as the folder for texts, which gptlit has not made; give "
            "data_dir to name another"
        )


def has_tokens(folder: Path) -> bool:
    """Return whether gptlit has made token files in a folder."""
    facts = (folder.expanduser() / "tokens").glob("*.json")
    return any(path.with_suffix(".bin").is_file() for path in facts)
