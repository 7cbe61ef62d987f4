"""How Lightning would start the processes of a run, and which ways can't work here."""

import copy
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from gptlit import runs
from gptlit.messages import UsageError

OPTIONS = ("strategy", "accelerator", "devices", "num_nodes", "plugins")  # decide about it


def are_plain(options: Any) -> bool:
    """Whether options can be checked before their classes are made."""
    given = [each for name in OPTIONS for each in runs.as_list(options[name])]
    return not any(isinstance(each, Namespace) for each in given)


def check(options: Any) -> None:
    """Refuse strategies whose processes are spawned or forked copies of this one.

    These train and save, but the step, the metrics and the reason of the end stay in the copies,
    so that this process would report a run that it knows nothing of. A Trainer that is thrown
    away says which launcher Lightning chooses, also for "auto" in a notebook.

    Args:
        options: Those of the Trainer, by name.

    Raises:
        UsageError: names the strategy that works instead.
    """
    # Lightning leaves marks in the objects that it is given
    given = copy.deepcopy({name: options[name] for name in OPTIONS})
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = runs.refusing(L.Trainer, **given, **dict.fromkeys(off, False))
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        strategy = options["strategy"]
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        method = getattr(trainer.strategy, "_start_method", "spawn")
        raise UsageError(
            f"--trainer.strategy {name}: starts its processes by {method}, and what they train "
            "does not come back to this one; give --trainer.strategy ddp, which works in a "
            "terminal and not in a notebook, or leave the option out and give --trainer.devices 1"
        )
