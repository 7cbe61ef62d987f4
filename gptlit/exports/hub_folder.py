"""Writes folders for transformers: its own class where one computes the model, else our code."""

from pathlib import Path
from typing import Any

from gptlit.checkpoints import tokenizer_files
from gptlit.checkpoints.gpt2_names import to_gpt2_weights, to_hugging_face
from gptlit.checkpoints.weight_files import (
    OWN_PREFIX,
    WEIGHTS,
    new_folder,
    without_tied_head,
    write_json,
    write_own,
    write_tensors,
)
from gptlit.checkpoints.weight_shapes import State, for_writing
from gptlit.exports import hub_weights, own_code
from gptlit.exports.hub_classes import GPT2, HubClass, holding, nearest, written_out
from gptlit.exports.plain_files import DTYPES
from gptlit.messages import note
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer


def fill(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str = "f32") -> str:
    """Write the files of AutoModelForCausalLM and AutoTokenizer; return the class's name.

    Args:
        model: Model of any options.
        tokenizer: Its tokenizer.
        folder: Existing folder to write to.
        dtype: Type of the weights: f32, f16 or bf16.
    """
    config, state = for_writing(model.config, model.state_dict())
    kind = holding(config)
    if kind is None:
        like, obstacles = nearest(config)
        note(
            f"no class of transformers holds this model: {obstacles} stands in the way of "
            f"{like.architecture}, so the folder has its own code, {own_code.FILENAME}, which "
            "needs trust_remote_code=True"
        )
        options, weights = own_code.options(config), without_tied_head(config, state)
        weights = {f"{OWN_PREFIX}{name}": tensor for name, tensor in weights.items()}
        (folder / own_code.FILENAME).write_text(own_code.source(), encoding="utf-8")
    else:
        config, state = written_out(config, state)
        options, weights = _of_class(config, state, kind)
    name = str(DTYPES[dtype]).removeprefix("torch.")
    ids = token_ids(tokenizer)
    write_json(folder / "config.json", {**options, **ids, "dtype": name, "torch_dtype": name})
    write_json(folder / "generation_config.json", ids)
    write_tensors(folder / WEIGHTS, {key: each.to(DTYPES[dtype]) for key, each in weights.items()})
    tokenizer_files.write(tokenizer, folder, config.block_size)
    write_own(folder, config, tokenizer)
    return str(options["architectures"][0])


def token_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Return the ids of a text's first and last token and of padding, null where there is none.

    Without them, the classes would take their own models' ids.
    """
    special = tokenizer_files.special_tokens(tokenizer)
    ids = {f"{name}_id": special.get(name, (None, None))[1] for name in ("bos_token", "eos_token")}
    return {**ids, "pad_token_id": tokenizer.special_ids.get("<PAD>")}


def _of_class(config: GPTConfig, state: State, kind: HubClass) -> tuple[dict[str, Any], State]:
    if kind is GPT2:
        return to_hugging_face(config), to_gpt2_weights(state, config)
    return hub_weights.options(config, kind), hub_weights.weights(config, state, kind)


def write_hugging_face(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str = "f32") -> str:
    """Write `fill`'s files to a new folder, completely or not at all.

    Raises:
        UsageError: The folder isn't empty.
    """
    with new_folder(folder) as new:
        return fill(model, tokenizer, new, dtype)
