"""Several processes are one: the same windows, losses, figures and texts, and they end together."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlit import checkpoint
from gptlit.__main__ import main
from tests.conftest import Result, Run, made_up_text, read_metrics
from tests.ranks import ranks

Call = Callable[..., Result]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"
STEPS = 50
EPOCH = 28
# 20 windows in each of validation, test and slice, which make a batch: that of rank 1 is padding
OPTIONS = [
    "--config=tiny.yaml",
    "--model.n_layer=2",
    "--model.n_head=2",
    "--model.n_embd=16",
    "--model.block_size=32",
    "--model.lr=1e-3",
    f"--model.decay_steps={STEPS}",
    "--data.val_fraction=0.05",
    "--data.test_fraction=0.05",
    "--samples.max_new_tokens=12",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=25",
]


def fit(text: Path, batch_size: int, *more: str) -> list[str]:
    return ["fit", *OPTIONS, f"--data.path={text}", f"--data.batch_size={batch_size}", *more]


def figures(folder: Path) -> dict[str, dict[int, float]]:
    """The points of each of a run's curves, by step, and the mean of its first epoch."""
    rows = read_metrics(folder / "lightning_logs" / "version_0")
    names = rows[0].keys() - {"step", "epoch", "speed/step_ms", "speed/tokens_per_s"}
    found = {
        name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in names
    }
    found["train/loss_epoch"] = {EPOCH: found["train/loss_epoch"][EPOCH - 1]}
    return found


def assert_same_figures(one: Path, other: Path) -> None:
    ours, theirs = figures(one), figures(other)
    assert len(ours["train/loss"]) == STEPS
    assert len(ours["val/loss"]) == 2
    assert ours.keys() == theirs.keys()
    for name in ours:
        tolerance = 1e-4 if name == "val/perplexity" else 1e-5
        assert ours[name] == pytest.approx(theirs[name], abs=tolerance, rel=0), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one process; two take the same windows from batches of 6 each."""
    cwd = tmp_path_factory.mktemp("alone")
    text = cwd / "speeches.txt"
    text.write_text(made_up_text(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        assert main(fit(text, 12, f"--trainer.max_steps={STEPS}")) == 0
    return Run(cwd, cwd / "lightning_logs" / "version_0", text)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_are_one(gptlit: Call, alone: Run, tmp_path: Path, strategy: str) -> None:
    """Trained to the middle, gone on with, evaluated by both, and the file used by one."""
    both = f"--trainer.strategy={strategy}"
    for command in (
        fit(alone.text, 6, both, f"--trainer.max_steps={STEPS // 2}"),
        ["fit", "--ckpt_path=last", both, f"--trainer.max_steps={STEPS}"],
    ):
        done = ranks(tmp_path, *command)
        assert [each.code for each in done] == [0, 0], done
        assert "done at step" in done[0].err
        assert done[1].out == ""
    assert_same_figures(tmp_path, alone.cwd)
    told = (tmp_path / "lightning_logs/version_0/samples.txt").read_text()
    assert told.count("=== step") == 3
    one, other = (checkpoint.read(folder / LAST) for folder in (tmp_path, alone.cwd))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, other["state_dict"][name], atol=1e-5, rtol=1e-6)
    for verb in ("validate", "test") if strategy == "ddp" else ("validate",):
        by_one = gptlit(verb, "--ckpt_path", LAST)
        assert by_one.code == 0, by_one.err
        by_two = ranks(tmp_path, verb, f"--ckpt_path={LAST}", both)
        assert by_two[0].out.splitlines() == by_one.out.splitlines()  # to 6 digits, and all counts
    assert gptlit("predict", "--ckpt_path", LAST, "--max_new_tokens=5").code == 0
