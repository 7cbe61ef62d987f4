"""Validating and testing: the losses of a split, by the weights, their average, or both."""

import contextlib

import lightning as L
from torch import Tensor

from gptlit.data.loaders import Batch
from gptlit.model.gpt import GPT
from gptlit.optim.ema import Average
from gptlit.steps import losses
from gptlit.steps.losses import TextLoss, text_metrics
from gptlit.steps.preferences import Preferences
from gptlit.steps.user_batches import as_batch, batches_of, text_of
from gptlit.training.options import ModelOptions


class Evaluating(L.LightningModule):
    """A LightningModule that scores a split, and in a fit a slice of the training split too.

    In a fit with a moving average of the weights, it is the average that is scored and sampled
    from; with ema_keep "better" the raw weights are scored as well, and the better ones kept.
    """

    net: GPT
    options: ModelOptions
    preferences: Preferences | None

    def __init__(self) -> None:
        super().__init__()
        self.average: Average | None = None  # moving average of the weights, in a fit
        self.evaluated: dict[str, float] = {}  # metrics of the last validation, and its step
        self.val_loss = TextLoss()
        self.slice_loss = TextLoss()  # of a slice of the training split
        self.raw_val_loss = TextLoss()  # of the weights that an average is compared with
        self.raw_slice_loss = TextLoss()
        self.reward_margin = TextLoss()  # of pairs
        self.reward_accuracy = TextLoss()

    def kept_weights(self) -> contextlib.AbstractContextManager[None]:
        """The net with the moving average of its weights, if there is one and it is kept."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def on_validation_start(self) -> None:
        if self.average is not None:
            self.average.begin()

    def on_validation_end(self) -> None:
        # after all callbacks, so that they sample from the average as well
        if self.average is not None:
            self.average.end()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        inputs, targets = as_batch(batch)  # (B, T), (B, T)
        # only a data module has a slice of the training split
        on_validation_split = batches_of(self.trainer).has_validation and (
            dataloader_idx == 0 or text_of(self.trainer) is None
        )
        if self.preferences is not None:
            self._validate_preferences(inputs, targets, on_validation_split)
            return
        metric = self.val_loss if on_validation_split else self.slice_loss
        metric.update(*losses.summed(self.net, inputs, targets))
        if self.average is not None and self.options.ema_keep == "better":
            metric = self.raw_val_loss if on_validation_split else self.raw_slice_loss
            self.average.end()
            metric.update(*losses.summed(self.net, inputs, targets))
            self.average.begin()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        inputs, targets = as_batch(batch)  # (B, T), (B, T)
        if self.preferences is not None:
            self._validate_preferences(inputs, targets, on_split=True)
        else:
            self.val_loss.update(*losses.summed(self.net, inputs, targets))

    def _validate_preferences(self, inputs: Tensor, targets: Tensor, on_split: bool) -> None:
        """Add the pairs of a batch to the losses, and to the rewards of the validation split."""
        assert self.preferences is not None
        found = self.preferences.compared(self.net, inputs, targets)
        n_pairs = found.is_pair.sum().long()
        metric = self.val_loss if on_split else self.slice_loss
        metric.update((found.loss * found.is_pair).sum(), n_pairs)
        if on_split:
            self.reward_margin.update((found.margin * found.is_pair).sum(), n_pairs)
            self.reward_accuracy.update((found.is_right * found.is_pair).sum(), n_pairs)

    def on_validation_epoch_end(self) -> None:
        metrics: dict[str, Tensor] = {}
        of_slice, of_split = self.slice_loss, self.val_loss
        if self.average is not None and self.raw_val_loss.update_called:
            average, raw = self.val_loss.compute(), self.raw_val_loss.compute()
            metrics |= {"val/loss_average": average, "val/loss_raw": raw}
            self.average.is_kept = not bool(raw < average)
            if not self.average.is_kept:
                self.average.end()
                of_slice, of_split = self.raw_slice_loss, self.raw_val_loss
        if of_slice.update_called:
            metrics["train/loss_eval"] = of_slice.compute()
        if of_split.update_called:
            metrics |= self._split_metrics("val", of_split)
        if "train/loss_eval" in metrics and "val/loss" in metrics:
            metrics["val/gap"] = metrics["val/loss"] - metrics["train/loss_eval"]
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            values = {name: value.item() for name, value in metrics.items()}
            self.evaluated = {"step": self.global_step, **values}
        self._log_evaluation(metrics)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation(self._split_metrics("test", self.val_loss))

    def _split_metrics(self, split: str, loss: TextLoss) -> dict[str, Tensor]:
        text = text_of(self.trainer)
        if self.preferences is not None:
            return {
                f"{split}/loss": loss.compute(),
                f"{split}/reward_margin": self.reward_margin.compute(),
                f"{split}/reward_accuracy": self.reward_accuracy.compute(),
            }
        per_token = text.tokens.bytes_per_token(split) if text else None
        metrics = text_metrics(split, loss.compute(), per_token)
        # sliding windows give each token more context, and so another figure
        suffix = f"_stride_{text.stride}" if text and text.stride else ""
        return {f"{name}{suffix}": value for name, value in metrics.items()}

    def _log_evaluation(self, metrics: dict[str, Tensor]) -> None:
        # already summed over all ranks
        self.log_dict({name: value.float() for name, value in metrics.items()})
        for metric in self.children():
            if isinstance(metric, TextLoss):
                metric.reset()
