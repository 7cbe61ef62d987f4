"""A run saved by version 0.1.0, which had all modules in one folder, loads and resumes."""

import importlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlit as package
from gptlit.checkpoints import checkpoint
from gptlit.cli import saved_options
from gptlit.training.overfitting import Overfitting
from tests.conftest import Result, assert_equal, made_up_text, moved, timeless

FIXTURE = Path(__file__).parent.parent / "fixtures" / "run_0.1.0.zip"
Call = Callable[..., Result]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Its folder: 24 steps with Muon, EMA, dropout, accumulation and a snapshot each 12 steps."""
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(tmp_path / "lightning_logs")
    (tmp_path / "speeches.txt").write_text(made_up_text(), encoding="utf-8")
    return tmp_path / "lightning_logs" / "version_0"


def assert_close(one: Any, other: Any, where: str) -> None:
    """Assert equality up to the last bits of floats, which differ between kinds of CPU."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}[{index}]")
    elif isinstance(one, torch.Tensor) or type(one) is float:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=where)
    else:
        assert one == other, where


def resumed(gptlit: Call, older: Path, *more: str) -> dict[str, Any]:
    path = older / "checkpoints" / "step_12.ckpt"
    done = gptlit("fit", f"--ckpt_path={path}", "--data.path=speeches.txt", *more)
    assert done.code == 0, done.err
    return checkpoint.read(older / "checkpoints" / "last.ckpt")


def test_a_resume_equals_the_older_continuation(gptlit: Call, older: Path) -> None:
    then = checkpoint.read(older / "checkpoints" / "step_24.ckpt")
    now = resumed(gptlit, older)
    # compressed metrics and the text of options are compared below
    for part in ("state_dict", "loops", "optimizer_states", "lr_schedulers", "averaged"):
        assert_close(now[part], then[part], part)
    assert now["callbacks"].keys() == then["callbacks"].keys() | {"Figures"}
    but = "|".join([".*path.*|best_k_models|dirpath", *Overfitting.ADDED_STATE])
    for key in then["callbacks"]:
        assert_close(moved(now["callbacks"][key], but), moved(then["callbacks"][key], but), key)
    assert_close(now["gptlit"]["evaluated"], then["gptlit"]["evaluated"], "evaluated")


def test_a_resume_is_exact_to_the_last_bit(gptlit: Call, older: Path, tmp_path: Path) -> None:
    """A checkpoint saved after a resume continues like the older checkpoint."""
    straight = resumed(gptlit, older)
    rows = timeless(older)
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(tmp_path / "again")
    again = tmp_path / "again" / "version_0"
    resumed(gptlit, again, "--trainer.max_steps=18", "--model.decay_steps=24")
    done = gptlit(
        "fit", f"--ckpt_path={again / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=24"
    )
    assert done.code == 0, done.err
    ours = checkpoint.read(again / "checkpoints" / "last.ckpt")
    for part in ("state_dict", "loops", "optimizer_states", "averaged"):
        assert_equal(ours[part], straight[part], part)
    assert timeless(again) == rows


def test_it_generates_and_is_evaluated(gptlit: Call, older: Path) -> None:
    path = older / "checkpoints" / "step_24.ckpt"
    written = gptlit("predict", f"--ckpt_path={path}", "--prompt=the", "--max_new_tokens=4")
    assert written.code == 0
    model, tokenizer = package.load(path)
    assert package.generate(model, tokenizer, "the", max_new_tokens=4)
    judged = gptlit("validate", f"--ckpt_path={path}", "--data.path=speeches.txt")
    assert judged.code == 0, judged.err


@pytest.mark.parametrize(
    "older_name",
    [
        "callbacks.SampleText",
        "callbacks.Throughput",
        "guard.Guard",
        "overfitting.Overfitting",
        "progress_bar.RunBar",
        "saving.BestCheckpoint",
        "sharding.FSDP2",
        "stopping.Patience",
    ],
)
def test_saved_options_name_moved_classes(older_name: str) -> None:
    path = saved_options.read(f"class_path: gptlit.{older_name}")["class_path"]
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name).__name__ == older_name.split(".")[1]
