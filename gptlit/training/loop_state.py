"""Lightning's private state: each private name is used in one function here, and tested by name.

The second half of the file is the part of a checkpoint that Lightning's loops write and read.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from gptlit import plain_data
from gptlit.messages import UsageError

# by file: Lightning's private names that its classes override or assign, as only a subclass can
OVERRIDDEN = {
    "cli/fit.py": {"_parse_ckpt_path"},
    "runs/loggers.py": {"_check_log_dir_exists", "_experiment", "_rewrite_with_new_header"},
}

# ---------------------------------------------------------------------- between two batches


def has_stepped(trainer: L.Trainer) -> bool:
    """Whether the batch that ends was the last of an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the batch that ends is followed by a validation."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def ends_epoch(trainer: L.Trainer) -> bool:
    """Whether the batch that ends, or has just ended, is the last of an epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_over(trainer: L.Trainer) -> bool:
    """Whether the batch that ends is the last of the run, by max_steps or max_epochs."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    max_epochs, begun = trainer.max_epochs, trainer.fit_loop.epoch_progress.current.processed + 1
    return max_epochs is not None and 0 < max_epochs <= begun and ends_epoch(trainer)


def log_under_global_step(trainer: L.Trainer) -> None:
    """Log metrics, also those of an epoch, under the number of optimizer steps.

    Lightning logs them under a count of its own, which a resume shifts where validations follow
    other steps than before.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


SET_AT_EACH_HOOK = {"_current_fx_name"}  # attributes of a module
HOOKS_OF_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def leave_out_idle_hooks(owner: Callback | L.LightningModule) -> None:
    """Remove a callback's or module's hooks of a step that do nothing.

    Lightning calls each hook of each callback at each step, but leaves out what is not callable.
    """
    base = Callback if isinstance(owner, Callback) else L.LightningModule
    for name in HOOKS_OF_A_STEP:
        # of the instance, where a LambdaCallback has its hooks
        if getattr(getattr(owner, name), "__func__", None) is getattr(base, name):
            setattr(owner, name, None)


def mark_validation_as_begun(trainer: L.Trainer) -> None:
    """Mark a validation as only begun, so that a resume from a checkpoint runs it from its start.

    Lightning repeats a validation whose first batch was begun and not finished; after any later
    batch it would consider the validation as finished.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.total.ready = progress.total.started = 1


# ---------------------------------------------------------------------- the Trainer's parts


def has_trainer(module: L.LightningModule) -> bool:
    """Whether a module belongs to a Trainer; its property `trainer` raises if it does not."""
    return module._trainer is not None


def cluster_environment(trainer: L.Trainer) -> ClusterEnvironment | None:
    """Return the environment that the Trainer found its processes in."""
    return trainer._accelerator_connector.cluster_environment


def stop_as_by_sigterm(trainer: L.Trainer) -> None:
    """Stop the Trainer after this batch, as a SIGTERM does."""
    trainer._signal_connector.received_sigterm = True


def start_method(strategy: Strategy) -> str | None:
    """Return how a strategy starts copies of this process: spawn or fork; None if it does not."""
    if not isinstance(strategy.launcher, _MultiProcessingLauncher):
        return None
    return strategy.launcher._start_method


def use_all_processes_for_data(strategy: ModelParallelStrategy) -> None:
    """Divide a strategy's data among all processes, rather than nodes."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def state_key(callback: Callback, **options: Any) -> str:
    """Return the key of a callback's state in checkpoints, by its class and options."""
    return callback._generate_state_key(**options)


def checks_on_epoch_end(callback: EarlyStopping) -> bool:
    """Whether an EarlyStopping checks its metric at the end of epochs rather than validations."""
    return bool(callback._check_on_train_epoch_end)


# ---------------------------------------------------------------------- a checkpoint's loops


class _Place(TypedDict):
    epoch: int
    position: int


class _Loaders(TypedDict):
    combined_loader: list[_Place]


def check_loop(
    content: dict[str, Any], name: str, example: Mapping[str, Any], has_place: bool
) -> None:
    """Check a checkpoint's state of one of the Trainer's loops, so that it can be restored.

    Args:
        content: Content of the checkpoint, changed in place.
        name: Name of the loop, such as fit_loop.
        example: Current state of the loop.
        has_place: Whether it has begun an epoch, and the loader has a position in the text.

    Raises:
        UsageError: The message names the invalid part.
    """
    if "loops" not in content:
        return
    plain_data.check(dict[str, dict[str, Any]], content["loops"], "loops")
    loop = content["loops"].get(name)
    loop = plain_data.like(dict(example), {} if loop is None else loop, f"loops.{name}")
    _check_counts(loop, f"loops.{name}")
    if has_place:
        loaders = loop["state_dict"]
        plain_data.check(_Loaders, loaders, f"loops.{name}")
        if len(loaders["combined_loader"]) != 1:
            raise UsageError(f"loops.{name}.state_dict: a run has one loader")
    content["loops"] = {**content["loops"], name: loop}


def _check_counts(part: Any, name: str) -> None:
    if isinstance(part, dict):
        for key, each in part.items():
            _check_counts(each, f"{name}.{key}")
    elif isinstance(part, list):
        for index, each in enumerate(part):
            _check_counts(each, f"{name}[{index}]")
    elif isinstance(part, int) and not 0 <= part < 2**63:
        raise UsageError(f"{name} {plain_data.shown(part)}: must be 0 or more")


def recount(
    content: dict[str, Any], windows_per_step: int, accumulated: int, steps_per_epoch: int
) -> None:
    """Convert a run's position in its epoch to batches of another size, and epochs of another.

    Lightning counts batches, the loader windows. A position that is not a whole number of steps
    is rounded down.

    Args:
        content: Content of the checkpoint, changed in place.
        windows_per_step: Current number of windows in an optimizer step.
        accumulated: Current number of batches in an optimizer step.
        steps_per_epoch: Current number of optimizer steps in an epoch.
    """
    if not content["global_step"]:
        return  # saved by Lightning's tuner, before there is a position
    loops = content["loops"]["fit_loop"]
    batches, loaders = loops["epoch_loop.batch_progress"], loops["state_dict"]["combined_loader"]
    position = loaders[0]["position"]
    steps = min(position // windows_per_step, steps_per_epoch)
    if (
        batches["current"]["processed"] * windows_per_step != position * accumulated
        or batches["total"]["processed"] != content["global_step"] * accumulated
    ):
        for counts, number in (
            (batches["current"], steps * accumulated),
            (batches["total"], content["global_step"] * accumulated),
        ):
            counts |= dict.fromkeys(counts, number)
        loaders[0]["position"] = steps * windows_per_step
    batches["is_last_batch"] = steps >= steps_per_epoch


def complete_batch(content: dict[str, Any]) -> None:
    """Mark the batch at whose end a checkpoint was saved as completed.

    After an epoch's last batch, Lightning would consider the epoch as completed too, and leave out
    its metrics and sample.
    """
    loops = content["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    if batches["total"]["completed"] == batches["total"]["processed"] - 1:
        batches["total"]["completed"] += 1
        batches["current"]["completed"] += 1
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = content["global_step"]
