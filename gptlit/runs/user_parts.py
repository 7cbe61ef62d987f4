"""The Trainer's callbacks, loggers, plugins and profiler: the user's, and gptlit's beside them.

docs/training.md has a table of what replaces what.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    ProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins import AsyncCheckpointIO, CheckpointIO, DeepSpeedPrecision, Precision
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
    XLAProfiler,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy, StrategyRegistry

from gptlit.messages import UsageError, did_you_mean, note
from gptlit.parser import OneLineErrors
from gptlit.runs import run_folder
from gptlit.runs.saving import DurableCheckpointIO
from gptlit.training import processes

# callbacks of Lightning's that a GPT's run has no place for, and what to use instead
REFUSED: dict[type[Callback], str] = {
    BackboneFinetuning: "it needs a model with a `backbone`, which a GPT has not",
    BatchSizeFinder: "no resume would know the size it finds; gptlit summary states the memory "
    "that a --data.batch_size takes",
    LearningRateFinder: "the run's schedule would undo the rate it finds; use --lr_find",
    ModelPruning: "it renames the weights, so that no checkpoint of the run could be read",
    SpikeDetection: "Lightning can't resume a run that has it; gptlit stops by itself when a loss "
    "diverges, see --guard",
    StochasticWeightAveraging: "it copies the model before its net is built, and so would average "
    "nothing; use --model.ema",
    OnExceptionCheckpoint: "a new run would resume from the file it left; gptlit saves last.ckpt "
    "when a run stops, so leave the callback out",
    GradientAccumulationScheduler: "validations, schedule and resumes count steps of a constant "
    "number of batches; use --trainer.accumulate_grad_batches",
}
BASES = (BaseFinetuning, ProgressBar)  # that do nothing by themselves
PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
    "xla": XLAProfiler,
}
# options that take a name or a class, and the names
NAMED: dict[str, tuple[type, Callable[[], list[str]]]] = {
    "accelerator": (
        Accelerator,
        lambda: ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
    ),
    "profiler": (Profiler, lambda: list(PROFILERS)),
    "strategy": (Strategy, lambda: ["auto", *StrategyRegistry.available_strategies()]),
}
# what a Trainer with barebones true has none of, and what its absence is
BAREBONES = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "log_every_n_steps": 0,
}


def _say(message: str) -> None:
    if processes.on_rank_zero():
        note(message)


def _name(part: object) -> str:
    return type(part).__name__


def choose_precision(accelerator: str) -> tuple[str, str]:
    """The default precision on the accelerator that will be used, and why."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has bfloat16"
        return "16-mixed", "this GPU has no bfloat16"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "the safe choice on Apple's GPUs"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "32-true", "exact; for a larger model try bf16-mixed, this CPU has bfloat16"
    return "32-true", "this CPU has no native bfloat16"


def as_class(option: str, value: Any) -> Any:
    """A class that a string names, parsed; a known name in small letters; others as they are.

    Where an option takes strings, the parser takes any, also one that is meant to be a class.

    Args:
        option: One of NAMED.
        value: Of the option.

    Raises:
        UsageError: the string is no known name, and there is no such class.
    """
    kind, names = NAMED[option][0], NAMED[option][1]()
    if not isinstance(value, str):
        return value
    if value.lower() in names:
        return value.lower()
    parser = OneLineErrors()
    parser.add_argument(f"--{option}", type=kind | None)
    try:
        return parser.parse_args([f"--{option}={value}"])[option]
    except UsageError as error:
        wanted, found, nearest = str(error).partition("expected a class's path or null")
        if not found:
            raise UsageError(f"--trainer.{wanted.removeprefix('--')}") from error
        if name := did_you_mean(value, names):
            nearest = f".{name}"
        # the variants of a strategy, such as ddp_spawn, begin with its name
        shown = [each for each in names if not each.startswith(tuple(f"{n}_" for n in names))]
        raise UsageError(
            f"--trainer.{option} {value}: expected one of {', '.join(shown)}, or a class's path"
            f"{nearest}"
        ) from error


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks that can't do their work in a run of gptlit.

    Raises:
        UsageError: names the class, why, and what works instead.
    """
    for callback in callbacks:
        for refused, reason in REFUSED.items():
            if isinstance(callback, refused):
                raise UsageError(f"--trainer.callbacks {_name(callback)}: {reason}")
        if type(callback) in BASES:
            raise UsageError(
                f"--trainer.callbacks {_name(callback)}: is a base class, which does nothing; "
                "give a class derived from it"
            )


def barebones(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a Trainer with --trainer.barebones true, which measures the bare loop.

    What the user switched on stays on, for Lightning to refuse. An interval of logging is what
    gptlit's configs have, and doesn't count as that.
    """
    _say("--trainer.barebones true: nothing is logged, saved, sampled or kept in a folder")
    named = {name: given[name] or off for name, off in BAREBONES.items()}
    return named | {"log_every_n_steps": 0}


