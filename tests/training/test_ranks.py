"""Runs of several processes equal runs of one, and their processes end together."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import strategies

from gptlit.__main__ import main
from gptlit.checkpoints import checkpoint
from gptlit.messages import UsageError
from gptlit.model import lora
from gptlit.training import fsdp2, processes
from gptlit.training.logged_metrics import TIMED
from gptlit.training.module import LitGPT
from tests.conftest import GPT2_TINY, Result, Run, made_up_text, read_metrics
from tests.ranks import LIMIT, ranks

Call = Callable[..., Result]
LAST = "lightning_logs/version_0/checkpoints/last.ckpt"
STEPS = 50
EPOCH = 28
# 20 windows in each of validation, test and slice, which make a batch: that of rank 1 is padding
OPTIONS = [
    f"--config={GPT2_TINY}",
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


def metrics(folder: Path) -> dict[str, dict[int, float]]:
    """A run's metrics by name and step, with the mean loss of its first epoch."""
    rows = read_metrics(folder / "lightning_logs" / "version_0")
    names = [name for name in rows[0] if not name.startswith((*TIMED, "step", "epoch"))]
    found = {
        name: {int(row["step"]): float(row[name]) for row in rows if row[name]} for name in names
    }
    found["train/loss_epoch"] = {EPOCH: found["train/loss_epoch"][EPOCH - 1]}
    return found


def assert_same_metrics(one: Path, other: Path) -> None:
    ours, theirs = metrics(one), metrics(other)
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
    """Both train to the middle, resume and evaluate; one process then uses the checkpoint."""
    both = f"--trainer.strategy={strategy}"
    for command in (
        fit(alone.text, 6, both, f"--trainer.max_steps={STEPS // 2}"),
        ["fit", "--ckpt_path=last", both, f"--trainer.max_steps={STEPS}"],
    ):
        done = ranks(tmp_path, *command)
        assert [each.code for each in done] == [0, 0], done
        assert "done at step" in done[0].err
        assert done[1].out == ""
    assert_same_metrics(tmp_path, alone.cwd)
    samples = (tmp_path / "lightning_logs/version_0/samples.txt").read_text()
    assert samples.count("=== step") == 2
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


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_learn_from_the_same_teacher(
    gptlit: Call, alone: Run, tmp_path: Path, strategy: str
) -> None:
    """Each has all of it, also where the student is sharded."""
    taught = [f"--model.teachers={alone.cwd / LAST}", "--trainer.max_steps=4"]
    (tmp_path / "both").mkdir()
    done = ranks(tmp_path / "both", *fit(alone.text, 6, *taught, f"--trainer.strategy={strategy}"))
    assert [each.code for each in done] == [0, 0], done
    assert gptlit(*fit(alone.text, 12, *taught)).code == 0
    rows = [
        read_metrics(folder / "lightning_logs/version_0")
        for folder in (tmp_path / "both", tmp_path)
    ]
    logged = [[row["train/distill_loss"] for row in each if row["train/loss"]] for each in rows]
    assert len(logged[0]) == 4
    assert [*map(float, logged[0])] == pytest.approx([*map(float, logged[1])], abs=1e-5)
    one, other = (checkpoint.read(folder / LAST) for folder in (tmp_path / "both", tmp_path))
    assert one[checkpoint.KEY]["teachers"] == other[checkpoint.KEY]["teachers"]
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, other["state_dict"][name], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_the_same_changes(
    gptlit: Call, alone: Run, tmp_path: Path, strategy: str
) -> None:
    """LoRA: frozen weights take no part in what processes exchange."""
    words = [f"--model.init_from={alone.cwd / LAST}", "--model.lora_r=2", "--trainer.max_steps=4"]
    (tmp_path / "both").mkdir()
    done = ranks(tmp_path / "both", *fit(alone.text, 6, *words, f"--trainer.strategy={strategy}"))
    assert [each.code for each in done] == [0, 0], done
    assert gptlit(*fit(alone.text, 12, *words)).code == 0
    one, other = (checkpoint.read(folder / LAST) for folder in (tmp_path / "both", tmp_path))
    changes = {name for name in one["state_dict"] if lora.is_change(name)}
    assert len(changes) == 2 * checkpoint.config_of(one).n_layer
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, other["state_dict"][name], atol=1e-5, rtol=1e-6)
    folders = [
        folder / "lightning_logs/version_0/adapter" for folder in (tmp_path / "both", tmp_path)
    ]
    configs = [(folder / "adapter_config.json").read_text() for folder in folders]
    assert configs[0] == configs[1]


def test_two_nodes_are_one(alone: Run, tmp_path: Path) -> None:
    """Each node has a process; benchmarks/two_nodes.py uses torchrun."""
    both = f"--trainer.max_steps={STEPS // 2}"
    for command in (
        fit(alone.text, 6, both, "--trainer.strategy=ddp"),
        ["fit", "--ckpt_path=last", f"--trainer.max_steps={STEPS}"],
    ):
        done = ranks(tmp_path, *command, n_nodes=2)
        assert [each.code for each in done] == [0, 0], done
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert_same_metrics(tmp_path, alone.cwd)


@pytest.mark.parametrize("strategy", ["ModelParallelStrategy", "FSDPStrategy"])
def test_other_sharding_strategies_are_refused(strategy: str) -> None:
    """They would train each rank separately, or wait for the rank that writes samples."""
    with pytest.raises(UsageError, match=rf"^strategy {strategy}: .* fsdp2"):
        fsdp2.check(getattr(strategies, strategy)())


# ---------------------------------------------------------------------- ending together


def _wait(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    processes.end_with_launcher()
    threading.Event().wait()


def test_a_process_ends_with_its_launcher() -> None:
    """Its launcher is not its parent process, and so counts as ended."""
    environment = {"LOCAL_RANK": "1", processes.LAUNCHER: str(os.getppid())}
    child = multiprocessing.get_context("fork").Process(target=_wait, args=(environment,))
    child.start()
    try:
        child.join(LIMIT)
        assert child.exitcode == 1
    finally:
        child.kill()
        child.join()


def test_a_process_started_by_hand_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(processes.LAUNCHER, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    before = threading.active_count()
    processes.end_with_launcher()
    assert threading.active_count() == before


def test_a_lost_process_is_reported_in_one_line(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:9367")

    monkeypatch.setattr(LitGPT, "training_step", lost)
    result = gptlit(*fit(text_file, 6, "--trainer.max_steps=2"))
    assert result.code == 1
    assert "gptlit: error: another process of the run has ended" in result.err
    assert "Traceback" not in result.err
