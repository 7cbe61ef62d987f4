"""Loaders: batches of windows of token ids, for one process of several."""

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gptlit.data.window_order import SideBySide, Sliding, WindowOrder

BATCHES_AT_ONCE = 64  # batches whose windows are computed at once
IGNORED = -100  # target of a position that is not scored, as in cross_entropy
Batch = tuple[Tensor, Tensor]
Scored = Callable[[np.ndarray], np.ndarray]


class Cutter(Protocol):
    """Cuts windows of a text into inputs and targets, (B, T) int64 each."""

    def placed(self, values: np.ndarray) -> Any:
        """Return int64 values where windows are cut, as an array or a tensor."""

    def windows(self, starts: Any, block_size: int) -> Batch:
        """Cut whole windows.

        Args:
            starts: (B,) first input of each window, from `placed`.
            block_size: T
        """

    def cut(self, bounds: np.ndarray, before: np.ndarray, block_size: int) -> Batch:
        """Cut windows given by their targets, which may be fewer than T or none.

        Targets beyond the end of a window are IGNORED.

        Args:
            bounds: (B, 2) first and last-plus-one target of each window.
            before: (B,) input before the first target.
            block_size: T
        """


def _scored_only(targets: Tensor, bounds: np.ndarray, scored: Scored | None) -> Tensor:
    """Return (B, T) targets, of which those that are not scored are IGNORED.

    Args:
        targets: (B, T) targets of windows.
        bounds: (B, 2) or more, the first target of each window in the first column.
        scored: Function of positions that returns whether those tokens are scored; None if all are.
    """
    if scored is None:
        return targets
    at = bounds[:, :1] + np.arange(targets.size(1))
    return targets.masked_fill(torch.from_numpy(~scored(at)).to(targets.device), IGNORED)


