"""Runs that stop early, by Ctrl-C, SIGTERM, time or patience, and their resume."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from gptlit.__main__ import main
from gptlit.checkpoints import checkpoint
from gptlit.runs.loggers import Table
from gptlit.runs.sample_text import SampleText
from gptlit.runs.saving import RunCheckpoint
from gptlit.runs.stopping import Stopping
from gptlit.training.module import LitGPT
from tests.conftest import (
    TINY,
    Result,
    assert_equal,
    assert_same_run,
    curves,
    made_up_text,
    read_metrics,
    some_time_passes,
)

Call = Callable[..., Result]
RUN = Path("lightning_logs/version_0")
STEPS = 12
# an epoch of 5 steps; validations within epochs, and at the end of the second
EPOCHS_OF_5 = ["--model.block_size=64", "--data.batch_size=32", "--model.dropout=0.2"]
OPTIONS = [*TINY, *EPOCHS_OF_5, f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=2"]


@contextlib.contextmanager
def asking(number: int, where: type, hook: str, *, step: int) -> Iterator[None]:
    """Send a signal to a fit in this block, once, at a hook after `step` steps."""
    original = getattr(where, hook)
    asked = []

    def hooked(self: Any, *arguments: Any, **options: Any) -> Any:
        trainer = arguments[0] if isinstance(arguments[0], L.Trainer) else self.trainer
        if trainer.state.fn == "fit" and trainer.global_step == step and not asked:
            asked.append(True)
            signal.raise_signal(number)
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, hook, hooked)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of uninterrupted runs by the number of batches they accumulate."""
    cwd = tmp_path_factory.mktemp("whole")
    (cwd / "speeches.txt").write_text(made_up_text(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        for accumulated in (1, 2):
            options = batches(accumulated)
            assert main(["fit", *OPTIONS, "--data.path=speeches.txt", *options]) == 0
    return {n: cwd / "lightning_logs" / f"version_{n - 1}" for n in (1, 2)}


def batches(accumulated: int) -> list[str]:
    return [
        f"--data.batch_size={32 // accumulated}",
        f"--trainer.accumulate_grad_batches={accumulated}",
    ]


def command_in(output: str) -> list[str]:
    """The words of the resume command that a run prints."""
    found = re.search(r"^  resume  gptlit (fit .*)$", output, re.MULTILINE)
    assert found is not None, output
    return shlex.split(found[1])


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


def stopped_and_resumed(gptlit: Call, text: Path, accumulated: int, *asked: Any, step: int) -> int:
    """Stop a run by a signal and resume it to its end; returns the step at which it stopped."""
    number, where, hook = asked
    with asking(number, where, hook, step=step):
        stopped = gptlit("fit", *OPTIONS, f"--data.path={text}", *batches(accumulated))
    assert stopped.code == CODES[number], stopped.err
    assert "Traceback" not in stopped.err
    saved = checkpoint.read("lightning_logs/version_0/checkpoints/last.ckpt")["global_step"]
    assert f"gptlit: stopped by {NAMES[number]} after step {saved}\n" in stopped.err
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    some_time_passes(RUN)
    resumed = gptlit(*command_in(stopped.err))
    assert resumed.code == 0, resumed.err
    return saved


@pytest.mark.parametrize(
    ("number", "accumulated", "step"),
    [
        (signal.SIGINT, 1, 0),
        (signal.SIGINT, 1, 4),  # step 5 ends an epoch
        (signal.SIGTERM, 1, 6),  # step 7 lies between two validations
        (signal.SIGHUP, 1, 3),  # a validation follows
        (signal.SIGINT, 2, 2),
        (signal.SIGTERM, 2, 4),
    ],
)
def test_a_signal_stops_after_the_current_step(
    gptlit: Call, text_file: Path, whole: dict[int, Path], number: int, accumulated: int, step: int
) -> None:
    """A signal in the first batch of the step; the resumed run equals an uninterrupted one."""
    asked = (number, LitGPT, "training_step")
    assert stopped_and_resumed(gptlit, text_file, accumulated, *asked, step=step) == step + 1
    assert_same_run(RUN, whole[accumulated])


@pytest.mark.parametrize(
    ("where", "hook", "accumulated", "step"),
    [
        (LitGPT, "training_step", 1, 3),  # a validation is due after the step
        (LitGPT, "training_step", 1, 9),  # and an epoch's end
        (LitGPT, "validation_step", 1, 4),
        (LitGPT, "validation_step", 2, 10),
        (SampleText, "_write", 1, 6),
        (SampleText, "_write", 1, 5),  # of an epoch
        (SampleText, "_write", 2, 10),
    ],
)
def test_an_interrupted_validation_is_repeated_as_a_whole(
    gptlit: Call,
    text_file: Path,
    whole: dict[int, Path],
    where: type,
    hook: str,
    accumulated: int,
    step: int,
) -> None:
    asked = (signal.SIGINT, where, hook)
    saved = stopped_and_resumed(gptlit, text_file, accumulated, *asked, step=step)
    assert saved == step + (hook == "training_step" or step == 5)
    assert_same_run(RUN, whole[accumulated])


# ---------------------------------------------------------------------- killed


def killed(text: Path, where: type, hook: str, calls: int, *, before: bool = False) -> None:
    """Kill a fit in a forked process at the n-th call of a hook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are no threads
        child = os.fork()
    if not child:
        original = getattr(where, hook)
        left = iter(range(calls, -1, -1))

        def hooked(self: Any, *arguments: Any, **options: Any) -> Any:
            last = next(left) == 1
            if last and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(self, *arguments, **options)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(where, hook, hooked)
        main(["fit", *OPTIONS, f"--data.path={text}", *batches(1)])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize(
    ("where", "hook", "calls", "before"),
    [
        (RunCheckpoint, "on_validation_end", 2, False),  # nothing more is logged
        (RunCheckpoint, "on_validation_end", 5, False),  # the epoch's metrics are missing
        (LitGPT, "on_train_epoch_end", 2, False),
        (Table, "log_metrics", 14, False),  # the second epoch's metrics are logged, at step 10
        (SampleText, "_write", 4, False),  # a sample of a step that isn't saved
        (LitGPT, "validation_step", 6, True),
        (LitGPT, "training_step", 11, False),
    ],
)
def test_a_killed_run_is_resumed_exactly(
    gptlit: Call,
    text_file: Path,
    whole: dict[int, Path],
    where: type,
    hook: str,
    calls: int,
    before: bool,
) -> None:
    """Steps after the last checkpoint are repeated, and their metrics logged once."""
    killed(text_file, where, hook, calls, before=before)
    some_time_passes(RUN)
    resumed = gptlit("fit", "--ckpt_path=last")
    assert resumed.code == 0, resumed.err
    assert_same_run(RUN, whole[1])


# ---------------------------------------------------------------------- by epochs, longer


EACH_EPOCH = ["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0"]
BY_EPOCHS = ["--trainer.max_steps=-1", "--trainer.max_epochs=3", "--model.decay_steps=15"]


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ([], 4),
        (EACH_EPOCH, 4),
        (EACH_EPOCH, 6),
        (["--trainer.check_val_every_n_epoch=2", "--trainer.val_check_interval=1.0"], 4),
        (["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=0.4"], 6),
        (["--trainer.limit_train_batches=3"], 2),
        (["--trainer.limit_train_batches=3"], 3),
        (["--trainer.limit_train_batches=0.6"], 2),
        ([*batches(2)], 9),
        ([*batches(2), "--trainer.limit_train_batches=5"], 3),
        ([*batches(2), "--trainer.val_check_interval=0.3"], 4),
        ([*batches(2), *EACH_EPOCH[:1], "--trainer.val_check_interval=3"], 4),
    ],
)
def test_a_run_by_epochs_is_resumed_exactly(
    gptlit: Call, text_file: Path, options: list[str], step: int
) -> None:
    everything = [*OPTIONS, f"--data.path={text_file}", *BY_EPOCHS, *options]
    with asking(signal.SIGINT, LitGPT, "training_step", step=step):
        stopped = gptlit("fit", *everything)
    assert f"after step {step + 1}\n" in stopped.err
    some_time_passes(RUN)
    assert gptlit(*command_in(stopped.err)).code == 0
    assert gptlit("fit", *everything).code == 0
    assert_same_run(RUN, RUN.with_name("version_1"))


@pytest.mark.parametrize("longer", ["--trainer.max_epochs=4", "--trainer.max_steps=20"])
def test_a_run_extended_by_a_resume_equals_one_of_that_length(
    gptlit: Call, text_file: Path, longer: str
) -> None:
    """With decay_steps; a run by steps ends within an epoch, a run by epochs at its end."""
    length = "--trainer.max_steps=12" if "steps" in longer else BY_EPOCHS[1]
    everything = [*OPTIONS, f"--data.path={text_file}", *BY_EPOCHS[:1], "--model.decay_steps=12"]
    done = gptlit("fit", *everything, length)
    assert done.code == 0
    some_time_passes(RUN)
    assert gptlit(*command_in(done.err)[:-2], longer).code == 0
    assert gptlit("fit", *everything, longer).code == 0
    assert_same_run(RUN, RUN.with_name("version_1"))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], 10),
        (["--trainer.limit_train_batches=3"], 6),
        (["--trainer.limit_train_batches=0.6"], 6),
        ([*batches(2), "--trainer.limit_train_batches=5"], 6),
    ],
)
def test_a_run_that_ends_with_an_epoch_and_a_validation_is_extended_exactly(
    gptlit: Call, text_file: Path, options: list[str], steps: int
) -> None:
    """A shorter run is validated at its end, where the longer one has no validation."""
    everything = [*OPTIONS, f"--data.path={text_file}", *options, "--model.decay_steps=16"]
    everything += ["--trainer.val_check_interval=100"]
    assert gptlit("fit", *everything, f"--trainer.max_steps={steps}").code == 0
    some_time_passes(RUN)
    assert gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=16").code == 0
    assert gptlit("fit", *everything, "--trainer.max_steps=16").code == 0
    ours, theirs = (curves(RUN.with_name(f"version_{index}")) for index in range(2))
    validated = {name for name in ours if re.match("val/|train/loss_eval|epoch|sample", name)}
    assert [step for step, _ in ours["val/loss"]] == [steps - 1, 15]
    assert {name: ours[name] for name in ours.keys() - validated} == {
        name: theirs[name] for name in theirs.keys() - validated
    }
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        contents = (
            checkpoint.read(RUN.with_name(f"version_{index}") / "checkpoints" / "last.ckpt")
            for index in range(2)
        )
        assert_equal(*(content[part] for content in contents), part)


@pytest.mark.parametrize(("limit", "longer"), [(3, 5), (5, 4)])
def test_an_epoch_continues_up_to_another_limit(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch, limit: int, longer: int
) -> None:
    """Its windows are those of an epoch of that length."""
    seen: list[tuple[int, int]] = []
    original = LitGPT.training_step

    def training_step(self: LitGPT, batch: Any, batch_idx: int) -> Any:
        seen.append((self.current_epoch, hash(tuple(batch[0].flatten().tolist()))))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LitGPT, "training_step", training_step)
    everything = [*OPTIONS, f"--data.path={text_file}", *BY_EPOCHS[2:]]
    everything += ["--trainer.val_check_interval=100"]
    options = [f"--trainer.limit_train_batches={longer}", "--trainer.max_steps=12"]
    assert gptlit("fit", *everything, *options).code == 0
    whole = seen.copy()
    seen.clear()
    first = [f"--trainer.limit_train_batches={limit}", f"--trainer.max_steps={min(limit, longer)}"]
    assert gptlit("fit", *everything, *first).code == 0
    assert gptlit("fit", "--ckpt_path=last", *options).code == 0
    assert seen == whole


# ---------------------------------------------------------------------- time, patience


@pytest.mark.parametrize("step", [3, 4])
def test_max_time_stops_after_a_whole_step(
    gptlit: Call,
    text_file: Path,
    whole: dict[int, Path],
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """Time runs out between two batches of a step, or during a validation."""
    over: list[bool] = []
    original = LitGPT.training_step

    def training_step(self: LitGPT, batch: Any, batch_idx: int) -> Any:
        over.extend([True] * (self.global_step == step - 1))
        return original(self, batch, batch_idx)

    options = [*OPTIONS, f"--data.path={text_file}", *batches(2), "--trainer.max_time=00:01:00:00"]
    with monkeypatch.context() as patch:
        patch.setattr(LitGPT, "training_step", training_step)
        patch.setattr(Stopping, "time_remaining", lambda _: 0.0 if over else 1.0)
        stopped = gptlit("fit", *options)
    assert stopped.code == 0
    assert f"stopped by --trainer.max_time after step {step}" in stopped.err
    some_time_passes(RUN)
    assert gptlit(*command_in(stopped.err)).code == 0
    assert_same_run(RUN, whole[2], but="max_time")


def test_an_invalid_max_time_is_refused(gptlit: Call, text_file: Path) -> None:
    refused = gptlit("fit", *TINY, f"--data.path={text_file}", "--trainer.max_time=soon")
    assert refused.code == 2
    assert "soon" in refused.err
    assert not Path("lightning_logs").exists()


def test_patience(gptlit: Call, text_file: Path) -> None:
    """Patience counts validations across a resume; a larger one continues the run."""
    options = [*TINY, f"--data.path={text_file}", "--trainer.val_check_interval=1"]
    options += ["--model.warmup_steps=0", "--model.lr=1e-12", "--model.min_lr=1e-12"]
    folder = RUN

    def validated() -> int:
        return len([row for row in read_metrics(folder) if row["val/loss"]])

    # the first validation is the best; at such a rate no other is lower by a float's precision
    first = gptlit("fit", *options, "--early_stopping.patience=3", "--trainer.max_steps=3")
    assert first.code == 0
    scores = [float(row["val/loss"]) for row in read_metrics(folder) if row["val/loss"]]
    assert len(set(scores)) == 1
    ended = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=20")
    assert ended.code == 0
    assert "done at step 4: val/loss did not improve in 3 validations" in ended.err
    assert validated() == 4
    more = command_in(ended.err)
    assert more[-2:] == ["--early_stopping.patience", "6"]
    assert "done at step 7: val/loss did not improve in 6 validations" in gptlit(*more).err
    assert validated() == 7
    off = gptlit("fit", "--ckpt_path=last", "--early_stopping.patience=0", "--trainer.max_steps=9")
    assert "done at step 9\n" in off.err


@pytest.mark.parametrize("options", [["--data.val_fraction=0"], ["--trainer.limit_val_batches=0"]])
def test_patience_without_validation(gptlit: Call, text_file: Path, options: list[str]) -> None:
    patience = ["--early_stopping.patience=2", f"--data.path={text_file}"]
    refused = gptlit("fit", *TINY, *patience, *options)
    assert refused.code == 2
    assert "--early_stopping.patience 2: there is no validation" in refused.err


# ---------------------------------------------------------------------- messages


def test_the_summary_names_checkpoints_and_commands(gptlit: Call, text_file: Path) -> None:
    """A learning rate at which the model gets worse, so that best and last differ."""
    options = ["--trainer.max_steps=7", "--trainer.val_check_interval=2", "--model.warmup_steps=0"]
    options += ["--model.lr=1.0", "--model.min_lr=1.0", "--trainer.default_root_dir=a folder"]
    options += ["--guard.diverged=0"]
    output = gptlit("fit", *TINY, f"--data.path={text_file}", *options).err
    rows = read_metrics(Path("a folder/lightning_logs/version_0"))
    evaluated = {int(r["step"]) + 1: r for r in rows if r["val/loss"]}
    best = min(evaluated, key=lambda step: float(evaluated[step]["val/loss"]))
    run = "a folder/lightning_logs/version_0/checkpoints"

    def of(step: int) -> str:
        gap = float(evaluated[step]["val/gap"])
        return f"val/loss {float(evaluated[step]['val/loss']):.4f}, val/gap {gap:+.4f}"

    assert re.fullmatch(r"  time    \d+ s", output.splitlines()[-1])
    assert output.rpartition("  time")[0] == (
        "gptlit: done at step 7\n"
        f"  best    step {best}, {of(best)}, {run}/best.ckpt\n"
        f"  last    step 7, at step 6 {of(6)}, {run}/last.ckpt\n"
        f"  resume  gptlit fit --ckpt_path '{run}/last.ckpt' --trainer.max_steps 14\n"
        f"  write   gptlit predict --ckpt_path '{run}/best.ckpt'\n"
    )
    assert gptlit(*command_in(output)).code == 0


def test_a_second_ctrl_c_ends_at_once(gptlit: Call, text_file: Path) -> None:
    asked = (signal.SIGINT, LitGPT, "training_step")
    with asking(*asked, step=4), asking(*asked, step=4):
        result = gptlit("fit", *OPTIONS, f"--data.path={text_file}")
    assert result.code == 130
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    assert result.err == (
        f"gptlit: stopped in step 5; gptlit fit --ckpt_path {last} resumes from step 4\n"
    )
    assert checkpoint.read(last)["global_step"] == 4


def test_a_run_without_last_ckpt_is_resumed_from_a_snapshot(gptlit: Call, text_file: Path) -> None:
    asked = (signal.SIGINT, LitGPT, "training_step")
    with asking(*asked, step=5), asking(*asked, step=5):
        options = ["--snapshot_every=3", "--trainer.val_check_interval=100"]
        result = gptlit("fit", *OPTIONS, *options, f"--data.path={text_file}")
    snapshot = "lightning_logs/version_0/checkpoints/step_3.ckpt"
    command = f"gptlit fit --ckpt_path {snapshot}"
    assert result.err == f"gptlit: stopped in step 6; {command} resumes from step 3\n"
    assert gptlit(*command.split()[1:]).code == 0


def test_a_second_sigterm_still_saves(gptlit: Call, text_file: Path) -> None:
    """`timeout`, for one, sends it twice."""
    asked = (signal.SIGTERM, LitGPT, "training_step")
    with asking(*asked, step=4), asking(*asked, step=4):
        result = gptlit("fit", *OPTIONS, f"--data.path={text_file}")
    assert result.code == 143
    assert "gptlit: stopped by SIGTERM after step 5\n" in result.err
    assert checkpoint.read(RUN / "checkpoints" / "last.ckpt")["global_step"] == 5


# ---------------------------------------------------------------------- real processes


def ended_by(number: int, text: Path, *options: str, group: bool = False) -> tuple[int, str]:
    """Send a signal to a fit in a process of its own after its first step.

    Args:
        number: Number of the signal.
        text: Path of the text to train on.
        *options: Options of the fit.
        group: Whether the processes that it launches get the signal too, as from a terminal.

    Returns:
        Exit code and stderr.
    """
    command = [sys.executable, "-m", "gptlit", "fit", *TINY, f"--data.path={text}", *options]
    command += ["--trainer.max_steps=10000000", "--trainer.val_check_interval=10000000"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    alone = {"env": {**os.environ, "PYTHONUNBUFFERED": "1"}, "start_new_session": True}
    with subprocess.Popen(command, cwd=text.parent, **pipes, **alone) as process:
        for line in process.stdout:
            if line.startswith("first loss"):
                (os.killpg if group else os.kill)(process.pid, number)
        # ends when the last process has ended
        output = process.stderr.read()
    return process.returncode, output


@pytest.mark.parametrize(
    ("number", "code", "by"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_process_stops_on_a_signal(text_file: Path, number: int, code: int, by: str) -> None:
    returned, output = ended_by(number, text_file)
    assert returned == code
    last = text_file.parent / RUN / "checkpoints" / "last.ckpt"
    step = checkpoint.read(last)["global_step"]
    assert f"gptlit: stopped by {by} after step {step:,}\n" in output
    assert "Traceback" not in output
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(text_file.parent)
        assert main([*command_in(output), f"--trainer.max_steps={step + 1}"]) == 0
    assert checkpoint.read(last)["global_step"] == step + 1


@pytest.mark.parametrize("group", [True, False])
def test_two_processes_stop_after_the_same_step(text_file: Path, group: bool) -> None:
    """Both get the signal, or only the one that launched the other."""
    devices = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    accumulated = ["--trainer.accumulate_grad_batches=2", "--data.batch_size=2"]
    number = signal.SIGINT if group else signal.SIGTERM
    returned, output = ended_by(number, text_file, *devices, *accumulated, group=group)
    assert returned == (130 if group else 143), output
    content = checkpoint.read(text_file.parent / RUN / "checkpoints" / "last.ckpt")
    step, batches = content["global_step"], content["loops"]["fit_loop"]
    assert output.count(f"after step {step:,}\n") == 1
    assert batches["epoch_loop.batch_progress"]["total"]["ready"] == 2 * step


def test_slurm_requeues_a_job(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's handler of SIGUSR1 saves and requeues, SIGTERM ends the job, and the next job
    resumes."""
    for name, value in {"NTASKS": 1, "JOB_NAME": "train", "JOB_ID": 7, "PROCID": 0, "LOCALID": 0,
                        "NODEID": 0}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    asked_for = text_file.parent / "asked_for"
    scontrol = text_file.parent / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked_for}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    options = ["fit", *TINY, f"--data.path={text_file}", "--trainer.max_steps=8"]
    with (
        asking(signal.SIGUSR1, LitGPT, "training_step", step=3),
        asking(signal.SIGTERM, LitGPT, "training_step", step=5),
    ):
        ended = gptlit(*options)
    assert ended.code == 143
    assert "stopped by SIGTERM after step 6" in ended.err
    assert asked_for.read_text() == "requeue 7\n"
    assert checkpoint.read("hpc_ckpt_1.ckpt")["global_step"] == 3
    assert gptlit(*options).code == 0
    again = Path("lightning_logs/version_1")
    assert [int(row["step"]) for row in read_metrics(again) if row["train/loss"]] == [3, 5, 7]
    assert checkpoint.read(again / "checkpoints" / "last.ckpt")["global_step"] == 8
