"""Lightning's own announcements, most of which say nothing new here."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning's tips and announcements off: the start-up block tells what matters."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        for expected in (
            # a run that goes on finds its folder filled, as it should, or begins a new one
            r".*The dirpath has changed from.*",
            r".*Checkpoint directory .* exists and is not empty",
            r".*Experiment logs directory .* exists and is not empty",
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
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
