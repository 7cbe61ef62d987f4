"""The options of a run that are neither the model's, the data's nor the Trainer's, and defaults.

Imports neither torch nor Lightning.
"""

import math
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from gptlit.devices import cpus
from gptlit.messages import UsageError

TEXT_OPTIONS = tuple(
    f"--data.{name}" for name in ("path", "corpus", "jsonl_field", "column", "encoding", "cleaning")
)
TEXT_PATHS = ("path", "val_path", "test_path")
# options that are true when given without a value
SWITCHES = {
    "--preflight": "Instead of training, check model and batches: shapes, shift, first loss, "
    "causality, gradients, checkpoint, and that the model memorises one batch.",
    "--trust_checkpoint": "Take all options of the checkpoint's run, also those that name other "
    "classes and folders: they can run any code. For checkpoints of your own.",
    "--lr_find": "Train with the learning rate at which the loss falls fastest in a trial of 100 "
    "steps, instead of --model.lr; muon_lr keeps its proportion.",
}
NUMBERS = {
    "--snapshot_every": "Keep a checkpoint step_N.ckpt every so many steps; 0 for none.",
    "--keep_snapshots": "Number of these checkpoints to keep, the newest ones; 0 for all.",
    "--early_stopping.patience": "End the run after this many validations without a lower "
    "val/loss; 0: never.",
    "--threads": cpus.THREADS_HELP,
}
# options of validate and test alone
OF_EVALUATION = {
    "--ensemble": (
        list[str],
        [],
        "Evaluate several checkpoints with the same tokenizer together, instead of --ckpt_path: "
        "the mean of their probabilities, in windows of the smallest block. Of validate and test.",
    ),
    "--stride": (
        int,
        0,
        "Slide windows by so many tokens, so that each token but those of a text's first window is "
        "predicted from at least block_size - stride tokens; metrics are named val/loss_stride_N. "
        "0: windows side by side. Of validate and test.",
    ),
}
MINUTES = (
    "Choose --trainer.max_steps so that the run takes so many minutes on this machine, from the "
    "time of a few steps and a validation; warmup, decay and validations are scaled. 0: off."
)
TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "max_steps": 1000,
    # by steps, across epochs: a small text's epoch can be shorter than any useful interval
    "check_val_every_n_epoch": None,
    "val_check_interval": 250,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    # the loaders divide the windows among ranks themselves
    "use_distributed_sampler": False,
    # the start-up block shows what matters
    "enable_model_summary": False,
}
# smallest allowed values; smaller ones would fail only during the run, or do something else
LEAST = {
    **{name.removeprefix("--"): 0 for name in NUMBERS},
    "stride": 0,
    "minutes": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.gradient_clip_val": 0,
}


def add_to(parser: ArgumentParser) -> None:
    """Add the options of a run to a parser."""
    for name, text in NUMBERS.items():
        parser.add_argument(name, type=int, default=0, help=text)
    for name, (type_, default, text) in OF_EVALUATION.items():
        parser.add_argument(name, type=type_, default=default, help=text)
    parser.add_argument("--minutes", type=float, default=0.0, help=MINUTES)
    for name, text in SWITCHES.items():
        switch: dict[str, Any] = {"type": bool, "nargs": "?", "const": True, "default": False}
        parser.add_argument(name, help=text, **switch)


def check(options: Namespace) -> None:
    """Check the numbers among the options of a run.

    Raises:
        UsageError: A number is too small, or the seed too large.
    """
    seed = options.seed_everything
    if not isinstance(seed, bool) and not 0 <= seed < 2**32:
        raise UsageError("must be 0 or more, and below 2^32", "seed_everything", seed)
    for name, least in LEAST.items():
        if (value := options.get(name)) is not None and value < least:
            raise UsageError(f"must be {least} or more", name, value)
    if not math.isfinite(options.minutes):
        raise UsageError("must be a number of minutes, or 0", "minutes", options.minutes)
    cpus.check_threads(options.threads)
    if options.trainer.get("limit_train_batches") == 0:
        raise UsageError("leaves nothing to train on", "trainer.limit_train_batches", 0)
    interval = options.trainer.val_check_interval
    by_steps = isinstance(interval, int) and options.trainer.check_val_every_n_epoch is None
    if by_steps and interval < 1:
        raise UsageError("must be 1 or more", "trainer.val_check_interval", interval)


def set_validation_interval(trainer: Namespace) -> None:
    """Give the Trainer the interval between validations in its own units."""
    if isinstance(trainer.val_check_interval, float):
        # a fraction of an epoch, which Lightning takes only where validations go by epochs
        trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch or 1
    elif isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch is None:
        # Lightning counts batches; a checkpoint within a step could not be resumed exactly
        trainer.val_check_interval *= trainer.accumulate_grad_batches
