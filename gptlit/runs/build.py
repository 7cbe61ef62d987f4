"""Builds a run: its Trainer with callbacks, loggers and plugins, and its folder."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Checkpoint

from gptlit.checkpoints import run_paths
from gptlit.checkpoints.checkpoint import LoadedCheckpoint
from gptlit.checkpoints.init_from import Origin
from gptlit.data.datamodule import TextDataModule
from gptlit.files import write_atomically
from gptlit.flat_options import of_learning, parsed
from gptlit.messages import UsageError, note, opt
from gptlit.runs import computing, loggers, run_folder, user_parts
from gptlit.runs.progress_bar import RunBar
from gptlit.runs.report import Report, Throughput
from gptlit.runs.run_folder import RunFolder
from gptlit.runs.stopping import Patience, Stopping
from gptlit.tokenizers.state import from_state
from gptlit.training import logged_metrics, monitors, processes, resuming, threads
from gptlit.training.module import LitGPT
from gptlit.training.overfitting import Overfitting

# what a run is built for; "inspect" trains nothing and has no folder
Purpose = Literal["fit", "validate", "test", "inspect"]


@dataclass(frozen=True)
class Plan:
    """The decisions about a run that are made before its Trainer.

    Args:
        purpose: Verb that the run is for, or "inspect".
        options: All options, with their classes instantiated.
        config: All options as YAML, from which the run can be resumed.
        start: Checkpoint that the run resumes or evaluates; None for a new run.
        origin: Weights that a new run begins with; None for random ones.
        changes: Lines that describe how options were adapted to the text.
        rows: Names and values at the end of the start block.
        changed: Options that differ from those of the resumed run, with the old and new value.
        left_out: Names of options that `config` can't hold.
        files: Contents of more files for the run's folder, by name.
        place: Folder of a new run; None for the next version_N.
        text_given: Whether the user gave the text, rather than `start`.
        texts: Hashes of the texts that a resumed run must find unchanged, as in
            `TextDataModule.expected_sha256`.
    """

    purpose: Purpose
    options: Namespace
    config: str = ""
    start: LoadedCheckpoint | None = None
    origin: Origin | None = None
    changes: Sequence[str] = ()
    rows: Sequence[tuple[str, str]] = ()
    changed: Sequence[tuple[str, Any, Any]] = ()
    left_out: Sequence[str] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    place: Path | None = None
    text_given: bool = False
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def first_step(self) -> int:
        """Number of steps before the run is resumed."""
        return self.start.step if self.start else 0


@dataclass
class Run:
    """A model, its data and a Trainer, ready for `run.trainer.fit(run.model, run.data)`.

    As a context manager it unlocks its folder at the end.

    Args:
        trainer: The Trainer.
        model: The model.
        data: The text.
        plan: Decisions that the run was built from.
        precision_reason: Reason why the precision was chosen.
        folder: Folder of the run; None if it has none.
        stopping: Callback that stops a fit early.
        held: Locks and files that are closed when the run ends.
    """

    trainer: L.Trainer
    model: LitGPT
    data: TextDataModule
    plan: Plan
    precision_reason: str = ""
    folder: RunFolder | None = None
    stopping: Stopping | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self.held.__exit__(*error)

    @property
    def options(self) -> Namespace:
        """All options, with their classes instantiated."""
        return self.plan.options

    def prepare(self) -> None:
        """Prepare the data without a fit, so that `model.configure_model` can build the net."""
        trainer, data, model = self.trainer, self.data, self.model
        trainer.datamodule, data.trainer, model.trainer = data, trainer, trainer
        data.prepare_data()
        data.setup("fit")

    def undone_if_untrained(self) -> contextlib.AbstractContextManager[None]:
        """Restore the run's folder if an error comes before the first step."""
        return _undone(self.folder, lambda: self.trainer.global_step > self.plan.first_step)


