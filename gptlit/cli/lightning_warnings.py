"""Commands that use Lightning: without its announcements, all processes ending together."""

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from gptlit.training import processes

LOGGERS = ("lightning.pytorch", "lightning.fabric")
# what Lightning logs unasked; reports of profilers, callbacks and loggers are no such thing
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


class _NoAnnouncements(logging.Filter):
    """Passes every record but those of Lightning that announce what users see anyway."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_lightnings = record.name.startswith(LOGGERS)
        return not (is_lightnings and ANNOUNCEMENTS.match(record.getMessage()))


def _handlers() -> list[logging.Handler]:
    """What the records of Lightning's modules come to; a filter of a logger is for its own."""
    found: dict[logging.Handler, None] = {}
    for name in LOGGERS:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            found |= dict.fromkeys(logger.handlers)
            logger = logger.parent if logger.propagate else None
    return list(found)


@contextlib.contextmanager
def _to_stderr(handler: logging.StreamHandler[TextIO]) -> Iterator[None]:
    """Let a handler write to the standard error of now, not of when Lightning was imported."""
    before = handler.setStream(sys.stderr)
    try:
        yield
    finally:
        if before is not None:
            handler.setStream(before)


@contextlib.contextmanager
def _without_announcements() -> Iterator[None]:
    with contextlib.ExitStack() as undone:
        for handler in _handlers():
            only = _NoAnnouncements()
            handler.addFilter(only)
            undone.callback(handler.removeFilter, only)
            if type(handler) is logging.StreamHandler:
                undone.enter_context(_to_stderr(handler))
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning's tips and announcements off: the start-up block tells what matters."""
    with warnings.catch_warnings(), _without_announcements():
        for expected in (
            # a run that goes on finds its folder filled, as it should, or begins a new one
            r".*The dirpath has changed from.*",
            r".*Checkpoint directory .* exists and is not empty",
            r".*Experiment logs directory .* exists and is not empty",
            # what --trainer.barebones is for
            r".*You are trying to `self\.log(_dict)?\(\)` but `Trainer\(barebones=True\)`.*",
            # the metrics are summed over ranks before they are logged
            r".*sync_dist=True.*",
            # batches of a model this small need no workers, and the loaders have none
            r".*does not have many workers.*",
            # a short epoch is no mistake
            r".*number of training batches .* is smaller than the logging interval.*",
            # a resumed metric's sums come from the checkpoint
            r"(?s).*``compute`` method of metric TextLoss was called before the ``update``.*",
            # evaluating needs none of the callbacks that watched the training
            r".*callbacks used to create the checkpoint need to be provided.*",
            # `main(argv)` gives its arguments, whatever the process's own are
            r".*LightningCLI's args parameter is intended to run from within Python.*",
            # samples are told apart by their rank
            r".*Couldn't infer the batch indices.*",
            # the loader freezes its order itself
            r".*requested to overfit but enabled train dataloader shuffling.*",
            # how Lightning uses its own libraries
            r"(?s).*(JSONARGPARSE_DEPRECATION_WARNINGS|instantiate_classes).*",
            r".*isinstance\(treespec, LeafSpec\). is deprecated.*",
            # the order of windows is arithmetic: the position is all there is to restore
            r".*You're resuming from a checkpoint that ended before the epoch ended.*",
        ):
            warnings.filterwarnings("ignore", expected)
        yield


@contextlib.contextmanager
def lightning_command() -> Iterator[None]:
    """Run a command that uses Lightning, in one process or as one of several."""
    processes.end_with_launcher()
    with quiet(), processes.telling_of_lost_ranks():
        yield
        processes.leave_together()
