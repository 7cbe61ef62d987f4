"""Functions captured as CUDA graphs: all their kernels are launched by one call of the host."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Protocol

import torch
from torch import Tensor

from gptlit.messages import note

WARM_UP = 3  # eager calls before a capture, in which libraries and optimizers allocate their memory


class BackEnd(Protocol):
    """Captures functions that share memory."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call a function in the way that a capture needs before it."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture a function without executing it, and return a function that replays it."""


class CudaGraphs:
    """CUDA graphs of one device.

    Their intermediate results share one pool of memory, so that many graphs take the memory of the
    largest. They must not run at the same time, and none may read what is left in the pool by
    another. When one set of graphs is replaced by another, use a new object for the new ones.

    Args:
        device: Device that the functions run on.
        draws: Whether functions may draw from the device's default generator.
    """

    def __init__(self, device: torch.device, draws: bool = True) -> None:
        self._device = device
        self._draws = draws
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self._device)
        # on the stream of the capture, whose libraries then have their workspaces
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        generator = torch.cuda.default_generators[current.device.index]
        state = generator.graphsafe_get_state()
        if not self._draws:  # so that a failure can't spoil the state that other graphs draw from
            generator.graphsafe_set_state(generator.clone_state())
        infers = torch.is_inference_mode_enabled()
        # the seed's tensor, which a first capture makes for all others, must not be an inference
        # tensor: those captured outside inference mode write to it (pytorch/pytorch#166792)
        outside = torch.inference_mode(False) if infers else nullcontext()
        inside = torch.inference_mode() if infers else nullcontext()
        try:
            # other threads may use CUDA during the capture
            with (
                _without_collections(),
                outside,
                torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ),
                inside,
            ):
                function()
        except BaseException:
            torch.cuda.set_stream(current)
            # else the allocator would keep the memory of the capture; it refuses where the capture
            # has ended, and has other functions before torch 2.8
            with suppress(AttributeError, RuntimeError):
                torch._C._cuda_endAllocateToPool(current.device.index, self._pool)
                torch._C._cuda_releasePool(current.device.index, self._pool)
            if self._draws:
                # a capture that fails leaves the state such that the generator refuses to draw
                state = generator.clone_state()
            raise
        finally:
            generator.graphsafe_set_state(state)
        return graph.replay


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keep Python from collecting cycles: the end of a graph in one could end a capture."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


# by type of device; `draws` is that of CudaGraphs
BACK_ENDS: dict[str, Callable[[torch.device, bool], BackEnd]] = {"cuda": CudaGraphs}


def back_end(device: torch.device, draws: bool = True) -> BackEnd | None:
    """Return a new back end for a device; None if functions can't be captured there.

    Args:
        device: Device that the functions run on.
        draws: Whether functions may draw from the device's default generator.
    """
    make = BACK_ENDS.get(device.type)
    return None if make is None else make(device, draws)


class Captured:
    """A function of tensors that are always the same, captured after some calls, then replayed.

    Each call does the function's work once: the first WARM_UP calls run the function; the next one
    captures it, which computes nothing, and replays it; later calls only replay it. If the capture
    fails, a line gives the reason and the function runs eagerly from then on.

    A replay launches the kernels of the capture with the same addresses and numbers. So the
    function must read all that changes between calls from tensors, write in place what it leaves,
    and neither read values on the host nor copy them from there. Random numbers of the device's
    default generator are those that an eager call would draw: a replay uses its current seed and
    offset. Autocast casts weights anew in each call, since its cache, which ends with the block
    that it was entered in, could be freed before a replay reads it.

    Args:
        function: Takes nothing and returns a tuple of tensors, always of the same shapes.
        on: Back end of the device.
        name: Subject of the line that reports a failure, such as "the training step".
        failed: Called with the reason if the capture fails; by default a warning is printed.
    """

    def __init__(
        self,
        function: Callable[[], tuple[Tensor, ...]],
        on: BackEnd,
        name: str,
        failed: Callable[[str], None] | None = None,
    ) -> None:
        self._function = function
        self._on = on
        self._name = name
        self._failed = failed or self._warn
        self._n_calls = 0
        self._replay: Callable[[], None] | None = None
        self._results: tuple[Tensor, ...] = ()

    def __call__(self) -> tuple[Tensor, ...]:
        """Compute the function; each call returns the same tensors and overwrites their values."""
        if self._replay is not None:
            self._replay()
            return self._results
        self._n_calls += 1
        if self._n_calls <= WARM_UP:
            self._on.warm_up(self._run)
            return self._results
        if self._n_calls == WARM_UP + 1:
            try:
                self._replay = self._on.capture(self._run)
            except Exception as error:  # drivers and libraries can raise anything
                self._failed(root_cause(error))
        (self._replay or self._run)()
        return self._results

    def _run(self) -> None:
        keeps = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            results = self._function()
        finally:
            torch.set_autocast_cache_enabled(keeps)
        with torch.no_grad():
            if self._n_calls == 1:
                # outside the pool, so that replays of other functions don't overwrite them
                self._results = tuple(result.detach().clone() for result in results)
            for mine, result in zip(self._results, results, strict=True):
                mine.copy_(result)

    def _warn(self, reason: str) -> None:
        note(f"warning: {self._name} was not captured as a CUDA graph ({reason}); it runs eagerly")


def root_cause(error: BaseException) -> str:
    """Return type and first line of the exception that led to an error.

    An operation that can't be captured raises one error, and the end of its capture another, which
    says no more than that it failed.
    """
    while error.__context__ is not None:
        error = error.__context__
    reason, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {reason}"
