import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlit
from gptlit.checkpoints import checkpoint, run_paths
from gptlit.messages import UsageError
from tests.conftest import Run


@pytest.fixture
def best(run: Run) -> Path:
    return run.folder / "checkpoints" / "best.ckpt"


def test_three_lines_in_a_notebook(best: Path) -> None:
    model, tokenizer = gptlit.load(best)
    text = gptlit.generate(model, tokenizer, "ROMEO:", max_new_tokens=20)
    assert text.startswith("ROMEO:")
    assert len(text) == 26
    assert not model.training


def test_a_checkpoint_is_whole_and_plain(best: Path, run: Run) -> None:
    content = torch.load(best, weights_only=True)
    described = content[checkpoint.KEY]
    assert described["config"]["n_embd"] == 16
    assert described["config"]["vocab_size"] == len(described["tokenizer"]["characters"])
    assert described["text"]["name"] == run.text.name
    assert described["text"]["spans"]["val"][0][0] == described["text"]["spans"]["train"][0][1]
    assert "max_steps: 40" in described["run"]


def test_it_needs_neither_text_nor_config(best: Path, tmp_path: Path) -> None:
    copy = tmp_path / "alone.ckpt"
    copy.write_bytes(best.read_bytes())
    ours, _ = gptlit.load(best)
    theirs, _ = gptlit.load(copy)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert theirs.lm_head.weight is theirs.wte.weight


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


def test_a_crafted_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "made by evil"))
    path = tmp_path / "evil.ckpt"
    torch.save({checkpoint.KEY: Evil()}, path)
    with pytest.raises(UsageError, match="refused"):
        gptlit.load(path)
    path.write_bytes(pickle.dumps({checkpoint.KEY: Evil()}))
    with pytest.raises(UsageError, match="^path"):
        gptlit.load(path)
    assert not (tmp_path / "made by evil").exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_torn_file(best: Path, tmp_path: Path, share: float) -> None:
    whole = best.read_bytes()
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match="^path .*torn.ckpt"):
        gptlit.load(torn)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UsageError, match="not a checkpoint of gptlit"):
        gptlit.load(path)


def test_best_and_last_are_those_of_the_newest_run_that_has_one(tmp_path: Path) -> None:
    for run, names in {
        "version_2": ["best"],
        "version_9": ["best"],
        "version_10": ["last"],
    }.items():
        folder = tmp_path / run / "checkpoints"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.ckpt").touch()
    assert run_paths.resolve("best", tmp_path).parts[-3] == "version_9"
    assert run_paths.resolve("last", tmp_path).parts[-3] == "version_10"
    with pytest.raises(UsageError, match="^ckpt_path best: no run under .*gptlit fit"):
        run_paths.resolve("best", tmp_path / "empty")
    with pytest.raises(UsageError, match="^ckpt_path nowhere.ckpt: no such file"):
        run_paths.resolve("nowhere.ckpt", tmp_path)


def test_a_renamed_run_is_found(tmp_path: Path) -> None:
    """Event files have the time of its beginning in their names, also after copying."""
    for seconds, run in enumerate(["oldest", "version_0", "my best run", "version_1"]):
        (folder := tmp_path / run / "checkpoints").mkdir(parents=True)
        (folder / "last.ckpt").touch()
        (folder.parent / f"events.out.tfevents.{1000 + seconds}.host.1.0").touch()
    assert run_paths.resolve("last", tmp_path).parts[-3] == "version_1"
    (tmp_path / "version_1" / "checkpoints" / "last.ckpt").unlink()
    assert run_paths.resolve("last", tmp_path).parts[-3] == "my best run"
    (tmp_path / "my best run").rename(tmp_path / "version_99")
    assert run_paths.resolve("last", tmp_path).parts[-3] == "version_99"
