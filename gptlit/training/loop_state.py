"""Where a fit stands between two batches, as Lightning's loops know it."""

import lightning as L


def has_stepped(trainer: L.Trainer) -> bool:
    """Whether the batch that ends was the last of an optimizer step's."""
    return not trainer.fit_loop._should_accumulate()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the batch that ends is followed by a validation."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def ends_epoch(trainer: L.Trainer) -> bool:
    """Whether the batch that ends, or has just ended, is the last of an epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_over(trainer: L.Trainer) -> bool:
    """Whether the batch that ends is the last of the run, by its steps or its epochs."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    max_epochs, begun = trainer.max_epochs, trainer.fit_loop.epoch_progress.current.processed + 1
    return max_epochs is not None and 0 < max_epochs <= begun and ends_epoch(trainer)
