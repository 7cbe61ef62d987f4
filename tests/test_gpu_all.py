"""`make gpu`: its table, its parts at tiny sizes on the CPU, and its limits."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests import conftest

ROOT = Path(__file__).parent.parent
NANOGPT = """
import sys
assert "--device=cpu" in sys.argv
for step in range(0, 60, 10):
    print(f"iter {step}: loss 4.0000, time 13.40ms, mfu 1.00%", flush=True)
"""


@pytest.fixture
def gpu_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Import the script, which imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    import gpu_all

    return gpu_all


@pytest.fixture
def set_output(gpu_all: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Replace the processes that the script starts; return the function that sets their output."""

    def outputs(out: str, code: int = 0, err: str = "") -> None:
        done = subprocess.CompletedProcess([], code, out, err)
        monkeypatch.setattr(gpu_all, "run_limited", lambda *_, **__: done)

    return outputs


def test_the_table_has_device_driver_versions_and_date(
    gpu_all: ModuleType, set_output: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    set_output('progress\n{"what": "a step", "result": "2.00 ms", "remarks": "a|b"}\n')
    gpu_all.main(["--dry", "--parts", "gpt2", "generation", "--output=table.md"])
    out = capsys.readouterr().out
    assert Path("table.md").read_text() == out
    title, blank, head, rule, *rows = out.splitlines()
    assert title.startswith("## A dry run on the CPU")
    assert (blank, head, rule) == ("", "| what | result | remarks |", "|---|---|---|")
    names = [row.split(" | ")[0] for row in rows]
    assert names == ["| device", "| driver", "| versions", "| date", "| a step", "| a step"]
    assert f"torch {torch.__version__.partition('+')[0]}" in rows[2]
    assert rows[4] == "| a step | 2.00 ms | a\\|b |"


def test_failures_are_rows(gpu_all: ModuleType, set_output: Callable[..., Any]) -> None:
    set_output('{"what": "a", "result": "1 ms"}\n', 1, "Traceback\nRuntimeError: no memory\n")
    assert gpu_all.part_rows("gpt2", [], 5) == [
        gpu_all.Row("a", "1 ms"),
        gpu_all.Row("gpt2", "failed", "RuntimeError: no memory"),
    ]
    set_output("", gpu_all.STOPPED)
    assert gpu_all.part_rows("gpt2", [], 5) == [
        gpu_all.Row("gpt2", "not finished", "stopped after 5 s")
    ]


def test_results_of_tests_are_counted(gpu_all: ModuleType, set_output: Callable[..., Any]) -> None:
    lines = [f"tests/gpu/test_x.py::test_{i} PASSED [ 50%]" for i in range(3)]
    lines += ["tests/gpu/test_x.py::test_y[16-mixed] FAILED", "tests/gpu/test_z.py::test_z SKIPPED"]
    set_output("\n".join(lines), 1)
    row = gpu_all.test_row("cpu", 5)
    assert row.result == "1 failed, 3 passed, 1 skipped"
    assert row.remarks.endswith("s tests/gpu/test_x.py::test_y[16-mixed]")
    set_output("\n".join(lines[:2]), gpu_all.STOPPED)
    row = gpu_all.test_row("cpu", 5)
    assert row.result == "2 passed"
    assert row.remarks.endswith("s, the last finished: tests/gpu/test_x.py::test_1")
    set_output("", 1, "No module named pytest\n")
    assert gpu_all.test_row("cpu", 5).result == "failed"


def test_a_part_is_stopped_at_its_limit_with_its_children(
    gpu_all: ModuleType, tmp_path: Path
) -> None:
    # a child that outlives its parent would keep the pipe open
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    done = gpu_all.run_limited([sys.executable, "-c", parent], 1, tmp_path)
    assert done.returncode == gpu_all.STOPPED
    assert time.monotonic() - began < 30


def test_parts_are_left_out_when_no_time_is_left(
    gpu_all: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_all.main(["--dry", "--limit=0"])
    rows = capsys.readouterr().out.splitlines()
    assert sum("no time was left" in row for row in rows) == 1 + len(
        gpu_all.parts_of(gpu_all.DRY, None)
    )


@pytest.mark.parametrize("part", ["bare medium", "bare best_gpu", "generation", "gpt2"])
def test_a_part_at_tiny_sizes(gpu_all: ModuleType, part: str) -> None:
    rows = list(gpu_all.parts_of(gpu_all.DRY, None)[part]())
    assert rows
    for row in rows:
        assert row.result.endswith("tokens/s"), row


def test_gptlit_fit_at_tiny_sizes(gpu_all: ModuleType) -> None:
    (row,) = gpu_all.parts_of(gpu_all.DRY, None)["fit medium"]()
    assert row.what == "`gptlit fit --config medium.yaml --model.compile false`"
    assert "ms a step" in row.result
    assert row.remarks.startswith("32-true; mean ")


def test_the_start_of_a_fit(gpu_all: ModuleType) -> None:
    anew, again = gpu_all.parts_of(gpu_all.DRY, None)["start"]()
    assert anew.what.endswith("compiled anew")
    assert again.what.endswith("from the cache of compiled code")
    for row in (anew, again):
        assert row.result.endswith(" s from the command to the first loss")
        assert float(row.result.split()[0]) > 0


def test_captured_steps_beside_a_bare_loop(gpu_all: ModuleType) -> None:
    fit, bare = gpu_all.parts_of(gpu_all.DRY, None)["fit best_gpu graph"]()
    assert fit.what == "`gptlit fit --config best_gpu.yaml --model.compile graph`"
    assert "best_gpu.yaml's net, muon, compiled and captured" in bare.what
    assert "ms a step" in bare.result
    assert bare.remarks.startswith("`gptlit fit` takes ")


def test_nanogpts_script(gpu_all: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "train.py").write_text(NANOGPT)
    (row,) = gpu_all.parts_of(gpu_all.DRY, folder)["nanogpt"]()
    assert row.what == "nanoGPT's train.py"
    assert "tokens/s" in row.result
    assert (tmp_path / "nanogpt" / "data" / "random_char" / "train.bin").stat().st_size == 2 * 4500


def test_no_gpu_is_one_sentence(gpu_all: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no GPU"):
        gpu_all.main([])
    with pytest.raises(SystemExit, match="--parts cake: choose from tests, fit medium graph"):
        gpu_all.main(["--dry", "--parts", "cake"])


def test_tests_of_a_gpu_never_run_with_others(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "DEVICE", "cuda")
    with pytest.raises(pytest.UsageError, match="GPTLIT_TEST_DEVICE=cuda is for tests/gpu"):
        conftest.pytest_collection_modifyitems([request.node])
    on_gpu = SimpleNamespace(path=ROOT / "tests" / "gpu" / "test_training.py")
    conftest.pytest_collection_modifyitems([on_gpu])  # type: ignore[list-item]
    monkeypatch.setattr(conftest, "DEVICE", "cpu")
    conftest.pytest_collection_modifyitems([request.node])