class HostCutter:
    """Cuts windows on the host.

    Args:
        ids: (n,) token ids.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = np.asarray(ids)  # still memory-mapped, and faster to index

    def placed(self, values: np.ndarray) -> np.ndarray:
        return values

    def windows(self, starts: np.ndarray, block_size: int) -> Batch:
        windows = self._ids[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
        both = torch.from_numpy(windows)  # (B, T + 1)
        return both[:, :-1], both[:, 1:]

    def cut(self, bounds: np.ndarray, before: np.ndarray, block_size: int) -> Batch:
        at = bounds[:, :1] + np.arange(block_size)  # (B, T)
        outside = at >= bounds[:, 1:]
        at[outside] = 0
        targets = self._ids[at].astype(np.int64)
        inputs = np.concatenate([before[:, None], targets[:, :-1]], axis=1)
        targets[outside] = IGNORED
        return torch.from_numpy(inputs), torch.from_numpy(targets)


@dataclass(eq=False)
class TrainLoader:
    """Endless epochs of shuffled training windows, cut for one rank.

    Batch j of an epoch holds, on rank r of R, positions j*B*R + r*B onwards, so that any
    division of the same global batch into ranks and accumulated batches sees the same windows.
    Lightning saves and restores the state, and sets the epoch by `sampler.set_epoch`.

    Args:
        cutter: Cutter of the text's windows.
        order: Order of the windows.
        batch_size: B, windows in a batch of this rank.
        before: Function of (B,) positions that returns the (B,) inputs before those tokens;
            needed for windows of documents only.
        scored: Function of positions that returns whether those tokens are scored; None if all are.
        rank: r
        n_ranks: R
        n_batches: Batches of each rank in an epoch.
        frozen: Repeat epoch 0, for `overfit_batches`.
    """

    cutter: Cutter
    order: WindowOrder
    batch_size: int
    _: KW_ONLY
    before: Callable[[np.ndarray], np.ndarray] | None = None
    scored: Scored | None = None
    rank: int = 0
    n_ranks: int = 1
    n_batches: int
    frozen: bool = False

    def __post_init__(self) -> None:
        self.epoch = 0
        self.position = 0  # windows of this epoch that all ranks together have read
        self._ahead: dict[tuple[int, int], Any] = {}  # starts by epoch and first position

    @property
    def sampler(self) -> "TrainLoader":
        return self

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the current one."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Batch]:
        # epoch and position are read at each batch: Lightning calls iter() before it sets the
        # epoch, and once more than it reads
        global_batch = self.batch_size * self.n_ranks
        # after a change of batch size the position need not be a multiple of it
        while self.position + global_batch <= self.n_batches * global_batch:
            first = self.position + self.rank * self.batch_size
            self.position += global_batch
            yield self._batch(np.arange(first, first + self.batch_size))
        self.position = 0

    def _batch(self, positions: np.ndarray) -> Batch:
        epoch = 0 if self.frozen else self.epoch
        if self.order.windows == "documents":
            bounds = self.order.bounds(epoch, positions)
            assert self.before is not None
            inputs, targets = self.cutter.cut(
                bounds, self.before(bounds[:, 0]), self.order.block_size
            )
            return inputs, _scored_only(targets, bounds, self.scored)
        starts = self._starts(epoch, int(positions[0]))
        return self.cutter.windows(starts, self.order.block_size)

    def _starts(self, epoch: int, first: int) -> Any:
        """Return (B,) starts of the windows from position `first`, where they are cut.

        They are computed for BATCHES_AT_ONCE batches at once, which takes about as long as for one,
        and copied to the cutter's device at once.
        """
        if (epoch, first) not in self._ahead:
            stride = self.batch_size * self.n_ranks
            n_left = (self.n_batches * stride - first + stride - 1) // stride
            firsts = first + stride * np.arange(min(BATCHES_AT_ONCE, n_left))
            starts = self.order.starts(epoch, firsts[:, None] + np.arange(self.batch_size))
            rows = iter(self.cutter.placed(starts))
            self._ahead = {(epoch, int(at)): row for at, row in zip(firsts, rows, strict=True)}
        return self._ahead[epoch, first]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


@dataclass(eq=False)
class EvalLoader:
    """Batches of windows to score, as many for each rank; windows that pad a batch are IGNORED.

    Args:
        cutter: Cutter of the text's windows.
        windows: (n, 2) first and last-plus-one target of each window, or (n, 3) with the first that
            is scored; those before it are IGNORED.
        before: Function of (B,) positions that returns the (B,) inputs before those tokens.
        block_size: T
        batch_size: B, windows in a batch.
        rank: Rank, which takes one in `n_ranks` batches.
        n_ranks: Number of ranks that share the windows.
        scored: Function of positions that returns whether those tokens are scored; None if all are.
    """

    cutter: Cutter
    windows: SideBySide | Sliding | np.ndarray
    before: Callable[[np.ndarray], np.ndarray]
    block_size: int
    batch_size: int
    _: KW_ONLY
    rank: int = 0
    n_ranks: int = 1
    scored: Scored | None = None

    def __len__(self) -> int:
        return -(-len(self.windows) // (self.batch_size * self.n_ranks))

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            first = (index * self.n_ranks + self.rank) * self.batch_size
            bounds = self.windows[first : first + self.batch_size]
            before = self.before(bounds[:, 0])
            if self.n_ranks > 1:
                missing = self.batch_size - len(bounds)
                nothing = np.zeros((missing, bounds.shape[1]), dtype=np.int64)
                bounds = np.concatenate([bounds, nothing])
                before = np.concatenate([before, np.zeros(missing, dtype=np.int64)])
            inputs, targets = self.cutter.cut(bounds[:, :2], before, self.block_size)
            if bounds.shape[1] > 2:
                n_context = torch.from_numpy(bounds[:, 2:] - bounds[:, :1]).to(targets.device)
                places = torch.arange(self.block_size, device=targets.device)
                targets = targets.masked_fill(places < n_context, IGNORED)  # (B, T)
            yield inputs, _scored_only(targets, bounds, self.scored)
