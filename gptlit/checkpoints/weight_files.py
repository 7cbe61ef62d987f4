"""Reads and writes folders of weights in Hugging Face's format and gptlit's own.

A folder that gptlit wrote also has `gptlit.json`, with the model's options and the tokenizer as
plain data, so that reading it gives what was written, bit for bit.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints import llama_names, tokenizer_files, torch_files
from gptlit.checkpoints.gpt2_names import (
    from_gpt2_weights,
    from_hugging_face,
    pad_vocabulary,
    to_hugging_face,
)
from gptlit.checkpoints.weight_shapes import HEAD, State, checked, in_float32
from gptlit.corpora.inputs import refuse_endless
from gptlit.files import give_usual_mode
from gptlit.messages import UsageError, errors_about
from gptlit.model.config import GPTConfig
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import from_state

WEIGHTS = "model.safetensors"
OWN = "gptlit.json"
# what folders with gptlit's own code for transformers have in config.json and before names
OWN_TYPE, OWN_PREFIX = "gptlit", "gpt."


class _Own(TypedDict):
    """The content of OWN."""

    config: dict[str, Any]
    tokenizer: dict[str, Any]


class _Index(TypedDict):
    """The index of weights in several files."""

    weight_map: dict[str, str]


# ---------------------------------------------------------------------- reading


def read_folder(folder: Path) -> tuple[GPTConfig, State, Tokenizer | None]:
    """Read a model's config, weights and tokenizer from a folder.

    The tokenizer is None if the folder has none.

    Raises:
        UsageError: Files are missing, torn, contradict each other, or are of another model.
    """
    own_config, tokenizer = _read_own(folder)
    if not (folder / "config.json").is_file():
        if own_config is None:
            raise UsageError(f"no config.json in it, nor a {OWN}; it needs one, and {WEIGHTS}")
        return own_config, checked(read_tensors(folder), own_config), tokenizer
    options = _read_json(folder / "config.json")
    is_llama = (kind := options.get("model_type", "gpt2")) in llama_names.MODEL_TYPES
    if kind == OWN_TYPE and own_config is not None:
        tensors = read_tensors(folder)
        state = {name.removeprefix(OWN_PREFIX): tensor for name, tensor in tensors.items()}
        return own_config, in_float32(checked(state, own_config)), tokenizer
    with errors_about("config.json"):
        if not is_llama and kind != "gpt2":
            known = ", ".join(("gpt2", *llama_names.MODEL_TYPES))
            raise UsageError(f"model_type {plain_data.shown(kind)}: only {known} are read")
        config = llama_names.from_llama(options) if is_llama else from_hugging_face(options)
    if is_llama:
        state = llama_names.from_llama_weights(read_tensors(folder), config)
    else:
        # has options that config.json hasn't; used only if both describe the same model
        if own_config and to_hugging_face(own_config).items() <= options.items():
            config = own_config
        state = from_gpt2_weights(read_tensors(folder), config, conv1d=True)
    if tokenizer is None or tokenizer.vocab_size != config.vocab_size:
        tokenizer = tokenizer_files.read(folder, config.vocab_size)
        tokenizer = tokenizer and pad_vocabulary(tokenizer, config.vocab_size)
    return config, state, tokenizer


def _read_own(folder: Path) -> tuple[GPTConfig | None, Tokenizer | None]:
    if not (folder / OWN).is_file():
        return None, None
    described = _read_json(folder / OWN)
    with errors_about(OWN):
        plain_data.check(_Own, described, "")
        config = plain_data.make(GPTConfig, described["config"], "config.")
        return config, from_state(described["tokenizer"], config.vocab_size)


def _read_json(path: Path) -> dict[str, Any]:
    content = plain_data.read_json(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path.name}: must be an object of options")
    return content


def read_tensors(folder: Path) -> State:
    """Return all tensors of a folder's model.safetensors or pytorch_model.bin, or of their pieces.

    Raises:
        UsageError: There are none, or a file is torn or has more than plain tensors.
    """
    for name in (WEIGHTS, "pytorch_model.bin"):
        names = [name]
        if (index := folder / f"{name}.index.json").is_file():
            # an index of files in the same folder
            names = sorted({Path(piece).name for piece in _weight_map(index).values()})
        elif not (folder / name).is_file():
            continue
        return {key: tensor for piece in names for key, tensor in tensors_of(folder / piece)}
    raise UsageError(f"no {WEIGHTS} in it, nor a pytorch_model.bin")


def _weight_map(index: Path) -> dict[str, str]:
    content = _read_json(index)
    plain_data.check(_Index, content, index.name)
    if wrong := [name for name in content["weight_map"].values() if not name.isprintable()]:
        raise UsageError(f"{index.name}: weight_map names a file {plain_data.shown(wrong[0])}")
    return content["weight_map"]


def tensors_of(path: Path) -> Iterable[tuple[str, Tensor]]:
    """Return the names and tensors of a file of safetensors or of torch.save.

    Raises:
        UsageError: Missing, torn, or has more than plain tensors.
    """
    if path.suffix != ".safetensors":
        content = torch_files.load_named(path)
        if not isinstance(content, dict):
            raise UsageError(f"{path.name}: must contain tensors by name")
        return content.items()
    import safetensors.torch

    refuse_endless(path, "weights")
    try:
        return safetensors.torch.load_file(path).items()
    except FileNotFoundError as error:
        raise UsageError(f"no {path.name} in it") from error
    except Exception as error:  # number types that torch doesn't have raise other errors
        raise UsageError(f"{path.name}: torn, or not a safetensors file ({error})") from error


# ---------------------------------------------------------------------- writing


def without_tied_head(config: GPTConfig, state: State) -> State:
    """Return weights for a file, where safetensors refuse one matrix under two names."""
    return {
        name: tensor.detach().contiguous()
        for name, tensor in state.items()
        if name != HEAD or not config.tie_weights
    }


def write_own(folder: Path, config: GPTConfig, tokenizer: Tokenizer) -> None:
    """Write gptlit.json: a model's options and its tokenizer."""
    described = {"config": dataclasses.asdict(config), "tokenizer": tokenizer.state()}
    write_json(folder / OWN, described)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: State) -> None:
    """Write a file of safetensors."""
    import safetensors.torch

    # transformers needs it to recognise PyTorch's tensors
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    give_usual_mode(path)  # safetensors makes files that only their owner can read


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` when the block succeeds, else removed.

    Raises:
        UsageError: `folder` exists and isn't an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists already; name a new folder or an empty one")
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.{os.getpid()}.part"
    part.mkdir()
    try:
        yield part
        if target.exists():
            target.rmdir()
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