def own_bar(callbacks: Sequence[Callback]) -> ProgressBar | None:
    """The user's progress bar, in whose favour gptlit's is left out; None if there is none."""
    return next((each for each in callbacks if isinstance(each, ProgressBar)), None)


def say_whose_bar(bar: ProgressBar) -> None:
    """State that a progress bar of the user's replaces gptlit's."""
    _say(f"--trainer.callbacks {_name(bar)}: replaces gptlit's own progress bar")


def keep_names_apart(callbacks: Sequence[Callback], folder: Path) -> None:
    """Let no ModelCheckpoint of the user's write or remove a file of gptlit's checkpoints.

    Args:
        callbacks: The user's.
        folder: Of gptlit's checkpoints, in which Lightning puts others unless told otherwise.

    Raises:
        UsageError: one has the file name of a checkpoint of gptlit's.
    """
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath and Path(callback.dirpath).absolute() != folder.absolute():
            continue
        if re.fullmatch(r"best|last|step_.*", name := callback.filename or ""):
            raise UsageError(
                f"--trainer.callbacks.filename {name}: is the name of a checkpoint that gptlit "
                f"saves in {folder}; give another one, or a dirpath"
            )
        _say(f"--trainer.callbacks {_name(callback)}: saves beside best.ckpt and last.ckpt")
        if callback.CHECKPOINT_NAME_LAST == ModelCheckpoint.CHECKPOINT_NAME_LAST:
            callback.CHECKPOINT_NAME_LAST = "{epoch}-{step}-last"


def plugins(given: Any, strategy: Any) -> list[Any]:
    """The Trainer's plugins: the user's, and gptlit's CheckpointIO unless the user has one.

    An AsyncCheckpointIO without one of its own writes through gptlit's.

    Args:
        given: --trainer.plugins.
        strategy: --trainer.strategy; a name, or one that is made.

    Raises:
        UsageError: a plugin belongs to another strategy.
    """
    found = processes.as_list(given)
    with_deepspeed = isinstance(strategy, DeepSpeedStrategy) or "deepspeed" in str(strategy)
    if not with_deepspeed and any(isinstance(each, DeepSpeedPrecision) for each in found):
        raise UsageError(
            "--trainer.plugins DeepSpeedPrecision: is for --trainer.strategy deepspeed only; "
            "leave it out, or give that strategy"
        )
    own = next((each for each in found if isinstance(each, CheckpointIO)), None)
    if own is None:
        return [*found, DurableCheckpointIO()]
    if isinstance(own, AsyncCheckpointIO) and own.checkpoint_io is None:
        own.checkpoint_io = DurableCheckpointIO()
        _say(
            f"--trainer.plugins {_name(own)}: checkpoints are written beside the training; one "
            "that is not written yet when the process is killed is lost"
        )
    else:
        _say(
            f"--trainer.plugins {_name(own)}: replaces gptlit's own way of saving; whether a "
            "checkpoint is whole after a crash or a full disk depends on it"
        )
    return found


def has_precision(given: Any) -> bool:
    """Whether the user's plugins decide the precision."""
    return any(isinstance(each, Precision) for each in processes.as_list(given))


def in_folder(given: Mapping[str, Any], folder: run_folder.RunFolder) -> dict[str, Any]:
    """Settings of the Trainer for what logs and profiles into a run's folder.

    Args:
        given: The --trainer options.
        folder: Of the run.
    """
    return {
        "logger": loggers(given["logger"], folder),
        "profiler": profiler(given["profiler"], folder.path),
    }


def loggers(given: Any, folder: run_folder.RunFolder) -> list[Logger]:
    """The run's loggers: metrics.csv and TensorBoard's events, then the user's; or none at all.

    Args:
        given: --trainer.logger; False for none.
        folder: Of the run.

    Raises:
        UsageError: a logger of the user's would write into the run's folder.
    """
    if given is False:
        return []
    users = [] if given in (None, True) else processes.as_list(given)
    for logger in users:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)):
            place = Path(logger.log_dir)
            if place.absolute() == folder.path.absolute():
                raise UsageError(
                    f"--trainer.logger {_name(logger)}: would write to {place}, where gptlit "
                    "keeps the run's own metrics.csv and events; give another save_dir or version"
                )
    if users:
        names = ", ".join(_name(logger) for logger in users)
        _say(f"--trainer.logger {names}: logs beside metrics.csv and TensorBoard in {folder.path}")
    return [*folder.loggers(), *users]


def profiler(given: Profiler | str | None, folder: Path) -> Profiler | None:
    """The Trainer's profiler, whose files go to the run's folder unless it has another.

    Args:
        given: --trainer.profiler; a name, or one that is made.
        folder: Of the run.
    """
    if isinstance(given, str):
        given = PROFILERS[given]()
    if given is not None:
        given.dirpath = given.dirpath or folder
    return given


def say_where_profile(profiler: Profiler) -> None:
    """State the files that a profiler has written instead of a report on the console."""
    if profiler.filename and profiler.dirpath:
        found = sorted(Path(profiler.dirpath).glob(f"*{profiler.filename}*"))
        for path in found:
            _say(f"the profiler's report: {path}")
