"""Processes of a run: their ranks, the strategies that start them, and errors of the Trainer."""

import contextlib
import copy
import os
import signal
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gptlit.messages import RunError, UsageError, opt
from gptlit.training import loop_state

T = TypeVar("T")

LAUNCHER = "GPTLIT_LAUNCHER"  # the environment variable with the process id of rank 0
# gloo's messages when another process has ended
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
# the Trainer's options that decide how its processes start
OPTIONS = ("strategy", "accelerator", "devices", "num_nodes", "plugins")

# ---------------------------------------------------------------------- ranks


def on_rank_zero() -> bool:
    """Whether this process has rank 0, which writes files and messages."""
    return rank_zero_only.rank == 0


def leave_together() -> None:
    """Wait until all processes of a run are finished, then leave their process group.

    gloo can abort a process that still communicates with one that has left.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def kill_others(trainer: L.Trainer) -> None:
    """Kill the processes that this one has launched, which would wait for it forever."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)


def end_with_launcher() -> None:
    """End this process when the process that launched it ends.

    It would otherwise wait half an hour for a launcher that was killed. Processes started by hand
    or by a cluster have no launcher.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ[LAUNCHER] = str(os.getpid())  # for processes that Lightning launches from here
        return
    by_torchrun = torch.distributed.is_torchelastic_launched()
    launcher = os.getppid() if by_torchrun else int(os.environ.get(LAUNCHER, 0))
    if launcher and launcher != os.getpid():
        Thread(target=_exit_after, args=(launcher,), daemon=True).start()


def _exit_after(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)  # an exception would not interrupt a main thread that waits in C++ code


@contextlib.contextmanager
def reporting_lost_ranks() -> Iterator[None]:
    """Report in one line that another process of the run has ended.

    Raises:
        RunError: Instead of the error of the communication that failed.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        raise RunError(
            "another process of the run has ended; its error is printed above. Resume the run by "
            f"{opt('ckpt_path')} last"
        ) from error


# ---------------------------------------------------------------------- strategies


def as_list(value: Any) -> list[Any]:
    """Return an option of the Trainer as a list, given None, one object or a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def are_plain(options: Any) -> bool:
    """Whether options can be checked before their classes are instantiated."""
    values = [value for name in OPTIONS for value in as_list(options[name])]
    return not any(isinstance(value, Namespace) for value in values)


def check(options: Any) -> None:
    """Refuse strategies that spawn or fork this process.

    This process would not get the last step, the metrics or the reason why the run ended. A
    temporary Trainer shows which launcher Lightning chooses, also for "auto" in a notebook.

    Args:
        options: Options of the Trainer by name.

    Raises:
        UsageError: The message names a strategy that works.
    """
    # Lightning changes the objects that are passed to it
    copies = copy.deepcopy({name: options[name] for name in OPTIONS})
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = refusing(L.Trainer, **copies, **dict.fromkeys(off, False))
    if method := loop_state.start_method(trainer.strategy):
        strategy = options["strategy"]
        raise UsageError(
            f"starts its processes by {method}, and their results don't reach this process; use "
            f"{opt('trainer.strategy')} ddp in a terminal, or {opt('trainer.devices')} 1 without a "
            "strategy in a notebook",
            "trainer.strategy",
            strategy if isinstance(strategy, str) else type(strategy).__name__,
        )


# ---------------------------------------------------------------------- errors of the Trainer


def new_trainer(**options: Any) -> L.Trainer:
    """Make a Trainer.

    Raises:
        UsageError: Lightning refuses the options.
    """
    try:
        return refusing(L.Trainer, **options)
    except RuntimeError as error:
        _raise_refusal(error)
        raise


def refusing(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function of Lightning's, and raise its errors about options as UsageError."""
    try:
        return function(*arguments, **options)
    except UsageError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
        _raise_refusal(error)
        raise


def _raise_refusal(error: Exception) -> None:
    """Raise a UsageError for an error if Lightning's own code raised it, not code that it calls."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if "lightning" in Path(frames[-1][0].f_code.co_filename).parts:
        raise UsageError(textwrap.shorten(str(error), 240), "trainer") from error
