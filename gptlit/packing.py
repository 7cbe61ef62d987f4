"""Weights in 8 bits: a token of one text is as fast as its weights can be read."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.messages import UsageError

# with more rows the arithmetic takes longer than the reading, and float32 is faster
MOST_ROWS = 4


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers, times a scale for each output.

    Inputs and outputs are rounded to bfloat16, sums are in float32; the bias stays as it is.

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
        integers = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("scale", scale)
        self.register_buffer("integers", integers.to(torch.int8))
        self.register_buffer("weight", integers * scale.float()[:, None])
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1)).bfloat16()  # (rows, inputs)
        if len(rows) <= MOST_ROWS:
            y = torch._weight_int8pack_mm(rows, self.integers, self.scale)
        else:
            y = F.linear(rows.float(), self.weight).bfloat16()
        y = y.float().view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def pack_int8(model: nn.Module) -> None:
    """Put an `Int8Linear` in the place of every linear layer; for inference on a CPU.

    Raises:
        UsageError: the model is elsewhere.
    """
    device = next(model.parameters()).device.type
    if device != "cpu":
        raise UsageError(f"--weights int8: is for a CPU, not for {device}; leave it out")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
