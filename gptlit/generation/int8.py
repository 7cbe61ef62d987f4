"""Weights in 8 bits: generation on a CPU spends most of its time on reading weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.devices import instructions
from gptlit.messages import UsageError

LEAST_WEIGHTS = 250_000  # of a mean layer, for which rounding its inputs costs less than it saves
FEW_ROWS = 4
STEP = 16


class Int8Linear(nn.Module):
    """A linear layer that multiplies 8-bit integers: its weights, and its inputs rounded to them.

    Each output's weights and each row of inputs have a scale of their own, 1/127 of the largest.
    Sums of integers are exact, so that a row's outputs depend neither on the rows around it nor on
    the kernel or the number of threads.

    Without instructions for sums of integers, floating-point kernels compute them, exact up to
    2^24, and round them to bfloat16.
    """

    scale: Tensor
    integers: Tensor
    least: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-30)  # (outputs,)
        integers = (weight / scale[:, None]).round().to(torch.int8)
        # in torch 2.13 the kernel for few rows reads past the end of rows of other lengths
        self.missing = -weight.size(1) % STEP
        self.register_buffer("scale", scale)
        self.register_buffer("integers", F.pad(integers, (0, self.missing)))
        self.register_buffer("least", torch.tensor(1e-30))
        self.bias = linear.bias
        self._sums = self._in_integers
        if instructions.for_int8() not in ("AMX", "VNNI"):
            self._sums = self._in_floats
            self._floats = self.integers.float()
            self._ones = torch.ones(len(scale), dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            return self(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        if self.missing:
            x = F.pad(x, (0, self.missing))
        # each operation counts: with one row it takes about as long as a tenth of the product
        step = torch.add(self.least, x.abs().amax(dim=1, keepdim=True), alpha=1 / 127)  # (B, 1)
        sums = self._sums((x / step).round_())  # (B, outputs)
        if self.bias is None:
            return sums * (step * self.scale)
        return torch.addcmul(self.bias, sums, step * self.scale)

    def _in_integers(self, rows: Tensor) -> Tensor:
        rows = rows.to(torch.int8)
        if len(rows) == 1:  # oneDNN reorders its right operand, the smaller one here
            return torch._int_mm(self.integers, rows.t()).t()
        return torch._int_mm(rows, self.integers.t())

    def _in_floats(self, rows: Tensor) -> Tensor:
        if len(rows) <= FEW_ROWS:
            return torch._weight_int8pack_mm(rows.bfloat16(), self.integers, self._ones)
        return F.linear(rows, self._floats).bfloat16()


def pays(model: nn.Module) -> bool:
    """Whether a model writes faster with 8-bit weights: a large one, on a CPU made for them."""
    sizes = [layer.weight.numel() for layer in model.modules() if type(layer) is nn.Linear]
    is_large = sum(sizes) >= LEAST_WEIGHTS * len(sizes)
    is_on_cpu = next(model.parameters()).device.type == "cpu"
    return is_large and is_on_cpu and bool(instructions.for_int8())


def pack_int8(model: nn.Module) -> None:
    """Replace every linear layer by an `Int8Linear`, for inference on a CPU.

    Raises:
        UsageError: The model is on another device.
    """
    device = next(model.parameters()).device.type
    if device != "cpu":
        raise UsageError(f"works on a CPU only, not on {device}; leave it out", "weights", "int8")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, Int8Linear(module))
