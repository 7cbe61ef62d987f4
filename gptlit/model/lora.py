"""LoRA: low-rank changes of frozen matrices, which a fine-tuning learns in place of the weights.

Source: Hu et al. 2021. W x becomes W x + (alpha / r) B A x, with A of r rows and B of r columns.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.model.config import GPTConfig

A, B = "lora_A", "lora_B"
OPTIONS = ("lora_r", "lora_alpha", "lora_dropout", "lora_on")


class LoRALinear(nn.Linear):
    """A frozen linear layer with a trained low-rank change.

    B begins with zeros, so that the layer begins unchanged; A as linear layers of PyTorch.

    Args:
        linear: Layer whose weight and bias are taken, under the same names.
        config: Config with the rank, the scale and the dropout of the change.
    """

    def __init__(self, linear: nn.Linear, config: GPTConfig) -> None:
        nn.Module.__init__(self)  # nn.Linear would allocate and draw a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(linear.weight.new_empty(config.lora_r, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, config.lora_r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = config.lora_alpha / config.lora_r
        self.lora_dropout = nn.Dropout(config.lora_dropout)
        self.is_changed = True  # False within `left_out`

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features)."""
        if not self.is_changed:
            return super().forward(x)
        low = F.linear(self.lora_dropout(x), self.lora_A)  # (..., r)
        return super().forward(x) + self.scale * F.linear(low, self.lora_B)


def adapt(model: nn.Module, config: GPTConfig) -> None:
    """Freeze a model, and add trained changes to the matrices that the config names."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in config.lora_on and isinstance(child, nn.Linear):
                setattr(module, name, LoRALinear(child, config))


@contextlib.contextmanager
def left_out(model: nn.Module) -> Iterator[None]:
    """Compute without the changes, as the base does, within the block."""
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    try:
        for layer in layers:
            layer.is_changed = False
        yield
    finally:
        for layer in layers:
            layer.is_changed = True


def is_change(name: str) -> bool:
    """Whether a weight's name is that of a low-rank change."""
    return name.endswith((f".{A}", f".{B}"))


def merged(config: GPTConfig, state: Mapping[str, Tensor]) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return the config and the weights of the same model with its changes added to its matrices.

    They are added in float32 at least. Without LoRA both are returned as they are.
    """
    if not config.lora_r:
        return config, dict(state)
    scale, plain = config.lora_alpha / config.lora_r, {}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if not is_change(name):
            plain[name] = tensor
        if f"{layer}.{A}" in state:
            first, second = (state[f"{layer}.{each}"].float() for each in (A, B))
            plain[name] = (tensor.float() + scale * (second @ first)).to(tensor.dtype)
    return dataclasses.replace(config, lora_r=0), plain
