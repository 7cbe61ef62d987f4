"""The exact metrics of a split: `gptlit validate` and `gptlit test`."""

import sys
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gptlit.checkpoints.checkpoint import LoadedCheckpoint, build_several, named_by, read_named
from gptlit.messages import UsageError, note, print_lines
from gptlit.model.ensemble import Ensemble
from gptlit.model.gpt import GPT
from gptlit.runs.build import Run
from gptlit.runs.run_end import interruptible
from gptlit.training import fsdp2, resuming
from gptlit.training.module import LitGPT

SPLITS = {"validate": "val", "test": "test"}


class _Others(Callback):
    """Makes the model's net an ensemble with others before an evaluation."""

    def __init__(self, nets: Sequence[GPT]) -> None:
        self._nets = nets

    def _join(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LitGPT)
        convert, device = trainer.precision_plugin.convert_module, trainer.strategy.root_device
        for net in self._nets:
            convert(net).to(device)  # both in place
        module.net = Ensemble([module.net, *self._nets]).eval()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._join(trainer, pl_module)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._join(trainer, pl_module)


def _join_ensemble(run: Run, start: LoadedCheckpoint) -> list[LoadedCheckpoint]:
    """Add the other checkpoints of an ensemble to a run; returns all, the first one included.

    Raises:
        UsageError: The checkpoints or the strategy don't fit.
    """
    names = run.options.ensemble
    with named_by("ensemble"):
        starts = [start, *(LoadedCheckpoint(*read_named(name)) for name in names[1:])]
    paths, contents = zip(*((each.path, each.content) for each in starts), strict=True)
    nets, _ = build_several(paths, contents)
    if isinstance(run.trainer.strategy, fsdp2.SHARDING):
        raise UsageError("needs a strategy that keeps nets whole, such as ddp", "ensemble")
    run.data.block_size = min(net.config.block_size for net in nets)
    trainer: Any = run.trainer  # Lightning declares no callbacks
    trainer.callbacks.append(_Others(nets[1:]))
    return starts


def evaluate(run: Run) -> None:
    """Print the metrics of the whole validation or test split.

    Raises:
        UsageError: Invalid options, or checkpoints that don't fit together.
    """
    start, stride = run.plan.start, run.options.stride
    assert start is not None
    starts = _join_ensemble(run, start) if run.options.ensemble else [start]
    if stride > run.data.block_size:
        reason = f"must be from 1 to the block size, {run.data.block_size}, or 0"
        raise UsageError(reason, "stride", stride)
    run.data.stride = stride
    split = SPLITS[run.plan.purpose]
    function = getattr(run.trainer, run.plan.purpose)
    with interruptible(run.trainer):
        settings = {"datamodule": run.data, "ckpt_path": run.options.ckpt_path}
        (metrics,) = function(run.model, verbose=False, **settings)
    if not run.trainer.is_global_zero:
        return
    tokens, text = run.data.tokens, run.data.describe_text()
    trained = [each.described["text"] for each in starts]
    if trained[0]["sha256"] != text["sha256"] and not run.plan.text_given:
        note(f"warning: {text['name']} has changed since it was trained on")
    if any(resuming.was_trained_on(split, each, text) for each in trained):
        note(f"warning: the {split} split overlaps the text that the model was trained on")
    rows = {
        "ensemble" if len(starts) > 1 else "checkpoint": ", ".join(
            str(each.path) for each in starts
        ),
        "text": f"{tokens.provenance['name']}, {split} split",
        "tokens": f"{tokens.size(split):,}",
        "bytes": f"{tokens.n_bytes(split):,}",
        **{name: f"{value:.6f}" for name, value in metrics.items()},
    }
    if stride:
        rows["windows"] = f"of {run.data.block_size} tokens, each {stride} after the one before"
    if reason := tokens.incomparable(split):
        rows["not comparable"] = f"bits_per_byte: {reason}"
    width = max(20, *(len(name) + 2 for name in rows))
    print_lines("\n".join(f"{name:<{width}}{value}" for name, value in rows.items()), sys.stdout)
