"""Weights that a run starts from: published ones, a folder's, or a checkpoint's.

Also writes imported weights as a checkpoint.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from torch import Tensor

from gptlit.checkpoints import checkpoint, run_paths, torch_files
from gptlit.checkpoints.gpt2_names import pad_vocabulary
from gptlit.checkpoints.weight_files import WEIGHTS, read_folder
from gptlit.checkpoints.weight_shapes import State
from gptlit.corpora import inputs
from gptlit.download import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from gptlit.files import replacing
from gptlit.messages import UsageError, did_you_mean, note, opt
from gptlit.model.config import GPTConfig
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.hugging_face import ENDS
from gptlit.tokenizers.state import from_state

PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_HUB = "https://huggingface.co/openai-community/{name}/resolve/main/{filename}"
_FILES = ("config.json", WEIGHTS)


@dataclass(frozen=True)
class Origin:
    """The model that a run starts from.

    Args:
        name: Name or absolute path of the weights.
        config: Config of the model.
        state: Weights by gptlit's names.
        tokenizer: Tokenizer of the model.
        is_checkpoint: Whether the weights are those of a checkpoint of gptlit.
    """

    name: str
    config: GPTConfig
    state: State
    tokenizer: Tokenizer
    is_checkpoint: bool = False


def start_from(name: str, folder: Path) -> Origin:
    """Read the model to start from.

    Args:
        name: gpt2, gpt2-medium, gpt2-large, gpt2-xl; a folder in Hugging Face's format or
            written by `gptlit export`; a checkpoint of gptlit, or best or last for those of the
            newest run.
        folder: Folder of fetched files.

    Raises:
        UsageError: There is no such file or folder, or it has no model.
    """
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _from_folder(str(path.absolute()), path, folder)
        if name in PUBLISHED:
            return _from_folder(name, _fetched(name, folder / "weights" / name), folder)
    except UsageError as error:
        raise UsageError(str(error), "model.init_from", name) from error
    if name not in run_paths.ALIASES:
        inputs.refuse_endless(path, opt("model.init_from"))
        if not path.is_file():
            raise UsageError(
                "no such file or folder; give a checkpoint, a folder in Hugging Face's format, or "
                f"one of {', '.join(PUBLISHED)}.{did_you_mean(name, PUBLISHED)}",
                "model.init_from",
                name,
            )
    try:
        path, content = checkpoint.read_named(name)
        model, tokenizer = checkpoint.build(content)
    except UsageError as error:
        raise error.renamed("ckpt_path", "model.init_from") from error
    return Origin(str(path.absolute()), model.config, model.state_dict(), tokenizer, True)


def _from_folder(name: str, path: Path, folder: Path) -> Origin:
    config, state, tokenizer = read_folder(path)
    if tokenizer is None:
        published = BytePairTokenizer.published("gpt2", folder)
        tokenizer = pad_vocabulary(published, config.vocab_size)
    return Origin(name, config, state, tokenizer)


def _fetched(name: str, cached: Path) -> Path:
    """Return the folder of a published model's files, which are fetched if they are missing.

    Their sha256 isn't known; reading them runs no code and compares them with each other.
    """
    user_folder = os.environ.get("GPTLIT_DATA_DIR")
    for place in [Path(user_folder) / name, cached] if user_folder else [cached]:
        if all((place / filename).is_file() for filename in _FILES):
            return place
    import pooch
    import requests

    for filename in _FILES:
        address = _HUB.format(name=name, filename=filename)
        note(f"fetching {address}")
        fetch = pooch.HTTPDownloader(timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
        try:
            with replacing(cached / filename) as file:
                fetch(address, file, None)
        except (requests.RequestException, OSError) as error:
            with contextlib.suppress(OSError):
                cached.rmdir()  # if nothing was fetched
                cached.parent.rmdir()
            raise UsageError(
                f"could not fetch {address} ({type(error).__name__}); put "
                f"{' and '.join(_FILES)} by hand into {cached}, or name a folder that has them"
            ) from error
    return cached


# ---------------------------------------------------------------------- options of the run


def adopt_sizes(
    model: Namespace, data: Namespace, not_in_weights: Sequence[str], own_block_size: bool
) -> Origin:
    """Read the model of the option init_from, and set the run's options to its sizes.

    Args:
        model: The run's options of the model, changed in place.
        data: The run's options of the text.
        not_in_weights: Options that weights don't depend on; the run keeps its own.
        own_block_size: Whether the run keeps its block size. Otherwise it takes a checkpoint's, or
            that of other weights if it is smaller, since their context can be far larger.

    Raises:
        UsageError: The model can't be read, or doesn't fit the options.
    """
    origin = start_from(model.init_from, Path(data.data_dir))
    if data.eos:
        origin = dataclasses.replace(origin, tokenizer=with_document_ends(origin.tokenizer))
    block_size = origin.config.block_size
    if not origin.is_checkpoint:
        block_size = min(block_size, model.block_size)
    if own_block_size:
        block_size = model.block_size
    state = crop_block_size(origin.state, origin.config, block_size)
    # the run chooses its context, and so the number of learned positions
    sizes = {"n_positions": None} | {
        name: value
        for name, value in dataclasses.asdict(origin.config).items()
        if name not in (*not_in_weights, "block_size", "n_positions")
    }
    sizes["block_size"] = block_size
    changed = [f"{name} {value}" for name, value in sizes.items() if model[name] != value]
    for name, value in {**sizes, "init_from": origin.name}.items():
        model[name] = value
    note(
        f"starting from {origin.name}, with its tokenizer of {origin.tokenizer.vocab_size:,} tokens"
        + (f" and, instead of the options, its {', '.join(changed)}" if changed else "")
    )
    return dataclasses.replace(origin, state=state)


def crop_block_size(state: State, config: GPTConfig, block_size: int) -> State:
    """Return weights for another context, with the first `block_size` learned positions.

    Raises:
        UsageError: The weights have fewer positions.
    """
    if config.positions != "learned":
        return state
    rows: Tensor = state["wpe.weight"]
    if block_size > len(rows):
        reason = f"the weights to start from have {len(rows)} positions; use {len(rows)} or fewer"
        raise UsageError(reason, "model.block_size", block_size)
    return {**state, "wpe.weight": rows[:block_size]}


def with_document_ends(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with an end of sequence after each document, for the option data.eos.

    Raises:
        UsageError: Its vocabulary has no such token.
    """
    if tokenizer.eos_id is not None:
        return tokenizer
    if not {*ENDS} & {*tokenizer.special_ids}:
        reason = "the vocabulary of the weights to start from has no end-of-sequence token"
        raise UsageError(f"{reason}; leave the option out", "data.eos", True)
    return from_state({**tokenizer.state(), "eos": True})


# ---------------------------------------------------------------------- a whole checkpoint


def write_checkpoint(origin: Origin, path: Path) -> None:
    """Write weights as a checkpoint for predict, validate, test, init_from and Lightning.

    It has no optimizer state, so that a run can start from it but not resume.
    """
    options = dataclasses.asdict(origin.config)
    del options["vocab_size"]  # the tokenizer's
    for name in ("dropout_at", "lora_on"):
        options[name] = list(options[name])
    state = {checkpoint.NET_PREFIX + name: value for name, value in origin.state.items()}
    text: dict[str, Any] = {"name": f"that of {origin.name}", "sha256": "", "own_texts": {}}
    text |= {"distinct": 0, "sizes": {}, "report": [], "spans": {"train": []}}
    run = yaml.safe_dump({"model": options, "data": {}}, sort_keys=False)
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
        "state_dict": state,
        "hparams_name": "kwargs",
        "hyper_parameters": options,
        checkpoint.KEY: checkpoint.describe(origin.config, origin.tokenizer, text, run, seed=0),
    }
    torch_files.save(content, path)