def build(plan: Plan, model: LitGPT, data: TextDataModule, held: contextlib.ExitStack) -> Run:
    """Build a run.

    Args:
        plan: Decisions about the run.
        model: The model, without a net.
        data: The text, not read yet.
        held: Takes the lock of the run's folder.

    Raises:
        UsageError: Options, callbacks, loggers or plugins don't work together.
    """
    options = plan.options
    _begin_from(plan, model, data)
    user_callbacks = processes.as_list(options.trainer.callbacks)
    user_parts.check_callbacks(user_callbacks)
    settings = dict(options.trainer)
    bar = user_parts.own_bar(user_callbacks)
    if options.trainer.enable_progress_bar is None:
        # in a log file each update of a bar is a line
        settings["enable_progress_bar"] = bar is not None or sys.stdout.isatty()
    reason = "as given"
    if options.trainer.precision is None and not user_parts.has_precision(options.trainer.plugins):
        settings["precision"], reason = user_parts.choose_precision(options.trainer.accelerator)
        reason += computing.use_tf32(options.trainer.accelerator, held)
    # the guard checks a validation before sample text is written
    gptlit_callbacks = [options.guard, options.samples, options.figures]
    if plan.purpose == "inspect":
        off = {"logger": False, "enable_checkpointing": False, "barebones": False}
        trainer = processes.new_trainer(**settings | off | {"callbacks": gptlit_callbacks})
    elif plan.purpose != "fit":
        _check_whole_split(options.trainer, plan.purpose)
        settings |= {"logger": options.trainer.logger or False, "enable_checkpointing": False}
        bars = [RunBar()] if settings["enable_progress_bar"] and bar is None else []
        settings["callbacks"] = [*user_callbacks, *gptlit_callbacks, *bars]
        trainer = processes.new_trainer(**settings)
    else:
        run = _build_fit(plan, model, data, held, settings, reason)
        n_threads = held.enter_context(threads.using(options.threads, run.trainer.num_devices))
        if not options.trainer.barebones:
            before = plan.start.content.get(computing.KEY) if plan.start else None
            run.trainer.callbacks.insert(0, computing.ThreadChoice(n_threads, before))
        return run
    held.enter_context(threads.using(options.threads, trainer.num_devices))
    return Run(trainer, model, data, plan, reason, held=held)


def _begin_from(plan: Plan, model: LitGPT, data: TextDataModule) -> None:
    """Set the tokenizer and weights that the run begins with."""
    if plan.start is not None:
        described = plan.start.described
        data.use_tokenizer(from_state(described["tokenizer"], described["config"]["vocab_size"]))
        resuming.check_config(described["config"], model.config)
    if plan.origin is not None:
        data.use_tokenizer(plan.origin.tokenizer)
        model.first_weights = plan.origin.state


def _check_whole_split(trainer: Namespace, verb: str) -> None:
    if trainer.barebones:
        raise UsageError(
            f"logs no metrics, which are the purpose of {verb}; leave the option out",
            "trainer.barebones",
            True,
        )
    for name, whole in (
        ("limit_val_batches", (None, 1.0)),
        ("limit_test_batches", (None, 1.0)),
        ("fast_dev_run", (None, False)),
    ):
        if trainer[name] not in whole:
            reason = "the metrics are those of the whole split; leave the option out"
            raise UsageError(reason, f"trainer.{name}", trainer[name])


# ---------------------------------------------------------------------- a fit


def _build_fit(
    plan: Plan,
    model: LitGPT,
    data: TextDataModule,
    held: contextlib.ExitStack,
    settings: dict[str, Any],
    precision_reason: str,
) -> Run:
    options, trainer_options = plan.options, plan.options.trainer
    user_callbacks = processes.as_list(trainer_options.callbacks)
    metrics = logged_metrics.logged(trainer_options, model.options, data.has_validation)
    monitors.check_monitored(user_callbacks, metrics)
    stopping = processes.refusing(Stopping, trainer_options.max_time)
    settings["max_time"] = None  # Lightning's Timer stops between two batches of a step
    if trainer_options.barebones:
        settings |= user_parts.barebones(trainer_options)
        settings["callbacks"] = [*user_callbacks, stopping]
        trainer = processes.new_trainer(**settings)
        return Run(trainer, model, data, plan, precision_reason, None, stopping, held)
    # gptlit's own callbacks need neither
    model.logs_every_batch = bool(user_callbacks)
    model.logs_to_bar = user_parts.own_bar(user_callbacks) is not None
    overfitting = Overfitting()
    report = Report(precision_reason, options.samples, overfitting, plan.rows)
    callbacks = [*user_callbacks, report, overfitting, Throughput()]
    if (bar := user_parts.own_bar(user_callbacks)) is not None:
        user_parts.note_own_bar(bar)
    elif settings["enable_progress_bar"]:
        callbacks.append(RunBar())
    if patience := options.early_stopping.patience:
        _check_validates(patience, options, data)
        callbacks.append(Patience(patience))
    settings["callbacks"] = [*callbacks, options.guard, options.samples, options.figures]
    settings["plugins"] = user_parts.plugins(trainer_options.plugins, trainer_options.strategy)
    folder = None if trainer_options.fast_dev_run else _open_folder(plan, model, data, held)
    with _undone(folder, lambda: False):
        if folder is not None:
            options.samples.folder = folder.path
            settings["callbacks"].append(run_folder.Recorder(folder))
            if trainer_options.enable_checkpointing is not False:
                user_parts.separate_checkpoints(user_callbacks, folder.path / run_paths.CHECKPOINTS)
                monitored = "val/loss" if data.has_validation else "train/loss"
                settings["callbacks"] += folder.checkpoints(
                    monitored, options.snapshot_every, options.keep_snapshots
                )
            settings["logger"] = user_parts.loggers(trainer_options.logger, folder)
            settings["profiler"] = user_parts.profiler(trainer_options.profiler, folder.path)
            _describe_run(plan, folder.path)
        trainer = processes.new_trainer(**settings)
    _order(trainer.callbacks, stopping, report)
    return Run(trainer, model, data, plan, precision_reason, folder, stopping, held)


