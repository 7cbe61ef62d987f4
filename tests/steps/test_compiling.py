"""torch.compile: the choice of a run, and its fallback."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.checkpoints import checkpoint, run_paths
from gptlit.steps import compiling
from gptlit.steps.compiling import Objective, choose, or_eager
from tests.conftest import TINY, Result, assert_same_run

Call = Callable[..., Result]
Pair = tuple[Tensor, Tensor]
G = 1e9
ONE, TWO = torch.tensor(1), torch.tensor(2)


@pytest.mark.parametrize(
    ("device", "n_steps", "flops", "compiler", "before", "compiles"),
    [
        # 4,000 s of eager steps: 260,000 GFLOP at 65 GFLOP/s, of which 3% are twice a minute
        ("cpu", 260_000, 1 * G, True, None, True),
        ("cpu", 259_999, 1 * G, True, None, False),
        ("cpu", 2_600, 100 * G, True, None, True),
        ("cpu", 2_800, 3.7 * G, True, None, False),  # small.yaml
        ("cpu", 10**9, 1 * G, False, None, False),
        ("cpu", None, 1000 * G, True, None, False),
        ("cuda", 5_000, 1 * G, False, None, True),
        ("cuda", 4_999, 1000 * G, False, None, False),
        ("cuda", None, 1000 * G, False, None, False),
        ("mps", 10**9, 1000 * G, True, None, False),
        # a resumed run does as before if it can
        ("cpu", 10**9, 100 * G, True, False, False),
        ("cpu", 1, 1 * G, True, True, True),
        ("cpu", 1, 1 * G, False, True, False),
        ("mps", 1, 1 * G, True, True, False),
        ("cuda", None, 1 * G, False, True, True),
    ],
)
def test_compiling_is_chosen_where_it_pays_off(
    device: str,
    n_steps: int | None,
    flops: float,
    compiler: bool,
    before: bool | None,
    compiles: bool,
) -> None:
    choice = choose(device, n_steps, flops, compiler=compiler, before=before)
    assert choice.compiles is compiles
    assert choice.reason


def test_the_reason_of_the_choice() -> None:
    reason = choose("cpu", 3_400, 3.7 * G, compiler=True).reason
    assert reason == "compiling pays off after about 70,270 steps; the run has 3,400"
    assert choose("cpu", 1, G, compiler=False).reason == "no C++ compiler"
    assert choose("mps", 1, G, compiler=False).reason == "not on mps"


def test_the_compiler_is_found_as_pytorch_finds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not compiling.has_compiler()
    (tmp_path / compiling._compiler()).touch(mode=0o755)
    assert compiling.has_compiler()
    monkeypatch.setenv("CXX", "my-compiler")
    assert not compiling.has_compiler()


def test_compiled_code_is_kept_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def kept() -> str | None:
        compiling.keep_compiled_code()
        return os.environ.get(compiling.CACHE_VARIABLE)

    monkeypatch.delenv(compiling.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert kept() is None
    monkeypatch.undo()
    monkeypatch.delenv(compiling.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept() == str(tmp_path / ".cache" / "gptlit" / "torchinductor")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(compiling.CACHE_VARIABLE, "elsewhere")
    assert kept() == "elsewhere"


def test_a_failure_at_the_first_call_leads_to_eager(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def broken(inputs: Tensor, targets: Tensor) -> Pair:
        calls.append("compiled")
        raise RuntimeError("no such tool\nand a long dump")

    objective = or_eager(broken, lambda *batch: batch, lambda: calls.append("failed"))
    for _ in range(2):
        assert objective(ONE, TWO) == (ONE, TWO)
    assert calls == ["compiled", "failed"]
    output = capsys.readouterr().err
    assert "torch.compile failed (RuntimeError: no such tool); not compiled" in output
    assert "dump" not in output


def test_a_failure_of_a_later_call_is_raised() -> None:
    def once(inputs: Tensor, targets: Tensor) -> Pair:
        if inputs > 1:
            raise RuntimeError("out of memory")
        return inputs, targets

    objective = or_eager(once, lambda *batch: (TWO, TWO), lambda: None)
    assert objective(ONE, TWO) == (ONE, TWO)
    with pytest.raises(RuntimeError, match="out of memory"):
        objective(TWO, TWO)


def options(text: Path, steps: int, *more: str) -> list[str]:
    run = [f"--data.path={text}", f"--trainer.max_steps={steps}", "--trainer.val_check_interval=3"]
    return ["fit", *TINY, *run, "--model.compile=auto", *more]


def test_a_resumed_run_keeps_its_choice(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is extended to a length at which compiling pays off."""
    used: list[Any] = []
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda run, **_: used.append(run) or run)
    pays_from_four = {"CPU_FLOPS": 1.0, "CPU_GAIN": 1.0}
    done = gptlit(*options(text_file, 3))
    assert done.code == 0, done.err
    assert "compile    no (compiling pays off after about" in done.out
    assert checkpoint.read(run_paths.resolve("last"))[checkpoint.KEY]["compiled"] is False
    for name, value in pays_from_four.items():
        monkeypatch.setattr(compiling, name, value)
    resumed = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=6")
    assert resumed.code == 0, resumed.err
    assert "compile    no (as before the resume)" in resumed.out
    anew = gptlit(*options(text_file, 6))
    assert "compile    yes (compiling pays off after about 0 steps; the run has 6)" in anew.out
    assert checkpoint.read(run_paths.resolve("last"))[checkpoint.KEY]["compiled"] is True


def test_only_training_steps_are_compiled(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their batches have one shape; those of validations and samples have many."""
    shapes: list[tuple[int, ...]] = []

    def compile_(run: Objective, **_: Any) -> Any:
        def recorded(inputs: Tensor, targets: Tensor) -> Pair:
            shapes.append(tuple(inputs.shape))
            return run(inputs, targets)

        return recorded

    monkeypatch.setattr(torch, "compile", compile_)
    for asked in ("true", "false"):
        done = gptlit(*options(text_file, 6, f"--model.compile={asked}"))
        assert done.code == 0, done.err
    assert shapes == [(4, 8)] * 6
    runs = Path("lightning_logs")
    assert_same_run(runs / "version_0", runs / "version_1", but="compiled?")


def test_a_run_continues_without_compiling_after_a_failure(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(run: Any, **_: Any) -> Any:
        def fails(inputs: Tensor, targets: Tensor) -> Pair:
            raise RuntimeError("no tool")

        return fails

    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    monkeypatch.setattr(compiling, "CPU_FLOPS", 1.0)
    monkeypatch.setattr(torch, "compile", compile_)
    done = gptlit(*options(text_file, 3))
    assert done.code == 0, done.err
    assert "warning: torch.compile failed" in done.err
    assert checkpoint.read(run_paths.resolve("last"))[checkpoint.KEY]["compiled"] is False


def test_compile_true_without_a_compiler_is_refused(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    done = gptlit(*options(text_file, 3, "--model.compile=true"))
    assert done.code == 2
    assert "--model.compile true: needs the C++ compiler" in done.err
    assert not Path("lightning_logs").exists()
    assert gptlit(*options(text_file, 3)).code == 0
    # a validation compiles nothing
    assert gptlit("validate", "--ckpt_path=last", "--model.compile=true").code == 0
