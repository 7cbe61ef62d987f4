"""Writes the weights of any model by gptlit's names, with options and tokenizer as plain data."""

import dataclasses
from pathlib import Path

import torch

from gptlit.checkpoints.weight_files import (
    WEIGHTS,
    new_folder,
    without_tied_head,
    write_own,
    write_tensors,
)
from gptlit.checkpoints.weight_shapes import for_writing
from gptlit.files import replacing
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TORCH = "model.pt"


def fill(
    model: GPT, tokenizer: Tokenizer, folder: Path, form: str = "safetensors", dtype: str = "f32"
) -> None:
    """Write a model to an existing folder.

    Args:
        model: Model of any options.
        tokenizer: Its tokenizer.
        folder: Folder to write to.
        form: safetensors, with gptlit.json beside it; or torch, one file with "config", "tokenizer"
            and "state_dict", which `torch.load` reads with `weights_only=True`.
        dtype: Type of the weights: f32, f16 or bf16.
    """
    config, state = for_writing(model.config, model.state_dict())
    weights = {
        name: tensor.to(DTYPES[dtype]) for name, tensor in without_tied_head(config, state).items()
    }
    if form == "safetensors":
        write_tensors(folder / WEIGHTS, weights)
        write_own(folder, config, tokenizer)
        return
    content = {
        "config": dataclasses.asdict(config),
        "tokenizer": tokenizer.state(),
        "state_dict": weights,
    }
    with replacing(folder / TORCH) as file:
        torch.save(content, file)


def write_safetensors(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `fill`'s files to a new folder, completely or not at all.

    Raises:
        UsageError: The folder isn't empty.
    """
    with new_folder(folder) as new:
        fill(model, tokenizer, new)
