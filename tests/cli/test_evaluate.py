"""`gptlit validate` and `gptlit test` on the command line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result, Run, made_up_text, read_metrics

Call = Callable[..., Result]


def metrics(result: Result) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in result.out.splitlines())


def test_validate_prints_what_training_logged(gptlit: Call, run: Run) -> None:
    result = gptlit("validate", "--ckpt_path", run.folder / "checkpoints" / "last.ckpt")
    assert result.code == 0
    printed = metrics(result)
    last = next(row for row in reversed(read_metrics(run.folder)) if row["val/loss"])
    for name in ("val/loss", "val/perplexity", "val/bits_per_byte"):
        assert float(printed[name]) == pytest.approx(float(last[name]), abs=1e-5)
    n_tokens = len(made_up_text()) - int(0.9 * len(made_up_text()))
    assert n_tokens >= 1000
    assert printed["tokens"] == f"{n_tokens:,}"
    assert re.fullmatch(r"\d,\d{3}", printed["bytes"])
    assert "val/gap" not in printed


def test_validate_on_another_text(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    Path("other.txt").write_text("the king and thy love\n", encoding="utf-8")
    result = gptlit(
        "validate", "--ckpt_path", path, "--data.path=other.txt", "--data.val_fraction=0.9999"
    )
    assert result.code == 0, result.err
    assert int(metrics(result)["tokens"]) == 22
    assert not result.err


def test_a_split_that_was_trained_on_is_reported(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("validate", "--ckpt_path", path, "--data.val_fraction=0.5")
    assert "warning: the val split overlaps the text that the model was trained on" in result.err


def test_test_needs_a_test_split(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("test", "--ckpt_path", path)
    assert result.code == 2
    assert "--data.test_fraction" in result.err
    Path("other.txt").write_text("the king and thy love\n", encoding="utf-8")
    result = gptlit("test", "--ckpt_path", path, "--data.test_path=other.txt")
    assert result.code == 0
    assert {"test/loss", "test/perplexity", "test/bits_per_byte"} <= set(metrics(result))
    assert metrics(result)["tokens"] == "22"
