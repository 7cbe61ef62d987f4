"""A run's files after a full disk or a crash, and their restoration by a resume."""

import csv
import errno
import functools
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptlit.runs import event_files, loggers, metrics_file
from gptlit.training.logged_metrics import TIMED
from tests.conftest import (
    TINY,
    Result,
    Run,
    assert_same_run,
    curves,
    read_metrics,
    some_time_passes,
    timeless,
)

Call = Callable[..., Result]
FILES = ["metrics.csv", "samples.txt", "hparams.yaml", "config.yaml", "events"]
OPTIONS = ["--trainer.max_steps=40", "--trainer.val_check_interval=20", "--snapshot_every=10"]


def file_of(folder: Path, name: str) -> Path:
    return next(folder.glob("events*")) if name == "events" else folder / name


def cut(path: Path, share: float) -> None:
    """Truncate a file to a share of its size: 0 for nothing, 1 for all but the last byte."""
    os.truncate(path, round(share * (path.stat().st_size - 1)))


def copied(run: Run, to: Path) -> Path:
    """Copy a run without its checkpoints after step 20."""
    folder = to / "lightning_logs" / "version_0"
    shutil.copytree(run.folder, folder)
    some_time_passes(folder)
    for name in ("best", "last", "step_30", "step_40"):
        (folder / "checkpoints" / f"{name}.ckpt").unlink()
    shutil.copyfile(folder / "checkpoints/step_20.ckpt", folder / "checkpoints/last.ckpt")
    shutil.copyfile(folder / "checkpoints/step_20.ckpt", folder / "checkpoints/best.ckpt")
    return folder


@pytest.mark.parametrize(
    ("names", "share"),
    [
        (["metrics.csv"], 0.01),  # in the header
        (["events"], 0.3),
        (FILES, 0.0),
        (FILES, 0.4),
        (FILES, 1.0),
    ],
)
def test_a_resume_restores_files(
    gptlit: Call, run: Run, tmp_path: Path, names: list[str], share: float
) -> None:
    folder = copied(run, tmp_path)
    for name in names:
        cut(file_of(folder, name), share)
    resumed = gptlit("fit", "--ckpt_path=last", *OPTIONS)
    assert resumed.code == 0, resumed.err
    assert_same_run(folder, run.folder)
    for name in ("hparams.yaml", "config.yaml"):
        assert (folder / name).read_bytes() == (run.folder / name).read_bytes()
    assert list(read_metrics(folder)[0]) == list(read_metrics(run.folder)[0])


@functools.cache
def kept(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "step_20.ckpt"
    return torch.load(path, weights_only=True)[loggers.KEY]


def points(folder: Path) -> list[tuple[str, int, str]]:
    return sorted(
        (value.tag, event.step, str(value))
        for event in event_files.logged(folder, 20)
        for value in event.summary.value
        if not value.tag.startswith((*TIMED, "_hparams_"))
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shares=st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_files_cut_anywhere_are_restored(
    run: Run, tmp_path_factory: pytest.TempPathFactory, shares: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("cut") / "version_0"
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("checkpoints"))
    for name, share in zip(("metrics.csv", "samples.txt", "events"), shares, strict=True):
        cut(file_of(folder, name), share)
    loggers.restore(folder, kept(run.folder), 20)
    whole = [row for row in timeless(run.folder) if int(row["step"]) < 20]
    assert timeless(folder) == whole
    samples = (run.folder / "samples.txt").read_bytes()
    n_kept = samples.index(b"=== step 40")
    assert (folder / "samples.txt").read_bytes()[:n_kept] == samples[:n_kept]
    assert points(folder) == points(run.folder)
    shutil.rmtree(folder)


def test_intact_files_are_not_rewritten(run: Run, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    loggers.restore(folder, None, 20)
    files = [file_of(folder, name) for name in ("metrics.csv", "samples.txt", "events")]
    before = [(path.stat().st_ino, path.read_bytes()) for path in files]
    loggers.restore(folder, kept(run.folder), 20)
    assert [(path.stat().st_ino, path.read_bytes()) for path in files] == before


def test_invalid_copies_in_a_checkpoint_are_ignored(run: Run, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    table = (folder / "metrics.csv").read_bytes()
    for strange in ({}, {"metrics.csv": b"no zlib", "samples.txt": 7}):
        loggers.restore(folder, strange, 40)
        assert (folder / "metrics.csv").read_bytes() == table


def test_a_failure_to_write_events_does_not_end_a_run(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, n_flushes = Path.open, 0
    threads = threading.active_count()

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        nonlocal n_flushes
        if "tfevents" in path.name and arguments[:1] == ("ab",):
            n_flushes += 1
            if n_flushes > 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        half = [*OPTIONS, "--trainer.max_steps=20", "--model.decay_steps=40"]
        done = gptlit("fit", *TINY, f"--data.path={run.text}", *half)
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if "No space left" in line]
    assert len(lines) == 1
    assert "the run continues without TensorBoard's curves" in lines[0]
    assert (n_flushes, threading.active_count()) == (4, threads)
    folder = Path("lightning_logs/version_0").absolute()
    some_time_passes(folder)
    assert curves(folder) != curves(run.folder)
    assert gptlit("fit", "--ckpt_path=last", *OPTIONS, "--model.decay_steps=null").code == 0
    assert_same_run(folder, run.folder, but="(max|decay)_steps")


def test_a_failure_to_write_metrics_ends_a_run_that_can_be_resumed(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, n_writes = LocalFileSystem.open, 0

    def full(system: Any, path: str, mode: str = "rb", **options: Any) -> Any:
        nonlocal n_writes
        last = Path(path).parent / "checkpoints" / "last.ckpt"
        if str(path).endswith("metrics.csv") and mode == "ab" and last.exists():
            n_writes += 1
            if n_writes == 4:  # between steps 20 and 40
                with opened(system, path, mode, **options) as file:
                    file.write(b"1")  # with the next row "10,2.0": another epoch
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return opened(system, path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "open", full)
        done = gptlit("fit", *TINY, f"--data.path={run.text}", *OPTIONS)
    assert done.code == 1
    error = done.err.splitlines()[-1]
    assert error.startswith("gptlit: error: No space left on device: ")
    assert "metrics.csv; gptlit fit --ckpt_path " in error
    folder = Path("lightning_logs/version_0").absolute()
    assert {row["epoch"] for row in read_metrics(folder)} == {"0"}
    some_time_passes(folder)
    assert gptlit("fit", "--ckpt_path=last").code == 0
    assert_same_run(folder, run.folder)


@pytest.mark.parametrize("row", ["1,y", "²,1", "9" * 5000 + ",1", "-1,1", "1"])
def test_a_table_is_read_up_to_its_first_invalid_row(row: str) -> None:
    header, rows = metrics_file.parse(f"step,val/loss\n0,1.5\n{row}\n2,1.5\n".encode())
    assert header == ["step", "val/loss"]
    assert rows == [{"step": "0", "val/loss": "1.5"}]


@pytest.mark.parametrize("limit", [1 << 10, 1 << 30])
def test_a_table_is_read_up_to_a_huge_field(limit: int) -> None:
    before = csv.field_size_limit(limit)  # of the whole process
    try:
        assert metrics_file.parse(b"step\n0\n" + b"x" * 200_000 + b"\n1\n") == (
            ["step"],
            [{"step": "0"}],
        )
        assert metrics_file.parse(b"x" * 200_000 + b"\n0\n") == ([], [])
    finally:
        csv.field_size_limit(before)
