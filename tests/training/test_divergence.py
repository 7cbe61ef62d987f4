"""Non-finite losses and gradients: detected, reported, and never saved."""

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptlit.checkpoints import checkpoint
from gptlit.model.gpt import GPT
from gptlit.runs.report import Throughput
from gptlit.training.compiled_steps import CompiledSteps
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, read_metrics
from tests.recorded_graphs import RecordedGraphs

Call = Callable[..., Result]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


def fit(gptlit: Call, text: Path, *options: object) -> Result:
    defaults = ["--trainer.max_steps=12", "--trainer.val_check_interval=4"]
    defaults += ["--trainer.log_every_n_steps=3"]
    return gptlit("fit", *TINY, f"--data.path={text}", *defaults, *options)


@contextlib.contextmanager
def broken(what: str, *steps: int, number: float = math.nan) -> Iterator[None]:
    """Make the loss or one gradient of these steps, counted from 1, non-finite in this block."""
    current: list[LitGPT] = []
    step_of_module, objective_of_batch = LitGPT.training_step, CompiledSteps.objective

    def training_step(self: LitGPT, batch: Any, batch_idx: int) -> Tensor:
        current[:] = [self]
        return step_of_module(self, batch, batch_idx)

    def objective(
        self: CompiledSteps, net: GPT, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        minimised, loss = objective_of_batch(self, net, inputs, targets)
        if current[0].global_step + 1 not in steps:
            return minimised, loss
        if what == "loss":
            return minimised * number, loss * number
        weight = net.h[0].mlp.c_fc.weight
        spoil = torch.zeros_like(weight)
        spoil[0, 0] = number
        handle = weight.register_hook(lambda grad: handle.remove() or grad + spoil)
        return minimised, loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", training_step)
        patch.setattr(CompiledSteps, "objective", objective)
        yield


def logged_losses() -> list[float]:
    rows = read_metrics(LAST.parent.parent)
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


def all_finite(path: Path) -> bool:
    content = checkpoint.read(path)
    moments = content["optimizer_states"][0]["state"].values()
    tensors = [*content["state_dict"].values(), *(m for each in moments for m in each.values())]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@pytest.mark.parametrize(
    ("what", "number", "step", "noticed"),
    [
        ("gradient", math.nan, 5, 6),  # when step 6 is logged
        ("gradient", math.inf, 8, 8),  # before step 8 is validated
        ("loss", math.nan, 7, 8),
        ("loss", -math.inf, 9, 9),
    ],
)
def test_a_run_ends_before_non_finite_values_are_saved(
    gptlit: Call, text_file: Path, what: str, number: float, step: int, noticed: int
) -> None:
    trained: list[int] = []
    with broken(what, step, number=number), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Throughput, "on_train_batch_end", lambda self, t, *_: trained.append(t.global_step)
        )
        failed = fit(gptlit, text_file)
    assert failed.code == 1
    assert trained[-1] == noticed
    (line,) = [line for line in failed.err.splitlines() if "error" in line]
    rate = 3e-3 * (step - 1) / 20  # of gpt2_tiny.yaml, warming up
    assert re.match(
        rf"gptlit: error: step {step}: the (loss|gradient) is not finite \(loss \S+, gradient norm "
        rf"(nan|inf) after \d\.\d+, learning rate {rate:.3g}\); try a lower --model.lr or ",
        line,
    ), line
    kept = (step - 1) // 4 * 4
    assert line.endswith(
        f"gptlit fit --ckpt_path {LAST} --model.lr 0.0015 resumes from step {kept}"
    )
    for path in LAST.parent.iterdir():
        assert checkpoint.read(path)["global_step"] == kept
        assert all_finite(path)
    losses = [
        float(row["train/loss"]) for row in read_metrics(LAST.parent.parent) if row["train/loss"]
    ]
    assert all(map(math.isfinite, losses))
    # the kept checkpoint is resumed to the end
    assert gptlit("fit", "--ckpt_path", LAST).code == 0


def test_a_learning_rate_far_too_high_is_reported(gptlit: Call, text_file: Path) -> None:
    failed = fit(gptlit, text_file, "--model.lr=1e30", "--model.warmup_steps=0")
    assert failed.code == 1
    assert re.search(
        r"step \d: the loss is not finite \(loss nan, .*, learning rate \d\.?\d*e\+(29|30)",
        failed.err,
    )
    assert "nothing was saved" in failed.err
    assert "Traceback" not in failed.err


