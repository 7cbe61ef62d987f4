"""Runs commands that use Lightning without its announcements and expected warnings."""

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator

from gptlit.training import processes

LOGGERS = ("lightning.pytorch", "lightning.fabric")
# records that are dropped; reports of profilers, callbacks and loggers are still shown
ANNOUNCEMENTS = re.compile(
    r"""\s*(\[rank:\ \d+\]\ )?(
    Seed\ set\ to
    | (GPU|TPU|HPU|IPU)\ available:
    | 💡\ Tip:
    | You\ are\ using\ a\ CUDA\ device
    | LOCAL_RANK:
    | Using\ (16bit|bfloat16|16-bit)\ .*Automatic\ Mixed\ Precision
    | `Trainer\(\w+=1(\.0)?\)`\ was\ configured\ so
    | Running\ in\ `fast_dev_run`\ mode
    | You\ are\ running\ in\ `Trainer\(barebones=True\)`\ mode
    | `Trainer\(barebones=True\)`\ started\ running
    | Trainer\ already\ configured\ with\ model\ summary\ callbacks
    | Initializing\ distributed:
    | -+\s+distributed_backend=
    | Restoring\ states\ from\ the\ checkpoint
    | Restored\ all\ states\ from\ the\ checkpoint
    | Loaded\ model\ weights\ from\ the\ checkpoint
    | `weights_only`\ was\ not\ set
    | Lightning\ automatically\ upgraded\ your\ loaded\ checkpoint
    | `Trainer\.\w+`\ stopped:
    | Detected\ KeyboardInterrupt
    | (Received|Bypassing)\ SIGTERM
    )""",
    re.VERBOSE,
)


def _handlers() -> list[logging.Handler]:
    """Return the handlers of Lightning's loggers, as a logger's filter misses its children."""
    handlers: dict[logging.Handler, None] = {}
    for name in LOGGERS:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            handlers |= dict.fromkeys(logger.handlers)
            logger = logger.parent if logger.propagate else None
    return list(handlers)


@contextlib.contextmanager
def _without_announcements() -> Iterator[None]:
    def is_shown(record: logging.LogRecord) -> bool:
        of_lightning = record.name.startswith(LOGGERS)
        return not (of_lightning and ANNOUNCEMENTS.match(record.getMessage()))

    with contextlib.ExitStack() as undone:
        for handler in _handlers():
            handler.addFilter(is_shown)
            undone.callback(handler.removeFilter, is_shown)
            # to the current standard error, rather than the one at Lightning's import
            if type(handler) is logging.StreamHandler and (before := handler.setStream(sys.stderr)):
                undone.callback(handler.setStream, before)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's announcements and the warnings that gptlit's way of using it causes."""
    with warnings.catch_warnings(), _without_announcements():
        for expected in (
            # a resumed run finds files in its folder
            r".*The dirpath has changed from.*",
            r".*Checkpoint directory .* exists and is not empty",
            r".*Experiment logs directory .* exists and is not empty",
            # --trainer.barebones is for measuring speed, and needs no metrics
            r".*You are trying to `self\.log(_dict)?\(\)` but `Trainer\(barebones=True\)`.*",
            # metrics are summed over ranks before they are logged
            r".*sync_dist=True.*",
            # batches of a small model need no workers
            r".*does not have many workers.*",
            # only --trainer.accelerator cpu leaves a GPU unused
            r".*(GPU|TPU) available but not used.*",
            # a small text has short epochs
            r".*number of training batches .* is smaller than the logging interval.*",
            # evaluation does not need the callbacks of training
            r".*callbacks used to create the checkpoint need to be provided.*",
            # `main(argv)` passes arguments explicitly
            r".*LightningCLI's args parameter is intended to run from within Python.*",
            # samples are identified by their rank
            r".*Couldn't infer the batch indices.*",
            # the loader fixes its order itself
            r".*requested to overfit but enabled train dataloader shuffling.*",
            # deprecations in the libraries that Lightning uses
            r"(?s).*(JSONARGPARSE_DEPRECATION_WARNINGS|instantiate_classes).*",
            r".*isinstance\(treespec, LeafSpec\). is deprecated.*",
            # the position is all the state that the order of windows has
            r".*You're resuming from a checkpoint that ended before the epoch ended.*",
        ):
            warnings.filterwarnings("ignore", expected)
        yield


@contextlib.contextmanager
def lightning_command() -> Iterator[None]:
    """Run a command that uses Lightning; several processes of a launcher end together."""
    processes.end_with_launcher()
    with quiet(), processes.reporting_lost_ranks():
        yield
        processes.leave_together()
