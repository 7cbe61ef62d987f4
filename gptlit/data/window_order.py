"""The order of a text's windows, a pure function of (seed, epoch, position).

It is computed, not stored. Ranks, accumulation and limits only divide the stream of windows.
"""

from typing import Literal, TypeVar

import numpy as np

Windows = Literal["pass", "side_by_side", "every_offset", "random", "documents"]
ROUNDS = 6  # of the Feistel network
MASK = 2**64 - 1
Bits = TypeVar("Bits", int, np.ndarray)


def _mix(x: Bits) -> Bits:
    """Mix 64 bits by splitmix64's finalizer (Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def hashed(*values: int) -> int:
    """Return 64 bits that depend on all values and their order."""
    state = 0
    for value in values:
        state = _mix((state + 0x9E3779B97F4A7C15 + value) & MASK)
    return state


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Return where a keyed shuffle of range(size) puts each index, without storing the shuffle.

    A Feistel network is a bijection of 2^(2 b) numbers. Applied again while the result is not
    below `size`, it is a bijection of range(size) (Black and Rogaway 2002, "cycle walking"). At
    most four applications are expected.

    Args:
        index: Integers in [0, size), any shape.
        size: Number of shuffled items, at least 1.
        key: Key of the shuffle.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    keys = [hashed(key, round_) for round_ in range(ROUNDS)]

    def shuffle_once(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        return (left << half) | right

    x = shuffle_once(np.asarray(index, dtype=np.uint64))
    while (outside := x >= size).any():
        x[outside] = shuffle_once(x[outside])
    return x.astype(np.int64)


class Places:
    """Numbers the items of all pieces, one piece after the other.

    Args:
        counts: (n,) number of items in each piece.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def find(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the piece of each item, and the item's number within the piece."""
        piece = np.searchsorted(self._ends, index, "right")
        return piece, index - np.where(piece > 0, self._ends[piece - 1], 0)


class SideBySide:
    """Windows of up to block_size tokens that cover pieces, each from its start.

    An array or a slice as the index gives (n, 2) int64, first and last-plus-one token of each
    window. They are computed, not stored.

    Args:
        pieces: (m, 2) first and last-plus-one token of each piece.
        block_size: T
    """

    def __init__(self, pieces: np.ndarray, block_size: int) -> None:
        self._pieces = pieces
        self._block_size = block_size
        self._places = Places(-(-(pieces[:, 1] - pieces[:, 0]) // block_size))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        piece, nth = self._places.find(index)
        starts = self._pieces[piece, 0] + nth * self._block_size
        ends = np.minimum(starts + self._block_size, self._pieces[piece, 1])
        return np.stack([starts, ends], axis=1)


class Sliding:
    """Windows of up to block_size tokens, of which all but a piece's first score the last ones.

    Each window begins `stride` tokens after the one before, and scores those of its tokens that no
    window before it has. So each token is scored once, and in all but the first window it is
    predicted from at least block_size - stride tokens, and from at most block_size. With a stride
    of block_size they are `SideBySide`'s.

    An array or a slice as the index gives (n, 3) int64, first and last-plus-one token of each
    window, and the first that is scored.

    Args:
        pieces: (m, 2) first and last-plus-one token of each piece.
        block_size: T
        stride: From 1 to T.
    """

    def __init__(self, pieces: np.ndarray, block_size: int, stride: int) -> None:
        self._pieces = pieces
        self._sizes = block_size, stride
        lengths = pieces[:, 1] - pieces[:, 0]
        more = -(-np.maximum(0, lengths - block_size) // stride)
        self._places = Places((lengths > 0) + more)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        block_size, stride = self._sizes
        piece, nth = self._places.find(index)
        starts = self._pieces[piece, 0] + nth * stride
        ends = np.minimum(starts + block_size, self._pieces[piece, 1])
        scored = starts + np.where(nth > 0, block_size - stride, 0)
        return np.stack([starts, ends, scored], axis=1)


class WindowOrder:
    """The order of training windows. A window has block_size tokens and the next one.

    | windows      | an epoch                                                              |
    | ------------ | --------------------------------------------------------------------- |
    | pass         | one shuffled pass, side by side, shifted by a random phase            |
    | side_by_side | the same without the shift                                            |
    | every_offset | a window from every token, shuffled                                   |
    | random       | as many windows as a pass, from anywhere, with replacement            |
    | documents    | each document side by side from its start, its last window shorter    |

    No window crosses the end of a piece. A pass over a piece of n tokens has n // block_size - 1
    windows for any phase.

    Args:
        pieces: (n, 2) first and last-plus-one token of the pieces to cut windows from: the spans
            of the training split, or for "documents" its documents.
        block_size: T
        seed: Seed of phases, shuffles and draws.
        windows: One of the five orders.
        together: Number of consecutive windows that stay together, in their order, for "documents".
    """

    def __init__(
        self,
        pieces: np.ndarray,
        block_size: int,
        seed: int,
        windows: Windows = "pass",
        together: int = 1,
    ) -> None:
        self._together = together
        self.block_size = block_size
        self.seed = seed
        self.windows = windows
        lengths = pieces[:, 1] - pieces[:, 0]
        n_side_by_side = np.maximum(0, lengths // block_size - 1)
        n_starts = np.maximum(0, lengths - block_size)
        counts = n_starts if windows in ("every_offset", "random") else n_side_by_side
        self._firsts = pieces[:, 0]
        self._places = Places(counts)
        self._documents = SideBySide(pieces, block_size)
        if windows == "random":
            self.n_windows = int(n_side_by_side.sum())
        else:
            self.n_windows = len(self._documents if windows == "documents" else self._places)

    def starts(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return int64 first tokens of the windows at these positions of an epoch."""
        key = hashed(self.seed, epoch, 1)
        if self.windows == "random":
            drawn = _mix(_mix(np.asarray(positions, dtype=np.uint64) + key % 2**63) ^ key)
            return self._start((drawn % len(self._places)).astype(np.int64), 1)
        index = permute(positions, self.n_windows, key)
        if self.windows == "every_offset":
            return self._start(index, 1)
        phase = hashed(self.seed, epoch, 0) % self.block_size if self.windows == "pass" else 0
        return phase + self._start(index, self.block_size)

    def _start(self, index: np.ndarray, stride: int) -> np.ndarray:
        """Return the first tokens of the `index`-th windows of the text, `stride` tokens apart."""
        piece, nth = self._places.find(index)
        return self._firsts[piece] + nth * stride

    def bounds(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return (n, 2) int64 first and last-plus-one token of windows, for "documents"."""
        group, nth = np.divmod(positions, self._together)
        group = permute(group, self.n_windows // self._together, hashed(self.seed, epoch, 1))
        return self._documents[group * self._together + nth]
