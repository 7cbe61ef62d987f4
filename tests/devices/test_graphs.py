"""Captured functions, with a stand-in for CUDA graphs on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptlit.devices.graphs import WARM_UP, Captured
from tests.recorded_graphs import NotCapturable, RecordedGraphs

CPU = torch.device("cpu")


@pytest.fixture
def on() -> RecordedGraphs:
    return RecordedGraphs(CPU)


def training(rate: Tensor) -> tuple[nn.Module, Tensor, Callable[[], tuple[Tensor, ...]]]:
    """Return a net, its static input, and a step of SGD with momentum."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
    batch, weights = torch.zeros(6, 4), list(net.parameters())
    momenta = [torch.zeros_like(weight) for weight in weights]

    def step() -> tuple[Tensor, ...]:
        loss = (net(batch).squeeze(1) - batch.sum(dim=1)).square().mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, momentum, gradient in zip(weights, momenta, gradients, strict=True):
                momentum.mul_(0.9).add_(gradient)
                weight -= rate * momentum
        return (loss,)

    return net, batch, step


def losses(step: Callable[[], tuple[Tensor, ...]], batch: Tensor, rate: Tensor) -> list[float]:
    """Return the losses of 8 steps, each with a batch, a rate and a seed of its own."""
    found = []
    for number in range(8):
        torch.manual_seed(number)
        batch.copy_(torch.randn(6, 4))
        rate.fill_(0.02 * (number + 1))
        found.append(step()[0].item())
    return found


def test_a_captured_function_computes_what_the_function_does(on: RecordedGraphs) -> None:
    rate = torch.zeros(())
    net, batch, step = training(rate)
    expected = losses(step, batch, rate)
    captured_net, batch, step = training(rate)
    found = losses(Captured(step, on, "the step"), batch, rate)
    assert found == expected
    assert len(set(found)) == 8
    for ours, theirs in zip(captured_net.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (on.warm_ups, on.captures, on.replays) == (WARM_UP, 1, 8 - WARM_UP)


def test_a_number_of_python_stays_that_of_the_capture(on: RecordedGraphs) -> None:
    """As in a CUDA graph, so that tests with the stand-in find such numbers."""
    rate = torch.zeros(())
    _, batch, step = training(rate)
    expected = losses(step, batch, rate)
    weight, number = torch.zeros(3), iter(range(100))
    captured = Captured(lambda: (weight.add_(next(number)),), on, "the sum")
    assert [captured()[0][0].item() for _ in range(6)] == [0, 1, 3, 6, 9, 12]

    net, batch, _ = training(rate)

    def wrong() -> tuple[Tensor, ...]:
        loss = (net(batch).squeeze(1) - batch.sum(dim=1)).square().mean()
        loss.backward()
        optimizer = torch.optim.SGD(net.parameters(), lr=float(rate_now[0]))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return (loss,)

    rate_now = [0.0]
    captured = Captured(wrong, on, "the step")
    found = []
    for step_number in range(8):
        torch.manual_seed(step_number)
        batch.copy_(torch.randn(6, 4))
        rate_now[0] = 0.02 * (step_number + 1)
        found.append(captured()[0].item())
    assert found[0] == expected[0]
    assert found[-1] != pytest.approx(expected[-1], rel=1e-3)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: (x * float(x.sum()),),
        lambda x: (x[x > 0].sum(),),
        lambda x: (x.nonzero().sum(),),
        lambda x: (x + torch.tensor([1.0, 2.0, 3.0]),),
        lambda x: (x.repeat_interleave(torch.ones(3, dtype=torch.long)),),
        lambda x: (x * 2 if x.sum() > 0 else x,),
    ],
)
def test_the_stand_in_refuses_what_a_graph_cannot_contain(
    on: RecordedGraphs, wrong: Callable[[Tensor], tuple[Tensor, ...]], mode: Callable[[], Any]
) -> None:
    x = torch.ones(3)
    with mode(), pytest.raises(NotCapturable):
        on.capture(lambda: (wrong(x), None)[1])


