"""The calls of torch.cuda that a capture makes, also where it fails; CUDA itself is replaced."""

import gc
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.devices import graphs
from gptlit.devices.graphs import WARM_UP, Captured, CudaGraphs


class FakeCuda:
    """Records the calls of torch.cuda that a capture makes."""

    def __init__(self, patch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.calls: list[Any] = []
        self.has_ended = False  # whether the allocator has ended a failing capture itself
        self.current: Any = FakeStream("current", self)
        fake, cuda = self, torch.cuda

        class Graph:
            def replay(self) -> None:
                fake.calls.append("replay")

        class Within:
            def __init__(self, *args: Any, **options: Any) -> None:
                fake.calls.append(("graph", *args[1:], options))

            def __enter__(self) -> None:
                fake.calls += ["inference"] * torch.is_inference_mode_enabled()
                fake.states.append(fake.generator.state)
                fake.current = fake.side

            def __exit__(self, *error: object) -> None:
                fake.calls += ["inference"] * torch.is_inference_mode_enabled()
                if fails:  # as torch.cuda.graph does, which then leaves its stream the current one
                    raise RuntimeError("operation failed due to a previous error during capture")
                fake.current = fake.first

        class Stream:
            def __init__(self, stream: Any) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                fake.current = self.stream

            def __exit__(self, *error: object) -> None:
                fake.current = fake.first

        self.first, self.side = self.current, FakeStream("side", self)
        patch.setattr(cuda, "Stream", lambda device: self.side)
        patch.setattr(cuda, "graph_pool_handle", lambda: (0, 1))
        patch.setattr(cuda, "CUDAGraph", Graph)
        patch.setattr(cuda, "graph", Within)
        patch.setattr(cuda, "stream", Stream)
        patch.setattr(cuda, "current_stream", lambda device: self.current)
        patch.setattr(cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        self.generator = FakeGenerator()
        self.states: list[str] = []  # of the generator, when captures began
        patch.setattr(cuda, "default_generators", (None, self.generator))
        for name in ("end", "release"):
            full = {"end": "_cuda_endAllocateToPool", "release": "_cuda_releasePool"}[name]
            patch.setattr(torch._C, full, lambda *args, n=name: self.pool(n, *args), raising=False)

    def pool(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        if name == "end" and self.has_ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")


class FakeStream:
    def __init__(self, name: str, fake: FakeCuda) -> None:
        self.name, self.device, self._fake = name, torch.device("cuda", 1), fake

    def wait_stream(self, other: "FakeStream") -> None:
        self._fake.calls.append(f"{self.name} waits for {other.name}")


class FakeGenerator:
    state = "first"

    def clone_state(self) -> str:
        return f"copy of {self.state}"

    def graphsafe_get_state(self) -> str:
        return self.state

    def graphsafe_set_state(self, state: str) -> None:
        self.state = state


def test_only_cuda_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "mps"):
        assert graphs.back_end(torch.device(device)) is None
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    assert isinstance(graphs.back_end(torch.device("cuda:1")), CudaGraphs)


def test_the_calls_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    seen: list[str] = []
    on = CudaGraphs(torch.device("cuda", 1))
    on.warm_up(lambda: seen.append(fake.current.name))
    assert fake.calls == ["side waits for current", "current waits for side"]
    fake.calls.clear()
    replay = on.capture(lambda: seen.append(fake.current.name))
    assert fake.calls == [("graph", (0, 1), fake.side, {"capture_error_mode": "thread_local"})]
    assert seen == ["side", "side"]
    assert fake.states == [fake.generator.state] == ["first"]
    replay()
    assert fake.calls[-1] == "replay"
    assert fake.current is fake.first


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_failing_capture_leaves_stream_generator_and_memory_usable(
    monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    fake = FakeCuda(monkeypatch, fails=True)
    fake.has_ended = has_ended
    on = CudaGraphs(torch.device("cuda", 1))
    with pytest.raises(RuntimeError, match="operation failed"):
        on.capture(lambda: None)
    assert fake.current is fake.first
    assert fake.generator.state == "copy of first"
    assert fake.calls[1:] == [("end", 1, (0, 1)), ("release", 1, (0, 1))][: 2 - has_ended]


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_without_draws_leaves_the_state_that_other_graphs_draw_from(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    fake = FakeCuda(monkeypatch, fails)
    on = CudaGraphs(torch.device("cuda", 1), draws=False)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        on.capture(lambda: None)
    assert fake.states == ["copy of first"]
    assert fake.generator.state == "first"


@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_begins_and_ends_outside_inference_mode(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Its function runs as it is called."""
    fake, seen = FakeCuda(monkeypatch, fails), []
    on = CudaGraphs(torch.device("cuda", 1))

    def look() -> None:
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    for mode in (torch.inference_mode(), torch.no_grad(), nullcontext()):
        with mode, pytest.raises(RuntimeError) if fails else nullcontext():
            on.capture(look)
        assert not torch.is_inference_mode_enabled()
    assert seen == [(True, False), (False, False), (False, True)]
    assert "inference" not in fake.calls


def test_the_reason_is_that_of_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the capture's end."""
    FakeCuda(monkeypatch, fails=True)
    on, reasons = CudaGraphs(torch.device("cuda", 1)), list[str]()
    calls = iter(range(10))

    def function() -> tuple[Tensor, ...]:
        if next(calls) == WARM_UP:
            raise ValueError("an operation waits\nfor the device")
        return ()

    captured = Captured(function, on, "the step", reasons.append)
    for _ in range(WARM_UP + 1):
        captured()
    assert reasons == ["ValueError: an operation waits"]


def test_nothing_is_collected_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a graph in a cycle of Python's."""
    FakeCuda(monkeypatch)
    on, collects = CudaGraphs(torch.device("cuda", 1)), list[bool]()
    on.capture(lambda: collects.append(gc.isenabled()))
    assert collects == [False]
    assert gc.isenabled()
