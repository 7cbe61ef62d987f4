"""A training step as CUDA graphs: one for the loss and its gradients, one for the update.

The host then launches a step's hundreds of kernels by two calls. Lightning stays in charge of the
loop; it calls the two parts where it would run the forward pass and the optimizer's step.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from gptlit.devices import graphs
from gptlit.devices.graphs import BackEnd, Captured
from gptlit.messages import note
from gptlit.optim import optimizers
from gptlit.optim.ema import Average

# of an optimizer's groups; a graph keeps those of its capture
NUMBERS = ("weight_decay", "betas", "momentum", "beta2", "eps")
MOST_SHAPES = 4  # each shape of a batch has graphs of its own; batches of more shapes run eagerly
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class CapturedStep:
    """The steps of a fit, captured; `update` takes the place of the optimizer's own step.

    All that a replay reads lies in tensors that stay the same: batches are copied into them, and
    learning rates are written into them before each update from the optimizer's groups, which keep
    their numbers for schedules, logs and checkpoints. Graphs are captured anew for another shape of
    batches, after the optimizer's state was loaded, and when one of its other numbers has changed,
    such as a weight decay.

    Args:
        objective: Returns the minimised loss and the plain loss, two scalars, of inputs and
            targets, (B, T) each, in the autocast mode of its caller.
        optimizer: Optimizer whose steps are fused. Its parameters' gradients become static.
        average: Moving average to update after each step.
        failed: Called with the reason when a capture fails, or capturing is impossible; the steps
            run eagerly from then on.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        failed: Callable[[str], None],
    ) -> None:
        self._objective = objective
        self._optimizer = optimizer
        self._average = average
        self._report = failed
        self._parameters = optimizers.parameters(optimizer)
        self._trained: list[tuple[Tensor, Tensor]] = []  # parameters with their gradients
        device = self._parameters[0].device
        self.minimised, self.loss, self.norm = torch.zeros(3, device=device).unbind()
        # the rate of each group, then the average's share of the weights
        n_rates = len(optimizer.param_groups) + (average is not None)
        self._rates = torch.zeros(n_rates, device=device).unbind()
        self._written: list[float | None] = [None] * n_rates
        self._numbers: list[Any] | None = None  # other numbers of the last update
        self.clip: float | None = None  # largest norm of the gradients in the next update
        self._batches: dict[Hashable, tuple[Tensor, Tensor]] = {}  # static, by shape
        self._functions: dict[Hashable, Captured] = {}
        self._on: BackEnd | None = None
        self._is_eager = False
        self._has_noted = False

        # a method, which schedules wrap
        def step(_: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            loss = None if closure is None else closure()
            self.update()
            return loss

        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
        optimizer.register_load_state_dict_post_hook(lambda _: self.forget())

    def forget(self) -> None:
        """Free all graphs; they are captured anew if steps follow."""
        self._functions.clear()
        self._on = None  # memory that graphs have shared can't be used by later ones

    # ------------------------------------------------------------------ the loss and its gradients

    def accumulate(
        self, inputs: Tensor, targets: Tensor, n_batches: int, *, is_first: bool, is_last: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute a batch's losses, and add its gradients to those of the optimizer step.

        Args:
            inputs: (B, T) token ids.
            targets: (B, T) token ids, or IGNORED.
            n_batches: Number of batches by which the gradients are divided.
            is_first: Whether the batch is the first of an optimizer step.
            is_last: Whether it is the last; `norm` is then the norm of the gradients.

        Returns:
            `minimised` and `loss`, scalars that the next batch overwrites.
        """
        shape = (inputs.shape, inputs.dtype)
        flags = n_batches, is_first, is_last
        if shape not in self._batches and len(self._batches) == MOST_SHAPES:
            if not self._has_noted:
                self._has_noted = True
                note(
                    f"warning: batches have more than {MOST_SHAPES} shapes; those of a new one "
                    "run eagerly, not as a CUDA graph"
                )
            self._accumulate(inputs, targets, flags)
        else:
            if shape not in self._batches:
                # contiguous, since parts of a batch can be views of one tensor
                self._batches[shape] = (inputs.contiguous().clone(), targets.contiguous().clone())
            batch = self._batches[shape]
            for static, part in zip(batch, (inputs, targets), strict=True):
                static.copy_(part)
            self._call((shape, *flags), lambda: self._accumulate(*batch, flags))
        self._show_gradients()
        return self.minimised, self.loss

    def _accumulate(
        self, inputs: Tensor, targets: Tensor, flags: tuple[int, bool, bool]
    ) -> tuple[Tensor, ...]:
        n_batches, is_first, is_last = flags
        minimised, loss = self._objective(inputs, targets)
        scaled = minimised / n_batches if n_batches > 1 else minimised
        # as Lightning calls backward; gradients have the types that the forward pass chose
        with torch.autocast(scaled.device.type, enabled=False), torch.no_grad():
            found = torch.autograd.grad(scaled, self._parameters, allow_unused=True)
            if not self._trained:
                self._trained = [
                    (parameter, torch.zeros_like(parameter))
                    for parameter, gradient in zip(self._parameters, found, strict=True)
                    if gradient is not None
                ]
            kept = [gradient for _, gradient in self._trained]
            new = [gradient for gradient in found if gradient is not None]
            if is_first:
                torch._foreach_copy_(kept, new)
            else:
                torch._foreach_add_(kept, new)
            if is_last:
                self.norm.copy_(optimizers.total_norm(kept))
            self.minimised.copy_(minimised)
            self.loss.copy_(loss)
        return ()

    def _show_gradients(self) -> None:
        """Make the gradients those of the parameters, also after others have removed them."""
        for parameter, gradient in self._trained:
            if parameter.grad is not gradient:
                parameter.grad = gradient

    # ------------------------------------------------------------------ the update

    def update(self) -> None:
        """Clip the gradients, and update weights and average at the current learning rates."""
        optimizer = self._optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        if self._average is not None:
            rates.append(self._average.advance())
        for index, (written, rate) in enumerate(zip(self._written, rates, strict=True)):
            if rate != written:
                self._rates[index].fill_(rate)
                self._written[index] = rate
        clip = self.clip if self.clip and self.clip > 0 else None
        numbers = [clip, *(group.get(name) for group in optimizer.param_groups for name in NUMBERS)]
        if numbers != self._numbers:
            if self._numbers is not None:
                self.forget()
            self._numbers = numbers
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            self._fail("the optimizer has hooks")
        self._call("update", lambda: self._update(clip))

    def _update(self, clip: float | None) -> tuple[Tensor, ...]:
        self._show_gradients()
        if clip:
            clip_grads_with_norm_([parameter for parameter, _ in self._trained], clip, self.norm)
        with rates_on_device(self._optimizer, self._rates):
            type(self._optimizer).step(self._optimizer)
        if self._average is not None:
            self._average.blend(self._rates[-1])
        return ()

    # ------------------------------------------------------------------ capturing

    def _call(self, key: Hashable, function: Callable[[], tuple[Tensor, ...]]) -> None:
        if not self._is_eager and self._on is None:
            self._on = graphs.back_end(self.norm.device)
        if self._is_eager or self._on is None:
            function()
            return
        if key not in self._functions:
            self._functions[key] = Captured(function, self._on, "the step", self._fail)
        self._functions[key]()

    def _fail(self, reason: str) -> None:
        if not self._is_eager:
            self._is_eager = True
            self.forget()
            self._report(reason)


@contextmanager
def rates_on_device(optimizer: torch.optim.Optimizer, rates: tuple[Tensor, ...]) -> Iterator[None]:
    """Replace the learning rates of an optimizer's groups by tensors within the block."""
    groups = optimizer.param_groups
    before = [(group["lr"], group.get("capturable")) for group in groups]
    # in a step outside a capture, Adam would warn of `capturable`
    optimizer._warned_capturable_if_run_uncaptured = True
    try:
        for group, rate in zip(groups, rates, strict=False):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True  # a fused step reads nothing on the host
        yield
    finally:
        for group, (rate_before, is_capturable) in zip(groups, before, strict=True):
            group["lr"] = rate_before
            if "capturable" in group:
                group["capturable"] = is_capturable
