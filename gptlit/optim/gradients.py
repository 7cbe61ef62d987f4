"""The norm of an optimizer step's gradients, computed once for all that use it."""

import torch
from torch import Tensor

from gptlit.optim import optimizers


class Gradients:
    """Computes the norm of an optimizer step's gradients once, for all that use it."""

    def __init__(self) -> None:
        self._norm: Tensor | None = None  # of the current step, before clipping

    def norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Return the norm of all gradients of the current step before they are clipped.

        A callback of your own that changes gradients should do so in `on_after_backward`.
        """
        if self._norm is None:
            params = optimizers.parameters(optimizer)
            grads = [parameter.grad for parameter in params if parameter.grad is not None]
            self._norm = optimizers.total_norm(grads)
        return self._norm

    def give_norm(self, norm: Tensor) -> None:
        """Set the norm of the current step, where the step itself computes it."""
        self._norm = norm

    def drop(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip the current step: an optimizer leaves parameters without a gradient as they are."""
        optimizer.zero_grad(set_to_none=True)
        self._norm = None

    def take_norm(self) -> Tensor | None:
        """Return the norm of the current step, if it was computed, and forget it."""
        norm, self._norm = self._norm, None
        return norm
