"""Lines that a run prints while it trains, and the speed that it logs."""

import math
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gptlit.data.loaders import IGNORED
from gptlit.devices import peaks
from gptlit.devices.accelerators import name_of
from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.optim.update_ratios import UpdateRatios
from gptlit.runs.computing import ThreadChoice
from gptlit.runs.loggers import Table
from gptlit.runs.progress_bar import print_above_bar
from gptlit.runs.sample_text import SampleText
from gptlit.terminal import count_of, duration
from gptlit.training.logged_metrics import MFU, PEAK_MEMORY, TOKENS, UPDATE_RATIO
from gptlit.training.module import LitGPT
from gptlit.training.overfitting import Overfitting

SEEN = "gptlit_tokens"  # seen before a checkpoint, its key


class Throughput(Callback):
    """Logs speed without validations, tokens seen, peak memory, and sizes of updates.

    Speed and tokens are those of all ranks, memory is that of rank 0.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._from_step = 0
        self._tokens: int | None = None  # seen by the first steps, `_counted`
        self._counted = 0
        self._flops: float | None = None  # per token; None where the device's peak is unknown
        self._peak = 0.0  # FLOP/s of all devices

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        tokens = checkpoint.get(SEEN)
        self._tokens = tokens if isinstance(tokens, int) and tokens >= 0 else None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, LitGPT)
        checkpoint[SEEN] = self._seen(trainer.global_step, pl_module)

    def _seen(self, step: int, module: LitGPT) -> int:
        """Return the tokens of the steps so far, also where a resume has changed their batch."""
        per_step = module.text.windows_per_step * module.text.block_size
        self._tokens = (self._tokens or 0) + (step - self._counted) * per_step
        self._counted = step
        return self._tokens

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        if self._tokens is not None:
            self._counted = trainer.global_step
        if trainer.log_every_n_steps:
            pl_module.update_ratios = UpdateRatios(pl_module.net.named_parameters())
        if peak := peaks.tflops(name_of(trainer.strategy.root_device)):
            self._flops = cost.training_flops_per_token(pl_module.net)
            self._peak = peak * 1e12 * trainer.world_size
        self._restart(trainer)

    def _restart(self, trainer: L.Trainer) -> None:
        self._since, self._from_step = time.perf_counter(), trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._restart(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        steps = trainer.global_step - self._from_step
        every = trainer.log_every_n_steps
        if not steps or not every or trainer.global_step % every:
            return
        assert isinstance(pl_module, LitGPT)
        seconds = (time.perf_counter() - self._since) / steps
        text = pl_module.text
        tokens = text.windows_per_step * text.block_size
        pl_module.log("speed/step_ms", seconds * 1e3)
        pl_module.log("speed/tokens_per_s", tokens / seconds)
        more: dict[str, float] = {TOKENS: self._seen(trainer.global_step, pl_module)}
        if self._flops is not None:
            more[MFU] = self._flops * tokens / seconds / self._peak
        if (most := peaks.memory(trainer.strategy.root_device)) is not None:
            more[PEAK_MEMORY] = most / 1e6
        if pl_module.update_ratios is not None:
            ratios = pl_module.update_ratios.end()
            more |= {f"{UPDATE_RATIO}{kind}": ratio for kind, ratio in ratios.items()}
        # at once, since each metric that Lightning logs costs four operations of the device
        for logger in trainer.loggers:
            log = logger.log_beside if isinstance(logger, Table) else logger.log_metrics
            log(more, trainer.global_step - 1)
        self._restart(trainer)


class Report(Callback):
    """Prints the start block, the first loss, the time left, and each evaluation.

    It follows the callbacks that save, so that printing never delays a checkpoint.

    Args:
        precision_reason: Reason why the precision was chosen.
        samples: Callback whose samples are printed.
        overfitting: Callback whose warning is printed after a validation.
        extra_rows: Names and values at the end of the start block.
    """

    ETA_AFTER_STEPS = 20

    def __init__(
        self,
        precision_reason: str,
        samples: SampleText,
        overfitting: Overfitting,
        extra_rows: Sequence[tuple[str, str]],
    ) -> None:
        self.precision_reason = precision_reason
        self.samples = samples
        self.overfitting = overfitting
        self.extra_rows = extra_rows
        self._has_printed_eta = False
        self._since = 0.0
        self._from_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        self._since, self._from_step = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero:
            print_above_bar(pl_module, self._start_block(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        assert isinstance(pl_module, LitGPT)
        done = trainer.global_step - self._from_step
        if trainer.global_step == 1 and done == 1:
            guess, n_choices = "a uniform guess has ln(vocab_size)", pl_module.config.vocab_size
            if pl_module.preferences is not None:
                guess, n_choices = "equal rewards have ln(2)", 2
            first = trainer.callback_metrics["train/loss"]
            text = f"first loss {first:.3f}; {guess} = {math.log(n_choices):.3f}"
            print_above_bar(pl_module, text)
            self._since, self._from_step = time.perf_counter(), 1  # the first step warms up
        elif done == self.ETA_AFTER_STEPS and trainer.max_steps > 0 and not self._has_printed_eta:
            self._has_printed_eta = True
            per_step = (time.perf_counter() - self._since) / done
            left = duration((trainer.max_steps - trainer.global_step) * per_step)
            text = f"{per_step * 1e3:.0f} ms per step, about {left} of training left"
            print_above_bar(pl_module, text)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        if "val/loss" in metrics:
            parts = (
                ("perplexity", "val/perplexity", ".2f"),
                ("bits per byte", "val/bits_per_byte", ".3f"),
                ("margin of rewards", "val/reward_margin", "+.3f"),
                ("right", "val/reward_accuracy", ".1%"),
            )
            shown = [f"{name} {metrics[key]:{form}}" for name, key, form in parts if key in metrics]
            loss = f"val/loss {metrics['val/loss']:.4f} (gap {metrics['val/gap']:+.4f})"
            evaluated = ", ".join([loss, *shown])
        else:
            evaluated = f"train/loss_eval {metrics['train/loss_eval']:.4f}"
        print_above_bar(pl_module, f"step {trainer.global_step}: {evaluated}")
        if self.overfitting.warning:
            print_above_bar(pl_module, self.overfitting.warning)
        self.samples.show(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.samples.show(pl_module)

    def _start_block(self, trainer: L.Trainer, module: LitGPT) -> str:
        """Describe the device, model, text and steps of a run in one line each."""
        text, config = module.text, module.config
        inputs, targets = next(iter(text.train_slice()))
        scored = (targets[0] != IGNORED).nonzero()[:, 0]
        n_shown = min(24, int(scored[-1]) + 1)  # a document may be shorter
        n_validation = text.tokens.size("val")
        device = name_of(trainer.strategy.root_device)
        if device == "cpu":
            device += f", threads: {_threads(trainer)}"
        rows = {
            "device": f"{trainer.world_size} x {device}",
            "precision": f"{trainer.precision} ({self.precision_reason})",
            "model": f"{module.net.num_parameters():,} parameters{_trained(module.net)}, context "
            f"{config.block_size}, vocabulary {config.vocab_size}",
            "text": f"{text.tokens.provenance['name']}: {text.n_train_tokens:,} training tokens, "
            f"{n_validation:,} validation tokens{'' if n_validation else ' (monitors train/loss)'}",
            "step": f"{text.windows_per_step * text.block_size:,} tokens; "
            f"{count_of(text.steps_per_epoch, 'step')} per epoch",
            "batches": text.origin_of_batches,
            "input": repr(text.tokenizer.decode(inputs[0, :n_shown].tolist())),
            "target": repr(text.tokenizer.decode(targets[0, scored[:n_shown]].tolist())),
        }
        if at_once := module.logits_at_once:
            of_batch = text.batch_size * text.block_size
            rows["loss"] = f"from logits of {at_once:,} tokens at once, of a batch's {of_batch:,}"
        if module.options.compile:
            rows["compile"] = str(module.compiled.choice)
        if trainer.max_steps > 0:
            epochs = trainer.max_steps / text.steps_per_epoch
            rows["step"] += f"; {count_of(trainer.max_steps, 'step')} in all ({epochs:.2f} epochs)"
        lines = [*rows.items(), *self.extra_rows]
        return "\n".join(f"  {name:<11}{value}" for name, value in lines)


def _threads(trainer: L.Trainer) -> str:
    reasons = [each.threads.reason for each in trainer.callbacks if isinstance(each, ThreadChoice)]
    return f"{torch.get_num_threads()}" + "".join(f" ({reason})" for reason in reasons if reason)


def _trained(net: GPT) -> str:
    """Return how many parameters are trained, if not all are."""
    n_trained = cost.trainable(net)
    return "" if n_trained == net.num_parameters() else f", {n_trained:,} of them trained"
