"""The progress bar of a run, from its first step to its last, and lines printed above it."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from gptlit.messages import print_lines, with_option_names
from gptlit.streams import for_bars, only_shown
from gptlit.training import run_length
from gptlit.training.module import LitGPT

REDRAW_SECONDS = 0.1  # small models make more steps per second than are worth drawing
LOSS_SECONDS = 1.0  # between two readings of the loss, which wait for the device
EVALUATION_AFTER_SECONDS = 1.0  # a bar for a shorter evaluation would only flicker
MIN_BAR_COLUMNS = 4
# the first one that fits the terminal is drawn
METERS = (
    "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {rate_noinv_fmt}{postfix}",
    "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
    "{desc} {percentage:3.0f}%|{bar}|",
    "{desc} {percentage:3.0f}%",
)
# for runs without a known end
COUNTERS = (
    "{desc} {elapsed}, {rate_noinv_fmt}{postfix}",
    "{desc} {elapsed}{postfix}",
    "{desc} {elapsed}",
    "{desc}",
)


def print_above_bar(module: L.LightningModule, text: str) -> None:
    """Print a text on rank 0, above a progress bar; a failure to print doesn't end the run."""
    with only_shown():
        module.print(with_option_names(text))


class RunBar(ProgressBar):
    """Counts optimizer steps up to the end of the run, including those before a resume.

    A validation of more than a second has a bar of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._run: tqdm | None = None
        self._evaluation: tqdm | None = None
        self._drawn_at = -math.inf
        self._loss: dict[str, float] = {}
        self._read_at = -math.inf

    @property
    def is_enabled(self) -> bool:
        return self._enabled

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bars, if any is drawn."""
        print_lines(sep.join(map(str, args)), sys.stdout)

    # ------------------------------------------------------------------ training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        end = run_length.steps_of_run(trainer)
        self._run = self._bar(end, trainer.global_step, unit=" steps", leave=True)
        self._draw_run(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        if self._is_due():
            self._draw_run(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end_evaluation()
        self._draw_run(trainer, pl_module)
        if self._run is not None:
            self._run.close()
            self._run = None

    def _draw_run(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._run is not None:
            self._run.n = trainer.global_step
            self._draw(self._run, "step", self.get_metrics(trainer, module))

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Add the loss, which is not logged for the bar; see `LitGPT.logs_to_bar`."""
        now, loss = time.perf_counter(), trainer.callback_metrics.get("train/loss")
        is_due = now - self._read_at >= LOSS_SECONDS or not trainer.training
        if is_due and loss is not None:
            self._loss, self._read_at = {"train/loss": loss.item()}, now
        return {**super().get_metrics(trainer, pl_module), **self._loss}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.on_train_end(trainer, pl_module)  # so that the error message has a line of its own

    # ------------------------------------------------------------------ evaluations

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin_evaluation(trainer.num_val_batches, position=int(trainer.training))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin_evaluation(trainer.num_test_batches, position=0)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._count_evaluated("validating")

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._count_evaluated("testing")

    def on_validation_end(self, *_: Any) -> None:
        self._end_evaluation()

    def on_test_end(self, *_: Any) -> None:
        self._end_evaluation()

    # ------------------------------------------------------------------ bars

    def _bar(self, total: float | None, initial: int = 0, **options: Any) -> tqdm:
        return tqdm(
            total=total,
            initial=initial,
            disable=not self._enabled,
            file=for_bars(sys.stdout),
            dynamic_ncols=True,
            smoothing=0,  # estimate the time left from the mean step, validations included
            bar_format=" ",  # draw nothing until `_draw` chooses a format
            **options,
        )

    def _begin_evaluation(self, n_batches: Sequence[float], position: int) -> None:
        place: dict[str, Any] = {"position": position, "delay": EVALUATION_AFTER_SECONDS}
        self._evaluation = self._bar(sum(n_batches), unit=" batches", leave=False, **place)

    def _count_evaluated(self, label: str) -> None:
        if self._evaluation is not None:
            self._evaluation.n += 1
            elapsed = self._evaluation.format_dict["elapsed"]
            if elapsed > EVALUATION_AFTER_SECONDS and self._is_due():
                self._draw(self._evaluation, label)

    def _end_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None

    def _is_due(self) -> bool:
        now = time.perf_counter()
        if now - self._drawn_at < REDRAW_SECONDS:
            return False
        self._drawn_at = now
        return True

    def _draw(self, bar: tqdm, label: str, metrics: Mapping[str, Any] | None = None) -> None:
        if bar.disable:
            return
        if metrics is not None:
            shown = [_formatted(*metric) for metric in metrics.items() if metric[0] != "v_num"]
            bar.set_postfix_str(", ".join(shown), refresh=False)
        end = "" if bar.total is None else f"/{bar.total:,}"
        bar.set_description_str(f"{label} {bar.n:,}{end}", refresh=False)
        bar.bar_format = fitting_meter(bar.format_dict)
        bar.refresh()


def fitting_meter(state: Mapping[str, Any]) -> str:
    """Return the first format that leaves MIN_BAR_COLUMNS for the bar in the terminal's width.

    Args:
        state: tqdm's `format_dict` of a bar.
    """
    formats: tuple[str, ...] = METERS if state["total"] else COUNTERS
    if state["n"] == state["initial"]:
        formats = formats[-2:]  # there is no rate yet
    columns = state["ncols"] or math.inf
    for each in formats:
        plain = {**state, "bar_format": each.replace("{bar}", ""), "ncols": None}
        if len(tqdm.format_meter(**plain)) + MIN_BAR_COLUMNS * ("{bar}" in each) <= columns:
            return each
    return formats[-1]


def _formatted(name: str, value: Any) -> str:
    return f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
