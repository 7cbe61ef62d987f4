"""The user's callbacks, loggers, plugins and profiler, combined with gptlit's own.

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

from gptlit.devices.accelerators import mps_is_available
from gptlit.messages import UsageError, did_you_mean, note, opt
from gptlit.parser import OneLineErrors
from gptlit.runs import run_folder
from gptlit.runs.saving import DurableCheckpointIO
from gptlit.training import processes

# Lightning's callbacks that don't work in a run of gptlit, and what to use instead
REFUSED: dict[type[Callback], str] = {
    BackboneFinetuning: "needs a model with a `backbone`, and a GPT has none; leave it out",
    BatchSizeFinder: "a resume would not use the size that it finds; gptlit summary shows the "
    f"memory that a {opt('data.batch_size')} takes",
    LearningRateFinder: "the schedule would replace the learning rate that it finds; use "
    f"{opt('lr_find')}",
    ModelPruning: "renames the weights, so that no checkpoint of the run could be read; leave it "
    "out",
    SpikeDetection: "Lightning can't resume a run that has it; gptlit stops by itself when a loss "
    f"diverges, see {opt('guard')}",
    StochasticWeightAveraging: "copies the model before its net is built, so that it averages "
    f"nothing; use {opt('model.ema')}",
    OnExceptionCheckpoint: "a new run would resume from its file; gptlit saves last.ckpt when a "
    "run stops, so leave it out",
    GradientAccumulationScheduler: "validations, schedule and resumes count steps of a constant "
    f"number of batches; use {opt('trainer.accumulate_grad_batches')}",
}
BASES = (BaseFinetuning, ProgressBar)  # do nothing by themselves
PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
    "xla": XLAProfiler,
}
# class and known names of each option that takes a name or a class
NAMED: dict[str, tuple[type, Callable[[], list[str]]]] = {
    "accelerator": (
        Accelerator,
        lambda: ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
    ),
    "profiler": (Profiler, lambda: list(PROFILERS)),
    "strategy": (Strategy, lambda: ["auto", *StrategyRegistry.available_strategies()]),
}


def _note(option: str, value: object, message: str) -> None:
    if processes.on_rank_zero():
        note(f"{opt(option)} {value}: {message}")


def _name(part: object) -> str:
    return type(part).__name__


def choose_precision(accelerator: str) -> tuple[str, str]:
    """Return the default precision on an accelerator, and the reason."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has bfloat16"
        return "16-mixed", "this GPU has no bfloat16"
    if accelerator in ("auto", "gpu", "mps") and mps_is_available():
        return "32-true", "the safe choice on Apple's GPUs"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "32-true", "exact; for a larger model try bf16-mixed, this CPU has bfloat16"
    return "32-true", "this CPU has no native bfloat16"


def as_class(option: str, value: Any) -> Any:
    """Parse the class that a string names; lower-case a known name, and keep other values.

    The parser accepts any string for an option that takes strings, including a class's name.

    Args:
        option: Name of the option, a key of NAMED.
        value: Value of the option.

    Raises:
        UsageError: The string is neither a known name nor a class.
    """
    kind, names = NAMED[option][0], NAMED[option][1]()
    if not isinstance(value, str):
        return value
    if value.lower() in names:
        return value.lower()
    parser = OneLineErrors()
    parser.add_argument(f"--{option}", type=kind | None)
    try:
        return parser.parse_one(option, value, opt(f"trainer.{option}"))[option]
    except UsageError as error:
        _, is_no_class, nearest = str(error).partition("expected a class's path or null")
        if not is_no_class:
            raise
        if name := did_you_mean(value, names):
            nearest = f".{name}"
        # the variants of a strategy, such as ddp_spawn, begin with its name
        shown = [each for each in names if not each.startswith(tuple(f"{n}_" for n in names))]
        raise UsageError(
            f"expected one of {', '.join(shown)}, or a class's path{nearest}",
            f"trainer.{option}",
            value,
        ) from error


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks that don't work in a run of gptlit.

    Raises:
        UsageError: The message names the class, the reason, and what works instead.
    """
    for callback in callbacks:
        for refused, reason in REFUSED.items():
            if isinstance(callback, refused):
                raise UsageError(reason, "trainer.callbacks", _name(callback))
        if type(callback) in BASES:
            reason = "is a base class, which does nothing; give a class derived from it"
            raise UsageError(reason, "trainer.callbacks", _name(callback))


def barebones(trainer_options: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a Trainer with barebones true, which measures the bare loop.

    An option that the user switched on stays on, so that Lightning refuses it; log_every_n_steps,
    which gptlit's configs set, is switched off.
    """
    _note("trainer.barebones", "true", "nothing is logged, saved, sampled or kept in a folder")
    names = ("logger", "enable_checkpointing", "enable_progress_bar")
    settings = {name: trainer_options[name] or False for name in names}
    return settings | {"log_every_n_steps": 0}


