"""Attention maps: how much each position of a passage reads from each earlier one."""

import torch
from torch import Tensor

from gptlit.generation.generate import in_eval_mode
from gptlit.model import attention
from gptlit.model.gpt import GPT, Attention


@torch.no_grad()
def attention_maps(model: GPT, ids: Tensor) -> Tensor:
    """Return the attention weights of all layers and heads for a passage, without dropout.

    Heads that share keys have a map each. The model runs once, by its reference attention.

    Args:
        model: The model; its mode and its attention are the same afterwards.
        ids: (T,) token ids, 1 <= T <= block_size.

    Returns:
        (n_layer, n_head, T, T); a row is a query, sums to 1, and is 0 at later positions. Without
        attention there are no layers, (0, n_head, T, T).
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    maps: list[Tensor] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
        maps.append(attention.weights(q, k)[0].float())  # (n_head, T, T)
        return attention.eager(q, k, v, dropout)

    before = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = recorded
        with in_eval_mode(model):
            model.hidden(ids[None])
    finally:
        for layer, attend in zip(layers, before, strict=True):
            layer.attend = attend
    if not maps:
        return torch.zeros(0, model.config.n_head, len(ids), len(ids), device=ids.device)
    return torch.stack(maps)
