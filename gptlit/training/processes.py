"""How Lightning would start the processes of a run, and which ways can't work here."""

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

from gptlit.messages import RunError, UsageError
from gptlit.training import loop_state

T = TypeVar("T")

LAUNCHER = "GPTLIT_LAUNCHER"  # the environment variable with the process id of rank 0
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo's
OPTIONS = ("strategy", "accelerator", "devices", "num_nodes", "plugins")  # decide about it


def on_rank_zero() -> bool:
    """Whether this process is the one that writes; true where there is only one."""
    return rank_zero_only.rank == 0


def as_list(value: Any) -> list[Any]:
    """A Trainer's option that is none, one or a list of things, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def are_plain(options: Any) -> bool:
    """Whether options can be checked before their classes are made."""
    given = [each for name in OPTIONS for each in as_list(options[name])]
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
    trainer = refusing(L.Trainer, **given, **dict.fromkeys(off, False))
    if method := loop_state.start_method(trainer.strategy):
        strategy = options["strategy"]
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        raise UsageError(
            f"--trainer.strategy {name}: starts its processes by {method}, and what they train "
            "does not come back to this one; give --trainer.strategy ddp, which works in a "
            "terminal and not in a notebook, or leave the option out and give --trainer.devices 1"
        )


def kill_others(trainer: L.Trainer) -> None:
    """End the processes that this one has launched, which wait for what it can't do."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)


def leave_together() -> None:
    """Let all processes of a finished run leave together.

    One that goes while another still talks can make gloo abort it, with all its work done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end_with_launcher() -> None:
    """Let this process end when the one that launched it for a share of the work has.

    One whose launcher was killed before all had met would wait half an hour for it. A process
    that was started by hand, or by a cluster, isn't watched.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ[LAUNCHER] = str(os.getpid())  # for those that Lightning launches from here
        return
    by_torchrun = torch.distributed.is_torchelastic_launched()
    launcher = os.getppid() if by_torchrun else int(os.environ.get(LAUNCHER, 0))
    if launcher and launcher != os.getpid():
        Thread(target=_watch, args=(launcher,), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)  # the main thread may be waiting where no exception reaches it


@contextlib.contextmanager
def telling_of_lost_ranks() -> Iterator[None]:
    """Say in one line that another process has ended, where this one can't go on without.

    Raises:
        RunError: instead of the error of whatever was waited for.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        raise RunError(
            "another process of the run has ended; its error is printed above. Resume the run by "
            "gptlit fit --ckpt_path last"
        ) from error


def new_trainer(**options: Any) -> L.Trainer:
    """A Trainer; what Lightning refuses becomes a UsageError.

    Raises:
        UsageError: options or parts that don't go together.
    """
    try:
        return refusing(L.Trainer, **options)
    except RuntimeError as error:
        if not _is_refusal(error):
            raise
        raise UsageError(f"--trainer: {textwrap.shorten(str(error), 240)}") from error


def refusing(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function of Lightning's, whose refusals of options become a UsageError."""
    try:
        return function(*arguments, **options)
    except UsageError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
        if not _is_refusal(error):
            raise
        raise UsageError(f"--trainer: {textwrap.shorten(str(error), 240)}") from error


def _is_refusal(error: BaseException) -> bool:
    """Whether it was raised by Lightning itself rather than by something it called."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return "lightning" in Path(frames[-1][0].f_code.co_filename).parts
