"""Sample text that a run generates while it trains."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from gptlit.data.datamodule import TextDataModule
from gptlit.data.novelty import Copied
from gptlit.files import write_atomically
from gptlit.generation.generate import generate
from gptlit.generation.prompts import warn_dropped
from gptlit.generation.settings import BasicSampling, SamplingSettings
from gptlit.messages import UsageError, as_strings, note
from gptlit.runs.loggers import SAMPLES, as_markdown
from gptlit.runs.progress_bar import print_above_bar
from gptlit.terminal import printable
from gptlit.training import fsdp2, run_length
from gptlit.training.loop_state import ends_epoch
from gptlit.training.module import LitGPT


@dataclass(frozen=True)
class SampleOptions(BasicSampling):
    """When sample text is generated, and how.

    Args:
        prompts: Texts to continue; characters outside the vocabulary are left out with a warning.
        max_new_tokens: Length of each sample.
        seed: Seed of each sample.
        min_interval: Least number of steps between two samples; at the end of an epoch at least
            100.
        at_epoch_end: Also sample at the end of each epoch: true, false, or auto, where an epoch is
            at least as long as the interval between validations.
        novelty: Compare samples with the training text: put copies of 50 and more characters in
            [[ ]], and log the share of stretches of 32 characters that are no copies, and the
            length of the longest copy.
    """

    prompts: Sequence[str] = ("",)
    max_new_tokens: int = 200
    seed: int = 1337
    min_interval: int = 0
    at_epoch_end: bool | Literal["auto"] = "auto"
    novelty: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", as_strings(self.prompts, "samples.prompts"))
        if not 0 <= self.seed < 2**63:
            raise UsageError("must be 0 or more, and below 2^63", "samples.seed", self.seed)
        if self.min_interval < 0:
            raise UsageError("must be 0 or more", "samples.min_interval", self.min_interval)

    def settings(self) -> SamplingSettings:
        """Return the settings of a sample.

        Raises:
            UsageError: One of them is invalid.
        """
        try:
            return SamplingSettings(
                max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_k=self.top_k
            )
        except UsageError as error:
            raise error.within("samples") from error


class SampleText(Callback):
    """Generates sample text after each validation, and after longer epochs, from the same prompts.

    The text goes to samples.txt in the run's folder and to TensorBoard's text tab; its beginning
    goes to the console.
    """

    CONSOLE_LINES = 4
    EPOCH_STEPS = 100  # the epoch of a small text can be a single step

    def __init__(self, **options: Any) -> None:
        self.options = SampleOptions(**options)
        self.settings = self.options.settings()
        self.folder: Path | None = None  # the run's folder, set when the run is built
        self._written_at = -1
        self._compares = self.options.novelty
        self._excerpt = ""  # not printed yet

    def state_dict(self) -> dict[str, Any]:
        return {"written_at": self._written_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written_at = state_dict["written_at"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, LitGPT)
        assert pl_module.tokenizer is not None
        for prompt in self.options.prompts:
            warn_dropped(prompt, "skip", pl_module.tokenizer, "samples.prompts")
        if self.folder is not None and (file := self.folder / SAMPLES).exists():
            self._cut(file, trainer.global_step)

    def _cut(self, file: Path, n_steps: int) -> None:
        """Remove samples of later steps than a resumed run's, which it generates again."""
        content = file.read_bytes().decode(errors="replace")
        for head in re.finditer(r"^=== step (\d+), ", content, re.MULTILINE):
            if int(head[1]) > n_steps:
                write_atomically(file, content[: head.start()].encode())
                return
            self._written_at = int(head[1])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            evaluated = "val/loss" if "val/loss" in trainer.callback_metrics else "train/loss_eval"
            self._write(trainer, pl_module, evaluated, self.options.min_interval)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_wanted = self.options.at_epoch_end
        if is_wanted == "auto":
            is_wanted = run_length.validates_each_epoch(trainer)
        if is_wanted and ends_epoch(trainer):
            interval = max(self.options.min_interval, self.EPOCH_STEPS)
            self._write(trainer, pl_module, "train/loss", interval)

    def _write(
        self, trainer: L.Trainer, module: L.LightningModule, metric: str, interval: int
    ) -> None:
        """Generate samples and write them, if the last ones are `interval` steps old."""
        step = trainer.global_step
        is_due = step - max(self._written_at, 0) >= max(interval, 1)
        # all ranks gather a sharded net's weights, or none does
        if trainer.fast_dev_run or not trainer.strategy.broadcast(is_due):
            return
        self._written_at = step
        assert isinstance(module, LitGPT)
        with module.kept_weights():
            net = fsdp2.whole(module.net)
            if net is None:
                return
            assert module.tokenizer is not None
            options: dict[str, Any] = {
                "seed": self.options.seed,
                "unknown": "skip",
                **self.settings.used(),
            }
            texts = [
                generate(net, module.tokenizer, each, **options) for each in self.options.prompts
            ]
        loss = trainer.callback_metrics.get(metric, math.nan)
        heads = [f"step {step}, {metric} {loss:.4f}"] * len(texts)
        if copied := self._copied(module, texts):
            heads = [f"{head}, {each}" for head, each in zip(heads, copied, strict=True)]
            texts = [each.mark(text) for each, text in zip(copied, texts, strict=True)]
        if self.folder is not None:
            file = self.folder / SAMPLES
            before = file.read_bytes() if file.is_file() else b""
            pairs = zip(heads, texts, strict=True)
            added = "".join(f"=== {head}\n{text}\n\n" for head, text in pairs)
            write_atomically(file, before + added.encode())
        self._log(trainer, texts, copied)
        if texts:
            lines = texts[0].strip("\n").split("\n")[: self.CONSOLE_LINES]
            lines += [f"({copied[0]})"] if copied and copied[0].longest else []
            self._excerpt = "\n".join(f"    {printable(line)}" for line in lines)

    def _copied(self, module: LitGPT, texts: Sequence[str]) -> list[Copied]:
        """Compare samples with the training text; empty if they are not to be compared."""
        if not self._compares or not isinstance(module.text, TextDataModule):
            return []
        lengths = map(len, self.options.prompts)
        try:
            found = module.text.training_text.copied
        except OSError as error:  # a full disk does not end a run for this
            self._compares = False
            note(f"warning: samples are not compared with the training text: {error.strerror}")
            return []
        return [found(text, n) for text, n in zip(texts, lengths, strict=True)]

    def _log(self, trainer: L.Trainer, texts: Sequence[str], copied: Sequence[Copied]) -> None:
        step = trainer.global_step - 1  # as that of the metrics: Lightning counts from 0
        scalars: dict[str, float] = {}
        if shares := [each.novelty for each in copied if not math.isnan(each.novelty)]:
            scalars["samples/novelty"] = statistics.fmean(shares)
            scalars["samples/longest_copy"] = max(each.longest for each in copied)
        for logger in trainer.loggers:
            if scalars:
                logger.log_metrics(scalars, step)
            if isinstance(logger, TensorBoardLogger):
                for index, text in enumerate(texts):
                    logger.experiment.add_text(f"sample/{index}", as_markdown(text), step)
            logger.save()  # before a checkpoint records the sample

    def on_train_batch_start(self, _: L.Trainer, pl_module: L.LightningModule, *__: Any) -> None:
        self.show(pl_module)  # for a Trainer without Report

    def on_train_end(self, _: L.Trainer, pl_module: L.LightningModule) -> None:
        self.show(pl_module)

    def show(self, module: L.LightningModule) -> None:
        """Print the beginning of the newest sample, once."""
        if self._excerpt:
            print_above_bar(module, self._excerpt)
            self._excerpt = ""