def test_a_non_finite_validation_loss_ends_the_run(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are finite but too large."""
    original = LitGPT.validation_step

    def validation_step(self: LitGPT, *arguments: Any) -> None:
        with torch.no_grad():
            scale = 1e30 if self.global_step == 8 else 1.0
            self.net.lm_head.weight *= scale
        original(self, *arguments)

    monkeypatch.setattr(LitGPT, "validation_step", validation_step)
    failed = fit(gptlit, text_file)
    assert failed.code == 1
    assert re.search(r"error: step 8: val/loss is (nan|inf) at learning rate 0.001", failed.err)
    for path in LAST.parent.iterdir():
        assert checkpoint.read(path)["global_step"] == 4


@pytest.mark.parametrize(
    "option",
    ["--model.optimizer=adamw", "--model.optimizer=muon", "--trainer.accumulate_grad_batches=2"],
)
def test_non_finite_steps_are_skipped(gptlit: Call, text_file: Path, option: str) -> None:
    """Weights and moments don't change; the schedule continues."""
    options = ["--guard.skip_nonfinite=2", option]
    states: list[dict[str, Any]] = []

    def remember(self: Throughput, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step in (4, 5, 6) and not trainer.fit_loop._should_accumulate():
            optimizer = trainer.optimizers[0]
            weights = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
            kept = (value for each in optimizer.state.values() for value in each.values())
            moments = [value.clone() for value in kept if torch.is_tensor(value)]
            lr = optimizer.param_groups[0]["lr"]
            states.append({"weights": weights, "moments": moments, "lr": lr})

    with broken("gradient", 5), broken("loss", 9), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", remember)
        done = fit(gptlit, text_file, *options)
    assert done.code == 0, done.err
    before, skipped, after = states
    assert torch.equal(before["weights"], skipped["weights"])
    assert all(map(torch.equal, before["moments"], skipped["moments"]))
    assert not torch.equal(skipped["weights"], after["weights"])
    assert before["lr"] < skipped["lr"] < after["lr"]
    assert "warning: step 5: gradient norm nan; skipped (1 of at most 2)" in done.err
    assert "warning: step 9: gradient norm nan; skipped (2 of at most 2)" in done.err
    assert all_finite(LAST)


def test_with_a_scaler_only_the_loss_is_checked(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the weights when they are saved: the scaler in this test skips no steps."""
    monkeypatch.setattr(Precision, "scaler", object(), raising=False)
    with broken("gradient", 6, number=math.inf):
        failed = fit(gptlit, text_file, "--trainer.log_every_n_steps=1", "--trainer.max_steps=6",
                     "--trainer.limit_val_batches=0")  # fmt: skip
    assert failed.code == 1
    assert "step 6: the weights are not finite" in failed.err
    assert not LAST.exists()
    with broken("loss", 5):
        failed = fit(gptlit, text_file)
    assert "step 5: the loss is not finite (loss nan, gradient norm nan" in failed.err


def test_more_non_finite_steps_than_allowed_end_the_run(gptlit: Call, text_file: Path) -> None:
    """A resumed run continues the count."""
    with broken("gradient", 2):
        fit(gptlit, text_file, "--guard.skip_nonfinite=1", "--trainer.max_steps=4")
    with broken("gradient", 6):
        failed = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=12")
    assert failed.code == 1
    assert "step 6: the gradient is not finite (loss" in failed.err
    with broken("gradient", 6):
        more = ["--guard.skip_nonfinite=2", "--trainer.max_steps=12"]
        assert gptlit("fit", "--ckpt_path=last", *more).code == 0


def test_an_epochs_mean_excludes_skipped_steps(gptlit: Call, text_file: Path) -> None:
    epochs_of_5 = ["--model.block_size=64", "--data.batch_size=32"]
    with broken("loss", 3):
        fit(gptlit, text_file, *epochs_of_5, "--guard.skip_nonfinite=1", "--trainer.max_steps=5",
            "--trainer.log_every_n_steps=1")  # fmt: skip
    rows, losses = read_metrics(LAST.parent.parent), logged_losses()
    (mean,) = [float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"]]
    assert [math.isfinite(loss) for loss in losses] == [True, True, False, True, True]
    assert mean == pytest.approx(math.fsum(filter(math.isfinite, losses)) / 4, rel=1e-6)


def test_a_rising_loss_is_reported_once(gptlit: Call, text_file: Path) -> None:
    options = ["--model.warmup_steps=0", "--model.lr=0.5", "--model.min_lr=0.5"]
    done = fit(gptlit, text_file, *options, "--guard.diverged=1.01", "--trainer.max_steps=40",
               "--trainer.log_every_n_steps=1")  # fmt: skip
    assert done.code == 0
    warnings = re.findall(r"warning: step (\d+): the loss rose from (\S+) to (\S+); .*", done.err)
    assert len(warnings) == 1
    step, lowest, loss = int(warnings[0][0]), float(warnings[0][1]), float(warnings[0][2])
    losses = [
        float(row["train/loss"]) for row in read_metrics(LAST.parent.parent) if row["train/loss"]
    ]
    assert loss == pytest.approx(losses[step - 1], abs=5e-4)
    assert lowest == pytest.approx(min(losses[: step - 1]), abs=5e-4)
    assert loss > 1.01 * lowest
    assert all(
        after <= 1.01 * min(losses[:index])
        for index, after in enumerate(losses[: step - 1])
        if index
    )
    quiet = fit(gptlit, text_file, *options, "--guard.diverged=0")
    assert "diverging" not in quiet.err


class Waits(TorchDispatchMode):
    """Counts the values copied from a device to Python, each of which waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("skip", "waits", "how"), [(0, 0, "false"), (1, 1, "false"), (0, 0, "graph")]
)
def test_no_step_waits_for_its_loss_and_norm(
    gptlit: Call,
    text_file: Path,
    skip: int,
    waits: int,
    how: str,
    recorded_graphs: list[RecordedGraphs],
) -> None:
    counted: list[int] = []
    mode = Waits()

    def count(self: LitGPT, batch: Any, batch_idx: int) -> None:
        counted.append(mode.count)

    with pytest.MonkeyPatch.context() as patch, mode:
        patch.setattr(LitGPT, "on_train_batch_start", count)
        fit(gptlit, text_file, "--trainer.log_every_n_steps=50", f"--guard.skip_nonfinite={skip}",
            "--trainer.val_check_interval=12", f"--model.compile={how}",
            "--samples.prompts=[]")  # fmt: skip
    assert len(recorded_graphs) == (how == "graph")
    steps = [after - before for before, after in itertools.pairwise(counted[2:])]
    assert steps == [waits] * len(steps)
