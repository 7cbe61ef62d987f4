"""What a run tells while it trains: a start-up block, figures, sample text, speed."""

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from gptlit.data.loaders import IGNORED
from gptlit.files import write_atomically
from gptlit.generation.generate import generate, tell_dropped
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError, as_strings, shown
from gptlit.runs.loggers import SAMPLES, as_markdown
from gptlit.streams import only_shown
from gptlit.terminal import duration, printable
from gptlit.training import fsdp2
from gptlit.training.loop_state import ends_epoch
from gptlit.training.module import LitGPT
from gptlit.training.overfitting import Overfitting


def say(module: L.LightningModule, text: str) -> None:
    """Print a text in the first process, above a progress bar; no failure ends the run."""
    with only_shown():
        module.print(shown(text))


class SampleText(Callback):
    """Writes sample text after each validation and each longer epoch, always the same way.

    To the console (short), to TensorBoard's text tab and to samples.txt in the run's folder.

    Args:
        prompts: What to continue; characters that the text hasn't got are left out, with a warning.
        max_new_tokens: Length of each sample.
        temperature: As for `gptlit predict`.
        top_k: As for `gptlit predict`.
        seed: As for `gptlit predict`.
        min_interval: Steps from one sample to the next, at least; at the end of an epoch there
            are never fewer than 100.
    """

    CONSOLE_LINES = 4
    EPOCH_STEPS = 100  # a small text's epoch can be a step

    def __init__(
        self,
        prompts: Sequence[str] = ("",),
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 1337,
        min_interval: int = 0,
    ) -> None:
        self.prompts = as_strings(prompts, "samples.prompts")
        self.settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
        }
        try:
            SamplingSettings(**self.settings)
        except UsageError as error:
            raise error.within("samples") from error
        if not 0 <= seed < 2**63:
            raise UsageError("must be 0 or more, and below 2^63", "samples.seed", seed)
        if min_interval < 0:
            raise UsageError("must be 0 or more", "samples.min_interval", min_interval)
        self.seed = seed
        self.min_interval = min_interval
        self.folder: Path | None = None  # the run's, set by whoever makes the run
        self._written_at = -1
        self._excerpt = ""  # to be shown

    def state_dict(self) -> dict[str, Any]:
        return {"written_at": self._written_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written_at = state_dict["written_at"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        assert pl_module.tokenizer is not None
        if trainer.is_global_zero:
            for prompt in self.prompts:
                tell_dropped(prompt, "skip", pl_module.tokenizer, "--samples.prompts")
        # what a run wrote after the checkpoint that it goes on from will be written again, but
        # for what belongs to the checkpoint's own step
        file = self.folder and self.folder / SAMPLES
        if not file or not file.exists() or not trainer.is_global_zero:
            return
        told = file.read_bytes().decode(errors="replace")
        for head in re.finditer(r"^=== step (\d+), ", told, re.MULTILINE):
            if int(head[1]) > trainer.global_step:
                write_atomically(file, told[: head.start()].encode())
                return
            self._written_at = int(head[1])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            evaluated = "val/loss" if "val/loss" in trainer.callback_metrics else "train/loss_eval"
            self._write(trainer, pl_module, evaluated, self.min_interval)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if ends_epoch(trainer):
            least = max(self.min_interval, self.EPOCH_STEPS)
            self._write(trainer, pl_module, "train/loss", least)

    def _write(
        self, trainer: L.Trainer, module: L.LightningModule, figure: str, least: int
    ) -> None:
        step = trainer.global_step
        is_due = step - max(self._written_at, 0) >= max(least, 1)
        # all ranks gather a sharded net's weights, or none does
        if trainer.fast_dev_run or not trainer.strategy.broadcast(is_due):
            return
        self._written_at = step
        assert isinstance(module, LitGPT)
        assert module.tokenizer is not None
        with module.averaged_weights():
            net = fsdp2.whole(module.net)
            if net is None:
                return
            texts = [
                generate(
                    net,
                    module.tokenizer,
                    prompt,
                    seed=self.seed,
                    unknown="skip",
                    **self.settings,
                )
                for prompt in self.prompts
            ]
        head = f"step {step}, {figure} {trainer.callback_metrics.get(figure, math.nan):.4f}"
        if self.folder is not None:
            file = self.folder / SAMPLES
            before = file.read_bytes() if file.is_file() else b""
            added = "".join(f"=== {head}\n{text}\n\n" for text in texts)
            write_atomically(file, before + added.encode())  # whole samples only
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for index, text in enumerate(texts):
                    # beside the figures: Lightning counts steps from 0
                    logger.experiment.add_text(f"sample/{index}", as_markdown(text), step - 1)
                logger.save()  # before a checkpoint says that it is there
        if texts:
            lines = texts[0].strip("\n").split("\n")[: self.CONSOLE_LINES]
            self._excerpt = "\n".join(f"    {printable(line)}" for line in lines)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        self.show(pl_module)  # what no Report has shown, in a Trainer of the user's own

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.show(pl_module)

    def show(self, module: L.LightningModule) -> None:
        """Print the beginning of a sample that was not shown yet."""
        if self._excerpt:
            say(module, self._excerpt)
            self._excerpt = ""


class Throughput(Callback):
    """Logs `speed/step_ms` and `speed/tokens_per_s` (of all ranks), validation not counted."""

    def __init__(self) -> None:
        self._since = 0.0
        self._from_step = 0

    def _restart(self, trainer: L.Trainer) -> None:
        self._since, self._from_step = time.perf_counter(), trainer.global_step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
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
        self._restart(trainer)


class Report(Callback):
    """Tells what is about to happen, the first loss, when it will be done, and each evaluation.

    It comes after the callbacks that save, so that what is saved never waits for what is shown.

    Args:
        precision_reason: Why the precision is what it is.
        samples: Writes the samples, whose beginnings are shown.
        overfitting: Has the warning that is shown after a validation.
        more: Names and values that stand at the end of the start-up block.
    """

    ETA_AFTER_STEPS = 20

    def __init__(
        self,
        precision_reason: str = "",
        samples: SampleText | None = None,
        overfitting: Overfitting | None = None,
        more: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.precision_reason = precision_reason
        self.samples = samples
        self.overfitting = overfitting
        self.more = more
        self._told_eta = False
        self._began = 0.0
        self._from_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        self._began, self._from_step = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero:
            say(pl_module, start_block(trainer, pl_module, self.precision_reason, self.more))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        assert isinstance(pl_module, LitGPT)
        done = trainer.global_step - self._from_step
        if trainer.global_step == 1 and done == 1:
            vocab_size = torch.tensor(float(pl_module.config.vocab_size))
            first = trainer.callback_metrics["train/loss"]
            say(
                pl_module,
                f"first loss {first:.3f}; a uniform guess has ln(vocab_size) = "
                f"{vocab_size.log():.3f}",
            )
            self._began, self._from_step = time.perf_counter(), 1  # the first step warms up
        elif done == self.ETA_AFTER_STEPS and trainer.max_steps > 0 and not self._told_eta:
            self._told_eta = True
            per_step = (time.perf_counter() - self._began) / done
            left = (trainer.max_steps - trainer.global_step) * per_step
            say(
                pl_module,
                f"{per_step * 1e3:.0f} ms per step, about {duration(left)} of training left",
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        figures = trainer.callback_metrics
        if "val/loss" in figures:
            told = (
                f"val/loss {figures['val/loss']:.4f} (gap {figures['val/gap']:+.4f}), "
                f"perplexity {figures['val/perplexity']:.2f}, "
                f"bits per byte {figures['val/bits_per_byte']:.3f}"
            )
        else:
            told = f"train/loss_eval {figures['train/loss_eval']:.4f}"
        say(pl_module, f"step {trainer.global_step}: {told}")
        if self.overfitting is not None and self.overfitting.warning:
            say(pl_module, self.overfitting.warning)
        self._show_sample(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show_sample(pl_module)

    def _show_sample(self, module: L.LightningModule) -> None:
        if self.samples is not None:
            self.samples.show(module)


def start_block(
    trainer: L.Trainer,
    module: LitGPT,
    precision_reason: str,
    more: Sequence[tuple[str, str]] = (),
) -> str:
    """What is about to be trained on what and where, a line each, and `more` lines."""
    text = module.text
    tokens = text.tokens
    x, y = next(iter(text.train_slice()))
    scored = int((y[0, :24] != IGNORED).sum())  # a document may be shorter
    pair = [text.tokenizer.decode(row[0, :scored].tolist()) for row in (x, y)]
    name, n_validation = tokens.provenance["name"], tokens.size("val")
    per_step = text.windows_per_step * text.block_size
    device = trainer.strategy.root_device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(trainer.strategy.root_device)
    rows = {
        "device": f"{trainer.world_size} x {device}"
        + (f", threads: {torch.get_num_threads()}" if device == "cpu" else ""),
        "precision": f"{trainer.precision}"
        + (f" ({precision_reason})" if precision_reason else ""),
        "model": f"{module.net.num_parameters():,} parameters, context "
        f"{module.config.block_size}, vocabulary {module.config.vocab_size}",
        "text": f"{name}: {text.n_train_tokens:,} training tokens, "
        f"{n_validation:,} validation tokens" + ("" if n_validation else " (monitors train/loss)"),
        "step": f"{per_step:,} tokens; {_count(text.steps_per_epoch, 'step')} per epoch",
        "input": repr(pair[0]),
        "target": repr(pair[1]),
    }
    if module.compile_option:
        answer = "yes" if module.compiling.compiles else "no"
        rows["compile"] = f"{answer} ({module.compiling.reason})"
    if trainer.max_steps > 0:
        epochs = trainer.max_steps / text.steps_per_epoch
        rows["step"] += f"; {_count(trainer.max_steps, 'step')} in all ({epochs:.2f} epochs)"
    return "\n".join(f"  {name:<11}{value}" for name, value in [*rows.items(), *more])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
