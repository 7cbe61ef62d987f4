"""The hooks of Lightning's that a captured step makes superfluous."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from gptlit.generation import captured
from gptlit.model.gpt import GPT
from gptlit.steps.captured_step import CapturedStep


class CapturedHooks(L.LightningModule):
    """A LightningModule whose steps may be captured: Lightning then neither runs a backward pass
    nor clears gradients, which the captured step does itself."""

    captured: CapturedStep | None = None

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.captured is None:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.captured is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_validation_model_zero_grad(self) -> None:
        if self.captured is None:
            super().on_validation_model_zero_grad()

    def teardown(self, stage: str) -> None:
        if isinstance(net := getattr(self, "net", None), GPT):
            captured.forget(net)
        if self.captured is not None:
            self.captured.forget()
            self.captured = None
