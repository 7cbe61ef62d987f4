"""Strategies that copy the first process, and the folder of a run that trained nothing."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.connectors import accelerator_connector

from gptlit.checkpoints import checkpoint
from tests.conftest import TINY, Result, Run

Call = Callable[..., Result]
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2"]
COPYING = [
    name
    for name, entry in StrategyRegistry.items()
    if entry["init_params"].get("start_method", "popen") != "popen"
]


def assert_refused(result: Result, method: str) -> None:
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert line.startswith("gptlit: error: --trainer.strategy ")
    assert f"by {method}" in line
    assert "use --trainer.strategy ddp" in line


@pytest.mark.parametrize("name", COPYING)
def test_copying_strategies_are_refused_before_anything_is_written(
    gptlit: Call, text_file: Path, name: str
) -> None:
    result = gptlit("fit", *TINY, f"--data.path={text_file}", *TWO, f"--trainer.strategy={name}")
    assert_refused(result, "spawn" if "spawn" in name else "fork")
    assert f"--trainer.strategy {name}:" in result.err
    assert [path.name for path in Path.cwd().iterdir()] == [text_file.name]


def test_the_registry_has_copying_strategies() -> None:
    assert {"ddp_spawn", "ddp_fork", "ddp_notebook"} <= set(COPYING)


def test_a_copying_strategy_object_is_refused(gptlit: Call, text_file: Path) -> None:
    of_class = ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy"]
    of_class += ["--trainer.strategy.start_method=spawn"]
    result = gptlit("fit", *TINY, f"--data.path={text_file}", *TWO, *of_class)
    assert_refused(result, "spawn")
    assert "DDPStrategy" in result.err


def test_a_notebooks_default_is_refused(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator_connector, "_IS_INTERACTIVE", True)
    assert_refused(gptlit("fit", *TINY, f"--data.path={text_file}", *TWO), "fork")


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_every_verb_refuses_copying_strategies(gptlit: Call, run: Run, verb: str) -> None:
    last = run.folder / "checkpoints" / "last.ckpt"
    before = contents(run.folder)
    result = gptlit(verb, f"--ckpt_path={last}", *TWO, "--trainer.strategy=ddp_spawn")
    assert_refused(result, "spawn")
    assert contents(run.folder) == before


# ---------------------------------------------------------------------- results on disk


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def elsewhere(monkeypatch: pytest.MonkeyPatch, write: Callable[[], object], end: type) -> None:
    """Let another process train, while this one's Trainer stays at its step."""

    @functools.wraps(L.Trainer.fit)  # its options are the command line's
    def fit(*_: Any, **__: Any) -> None:
        write()
        if end is not type(None):
            raise end

    monkeypatch.setattr(L.Trainer, "fit", fit)


@pytest.mark.parametrize("end", [type(None), KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("result", ["checkpoint", "metric"])
def test_a_folder_with_a_result_is_never_removed(
    gptlit: Call,
    text_file: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    end: type,
    result: str,
) -> None:
    def write() -> None:
        if result == "checkpoint":
            shutil.copytree(run.folder / "checkpoints", RUN / "checkpoints")
        else:
            shutil.copy(run.folder / "metrics.csv", RUN)

    elsewhere(monkeypatch, write, end)
    assert gptlit("fit", *TINY, f"--data.path={text_file}").code != 0
    assert (RUN / "config.yaml").is_file()
    for path in (run.folder / "checkpoints").iterdir() if result == "checkpoint" else []:
        assert (RUN / "checkpoints" / path.name).read_bytes() == path.read_bytes()
    if result == "metric":
        assert (RUN / "metrics.csv").read_bytes() == (run.folder / "metrics.csv").read_bytes()


@pytest.mark.parametrize("end", [type(None), KeyboardInterrupt])
def test_a_folder_without_a_result_is_removed(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch, end: type
) -> None:
    def write() -> None:
        (RUN / "metrics.csv").write_text("epoch,step,train/loss\n")

    elsewhere(monkeypatch, write, end)
    assert gptlit("fit", *TINY, f"--data.path={text_file}").code != 0
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("trained", [False, True])
def test_a_resumed_folder_keeps_results(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch, trained: bool
) -> None:
    """Without results it is restored."""
    shutil.copytree(run.folder, RUN)
    before = contents(RUN)
    step = checkpoint.read(LAST)["global_step"]
    grown = (RUN / "metrics.csv").read_text()
    row = dict.fromkeys(grown.splitlines()[0].split(","), "") | {"epoch": "0", "step": str(step)}

    def write() -> None:
        if trained:
            (RUN / "metrics.csv").write_text(f"{grown}{','.join(row.values())}\n")

    elsewhere(monkeypatch, write, KeyboardInterrupt)
    resumed = gptlit("fit", f"--ckpt_path={LAST}", "--trainer.max_steps=50", "--samples.top_k=3")
    assert resumed.code == 130
    after = contents(RUN)
    if trained:
        assert after[RUN / "metrics.csv"].startswith(grown.encode())
        assert after[RUN / "metrics.csv"] != before[RUN / "metrics.csv"]
    else:
        kept = [path for path in before if path.suffix in (".csv", ".yaml", ".txt", ".ckpt")]
        assert [after[path] for path in kept] == [before[path] for path in kept]
