"""Finds what a text has copied from the training text, exactly.

A stretch of WINDOW characters has at least as many bytes, so it contains GRAM bytes that stand in
the training text at a multiple of STRIDE, wherever it was copied from. An index of these GRAM bytes
gives the places where a stretch can have been copied from, and the text there is compared.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptlit.data.decoded_text import DecodedText

WINDOW = 32  # characters; shorter copies are not found
MARKED = 50  # characters of a copied stretch that is marked
GRAM = 16  # bytes
STRIDE = WINDOW - GRAM + 1
BLOCK = 1 << 18  # grams that are sorted together
COMPARED = 1 << 23  # bytes that are compared together, about
IN_MEMORY = 1 << 22  # most grams that are kept in memory; more are kept in a file
ENTRY = np.dtype([("key", np.uint64), ("place", np.int64)])


@dataclass(frozen=True)
class Copied:
    """Result of a search for copies.

    Args:
        novelty: Share of the text's stretches of WINDOW characters that don't stand in the training
            text; NaN in a shorter text.
        longest: Characters of the longest copied stretch; 0 if it is shorter than WINDOW.
        stretches: First and last-plus-one character of each copied stretch of MARKED or more, in
            their order; overlapping ones are joined.
    """

    novelty: float
    longest: int
    stretches: list[tuple[int, int]]

    def __str__(self) -> str:
        if math.isnan(self.novelty):
            return f"novelty not known, since it is shorter than {WINDOW} characters"
        longest = f", longest copy {self.longest} characters" if self.longest else ""
        return f"novelty {self.novelty:.3f}{longest}"

    def as_row(self) -> dict[str, Any]:
        """Return the fields for a line of JSON, which has no NaN."""
        novelty = None if math.isnan(self.novelty) else self.novelty
        return {"novelty": novelty, "longest_copy": self.longest, "copied": self.stretches}

    def mark(self, text: str) -> str:
        """Return the text with its copied stretches in brackets."""
        parts, end = [], 0
        for first, last in self.stretches:
            parts += [text[end:first], "[[", text[first:last], "]]"]
            end = last
        return "".join([*parts, text[end:]])


class TrainingText:
    """An index of a training text, which finds copied stretches.

    It takes 1/17 of the text's bytes, 16 bytes each, in memory or, beyond IN_MEMORY, in a temporary
    file; 2 GB take a file of 2 GB.

    Args:
        text: The decoded training text.
        folder: Folder of the temporary file.

    Raises:
        OSError: The file can't be written.
    """

    def __init__(self, text: DecodedText, folder: Path) -> None:
        self._text = text
        self._blocks: list[np.ndarray] = []
        self._in_memory = 0
        self._folder = folder
        rest, n_before = np.zeros(0, dtype=np.uint8), 0  # bytes of grams to come, and those before
        grams: list[np.ndarray] = []
        for part in text.chunks():
            rest = np.concatenate([rest, part])
            skipped = -n_before % STRIDE
            n = max(0, (len(rest) - skipped - GRAM) // STRIDE + 1)
            if n:
                found = np.empty(n, dtype=ENTRY)
                found["key"] = _keys(rest[skipped:], STRIDE)
                found["place"] = n_before + skipped + STRIDE * np.arange(n)
                grams.append(found)
                n_read = skipped + n * STRIDE
                rest, n_before = rest[n_read:], n_before + min(n_read, len(rest))
            if sum(map(len, grams)) >= BLOCK:
                self._add(np.concatenate(grams))
                grams = []
        if grams:
            self._add(np.concatenate(grams))
        self.n_bytes = n_before + len(rest)

    def _add(self, grams: np.ndarray) -> None:
        grams = grams[np.argsort(grams["key"], kind="stable")]
        self._in_memory += len(grams)
        if self._in_memory > IN_MEMORY:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # not through the map, where a full disk would end the process
                file.write(grams.data)
                file.flush()
                grams = np.memmap(file, dtype=ENTRY, mode="r", shape=grams.shape)
        self._blocks.append(grams)

    def copied(self, text: str, n_prompt: int = 0) -> Copied:
        """Find what a text has copied.

        Args:
            text: A text.
            n_prompt: Characters of a prompt; stretches within it are not counted.
        """
        sizes = np.array(
            [len(character.encode(errors="replace")) for character in text], dtype=np.int64
        )
        edges = np.concatenate([[0], sizes.cumsum()])  # first byte of each character, and the end
        is_copied = np.zeros(max(0, len(text) - WINDOW + 1), dtype=bool)  # of each window
        is_marked = np.zeros(len(text) + 1, dtype=bool)
        longest = 0
        for start, end in self._runs(np.frombuffer(text.encode(errors="replace"), dtype=np.uint8)):
            first = int(np.searchsorted(edges, start))
            last = int(np.searchsorted(edges, end, "right")) - 1
            if last - first >= WINDOW and last > n_prompt:
                is_copied[first : last - WINDOW + 1] = True
                longest = max(longest, last - first)
                is_marked[first:last] |= last - first >= MARKED
        counted = is_copied[max(0, n_prompt - WINDOW + 1) :]
        novelty = 1 - float(counted.mean()) if len(counted) else float("nan")
        flips = np.flatnonzero(np.diff(is_marked, prepend=False))
        stretches = zip(flips[::2].tolist(), flips[1::2].tolist(), strict=True)
        return Copied(novelty, longest, list(stretches))

    def _runs(self, text: np.ndarray) -> set[tuple[int, int]]:
        """Return first and last-plus-one byte of the stretches of at least WINDOW bytes that stand
        in the training text, each as long as it is in one place there."""
        runs: set[tuple[int, int]] = set()
        if len(text) < WINDOW:
            return runs
        keys = _keys(text, 1)
        for block in self._blocks:
            low = np.searchsorted(block["key"], keys, "left")
            high = np.searchsorted(block["key"], keys, "right")
            # place in the training text less that in the text
            shifts = [block["place"][low[at] : high[at]] - at for at in np.flatnonzero(high > low)]
            rest = np.unique(np.concatenate(shifts)) if shifts else np.zeros(0, dtype=np.int64)
            while len(rest):
                n = np.searchsorted(rest, rest[0] + COMPARED // len(text))
                runs |= self._runs_at(text, rest[:n])
                rest = rest[n:]
        return runs

    def _runs_at(self, text: np.ndarray, shifts: np.ndarray) -> set[tuple[int, int]]:
        """Return the stretches that stand in the training text at (n,) nearby places, sorted."""
        first, end = max(0, shifts[0]), min(self.n_bytes, shifts[-1] + len(text))
        theirs, is_start = self._text.read(first, end)
        places = shifts[:, None] + np.arange(len(text)) - first  # (n, len(text))
        is_equal = (places >= 0) & (places < len(theirs))
        places = places.clip(0, len(theirs) - 1)
        is_equal &= theirs[places] == text
        # stretches begin and end where bytes differ, and before another piece
        is_cut = is_start[places] | ~is_equal
        is_cut[:, 1:] |= ~is_equal[:, :-1]
        is_cut[:, 0] = True
        cuts = np.flatnonzero(is_cut)
        lengths = np.diff(cuts, append=is_cut.size)
        is_run = (lengths >= WINDOW) & is_equal.ravel()[cuts]
        begins = cuts[is_run] % len(text)
        return set(zip(begins.tolist(), (begins + lengths[is_run]).tolist(), strict=True))


def _keys(text: np.ndarray, stride: int) -> np.ndarray:
    """Return a hash of the GRAM bytes at each multiple of the stride."""
    grams = np.lib.stride_tricks.sliding_window_view(text, GRAM)[::stride]
    words = np.ascontiguousarray(grams).view(np.uint64)  # (n, 2)
    mixed = words * np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)
    return mixed[:, 0] ^ (mixed[:, 1] >> np.uint64(29)) ^ mixed[:, 1]
