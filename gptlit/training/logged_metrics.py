"""Names of the metrics that a run logs. Imports neither torch nor Lightning."""

from typing import Any

STEP_METRICS = ("optim/lr", "optim/grad_norm", "speed/step_ms", "speed/tokens_per_s")
# more metrics of a step, which go to the loggers only: callbacks can't monitor them
TOKENS, PEAK_MEMORY, MFU = "train/tokens", "memory/peak_mb", "speed/mfu"
UPDATE_RATIO = "optim/update_ratio/"  # before a kind of matrix, such as wte or mlp.c_fc
MINUTES = "final/minutes"  # of a whole run's steps
TIMED = ("speed/", "memory/", MINUTES)  # prefixes of what differs between equal runs
VALIDATION_METRICS = ("val/loss", "val/bits_per_byte", "val/perplexity", "val/gap")
REWARDS = ("reward_margin", "reward_accuracy")  # of preferences, in training and validation
COMPARED_METRICS = ("val/loss_average", "val/loss_raw")


def logged(trainer: Any, model: Any, has_validation: bool) -> list[str]:
    """Name the metrics that a fit logs if it is long enough.

    Args:
        trainer: Lightning's Trainer, or a namespace of its options.
        model: Options of the model.
        has_validation: Whether the text has a validation split.
    """
    if trainer.barebones:
        return []
    names = ["train/loss", "train/loss_epoch"]
    if model.teachers:
        names.append("train/distill_loss")
    of_split: tuple[str, ...] = VALIDATION_METRICS
    if model.dpo_beta is not None:
        names += [f"train/{name}" for name in REWARDS]
        of_split = ("val/loss", "val/gap", *(f"val/{name}" for name in REWARDS))
    if trainer.log_every_n_steps:
        names += STEP_METRICS
        if model.optimizer == "muon":
            names.append("optim/muon_lr")
    if trainer.limit_val_batches != 0 or trainer.overfit_batches:
        names += ["train/loss_eval", *(of_split if has_validation else ())]
        if has_validation and model.ema_keep == "better":
            names += COMPARED_METRICS
    return names
