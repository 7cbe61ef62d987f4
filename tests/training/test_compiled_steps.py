"""Which runs capture their steps, and why others don't."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    LambdaCallback,
    LearningRateMonitor,
    ModelPruning,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from gptlit.training import compiled_steps, loop_state
from gptlit.training.divergence import Guard
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result
from tests.recorded_graphs import RecordedGraphs

Call = Callable[..., Result]
Graphs = list[RecordedGraphs]
RUN = [*TINY, "--trainer.max_steps=8", "--trainer.val_check_interval=4", "--samples.prompts=[]"]


def fit(gptlit: Call, text: Path, *options: object) -> Result:
    result = gptlit("fit", *RUN, f"--data.path={text}", *options)
    assert result.code == 0, result.err
    return result


def test_a_cpu_captures_nothing(gptlit: Call, text_file: Path) -> None:
    reason = "the device is cpu, not cuda"
    result = fit(gptlit, text_file, "--model.compile=graph")
    line = "--model.compile graph: training steps are not captured as CUDA graphs: "
    assert result.err.count(line + reason) == 1
    assert f"compile    no ({reason})" in result.out
    assert "captured" not in fit(gptlit, text_file, "--model.compile=auto").err


def test_auto_captures_where_graphs_are(
    gptlit: Call, text_file: Path, recorded_graphs: Graphs
) -> None:
    result = fit(gptlit, text_file)
    assert "compile    graph (" in result.out
    assert recorded_graphs[0].captures == 2
    summary = gptlit("summary", *RUN, f"--data.path={text_file}")
    assert "\ncompile: graph (" in summary.out
    assert "run eagerly" in summary.out
    assert gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=14").code == 0
    assert recorded_graphs[1].captures == 2


def test_auto_reports_why_it_captures_nothing(
    gptlit: Call, text_file: Path, recorded_graphs: Graphs
) -> None:
    result = fit(gptlit, text_file, "--guard.skip_nonfinite=1")
    line = (
        "--model.compile auto: training steps are not captured as CUDA graphs: "
        "--guard.skip_nonfinite needs the norm of each step on the host"
    )
    assert result.err.count(line) == 1
    assert not recorded_graphs


class Watches(Callback):
    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass


class OwnStep(LitGPT):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * 2


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({}, LitGPT, None),
        ({"precision": "bf16-mixed"}, LitGPT, None),
        ({"callbacks": [Guard(), LambdaCallback(on_train_batch_end=print)]}, LitGPT, None),
        ({"precision": "64-true"}, LitGPT, "the precision plugin is DoublePrecision"),
        ({"precision": "bf16-true"}, LitGPT, "the precision plugin is HalfPrecision"),
        ({"plugins": [MixedPrecision("16-mixed", "cpu")]}, LitGPT, "the precision is 16-mixed"),
        ({"strategy": "ddp"}, LitGPT, "the strategy is DDPStrategy"),
        ({"gradient_clip_algorithm": "value"}, LitGPT, "gradients are clipped by value"),
        ({"callbacks": [Watches()]}, LitGPT, "the callback Watches has a method on_after_backward"),
        (
            {"callbacks": [LambdaCallback(on_before_optimizer_step=print)]},
            LitGPT,
            "the callback LambdaCallback has a method on_before_optimizer_step",
        ),
        (
            {"callbacks": [ModelPruning("l1_unstructured")]},
            LitGPT,
            "the callback ModelPruning changes what is trained",
        ),
        (
            {"callbacks": [BackboneFinetuning()]},
            LitGPT,
            "the callback BackboneFinetuning changes what is trained",
        ),
        (
            {"callbacks": [Guard(skip_nonfinite=2)]},
            LitGPT,
            "skip_nonfinite needs the norm of each step on the host",
        ),
        ({}, OwnStep, "OwnStep has a method training_step of its own"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_what_prevents_a_capture(
    options: dict[str, Any],
    kind: type[LitGPT],
    reason: str | None,
    recorded_graphs: Graphs,
) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    model = kind(n_layer=1, n_head=1, n_embd=8, block_size=8)
    model.trainer = L.Trainer(accelerator="cpu", devices=1, **quiet, **options)
    found = compiled_steps.obstacle(model)
    assert (
        found and found.replace(compiled_steps.opt("guard.skip_nonfinite"), "skip_nonfinite")
    ) == reason


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_a_second_fit_with_the_same_callbacks_is_captured(recorded_graphs: Graphs) -> None:
    """A fit leaves out hooks that do nothing, which are then no methods any more."""
    model = LitGPT(n_layer=1, n_head=1, n_embd=8, block_size=8)
    callback = LearningRateMonitor()
    loop_state.leave_out_idle_hooks(callback)
    quiet = {"logger": CSVLogger("."), "enable_checkpointing": False, "enable_progress_bar": False}
    model.trainer = L.Trainer(accelerator="cpu", devices=1, **quiet, callbacks=[callback])
    assert compiled_steps.obstacle(model) is None


def test_recomputed_dropout_is_not_captured(
    gptlit: Call, text_file: Path, recorded_graphs: Graphs
) -> None:
    options = ["--model.activation_checkpointing=true", "--model.compile=graph"]
    result = fit(gptlit, text_file, *options, "--model.dropout=0.1")
    assert "activation checkpointing sets the random state of dropout on the host" in result.err
    assert not recorded_graphs
    fit(gptlit, text_file, *options, "--model.dropout=0")
    assert recorded_graphs[0].captures == 2


def test_gradients_are_there_after_a_step(
    gptlit: Call, text_file: Path, recorded_graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks see those of the step, clipped, as after an eager one."""
    seen: list[list[Tensor]] = []

    def collect(self: LitGPT, *_: Any) -> None:
        seen.append([p.grad.clone() for p in self.parameters() if p.grad is not None])

    monkeypatch.setattr(LitGPT, "on_train_batch_end", collect)
    options = ["--trainer.gradient_clip_val=0.1", "--model.bias=false"]
    fit(gptlit, text_file, "--model.compile=false", *options)
    eager, seen[:] = list(seen), []
    fit(gptlit, text_file, "--model.compile=graph", *options)
    assert len(seen) == len(eager) == 8
    for ours, theirs in zip(seen, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
