"""Apple's GPUs: each assumption of CUDA's is guarded; simulated, not measured on one.

`ON_MPS` says of each module that knows CUDA, autocast or float64 what it does on an Apple GPU, and
which test shows it.
"""

import ast
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.plugins.precision import Precision

import gptlit
from gptlit.cli.adapting import _n_processes
from gptlit.devices import choice, graphs, instructions
from gptlit.generation import captured, int8
from gptlit.messages import UsageError
from gptlit.model.activation_memory import KeptActivations
from gptlit.model.config import GPTConfig
from gptlit.model.cost import bytes_of
from gptlit.model.gpt import GPT
from gptlit.optim import muon
from gptlit.predict import command
from gptlit.runs.computing import use_tf32
from gptlit.runs.user_parts import choose_precision
from gptlit.steps import chunked_loss, compiling, losses
from gptlit.training import compiled_steps

PACKAGE = Path(gptlit.__file__).parent
MPS = torch.device("mps")
WORDS = {"cuda", "is_cuda", "pin_memory", "float64", "double", "autocast"}
ON_MPS = {
    "checkpoints/weight_shapes": "weights in float64 are read on the CPU, into those of the net",
    "cli/adapting": "one process: test_one_process",
    "data/device_windows": "not pinned, no side stream: tests/data/test_device_windows.py",
    "devices/accelerators": "not pinned, float32: tests/devices/test_accelerators.py",
    "devices/choice": "an estimate of its own: tests/devices/test_choice.py",
    "devices/graphs": "no graphs: test_nothing_is_captured",
    "devices/peaks": "unknown, so that no MFU is logged",
    "generation/captured": "not used: test_nothing_is_captured",
    "generation/running_batch": "drawn on the CPU, then float32, as by generation/sampling",
    "generation/sampling": "drawn on the CPU, then float32: tests/test_without_float64.py",
    "model/activation_memory": "estimated as on a CPU: test_memory_is_estimated_as_on_a_cpu",
    "model/positions": "angles are computed on the CPU: tests/test_without_float64.py",
    "optim/muon": "float32, neither fused nor with counts on the GPU: test_muon",
    "runs/computing": "no TF32: test_no_tf32",
    "runs/user_parts": "32-true: test_precision",
    "steps/captured_step": "not used: test_nothing_is_captured",
    "steps/compiling": "not by auto: test_compiling_is_left_to_the_user",
    "steps/losses": "sums in float32: test_sums_are_in_float32",
    "study/run": "no cache of CUDA's to empty, since there is no CUDA",
    "training/compiled_steps": "not captured: test_nothing_is_captured",
}
TINY = GPTConfig(vocab_size=8, n_layer=1, n_head=1, n_embd=8, block_size=8)


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Simulate an Apple machine whose GPU is not hidden."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("DISABLE_MPS")
    return monkeypatch


def words_of(path: Path) -> set[str]:
    """Return the names and strings of a file's code, without comments and docstrings."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {getattr(node, field, None) for node in nodes for field in ("attr", "id", "arg")}
    return names | {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_each_module_that_knows_cuda_is_described() -> None:
    found = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if words_of(path) & WORDS
    }
    assert found == set(ON_MPS)


def test_precision(mps: pytest.MonkeyPatch) -> None:
    for accelerator in ("auto", "gpu", "mps"):
        assert choose_precision(accelerator) == ("32-true", "the safe choice on Apple's GPUs")


def test_no_tf32(mps: pytest.MonkeyPatch) -> None:
    with ExitStack() as held:
        assert [use_tf32(each, held) for each in ("auto", "gpu", "mps")] == [""] * 3
        assert torch.get_float32_matmul_precision() == "highest"


def test_one_process(mps: pytest.MonkeyPatch) -> None:
    for accelerator in ("auto", "gpu", "mps"):
        assert _n_processes(Namespace(accelerator=accelerator, devices="auto", num_nodes=1)) == 1


def test_sums_are_in_float32() -> None:
    # in a process of its own, since the type is chosen at import
    code = """
