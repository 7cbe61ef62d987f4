"""Weights in 8 bits: generation on a CPU spends most of its time on reading weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.messages import UsageError

# in torch 2.13 the kernel reads past the end of rows that aren't a multiple of this
STEP = 16


class Int8Linear(nn.Module):
    """A linear layer with weights of 8-bit integers times a scale for each output.

    (B, inputs), one token a row, are multiplied by the integers: inputs and outputs are rounded to
    bfloat16, sums are in float32, and no row depends on the others. (B, T, inputs) are multiplied
    by the same weights in float32, since arithmetic takes longer than reading them there.
    """

    weight: Tensor
    integers: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(dim=1).clamp(min=1e-12)
        scale = (largest / 127).bfloat16()  # (outputs,)
        integers = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.missing = -weight.size(1) % STEP
        self.register_buffer("scale", scale)
        self.register_buffer("integers", F.pad(integers, (0, self.missing)))
        self.register_buffer("weight", integers.float() * scale.float()[:, None])
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            return F.linear(x, self.weight, self.bias)
        rows = F.pad(x.bfloat16(), (0, self.missing)) if self.missing else x.bfloat16()
        y = torch._weight_int8pack_mm(rows, self.integers, self.scale).float()
        return y if self.bias is None else y + self.bias


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
