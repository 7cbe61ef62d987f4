"""The suite runs on the CPU of any machine, and choices on other machines are simulated here."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from torch import Tensor

from gptlit.cli.adapting import _n_processes
from gptlit.devices import accelerators
from gptlit.generation.int8 import pack_int8
from gptlit.messages import UsageError
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.optim import muon
from gptlit.predict import command
from gptlit.runs import report
from gptlit.runs.user_parts import choose_precision
from gptlit.steps import compiling
from gptlit.training import compiled_steps
from tests.conftest import TINY, Result, Run

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Simulate a machine with two GPUs that compute in bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H9000")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    return monkeypatch


# ---------------------------------------------------------------------- the suite itself


def test_the_suite_sees_no_accelerator() -> None:
    # torch counts GPUs by this list and the driver
    assert torch.cuda._parse_visible_devices() == []
    assert not torch.cuda.is_available()
    assert not CUDAAccelerator.is_available()
    assert not MPSAccelerator.is_available()
    assert accelerators.fastest() == "cpu"
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert trainer.strategy.root_device.type == "cpu"


def test_children_see_no_accelerator() -> None:
    code = "import torch; from gptlit.devices import accelerators; print(accelerators.fastest())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "cpu\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_mps_is_hidden_from_gptlit_and_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert not accelerators.mps_is_available()
    # without its cache
    assert not inspect.unwrap(MPSAccelerator.is_available)()


# ---------------------------------------------------------------------- choices elsewhere


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_precision_on_cuda(cuda: pytest.MonkeyPatch, accelerator: str) -> None:
    assert choose_precision(accelerator) == ("bf16-mixed", "this GPU has bfloat16")
    cuda.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert choose_precision(accelerator) == ("16-mixed", "this GPU has no bfloat16")


def test_precision_on_a_cpu_next_to_a_gpu(cuda: pytest.MonkeyPatch) -> None:
    assert choose_precision("cpu")[0] == "32-true"


def test_the_fastest_device(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.backends.mps, "is_available", lambda: True)
    cuda.delenv("DISABLE_MPS")
    assert accelerators.fastest() == "cuda"
    cuda.setattr(torch.cuda, "is_available", lambda: False)
    assert accelerators.fastest() == "mps"


def test_names_of_devices(cuda: pytest.MonkeyPatch) -> None:
    assert accelerators.name_of(CUDA) == "NVIDIA H9000"
    assert accelerators.name_of(torch.device("cpu")) == "cpu"
    assert accelerators.name_of(torch.device("mps")) == "mps"


def test_the_start_block_names_the_gpu(
    gptlit: Callable[..., Result], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "name_of", lambda device: "NVIDIA H9000")
    result = gptlit("fit", *TINY, f"--data.path={text_file}", "--trainer.max_steps=1")
    assert "1 x NVIDIA H9000\n" in result.out + result.err


def test_a_run_on_the_cpu_of_a_machine_with_gpus(
    cuda: pytest.MonkeyPatch, gptlit: Callable[..., Result], text_file: Path
) -> None:
    options = [f"--data.path={text_file}", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    result = gptlit("fit", *TINY, *options)
    assert result.code == 0, result.err
    assert "1 x cpu, threads" in result.out + result.err
    assert "not used" not in result.out + result.err


def test_lightning_trains_on_cuda_by_default(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    trainer = L.Trainer(
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    assert trainer.strategy.root_device == CUDA


@pytest.mark.parametrize(
    ("accelerator", "devices", "processes"),
    [("auto", "auto", 2), ("gpu", -1, 2), ("cuda", 1, 1), ("cpu", "auto", 1), ("gpu", "0,1", 2)],
)
def test_processes_on_cuda(
    cuda: pytest.MonkeyPatch, accelerator: str, devices: int | str, processes: int
) -> None:
    cuda.delenv("WORLD_SIZE", raising=False)
    options = Namespace(accelerator=accelerator, devices=devices, num_nodes=1)
    assert _n_processes(options) == processes


@pytest.mark.parametrize(
    ("device", "option", "n_steps", "compiles"),
    [
        ("cuda", "auto", compiling.CUDA_STEPS, True),
        ("cuda", "auto", compiling.CUDA_STEPS - 1, False),
        ("cuda", True, 10, True),
        ("mps", "auto", 10**9, False),
    ],
)
def test_compiling_on_other_devices(
    device: str, option: Any, n_steps: int, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # CUDA needs no C++ compiler
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    monkeypatch.setattr(torch, "compile", lambda forward, mode: forward)
    monkeypatch.setattr(compiled_steps.run_length, "steps_of_run", lambda trainer: n_steps)
    monkeypatch.setattr(compiled_steps, "batches_of", lambda trainer: SimpleNamespace(batch_size=4))
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(root_device=torch.device(device)),
        precision_plugin=None,
        accumulate_grad_batches=1,
        is_global_zero=False,
    )
    net = GPT(GPTConfig(vocab_size=8, n_layer=1, n_head=1, n_embd=8, block_size=8))
    steps = compiled_steps.CompiledSteps(option)
    steps.choose(SimpleNamespace(trainer=trainer, net=net, preferences=None))
    assert steps.choice.compiles == compiles
    assert (steps._compiled is not None) == compiles


def test_muon_computes_in_bfloat16_where_the_gpu_does(cuda: pytest.MonkeyPatch) -> None:
    assert muon.working_dtype(CUDA) == torch.bfloat16
    assert muon.working_dtype(torch.device("cpu")) == torch.float32
    assert muon.working_dtype(torch.device("mps")) == torch.float32
    cuda.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert muon.working_dtype(CUDA) == torch.float32


def test_predict_moves_the_model_to_the_gpu(cuda: pytest.MonkeyPatch, run: Run) -> None:
    moved = []
    cuda.setattr(GPT, "to", lambda self, device: moved.append(device) or self)
    _, content = command.checkpoint.read_named(run.folder / "checkpoints" / "last.ckpt")
    net, _ = command.checkpoint.build(content)
    command.place([net], Namespace(device="cuda", weights="auto"), (1, 1))
    assert [torch.device(device).type for device in moved] == ["cuda"]


def test_int8_weights_are_refused_on_a_gpu() -> None:
    config = GPTConfig(vocab_size=8, n_layer=1, n_head=1, n_embd=8, block_size=8)
    with torch.device("meta"):
        net = GPT(config)
    with pytest.raises(UsageError, match="works on a CPU only, not on meta"):
        pack_int8(net)


# ---------------------------------------------------------------------- a source tree


def test_configs_are_found_in_a_source_tree(tmp_path: Path) -> None:
    code = """
import sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in repr(each)]
from gptlit.cli.configs import find_config, shipped_studies
print(find_config("tiny"), bool(shipped_studies()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{ROOT / 'configs' / 'tiny.yaml'} True\n"


@pytest.mark.parametrize(("device", "calls"), [("cuda:1", ["pin", True]), ("mps", [False])])
def test_values_are_pinned_and_not_waited_for_on_cuda(
    monkeypatch: pytest.MonkeyPatch, device: str, calls: list[Any]
) -> None:
    made: list[Any] = []

    def copied(values: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        made.append(non_blocking)
        return values

    monkeypatch.setattr(Tensor, "to", copied)
    monkeypatch.setattr(Tensor, "pin_memory", lambda values: made.append("pin") or values)
    values = torch.tensor([3, 1, 2])
    assert accelerators.placed(values, torch.device(device)) is values
    assert made == calls


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
def test_generators_are_seeded_as_by_torch(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    seeded: list[str] = []
    seed = 2**63 - 1
    torch.manual_seed(seed)
    expected = torch.rand(4)
    for name in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, name), "manual_seed", lambda _, n=name: seeded.append(n))
    accelerators.seed_generators(seed, torch.device(device))
    assert torch.equal(torch.rand(4), expected)
    if device != "xpu":  # where torch itself seeds them all
        assert seeded == [device] * (device != "cpu")
