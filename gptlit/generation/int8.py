"""Weights in 8 bits: a token of one text is as fast as its weights can be read."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.messages import UsageError

# the kernel reads past the end of rows of another length (torch 2.13)
STEP = 16


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers, times a scale for each output.

    (B, inputs), one token a row, are multiplied by the integers: inputs and outputs are rounded to
    bfloat16, sums are in float32, and no row depends on the others. (B, T, inputs) are multiplied
    by the same weights in float32, where arithmetic takes longer than reading them. The bias stays
    as it is.

    Args:
        linear: The layer to take the place of.
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
    """Put an `Int8Linear` in the place of every linear layer; for inference on a CPU.

    Raises:
        UsageError: the model is elsewhere.
    """
    device = next(model.parameters()).device.type
    if device != "cpu":
        raise UsageError(f"is for a CPU, not for {device}; leave it out", "weights", "int8")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
