"""Loaders: windows of token ids in batches, cut for one process of several."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from gptlit.data.window_order import SideBySide, WindowOrder

AHEAD = 64  # batches
IGNORED = -100  # the target of a position that isn't scored, cross_entropy's default
Batch = tuple[Tensor, Tensor]


def cut(ids: np.ndarray, bounds: np.ndarray, before: np.ndarray, block_size: int) -> Batch:
    """Inputs and targets, (B, T) each, where the windows are what is to be predicted.

    Targets beyond a window's end are IGNORED; a window may be empty.

    Args:
        ids: (n,) token ids.
        bounds: (B, 2) first and last-plus-one target of each window.
        before: (B,) the input before the first target.
        block_size: T
    """
    at = bounds[:, :1] + np.arange(block_size)  # (B, T)
    outside = at >= bounds[:, 1:]
    at[outside] = 0
    targets = ids[at].astype(np.int64)
    inputs = np.concatenate([before[:, None], targets[:, :-1]], axis=1)
    targets[outside] = IGNORED
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class TrainLoader:
    """Endless epochs of shuffled training windows, cut for one rank.

    Batch j of an epoch holds, on rank r of R, positions j*B*R + r*B onwards, so that any
    division of the same global batch into ranks and accumulated batches sees the same windows.
    Lightning saves and restores the state, and tells the epoch through `sampler.set_epoch`.

    Args:
        ids: (n,) token ids.
        order: Which window comes when.
        batch_size: B, windows in a batch of this rank.
        before: The inputs that stand before tokens, where windows are cut from documents.
        rank: r
        n_ranks: R
        n_batches: Batches of each rank in an epoch.
        frozen: Every epoch is epoch 0, for `overfit_batches`.
    """

    def __init__(
        self,
        ids: np.ndarray,
        order: WindowOrder,
        batch_size: int,
        *,
        before: Callable[[np.ndarray], np.ndarray] | None = None,
        rank: int = 0,
        n_ranks: int = 1,
        n_batches: int,
        frozen: bool = False,
    ) -> None:
        self.ids = np.asarray(ids)  # a memory map stays one, and is indexed faster
        self.order = order
        self.batch_size = batch_size
        self.before = before
        self.rank = rank
        self.n_ranks = n_ranks
        self.n_batches = n_batches
        self.frozen = frozen
        self.epoch = 0
        self.position = 0  # windows of this epoch that all ranks together have been given
        self._ahead: dict[tuple[int, int], np.ndarray] = {}  # what begins where, by epoch and place

    @property
    def sampler(self) -> "TrainLoader":
        return self

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, unless it is the one already begun."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Batch]:
        # Lightning calls iter() once more than it reads, and before it tells the epoch: what
        # comes is decided at each batch
        global_batch = self.batch_size * self.n_ranks
        # a position that another batch size left needn't be a multiple of this one
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
            return cut(self.ids, bounds, self.before(bounds[:, 0]), self.order.block_size)
        starts = self._starts(epoch, positions)
        offsets = np.arange(self.order.block_size + 1)
        windows = self.ids[starts[:, None] + offsets].astype(np.int64)  # (B, T + 1)
        both = torch.from_numpy(windows)
        return both[:, :-1], both[:, 1:]  # (B, T), (B, T)

    def _starts(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Where a batch's windows start; those of the next ones are computed at the same cost."""
        first = int(positions[0])
        if (epoch, first) not in self._ahead:
            stride = self.batch_size * self.n_ranks
            left = (self.n_batches * stride - first + stride - 1) // stride
            firsts = first + stride * np.arange(min(AHEAD, left))
            many = self.order.starts(epoch, firsts[:, None] + np.arange(self.batch_size))
            self._ahead = {(epoch, int(at)): row for at, row in zip(firsts, many, strict=True)}
        return self._ahead[epoch, first]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class EvalLoader:
    """Windows that are scored, in equal numbers of batches for all ranks.

    Windows that only fill up a rank's last batch are IGNORED.

    Args:
        ids: (n,) token ids.
        windows: Of targets.
        before: Gives the inputs before tokens.
        block_size: T
        batch_size: Windows in a batch.
        rank: Of the batches, this rank takes one in `n_ranks`.
        n_ranks: How many share the windows.
    """

    def __init__(
        self,
        ids: np.ndarray,
        windows: SideBySide | np.ndarray,
        before: Callable[[np.ndarray], np.ndarray],
        block_size: int,
        batch_size: int,
        *,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.ids = ids
        self.windows = windows
        self.before = before
        self.block_size = block_size
        self.batch_size = batch_size
        self.rank = rank
        self.n_ranks = n_ranks

    def __len__(self) -> int:
        return -(-len(self.windows) // (self.batch_size * self.n_ranks))

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            first = (index * self.n_ranks + self.rank) * self.batch_size
            bounds = self.windows[first : first + self.batch_size]
            before = self.before(bounds[:, 0])
            if self.n_ranks > 1:
                missing = self.batch_size - len(bounds)
                bounds = np.concatenate([bounds, np.zeros((missing, 2), dtype=np.int64)])
                before = np.concatenate([before, np.zeros(missing, dtype=np.int64)])
            yield cut(self.ids, bounds, before, self.block_size)