def own_bar(callbacks: Sequence[Callback]) -> ProgressBar | None:
    """Return the user's progress bar, which replaces gptlit's; None if there is none."""
    return next((each for each in callbacks if isinstance(each, ProgressBar)), None)


def note_own_bar(bar: ProgressBar) -> None:
    """Note that a user's progress bar replaces gptlit's."""
    _note("trainer.callbacks", _name(bar), "replaces gptlit's own progress bar")


def separate_checkpoints(callbacks: Sequence[Callback], folder: Path) -> None:
    """Keep the user's ModelCheckpoints from writing or removing gptlit's checkpoints.

    Args:
        callbacks: Callbacks of the user.
        folder: Folder of gptlit's checkpoints, which is also Lightning's default for others.

    Raises:
        UsageError: A callback has the file name of one of gptlit's checkpoints.
    """
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath and Path(callback.dirpath).absolute() != folder.absolute():
            continue
        if re.fullmatch(r"best|last|step_.*", name := callback.filename or ""):
            raise UsageError(
                f"is the name of a checkpoint that gptlit saves in {folder}; give another name, or "
                "a dirpath",
                "trainer.callbacks.filename",
                name,
            )
        _note("trainer.callbacks", _name(callback), "saves next to best.ckpt and last.ckpt")
        if callback.CHECKPOINT_NAME_LAST == ModelCheckpoint.CHECKPOINT_NAME_LAST:
            callback.CHECKPOINT_NAME_LAST = "{epoch}-{step}-last"


def plugins(option: Any, strategy: Any) -> list[Any]:
    """Return the user's plugins, with gptlit's CheckpointIO unless the user has one.

    An AsyncCheckpointIO that wraps no other plugin wraps gptlit's.

    Args:
        option: Value of the Trainer's option plugins.
        strategy: Name of the strategy, or the strategy itself.

    Raises:
        UsageError: A plugin belongs to another strategy.
    """
    user_plugins = processes.as_list(option)
    with_deepspeed = isinstance(strategy, DeepSpeedStrategy) or "deepspeed" in str(strategy)
    if not with_deepspeed and any(isinstance(each, DeepSpeedPrecision) for each in user_plugins):
        raise UsageError(
            f"works with {opt('trainer.strategy')} deepspeed only; leave it out, or give that "
            "strategy",
            "trainer.plugins",
            "DeepSpeedPrecision",
        )
    writer = next((each for each in user_plugins if isinstance(each, CheckpointIO)), None)
    if writer is None:
        return [*user_plugins, DurableCheckpointIO()]
    if isinstance(writer, AsyncCheckpointIO) and writer.checkpoint_io is None:
        writer.checkpoint_io = DurableCheckpointIO()
        message = (
            "checkpoints are written while the training continues; one that is not complete when "
            "the process is killed is lost"
        )
    else:
        message = (
            "replaces gptlit's own plugin; whether checkpoints are intact after a crash or a full "
            "disk depends on it"
        )
    _note("trainer.plugins", _name(writer), message)
    return user_plugins


def has_precision(plugins_option: Any) -> bool:
    """Whether the user's plugins decide the precision."""
    return any(isinstance(each, Precision) for each in processes.as_list(plugins_option))


def loggers(option: Any, folder: run_folder.RunFolder) -> list[Logger]:
    """Return the run's loggers: metrics.csv and TensorBoard's events, then the user's; or none.

    Args:
        option: Value of the Trainer's option logger; False for none.
        folder: Folder of the run.

    Raises:
        UsageError: A logger of the user would write into the run's folder.
    """
    if option is False:
        return []
    user_loggers = [] if option in (None, True) else processes.as_list(option)
    for logger in user_loggers:
        if not isinstance(logger, (CSVLogger, TensorBoardLogger)):
            continue
        if Path(logger.log_dir).absolute() == folder.path.absolute():
            raise UsageError(
                f"would write to {Path(logger.log_dir)}, the folder of the run's own metrics.csv "
                "and events; give another save_dir or version",
                "trainer.logger",
                _name(logger),
            )
    if user_loggers:
        names = ", ".join(map(_name, user_loggers))
        _note("trainer.logger", names, f"logs next to metrics.csv and TensorBoard in {folder.path}")
    return [*folder.loggers(), *user_loggers]


def profiler(option: Profiler | str | None, folder: Path) -> Profiler | None:
    """Return a profiler, or the one of a name; it writes into `folder` unless it has another."""
    chosen = PROFILERS[option]() if isinstance(option, str) else option
    if chosen is not None:
        chosen.dirpath = chosen.dirpath or folder
    return chosen


def note_profile(profiler: Profiler) -> None:
    """Note the files that a profiler has written instead of a report on the console."""
    if profiler.filename and profiler.dirpath:
        paths = sorted(Path(profiler.dirpath).glob(f"*{profiler.filename}*"))
        for path in paths if processes.on_rank_zero() else []:
            note(f"the profiler's report: {path}")
