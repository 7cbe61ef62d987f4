"""Training on a GPU: precisions, compilation, resuming, and checkpoints of another device."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlit.checkpoints import checkpoint
from gptlit.devices.accelerators import name_of
from gptlit.steps.compiling import has_compiler
from tests.conftest import TINY, Result, assert_same_run, launched, read_metrics

Fit = Callable[..., Result]
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def val_losses(run: Path = RUN) -> list[float]:
    return [float(row["val/loss"]) for row in read_metrics(run) if row["val/loss"]]


def test_a_run_trains_validates_samples_and_saves(fit: Fit, device: str) -> None:
    result = fit("--trainer.max_steps=20", "--trainer.val_check_interval=10")
    first, last = val_losses()
    assert last < first < math.log(60)
    assert (RUN / "samples.txt").read_text().count("=== step") == 2
    name = name_of(torch.device(device, 0)) if device != "cpu" else "cpu"
    assert f"1 x {name}" in result.out + result.err
    # saved tensors are on the CPU, so that any machine loads them
    weights = checkpoint.read(LAST)["state_dict"].values()
    assert {weight.device.type for weight in weights} == {"cpu"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_precisions(fit: Fit, device: str, precision: str, optimizer: str) -> None:
    if device == "cpu" and precision == "16-mixed":
        pytest.skip("16-mixed needs a GPU")
    has_bf16 = device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16-mixed" and not has_bf16:
        pytest.skip("this GPU has no bfloat16")
    options = [f"--trainer.precision={precision}", f"--model.optimizer={optimizer}"]
    fit("--trainer.max_steps=20", "--trainer.gradient_clip_val=1", *options)
    (loss,) = val_losses()
    assert loss < math.log(60)
    # the weights that are kept are in float32
    weights = checkpoint.read(LAST)["state_dict"].values()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_the_default_precision(fit: Fit, device: str) -> None:
    result = fit()
    chosen = "32-true"
    if device == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        chosen = "bf16-mixed" if has_bf16 else "16-mixed"
    assert f"precision  {chosen} (" in result.out + result.err


def test_a_compiled_run_trains(fit: Fit, device: str) -> None:
    if device == "cpu" and not has_compiler():
        pytest.skip("no C++ compiler")
    if device == "mps":
        pytest.skip("not compiled on mps")
    fit("--trainer.precision=32-true", "--model.dropout=0")
    fit("--trainer.precision=32-true", "--model.dropout=0", "--model.compile=true")
    eager, compiled = val_losses(), val_losses(Path("lightning_logs/version_1"))
    assert compiled == pytest.approx(eager, abs=2e-3)


@pytest.mark.parametrize("options", [[], ["--model.optimizer=muon"], ["--model.ema=0.9"]])
def test_a_resumed_run_equals_a_whole_one(fit: Fit, gptlit: Fit, options: list[str]) -> None:
    # kernels that sum in any order would differ in their last bits
    options = ["--trainer.deterministic=warn", "--trainer.val_check_interval=3", *options]
    fit("--trainer.max_steps=9", *options)
    fit("--trainer.max_steps=6", *options)
    resumed = gptlit(
        "fit", "--ckpt_path=lightning_logs/version_1/checkpoints/last.ckpt", "--trainer.max_steps=9"
    )
    assert resumed.code == 0, resumed.err
    runs = Path("lightning_logs")
    assert_same_run(runs / "version_0", runs / "version_1")


@pytest.mark.parametrize("from_gpu", [True, False])
def test_a_run_resumes_on_another_device(
    fit: Fit, gptlit: Fit, device: str, from_gpu: bool
) -> None:
    here, there = (device, "cpu") if from_gpu else ("cpu", device)
    fit("--trainer.precision=32-true", accelerator=here)
    resumed = gptlit(
        "fit", "--ckpt_path=last", "--trainer.max_steps=8", f"--trainer.accelerator={there}"
    )
    assert resumed.code == 0, resumed.err
    assert checkpoint.read(LAST)["global_step"] == 8


def test_a_checkpoint_scores_the_same_on_both_devices(fit: Fit, gptlit: Fit, device: str) -> None:
    fit("--trainer.max_steps=20", "--trainer.precision=32-true")
    (trained,) = val_losses()
    for accelerator in ("cpu", device):
        options = [f"--trainer.accelerator={accelerator}", "--trainer.precision=32-true"]
        result = gptlit("validate", "--ckpt_path=last", *options)
        assert result.code == 0, result.err
        words = result.out.replace(",", " ").split()
        assert float(words[words.index("val/loss") + 1]) == pytest.approx(trained, abs=2e-3)


def test_accumulated_batches(fit: Fit) -> None:
    options = ["--trainer.precision=32-true", "--model.dropout=0"]
    fit("--data.batch_size=4", *options)
    fit("--data.batch_size=2", "--trainer.accumulate_grad_batches=2", *options)
    other = val_losses(Path("lightning_logs/version_1"))
    assert other == pytest.approx(val_losses(), abs=2e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_strategies(strategy: str, device: str, text_file: Path, tmp_path: Path) -> None:
    if device == "mps":
        pytest.skip("one process only on mps")
    n_devices = 1
    if strategy == "fsdp2":
        n_devices = 2
        if device == "cuda" and torch.cuda.device_count() < 2:
            pytest.skip("fsdp2 is tested on two GPUs")
    options = [
        f"--data.path={text_file}",
        "--trainer.max_steps=4",
        f"--trainer.strategy={strategy}",
    ]
    options += [f"--trainer.accelerator={device}", f"--trainer.devices={n_devices}"]
    done = launched(tmp_path, "fit", *TINY, *options)
    assert done.code == 0, done.err
    assert checkpoint.read(tmp_path / LAST)["global_step"] == 4
    done = launched(tmp_path, "fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert done.code == 0, done.err
    assert checkpoint.read(tmp_path / LAST)["global_step"] == 6
