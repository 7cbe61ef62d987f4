"""Runs that learn from teachers: what they save, how they resume, and who needs the teachers."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest

import gptlit as library
from gptlit.checkpoints import checkpoint, init_from
from gptlit.cli.lightning_warnings import quiet
from gptlit.data.datamodule import TextDataModule
from gptlit.model import cost
from gptlit.steps.distillation import hash_of
from gptlit.training.module import LitGPT
from tests.conftest import (
    TINY,
    Result,
    assert_equal,
    assert_same_run,
    read_metrics,
    some_time_passes,
)

Call = Callable[..., Result]
RUNS = Path("lightning_logs")
LAST = "checkpoints/last.ckpt"
RICH = [
    "--model.dropout=0.1",
    "--model.token_dropout=0.1",
    "--model.ema=0.9",
    "--model.label_smoothing=0.1",
    "--model.z_loss=1e-4",
    "--model.distill_weight=0.7",
    "--model.distill_temperature=2",
    "--model.decay_steps=8",
    "--data.batch_size=2",
    "--trainer.accumulate_grad_batches=2",
]

STEPS = ["--trainer.max_steps=4"]


@pytest.fixture
def fit(gptlit: Call, text_file: Path) -> Call:
    def call(*options: object) -> Result:
        every = "--trainer.val_check_interval=2"
        return gptlit("fit", *TINY, f"--data.path={text_file}", every, *options)

    return call


@pytest.fixture
def teachers(fit: Call) -> list[str]:
    """Two short runs, of another size and another block; version_0 and version_1."""
    assert fit(*STEPS, "--model.n_embd=32").code == 0
    assert fit(*STEPS, "--model.block_size=6", "--seed_everything=2").code == 0
    names = ["one.ckpt", "two.ckpt"]
    for number, name in enumerate(names):
        shutil.copy(RUNS / f"version_{number}" / LAST, name)
    return names


def hashes(names: list[str]) -> list[str]:
    return [hash_of(library.load(name)[0].state_dict()) for name in names]


def option(names: list[str]) -> str:
    return f"--model.teachers=[{','.join(names)}]"


def test_a_run_resumes_exactly(fit: Call, gptlit: Call, teachers: list[str]) -> None:
    for steps in (8, 6):
        assert fit(f"--trainer.max_steps={steps}", *RICH, option(teachers)).code == 0
    some_time_passes(RUNS / "version_3")
    resumed = gptlit("fit", f"--ckpt_path={RUNS}/version_3/{LAST}", "--trainer.max_steps=8")
    assert resumed.code == 0, resumed.err
    assert "teachers" not in resumed.err
    assert_same_run(RUNS / "version_2", RUNS / "version_3")
    saved = checkpoint.read(RUNS / "version_2" / LAST)
    assert saved[checkpoint.KEY]["teachers"] == hashes(teachers)
    own = checkpoint.read("one.ckpt")["state_dict"].keys()
    assert saved["state_dict"].keys() - {"net.noise.mask"} == own
    logged = [row for row in read_metrics(RUNS / "version_2") if row["train/loss"]]
    assert len(logged) == 4
    assert all(float(row["train/distill_loss"]) > 0 for row in logged)


def test_with_weight_0_a_run_is_the_same_as_without_teachers(
    fit: Call, teachers: list[str]
) -> None:
    without = [word for word in RICH if "distill" not in word]
    assert fit(*STEPS, *without).code == 0
    assert fit(*STEPS, *without, option(teachers), "--model.distill_weight=0").code == 0
    one, other = (checkpoint.read(RUNS / f"version_{n}" / LAST) for n in (2, 3))
    for part in ("state_dict", "optimizer_states", "averaged"):
        assert_equal(one[part], other[part], part)


def test_a_copy_of_its_teacher_has_nothing_to_learn(fit: Call, teachers: list[str]) -> None:
    copy = ["--model.init_from=one.ckpt", "--model.teachers=one.ckpt", "--model.distill_weight=1"]
    copy += ["--model.distill_temperature=2", "--model.lr=1e-8", "--model.min_lr=0"]
    copy += ["--trainer.callbacks+=EarlyStopping"]
    copy += ["--trainer.callbacks.monitor=train/distill_loss"]
    assert fit(*STEPS, *copy).code == 0
    for row in read_metrics(RUNS / "version_2"):
        if row["train/loss"]:
            assert abs(float(row["train/distill_loss"])) < 1e-6
            assert float(row["train/loss"]) > 1


def test_only_training_needs_the_teachers(fit: Call, gptlit: Call, teachers: list[str]) -> None:
    assert fit(*STEPS, option(teachers)).code == 0
    moved = [shutil.move(name, f"moved-{name}") for name in teachers]
    for command in (
        ["validate"],
        ["test", "--data.test_path=speeches.txt"],
        ["predict", "--max_new_tokens=5"],
        ["export", f"{RUNS}/version_2/{LAST}", "exported"],
        ["fit", *TINY, "--data.path=speeches.txt", "--model.init_from=best", *STEPS],
    ):
        done = gptlit(*command)
        assert done.code == 0, done.err
    student = RUNS / "version_2" / LAST
    assert LitGPT.load_from_checkpoint(student).teachers is None
    library.load(student)
    resume = ["fit", f"--ckpt_path={student}", "--trainer.max_steps=12"]
    missing = gptlit(*resume)
    assert missing.code == 2
    assert missing.err.splitlines()[-1] == (
        f"gptlit: error: --model.teachers {Path('one.ckpt').absolute()}: no such file or folder; "
        "training needs its teachers, also when it is resumed"
    )
    assert gptlit(*resume, option(moved)).code == 0
    assert gptlit(*resume[:2], "--trainer.max_steps=16", "--model.teachers=[]").code == 0


def test_a_changed_teacher_is_refused(fit: Call, gptlit: Call, teachers: list[str]) -> None:
    assert fit(*STEPS, option(teachers)).code == 0
    resume = ["fit", f"--ckpt_path={RUNS / 'version_2' / LAST}", "--trainer.max_steps=12"]
    before = (RUNS / "version_2" / "metrics.csv").read_text()
    refused = [gptlit(*resume, option(teachers[::-1])), gptlit(*resume, option(teachers[:1]))]
    shutil.copy(RUNS / "version_2" / LAST, "one.ckpt")
    refused.append(gptlit(*resume))
    for each in refused:
        assert each.code == 2
        assert "error: --model.teachers: the teachers' weights are not those" in each.err
    assert (RUNS / "version_2" / "metrics.csv").read_text() == before


def test_another_tokenizer_is_refused_and_leaves_no_run(fit: Call, teachers: list[str]) -> None:
    refused = fit(*STEPS, option(teachers), "--data.tokenizer=word")
    assert refused.code == 2
    assert re.search(
        r"--model.teachers /\S+/one.ckpt: has another tokenizer than the student: char of 39 "
        r"tokens, and the student's word of \d+ tokens$",
        refused.err.strip(),
    )
    assert not (RUNS / "version_2").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.distill_weight=1.5"], "--model.distill_weight 1.5: must be from 0, the text"),
        (["--model.distill_temperature=0"], "--model.distill_temperature 0.0: must be above 0"),
        (
            ["--model.teachers=[absent.ckpt]"],
            "--model.teachers absent.ckpt: no such file or folder",
        ),
        (["--model.teachers=speeches.txt"], "/speeches.txt: torn, altered, or not a checkpoint"),
        (["--model.teachers=best"], "--model.teachers best: no run under"),
    ],
)
def test_invalid_options_are_refused(fit: Call, options: list[str], message: str) -> None:
    refused = fit(*STEPS, *options)
    assert refused.code == 2
    assert message in refused.err
    assert not RUNS.exists() or not [*RUNS.iterdir()]


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_a_strangers_checkpoint_names_no_files_to_read(
    fit: Call, gptlit: Call, teachers: list[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    assert fit(*STEPS, option(teachers)).code == 0

    def fail(*_: object) -> None:
        raise AssertionError("a teacher is read")

    monkeypatch.setattr(init_from, "start_from", fail)
    assert gptlit(verb, "--ckpt_path=last").code == 0


def test_the_summary_counts_the_teachers(
    gptlit: Call, text_file: Path, teachers: list[str]
) -> None:
    command = ["summary", *TINY, f"--data.path={text_file}"]
    alone, taught = (gptlit(*command, *more).out for more in ([], [option(teachers)]))

    def flops(page: str, name: str) -> float:
        found = re.search(rf"^  {name} +([\d.]+) ([kM])FLOP", page, re.MULTILINE)
        assert found
        return float(found[1]) * {"k": 1e3, "M": 1e6}[found[2]]

    n_tokens = 4 * 8
    nets = [library.load(name)[0] for name in teachers]
    part = n_tokens * sum(cost.flops_per_token(net) for net in nets)
    assert flops(taught, "teachers' part of it") == pytest.approx(part, rel=1e-2)
    both = flops(alone, "per step") + part
    assert flops(taught, "per step") == pytest.approx(both, rel=1e-2)
    n_bytes = 4 * (sum(net.num_parameters() for net in nets) + 5 * n_tokens * 39)
    shown = re.search(r"^  teachers +([\d.]+) MB", taught, re.MULTILINE)
    assert shown
    assert float(shown[1]) == pytest.approx(n_bytes / 1e6, abs=0.006)
    assert "teachers" not in alone
    count = re.search(r"total +[\d,]+  ", alone)
    assert count
    assert count[0] in taught


def test_from_python(text_file: Path, fit: Call, teachers: list[str]) -> None:
    """The student alone is trained, counted, saved and averaged."""
    data = TextDataModule(path=str(text_file), block_size=8, batch_size=4)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}
    model = LitGPT(**sizes, teachers=teachers, ema=0.5)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False,
        limit_val_batches=0, enable_progress_bar=False, use_distributed_sampler=False,
    )  # fmt: skip
    with quiet():
        trainer.fit(model, data)
    assert model.teachers is not None
    assert model.teachers.hashes == hashes(teachers)
    for net, name in zip(model.teachers.nets, teachers, strict=True):
        assert hash_of(net.state_dict()) == hash_of(library.load(name)[0].state_dict())
        assert not any(parameter.requires_grad for parameter in net.parameters())
        assert not net.training
    names = {name for name, _ in model.named_parameters()}
    assert names == {f"net.{name}" for name, _ in model.net.named_parameters()}
    assert trainer.callback_metrics["train/distill_loss"] > 0
