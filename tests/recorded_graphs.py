"""A stand-in for CUDA graphs on the CPU: records a function's operations and replays them.

As in a CUDA graph, a capture computes nothing that stays, and a replay repeats the operations on
the same tensors with the numbers of the capture. What a wrong function would leave in a graph, such
as a learning rate that is a number of Python's, shows in the values that a replay computes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptlit.devices import graphs

aten: Any = torch.ops.aten
# these wait for the device, since the host needs a value or the size of the result; in inference
# mode some are not taken apart
WAITS = {
    "item", "allclose", "argwhere", "nonzero_numpy",
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip
# tensors of the host, or tensors whose memory changes
REFUSED = {"lift_fresh": "copies a value of the host", "resize_": "resizes", "set_": "moves"}


class NotCapturable(RuntimeError):
    """An operation that a CUDA graph can't contain."""


@dataclass
class Operation:
    """An operation, and the tensors that it returned when it was recorded."""

    function: Any
    args: Any
    kwargs: Any
    outputs: Any

    def replay(self) -> None:
        results = self.function(*self.args, **self.kwargs)
        changed = {id(each) for each in _tensors((self.args, self.kwargs))}
        for recorded, result in zip(_tensors(self.outputs), _tensors(results), strict=True):
            if id(recorded) not in changed:
                recorded.copy_(result)


class Recorder(TorchDispatchMode):
    """Records the operations within a `with` block, forward and backward.

    `untouched` restores the tensors that they changed, and the state of the random generator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # by storage: all of it, and its values
        self._made: list[Tensor] = []  # by operations that return new tensors
        self.random = torch.get_rng_state()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inputs = _tensors((args, kwargs))
        self._check(name, args)
        if func._schema.is_mutable:
            for each, argument in _with_schema(func, args, kwargs):
                if each.alias_info is not None and each.alias_info.is_write:
                    for tensor in _tensors(argument):
                        self._remember(tensor)
        outputs = func(*args, **kwargs)
        owners = {_storage(each) for each in inputs}
        fresh = [each for each in _tensors(outputs) if _storage(each) not in owners]
        self._made += fresh
        if func._schema.is_mutable or fresh:  # otherwise it returns views
            self.operations.append(Operation(func, args, kwargs, outputs))
        return outputs

    def _check(self, name: str, args: tuple[Any, ...]) -> None:
        if name in WAITS:
            raise NotCapturable(f"{name} waits for the device")
        if name in REFUSED:
            raise NotCapturable(f"{name} {REFUSED[name]}")
        masks = (torch.bool, torch.uint8)
        if name == "index" and any(each.dtype in masks for each in _tensors(args[1])):
            raise NotCapturable("an index by a mask waits for the device")

    def _remember(self, tensor: Tensor) -> None:
        if _storage(tensor) not in self._before:
            n = tensor.untyped_storage().nbytes() // tensor.element_size()
            whole = tensor.detach().as_strided((n,), (1,), 0)
            self._before[_storage(tensor)] = (whole, whole.clone())

    def untouched(self) -> None:
        """Undo the operations, and fill new tensors with NaN: a capture computes no values."""
        with torch.no_grad():
            for whole, values in self._before.values():
                whole.copy_(values)
            for tensor in self._made:
                if _storage(tensor) not in self._before and tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        torch.set_rng_state(self.random)


class RecordedGraphs:
    """A back end for the CPU that records functions; it counts captures and replays."""

    def __init__(self, device: torch.device, draws: bool = True) -> None:
        self.draws = draws
        self.captures = 0
        self.replays = 0
        self.warm_ups = 0
        self.fails = False  # whether captures raise, after the operations

    def warm_up(self, function: Callable[[], None]) -> None:
        self.warm_ups += 1
        function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        recorder = Recorder()
        try:
            with recorder:
                function()
            if self.fails:
                raise NotCapturable("as the test wants it")
            if not self.draws and not torch.equal(torch.get_rng_state(), recorder.random):
                raise NotCapturable("draws from the default generator")
        finally:
            recorder.untouched()

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for operation in recorder.operations:
                    operation.replay()

        return replay


@pytest.fixture
def recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraphs]:
    """Capture on the CPU by recording; return the back ends that were made, in their order."""
    made: list[RecordedGraphs] = []

    def make(device: torch.device, draws: bool) -> RecordedGraphs:
        made.append(RecordedGraphs(device, draws))
        return made[-1]

    monkeypatch.setitem(graphs.BACK_ENDS, "cpu", make)
    return made


def _tensors(nested: Any) -> list[Tensor]:
    return [each for each in tree_leaves(nested) if isinstance(each, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _with_schema(func: Any, args: tuple[Any, ...], kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the schema and the value of each argument that was given."""
    for index, each in enumerate(func._schema.arguments):
        if index < len(args):
            yield each, args[index]
        elif each.name in kwargs:
            yield each, kwargs[each.name]
