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


Windows = Literal["pass", "side_by_side", "every_offset", "random"]


class WindowOrder:
    """The order of training windows. A window is block_size tokens and the next one.

    | windows      | an epoch                                                              |
    | ------------ | --------------------------------------------------------------------- |
    | pass         | one shuffled pass, side by side, shifted by a random phase            |
    | side_by_side | the same without the shift (S1)                                       |
    | every_offset | a window from every token, shuffled (S5)                              |
    | random       | as many windows as a pass, from anywhere, with replacement (S2, S5)   |

    A pass has n_tokens // block_size - 1 windows whatever its phase.

    Args:
        n_tokens: Tokens in the training split.
        block_size: T
        seed: Of phases, shuffles and draws.
        windows: Which of the four.
    """

    def __init__(
        self, n_tokens: int, block_size: int, seed: int, windows: Windows = "pass"
    ) -> None:
        self.block_size = block_size
        self.seed = seed
        self.windows = windows
        self.n_starts = n_tokens - block_size
        a_pass = n_tokens // block_size - 1
        self.n_windows = self.n_starts if windows == "every_offset" else a_pass

    def starts(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The first token of the windows at these positions of an epoch, int64."""
        key = hashed(self.seed, epoch, 1)
        if self.windows == "random":
            drawn = _mix(_mix(np.asarray(positions, dtype=np.uint64) + key % 2**63) ^ key)
            return (drawn % self.n_starts).astype(np.int64)
        index = permute(positions, self.n_windows, key)
        if self.windows == "every_offset":
            return index
        phase = hashed(self.seed, epoch, 0) % self.block_size if self.windows == "pass" else 0
        return phase + index * self.block_size
