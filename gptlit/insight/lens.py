"""The logit lens: the tokens that a model would predict if it ended after an earlier layer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gptlit.generation.generate import in_eval_mode
from gptlit.model.gpt import GPT


@torch.no_grad()
def residual_stream(model: GPT, ids: Tensor) -> list[Tensor]:
    """Return the input of the first block and the output of each block, n_layer + 1 times (T, C).

    Args:
        model: The model; its mode is the same afterwards.
        ids: (T,) token ids, 1 <= T <= block_size.
    """
    stream: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        stream.append(inputs[0][0])

    hooks = [each.register_forward_pre_hook(keep) for each in (*model.h, model.ln_f)]
    try:
        with in_eval_mode(model):
            model.hidden(ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    return stream


@torch.no_grad()
def logit_lens(model: GPT, ids: Tensor) -> Iterator[Tensor]:
    """Yield the (T, V) logits that the last norm and the head give of each layer's output.

    There are n_layer + 1 of them: those of the first block's input, then those after each block.
    The last are the model's own logits.

    Args:
        model: The model.
        ids: (T,) token ids, 1 <= T <= block_size.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    for hidden in residual_stream(model, ids):
        yield model.logits(model.ln_f(hidden[None]))[0]