def _order(callbacks: list[Callback], stopping: Stopping, report: Report) -> None:
    """Put `stopping` before the callbacks that save, and `report` after them."""
    saves = [isinstance(each, Checkpoint) for each in [*callbacks, Checkpoint()]]
    callbacks.insert(saves.index(True), stopping)
    callbacks.remove(report)
    callbacks.append(report)


def _check_validates(patience: int, options: Namespace, data: TextDataModule) -> None:
    if not data.has_validation or options.trainer.limit_val_batches == 0:
        raise UsageError(
            f"there is no validation to watch; give {opt('data.val_fraction')} above 0, or leave "
            "the option out",
            "early_stopping.patience",
            patience,
        )


# ---------------------------------------------------------------------- the folder


def _open_folder(
    plan: Plan, model: LitGPT, data: TextDataModule, held: contextlib.ExitStack
) -> RunFolder:
    """Make or reopen the run's folder, and lock it."""
    root, start = Path(plan.options.trainer.default_root_dir or "."), plan.start
    model.run_config = plan.config
    if start is not None:
        _check_resumable(start, plan.options.trainer.max_steps)
        data.expected_sha256 = dict(plan.texts)
        if processes.on_rank_zero():
            note(f"resuming from {start.path} at step {start.step}")
            for name, old, new in plan.changed:
                note(f"{opt(name)}: {json.dumps(old)} -> {json.dumps(new)}")
    path, records = (start.path, start.content.get(loggers.KEY)) if start else (None, None)
    try:
        shown = of_learning(parsed(plan.config) or {})
        folder = RunFolder(root / run_paths.RUNS, path, plan.first_step, records, plan.place, shown)
    except OSError as error:
        raise UsageError(
            f"no run can be kept there ({error.strerror}); name a folder of yours",
            "trainer.default_root_dir",
            root,
        ) from error
    held.enter_context(folder.lock())
    return folder


def _check_resumable(start: LoadedCheckpoint, max_steps: int) -> None:
    if "optimizer_states" not in start.content:
        raise UsageError(
            "has weights but no state of a run to resume; start a new run from them by "
            f"{opt('model.init_from')} {start.path}",
            "ckpt_path",
            start.path,
        )
    if 0 < max_steps <= start.step:
        reason = f"{start.path} is already at step {start.step}; give a larger number to continue"
        raise UsageError(reason, "trainer.max_steps", max_steps)


def _describe_run(plan: Plan, folder: Path) -> None:
    """Write config.yaml and the plan's other files to the run's folder."""
    if not processes.on_rank_zero():
        return
    write_atomically(folder / run_folder.CONFIG, plan.config.encode())
    for name in plan.left_out:
        note(
            f"{opt(name)}: can't be read back from {run_folder.CONFIG} and is left out there; to "
            f"resume, give it again with {opt('ckpt_path')}, unless it is the default"
        )
    for name, content in plan.files.items():
        write_atomically(folder / name, content)


@contextlib.contextmanager
def _undone(folder: RunFolder | None, has_trained: Callable[[], bool]) -> Iterator[None]:
    """Restore a run's folder after an error, unless this or another process has trained."""
    try:
        yield
    except BaseException:
        if folder and not has_trained():
            folder.undo()
        raise