def test_a_capture_changes_nothing(on: RecordedGraphs) -> None:
    x, made = torch.arange(6.0).view(2, 3), []
    random = torch.get_rng_state()

    def function() -> None:
        made.append(x[1] * 2)
        x[:, 1:].add_(torch.rand(2, 2))

    replay = on.capture(function)
    assert torch.equal(x, torch.arange(6.0).view(2, 3))
    assert torch.equal(torch.get_rng_state(), random)
    assert made[0].isnan().all()
    replay()
    assert torch.equal(made[0], torch.tensor([6.0, 8.0, 10.0]))
    assert x[0, 0] == 0
    assert x[0, 1] > 1


def test_results_are_the_same_tensors_in_all_calls(on: RecordedGraphs) -> None:
    x = torch.zeros(2)
    captured = Captured(lambda: (x * 2, x.sum()), on, "the function")
    first = captured()
    for value in range(1, 7):
        x.fill_(value)
        double, total = captured()
        assert double is first[0]
        assert total is first[1]
        assert double.tolist() == [2 * value] * 2
        assert total.item() == 2 * value


def test_results_outlive_replays_of_other_functions(on: RecordedGraphs) -> None:
    x, kept = torch.ones(1), []

    def function() -> tuple[Tensor, ...]:
        kept.append(x + 1)  # would lie in the pool that graphs share
        return (kept[-1],)

    captured = Captured(function, on, "the function")
    (result,) = [captured() for _ in range(5)][-1]
    assert all(each is not result for each in kept)


@pytest.mark.parametrize("raises", ["before", "after"])
def test_a_failing_capture_leads_to_eager_calls(
    on: RecordedGraphs, raises: str, capsys: pytest.CaptureFixture[str]
) -> None:
    total = torch.zeros(())
    on.fails = raises == "after"
    waits = raises == "before"

    def function() -> tuple[Tensor, ...]:
        total.add_(1)
        return (total * (total.item() if waits else 1),)

    captured = Captured(function, on, "the step")
    assert [captured()[0].item() for _ in range(8)] == [
        number * (number if waits else 1) for number in range(1, 9)
    ]
    assert (on.captures, on.replays) == (1, 0)
    reason = "_local_scalar_dense waits for the device" if waits else "as the test wants it"
    assert capsys.readouterr().err == (
        "gptlit: warning: the step was not captured as a CUDA graph "
        f"(NotCapturable: {reason}); it runs eagerly\n"
    )


def test_the_reason_of_a_failure_is_passed_on(
    on: RecordedGraphs, capsys: pytest.CaptureFixture[str]
) -> None:
    on.fails = True
    reasons: list[str] = []
    captured = Captured(lambda: (), on, "the step", reasons.append)
    for _ in range(6):
        assert captured() == ()
    assert reasons == ["NotCapturable: as the test wants it"]
    assert capsys.readouterr().err == ""


def test_an_error_of_the_function_itself_is_raised(on: RecordedGraphs) -> None:
    def function() -> tuple[Tensor, ...]:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Captured(function, on, "the step")()


def test_autocast_keeps_no_copies_of_weights(on: RecordedGraphs) -> None:
    """A graph that reads a copy made before its capture would miss later weights."""
    weight, x = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2)

    def function() -> tuple[Tensor, ...]:
        return (x @ weight,)

    captured = Captured(function, on, "the product")
    for number in range(WARM_UP + 3):
        with torch.autocast("cpu", torch.bfloat16):
            x @ weight  # which autocast keeps
            with torch.no_grad():
                weight.fill_(number)
            assert captured()[0].tolist() == [[2.0 * number] * 2] * 2
            assert torch.is_autocast_cache_enabled()
    assert on.replays == 3


def test_random_numbers_need_a_back_end_that_draws() -> None:
    on, reasons = RecordedGraphs(CPU, draws=False), list[str]()
    captured = Captured(lambda: (torch.rand(2),), on, "the numbers", reasons.append)
    for _ in range(WARM_UP + 1):
        captured()
    assert reasons == ["NotCapturable: draws from the default generator"]
