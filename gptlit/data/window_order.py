"""Which window of a text comes when: arithmetic, with nothing stored and nothing to lose.

The stream of windows is a pure function of (seed, epoch, position). Ranks, accumulation and
limits only cut it.
"""

from typing import Literal, TypeVar

import numpy as np

ROUNDS = 6


MASK = 2**64 - 1
Bits = TypeVar("Bits", int, np.ndarray)


def _mix(x: Bits) -> Bits:
    """splitmix64's finalizer (Steele et al. 2014): 64 bits in, 64 well-mixed bits out."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def hashed(*values: int) -> int:
    """64 bits that depend on all of the values and their order."""
    state = 0
    for value in values:
        state = _mix((state + 0x9E3779B97F4A7C15 + value) & MASK)
    return state


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed shuffle of range(size) puts each index, without storing the shuffle.

    A Feistel network is a bijection of the 2^(2 b) numbers it works on; walking on along its
    cycle until a number below `size` appears makes it one of range(size) (Black and Rogaway
    2002, "cycle walking"). At most four steps are expected.

    Args:
        index: Integers in [0, size), any shape.
        size: The number of things shuffled, at least 1.
        key: Which of the shuffles.
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


Windows = Literal["pass", "side_by_side", "every_offset", "random", "documents"]


class Places:
    """Things counted through one piece after the other.

    Args:
        counts: (n,) how many there are in each piece.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self._behind = np.cumsum(counts)  # things up to the end of each piece

    def __len__(self) -> int:
        return int(self._behind[-1]) if len(self._behind) else 0

    def find(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The piece of each of these things, and how many of that piece come before it."""
        piece = np.searchsorted(self._behind, index, "right")
        return piece, index - np.where(piece > 0, self._behind[piece - 1], 0)


class SideBySide:
    """Windows of up to block_size tokens that cover pieces, each from its start.

    Indexed by an array or a slice it gives (n, 2) int64, the first and last-plus-one token of
    each window; none of them is stored.

    Args:
        pieces: (m, 2) first and last-plus-one token of each.
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


class WindowOrder:
    """The order of training windows. A window is block_size tokens and the next one.

    | windows      | an epoch                                                              |
    | ------------ | --------------------------------------------------------------------- |
    | pass         | one shuffled pass, side by side, shifted by a random phase            |
    | side_by_side | the same without the shift (S1)                                       |
    | every_offset | a window from every token, shuffled (S5)                              |
    | random       | as many windows as a pass, from anywhere, with replacement (S2, S5)   |
    | documents    | each document side by side from its start, its last window shorter    |

    No window crosses the end of a piece. Of n tokens in a piece a pass takes n // block_size - 1
    windows, whatever its phase.

    Args:
        pieces: (n, 2) first and last-plus-one token of the stretches to cut windows from: the
            spans of the training split, or for "documents" its documents.
        block_size: T
        seed: Of phases, shuffles and draws.
        windows: Which of the five.
    """

    def __init__(
        self, pieces: np.ndarray, block_size: int, seed: int, windows: Windows = "pass"
    ) -> None:
        self.block_size = block_size
        self.seed = seed
        self.windows = windows
        lengths = pieces[:, 1] - pieces[:, 0]
        a_pass = np.maximum(0, lengths // block_size - 1)
        from_anywhere = np.maximum(0, lengths - block_size)
        counts = from_anywhere if windows in ("every_offset", "random") else a_pass
        self._firsts = pieces[:, 0]
        self._places = Places(counts)
        self._documents = SideBySide(pieces, block_size)
        if windows == "random":
            self.n_windows = int(a_pass.sum())
        else:
            self.n_windows = len(self._documents if windows == "documents" else self._places)

    def starts(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The first token of the windows at these positions of an epoch, int64."""
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
        """Where the windows lie that come `index`-th in the text, `stride` tokens apart."""
        piece, nth = self._places.find(index)
        return self._firsts[piece] + nth * stride

    def bounds(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """(n, 2) int64: of "documents", the first and last-plus-one token of each window."""
        return self._documents[permute(positions, self.n_windows, hashed(self.seed, epoch, 1))]