import os, torch
del os.environ["DISABLE_MPS"]
torch.backends.mps.is_available = lambda: True
from gptlit.steps import losses
epoch, text = losses.RunningLoss(), losses.TextLoss().to(torch.bfloat16)
epoch.add_later(torch.tensor(2.0), 3)
epoch.fetch()
epoch.add(torch.tensor(4.0), torch.zeros(1, 3, dtype=torch.long))
text.update(torch.tensor(6.0, dtype=torch.bfloat16), 2)
print(losses.SUM_DTYPE, epoch.nats, text.nats.dtype, text.compute().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout == "torch.float32 tensor(18.) torch.float32 3.0\n"


def test_nothing_is_captured(capsys: pytest.CaptureFixture[str]) -> None:
    assert graphs.back_end(MPS) is None
    model: Any = SimpleNamespace(wte=SimpleNamespace(weight=SimpleNamespace(device=MPS)))
    assert not captured.is_used_for(model)
    for option, warns in (("graph", True), ("auto", False)):
        module = module_on_mps()
        steps = compiled_steps.CompiledSteps(option)  # type: ignore[arg-type]
        steps.choose(module)
        assert not steps.choice.captures
        assert not steps.choice.compiles
        line = "training steps are not captured as CUDA graphs: the device is mps, not cuda"
        assert (line in capsys.readouterr().err) == warns


def module_on_mps() -> Any:
    """Return what the choice of compiled steps reads of a `LitGPT` in a long fit."""
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(root_device=MPS),
        precision_plugin=Precision(),
        accumulate_grad_batches=1,
        is_global_zero=True,
        estimated_stepping_batches=10**9,
        datamodule=None,
    )
    return SimpleNamespace(trainer=trainer, net=GPT(TINY), preferences=None)


def test_compiling_is_left_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compiling.choose("mps", 10**9, 1e12, compiler=True).compiles
    compiling.check(True, "mps")  # without a C++ compiler as well
    steps = compiled_steps.CompiledSteps(True)
    monkeypatch.setattr(torch, "compile", lambda forward, mode: forward)
    steps.choose(module_on_mps())
    assert steps.choice.compiles


def test_muon() -> None:
    assert muon.working_dtype(MPS) == torch.float32
    assert MPS.type not in muon.FUSED


def test_int8_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither chosen nor allowed; meta stands for the device."""
    monkeypatch.setattr(instructions, "for_int8", lambda: "dot product")
    monkeypatch.setattr(choice, "named", lambda name: torch.device("meta"))
    net = GPT(GPTConfig(vocab_size=8, n_layer=1, n_head=1, n_embd=1024, block_size=8))
    assert int8.pays(net)
    options = Namespace(device="mps", weights="auto")
    command.place([net], options, (1, 10))
    assert options.weights == "float32"
    with pytest.raises(UsageError, match="works on a CPU only"):
        command.place([net], Namespace(device="mps", weights="int8"), (1, 10))


def test_autocast_is_asked_by_the_devices_type() -> None:
    """Which PyTorch knows on machines without such a GPU too."""
    assert not torch.is_autocast_enabled("mps")
    assert torch.get_autocast_dtype("mps") in (torch.float16, torch.bfloat16)
    with torch.autocast("mps", enabled=False):
        assert losses.objective(torch.zeros(1, 2, 8), torch.zeros(1, 2, dtype=torch.long))
    assert chunked_loss.rows_at_once(16 * 1024, 50_257, "mps") is not None


def test_memory_is_estimated_as_on_a_cpu() -> None:
    sizes = bytes_of("32-true")
    peaks = [KeptActivations(TINY, 4, sizes, device, None).peak() for device in ("mps", "cpu")]
    assert peaks[0] == peaks[1]
