"""Functions captured on the device; on the CPU their operations are recorded instead."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gptlit.devices import graphs
from gptlit.devices.graphs import WARM_UP, BackEnd, Captured
from tests.conftest import Result, assert_same_run, read_metrics
from tests.gpu.conftest import assert_not_eager
from tests.recorded_graphs import RecordedGraphs

Fit = Callable[..., Result]


@pytest.fixture
def back_end(device: str, recorded_graphs: list[RecordedGraphs]) -> BackEnd:
    """Return the device's back end, or the stand-in on the CPU."""
    found = graphs.back_end(torch.device(device))
    if found is None:
        pytest.skip(f"{device} has no graphs")
    return found


def step_of(device: str, rate: Tensor) -> tuple[Tensor, Callable[[], tuple[Tensor, ...]]]:
    """Return the static batch of a net with dropout, and a step of SGD."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, 1)).to(device)
    batch, weights = torch.zeros(16, 32, device=device), list(net.parameters())

    def step() -> tuple[Tensor, ...]:
        loss = (net(batch).squeeze(1) - batch.sum(dim=1)).square().mean()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rate * gradient
        return (loss,)

    return batch, step


def losses(batch: Tensor, step: Callable[[], tuple[Tensor, ...]], rate: Tensor) -> list[float]:
    found = []
    for number in range(10):
        torch.manual_seed(number)
        batch.copy_(torch.randn(16, 32))
        rate.fill_(1e-3 * (number + 1))
        found.append(step()[0].clone())
    return [loss.item() for loss in found]


def test_a_captured_step_equals_an_eager_one(device: str, back_end: BackEnd) -> None:
    """With the masks, which are functions of the seed, and the rate of each step."""
    rate = torch.zeros((), device=device)
    eager = losses(*step_of(device, rate), rate)
    batch, step = step_of(device, rate)
    captured = losses(batch, Captured(step, back_end, "the step"), rate)
    assert captured == pytest.approx(eager, rel=1e-5)


def test_functions_share_memory_and_keep_their_results(device: str, back_end: BackEnd) -> None:
    x = torch.ones(1000, device=device)
    functions = [
        Captured(lambda scale=scale: ((x * scale).sum(),), back_end, "a function")
        for scale in (2, 3)
    ]
    for number in range(WARM_UP + 3):
        x.fill_(number)
        results = [function()[0] for function in functions]
        assert [result.item() for result in results] == [2000 * number, 3000 * number]


def test_a_failing_capture_leaves_a_usable_device(
    device: str, back_end: BackEnd, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.ones(4, device=device)

    def waits() -> tuple[Tensor, ...]:
        noise = torch.rand(4, device=device)
        return (x * x.sum().item() + 0 * noise,)

    captured = Captured(waits, back_end, "a function that waits")
    for _ in range(WARM_UP + 2):
        assert captured()[0].tolist() == [4.0] * 4
    assert capsys.readouterr().err.count("was not captured as a CUDA graph") == 1
    torch.manual_seed(1)
    first = torch.rand(4, device=device)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4, device=device), first)
    # another function is captured by a new back end
    other = graphs.back_end(torch.device(device))
    assert other is not None
    reasons: list[str] = []
    doubled = Captured(lambda: (x * 2,), other, "another function", reasons.append)
    for _ in range(WARM_UP + 2):
        assert doubled()[0].tolist() == [2.0] * 4
    assert reasons == []


@pytest.mark.parametrize("fails", [False, True])
def test_graphs_of_samples_leave_those_of_training_as_they_are(
    device: str, back_end: BackEnd, fails: bool
) -> None:
    """Captured first, in inference mode, or failing, while a training step is replayed."""

    def sample(reasons: list[str]) -> None:
        on, x = graphs.back_end(torch.device(device), draws=False), torch.ones(4, device=device)
        assert on is not None
        twice = Captured(
            lambda: (x * (x[0].item() if fails else 1) * 2,), on, "a sample", reasons.append
        )
        with torch.inference_mode():
            for _ in range(WARM_UP + 2):
                assert twice()[0].tolist() == [2.0] * 4
        assert len(reasons) == fails

    rate = torch.zeros((), device=device)
    sample([])
    batch, step = step_of(device, rate)
    captured = Captured(step, back_end, "the step")
    for _ in range(2):  # replays alone in the second round, after another sample
        found = losses(batch, captured, rate)
        sample([])
    eager_batch, eager_step = step_of(device, rate)
    for _ in range(2):
        eager = losses(eager_batch, eager_step, rate)
    assert found == pytest.approx(eager, rel=1e-5)


RUNS = Path("lightning_logs")
EACH = ["--trainer.max_steps=12", "--trainer.val_check_interval=5", "--trainer.log_every_n_steps=1"]
EACH += ["--trainer.gradient_clip_val=0.5", "--model.warmup_steps=4"]
MUON = ["--model.optimizer=muon", "--model.ema=0.9", "--model.dropout=0.1"]
ACCUMULATED = ["--data.batch_size=2", "--trainer.accumulate_grad_batches=2", "--model.dropout=0.1"]


def column(name: str, version: int) -> list[float]:
    rows = read_metrics(RUNS / f"version_{version}")
    return [float(row[name]) for row in rows if row[name]]


@pytest.mark.parametrize(
    "options", [["--model.dropout=0.1"], MUON, ACCUMULATED], ids=["adamw", "muon", "accumulated"]
)
def test_a_captured_run_equals_an_eager_one(
    fit: Fit, back_end: BackEnd, options: list[str]
) -> None:
    """In float32; not compiled, since so short a run does not pay for it."""
    options = [*EACH, "--trainer.precision=32-true", *options]
    fit(*options, "--model.compile=false")
    result = fit(*options, "--model.compile=auto")
    assert "compile    graph (" in result.out
    for name in ("train/loss", "val/loss", "optim/grad_norm", "optim/lr"):
        assert column(name, 1) == pytest.approx(column(name, 0), rel=1e-3), name


def test_a_compiled_and_captured_run_trains(fit: Fit, device: str, back_end: BackEnd) -> None:
    has_bf16 = device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    precision = "bf16-mixed" if has_bf16 else "32-true"
    options = [*EACH, f"--trainer.precision={precision}", "--model.dropout=0"]
    fit(*options, "--model.compile=false")
    result = fit(*options, "--model.compile=graph")
    assert f"compile    graph{', compiled' * (device == 'cuda')} (as given)" in result.out
    assert column("val/loss", 1) == pytest.approx(column("val/loss", 0), abs=2e-2)


@pytest.mark.parametrize(("first", "second"), [("auto", "false"), ("false", "auto")])
def test_runs_resume_with_and_without_graphs(
    fit: Fit, gptlit: Fit, back_end: BackEnd, first: str, second: str
) -> None:
    options = [*EACH, "--trainer.precision=32-true", *MUON, "--snapshot_every=6"]
    fit(*options, f"--model.compile={first}")
    whole = column("train/loss", 0)
    saved = RUNS / "version_0" / "checkpoints" / "step_6.ckpt"
    resumed = gptlit("fit", f"--ckpt_path={saved}", f"--model.compile={second}")
    assert resumed.code == 0, resumed.err
    assert column("train/loss", 0) == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("options", [[], MUON], ids=["adamw", "muon"])
def test_a_resumed_captured_run_equals_a_whole_one(
    fit: Fit, gptlit: Fit, device: str, back_end: BackEnd, options: list[str]
) -> None:
    """With dropout, whose masks are a function of the step; the first steps of the resumed run are
    eager, those of the whole one are replayed."""
    precision = "32-true" if device == "cpu" else "bf16-mixed"
    # kernels that sum in any order would differ in their last bits
    options = ["--trainer.deterministic=warn", f"--trainer.precision={precision}", *options]
    options += ["--model.dropout=0.2", "--trainer.val_check_interval=4", "--model.compile=auto"]
    fit(*options, "--trainer.max_steps=24")
    fit(*options, "--trainer.max_steps=12")
    saved = RUNS / "version_1" / "checkpoints" / "last.ckpt"
    resumed = gptlit("fit", f"--ckpt_path={saved}", "--trainer.max_steps=24")
    assert resumed.code == 0, resumed.err
    assert_not_eager(resumed.err, [])
    assert "compile    graph (" in resumed.out
    assert_same_run(RUNS / "version_0", RUNS / "version_1")
