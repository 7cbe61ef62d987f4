"""Windows on the device: cut there if the text is kept there, or copied there one batch ahead."""

from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from gptlit.data.loaders import IGNORED, Batch, Cutter, EvalLoader, HostCutter, TrainLoader
from gptlit.devices import accelerators

SHARE = 4  # auto keeps a text on the device that takes at most 1/SHARE of its free memory
TOKENS_AT_ONCE = 2**24  # tokens in a copy to the device, which pass through host memory
Item = TypeVar("Item")


class DeviceCutter:
    """Cuts windows on a device that holds the whole text, from start positions of the host.

    The ids take the bytes that they have in the token file, but are stored as signed integers,
    because PyTorch can't index unsigned ones on all devices.

    Args:
        ids: (n,) unsigned token ids.
        device: Device to keep them on.
    """

    def __init__(self, ids: np.ndarray, device: torch.device) -> None:
        signed = np.dtype(f"i{ids.itemsize}")
        parts = range(0, len(ids), TOKENS_AT_ONCE)
        self._device = device
        self._ids = torch.empty(len(ids), dtype=getattr(torch, signed.name), device=device)
        for part in (slice(first, first + TOKENS_AT_ONCE) for first in parts):
            # a copy, because torch warns about read-only arrays
            self._ids[part] = torch.from_numpy(np.array(ids[part]).view(signed))
        # where an id uses the sign bit
        self._mask = 2 ** (8 * ids.itemsize) - 1 if bool((self._ids < 0).any()) else None
        self._offsets_of: dict[int, Tensor] = {}  # by block size

    def windows(self, starts: Tensor, block_size: int) -> Batch:
        inputs, targets = self._tokens(starts[:, None] + self._offsets(block_size))
        return inputs, targets

    def cut(self, bounds: np.ndarray, before: np.ndarray, block_size: int) -> Batch:
        first, end, preceding = self.placed(np.column_stack([bounds, before]).T)[..., None]
        at = first + self._offsets(block_size)[0]  # (B, T)
        outside = at >= end
        targets = self._tokens(at.masked_fill(outside, 0))
        inputs = torch.cat([preceding, targets[:, :-1]], dim=1)
        return inputs, targets.masked_fill(outside, IGNORED)

    def _tokens(self, at: Tensor) -> Tensor:
        ids = self._ids[at].long()
        return ids if self._mask is None else ids & self._mask

    def _offsets(self, block_size: int) -> Tensor:
        """Return (2, 1, T) offsets of inputs and targets from a window's start."""
        if block_size not in self._offsets_of:
            offsets = torch.arange(block_size, device=self._device)
            self._offsets_of[block_size] = torch.stack([offsets, offsets + 1])[:, None]
        return self._offsets_of[block_size]

    def placed(self, values: np.ndarray) -> Tensor:
        """Return int64 values on the device, without waiting for the copy on CUDA."""
        return accelerators.placed(torch.from_numpy(np.ascontiguousarray(values)), self._device)


class SideStream:
    """Copies batches to a CUDA device on a stream of its own, while the device computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def begin(self, batch: Batch) -> Callable[[], Batch]:
        """Begin to copy a batch, and return a function that makes the current stream wait for
        the copy and returns it."""
        with torch.cuda.stream(self._stream):
            # only contiguous pinned memory is copied without waiting
            pinned = [part.contiguous().pin_memory() for part in batch]
            inputs, targets = (part.to(self._device, non_blocking=True) for part in pinned)
            copied = self._stream.record_event()

        def finish() -> Batch:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for part in (inputs, targets):
                part.record_stream(current)  # not reused before the step that reads it has ended
            return inputs, targets

        return finish


Begin = Callable[[Batch], Callable[[], Batch]]


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items, each after the next one has been made."""
    for item in items:
        for following in items:
            yield item
            item = following
        yield item


class TrainAhead:
    """A training loader whose next batch is copied to the device while one is computed.

    Its state is the position after the last yielded batch, not after the batch copied ahead.

    Args:
        loader: Training loader on the host.
        begin: Function that begins to copy a batch, and returns one that ends it.
    """

    def __init__(self, loader: TrainLoader, begin: Begin) -> None:
        self._loader = loader
        self._begin = begin
        self._state = loader.state_dict()

    @property
    def sampler(self) -> "TrainAhead":
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._state["epoch"]:
            self._state = {"epoch": epoch, "position": 0}

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        # when the first batch is read, since Lightning sets the epoch after it calls iter()
        self._loader.load_state_dict(self._state)
        copies = ((self._begin(batch), self._loader.state_dict()) for batch in self._loader)
        for finish, self._state in one_ahead(copies):
            yield finish()
        self._state = self._loader.state_dict()

    def state_dict(self) -> dict[str, int]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._state = dict(state)


class EvalAhead:
    """A loader of windows to score whose next batch is copied to the device ahead."""

    def __init__(self, loader: EvalLoader, begin: Begin) -> None:
        self._loader = loader
        self._begin = begin

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for finish in one_ahead(map(self._begin, self._loader)):
            yield finish()


class Placement:
    """Where the windows of a text are cut, and whether their batches are copied ahead.

    Args:
        ids: (n,) token ids of the text.
        device: Device that trains or evaluates.
        on_device: The option `data.on_device`.
    """

    def __init__(
        self, ids: np.ndarray, device: torch.device, on_device: bool | Literal["auto"]
    ) -> None:
        self.device = device
        is_kept = keeps(ids.nbytes, device, on_device)
        self.cutter: Cutter = DeviceCutter(ids, device) if is_kept else HostCutter(ids)
        copies_ahead = on_device == "auto" and not is_kept and device.type == "cuda"
        self._begin = SideStream(device).begin if copies_ahead else None

    def __str__(self) -> str:
        if not isinstance(self.cutter, HostCutter):
            return "cut on the device, which holds the text"
        if self.device.type == "cpu":
            return "cut from the token file"
        when = "while the one before is computed" if self._begin else "when it is used"
        return f"cut on the host; each is copied {when}"

    def train(self, loader: TrainLoader) -> TrainLoader | TrainAhead:
        return TrainAhead(loader, self._begin) if self._begin else loader

    def evaluate(self, loader: EvalLoader) -> EvalLoader | EvalAhead:
        return EvalAhead(loader, self._begin) if self._begin else loader


def keeps(n_bytes: int, device: torch.device, on_device: bool | Literal["auto"]) -> bool:
    """Return whether a text is kept on a device; by "auto" never on a CPU."""
    if on_device != "auto":
        return on_device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return False
    return n_bytes * SHARE <= free
