"""What a run begins from, other than chance: published weights, a folder's, a checkpoint's.

Also the checkpoint that somebody else's weights become.
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

from gptlit.checkpoints import checkpoint, torch_files
from gptlit.checkpoints.gpt2_names import fitting
from gptlit.checkpoints.weight_files import WEIGHTS, read_folder
from gptlit.checkpoints.weight_shapes import State
from gptlit.corpora import inputs
from gptlit.download import CONNECT_TIMEOUT_S, READ_TIMEOUT_S
from gptlit.files import replacing
from gptlit.messages import UsageError, did_you_mean, note, opt
from gptlit.model.config import GPTConfig
from gptlit.tokenizers.base import END_OF_SEQUENCE, END_OF_TEXT, Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.state import from_state

PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
_HUB = "https://huggingface.co/openai-community/{name}/resolve/main/{filename}"
_FILES = ("config.json", WEIGHTS)


@dataclass(frozen=True)
class Origin:
    """What a run begins from.

    Args:
        name: As it was given, a path absolute.
        config: Of its model.
        state: Its weights by gptlit's names.
        tokenizer: Its own.
        is_checkpoint: Whether it was read from a checkpoint of gptlit.
    """

    name: str
    config: GPTConfig
    state: State
    tokenizer: Tokenizer
    is_checkpoint: bool = False


def start_from(name: str, folder: Path) -> Origin:
    """The weights and the tokenizer to begin from.

    Args:
        name: gpt2, gpt2-medium, gpt2-large, gpt2-xl; a folder in Hugging Face's format or
            written by `gptlit export`; a checkpoint of gptlit, or best or last for those of the
            newest run.
        folder: Where fetched files are kept.

    Raises:
        UsageError: there is no such thing, or nothing to begin from in it.
    """
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return _from_folder(str(path.absolute()), path, folder)
        if name in PUBLISHED:
            return _from_folder(name, _fetched(name, folder / "weights" / name), folder)
    except UsageError as error:
        raise UsageError(str(error), "model.init_from", name) from error
    if name not in checkpoint.ALIASES:
        inputs.refuse_endless(path, opt("model.init_from"))
    if name not in checkpoint.ALIASES and not path.is_file():
        raise UsageError(
            "no such file or folder; give a checkpoint, a folder in Hugging Face's format, or one "
            f"of {', '.join(PUBLISHED)}.{did_you_mean(name, PUBLISHED)}",
            "model.init_from",
            name,
        )
    try:
        return _from_checkpoint(name)
    except UsageError as error:
        raise error.renamed("ckpt_path", "model.init_from") from error


def _from_folder(name: str, path: Path, folder: Path) -> Origin:
    config, state, tokenizer = read_folder(path)
    if tokenizer is None:
        published = BytePairTokenizer.published("gpt2", folder)
        tokenizer = fitting(published, config.vocab_size)
    return Origin(name, config, state, tokenizer)


def _from_checkpoint(name: str) -> Origin:
    path, content = checkpoint.read_named(name)
    model, tokenizer = checkpoint.build(content)
    return Origin(str(path.absolute()), model.config, model.state_dict(), tokenizer, True)


def _fetched(name: str, cached: Path) -> Path:
    """The folder that holds a published model's files, fetched if need be.

    They hold no code, and are checked against each other when they are read: no sha256 of them
    could be had here to pin.
    """
    own = os.environ.get("GPTLIT_DATA_DIR")
    for place in [Path(own) / name, cached] if own else [cached]:
        if all((place / filename).is_file() for filename in _FILES):
            return place
    import pooch
    import requests

    for filename in _FILES:
        address = _HUB.format(name=name, filename=filename)
        timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        note(f"fetching {address}")
        try:
            with replacing(cached / filename) as file:
                pooch.HTTPDownloader(timeout=timeout)(address, file, None)
        except (requests.RequestException, OSError) as error:
            with contextlib.suppress(OSError):
                cached.rmdir()  # if nothing came
                cached.parent.rmdir()
            raise UsageError(
                f"could not fetch {address} ({type(error).__name__}); put "
                f"{' and '.join(_FILES)} by hand into {cached}, or name a folder that has them"
            ) from error
    return cached


# ---------------------------------------------------------------------- to begin from it


def take(
    model: Namespace, data: Namespace, not_in_weights: Sequence[str], own_block_size: bool
) -> Origin:
    """What a new run begins from by its option init_from, whose sizes become the run's options.

    Args:
        model: The run's options of the model, changed in place.
        data: Those of the text.
        not_in_weights: Options that weights don't depend on; they stay the run's own.
        own_block_size: Whether the run's block size stands. Otherwise it becomes a checkpoint's;
            of other weights, whose context can be far larger, it becomes theirs if that is less.

    Raises:
        UsageError: there is nothing to begin from, or it can't be with these options.
    """
    origin = start_from(model.init_from, Path(data.data_dir))
    if data.eos:
        origin = dataclasses.replace(origin, tokenizer=closing_documents(origin.tokenizer))
    block_size = origin.config.block_size
    if not origin.is_checkpoint:
        block_size = min(block_size, model.block_size)
    if own_block_size:
        block_size = model.block_size
    state = crop_block_size(origin.state, origin.config, block_size)
    # the context is the run's own to choose, and with it the rows of learned positions
    taken = {"n_positions": None} | {
        name: value
        for name, value in dataclasses.asdict(origin.config).items()
        if name not in (*not_in_weights, "block_size", "n_positions")
    }
    taken["block_size"] = block_size
    told = [f"{name} {value}" for name, value in taken.items() if model[name] != value]
    for name, value in {**taken, "init_from": origin.name}.items():
        model[name] = value
    note(
        f"begins from {origin.name}, with its tokenizer of {origin.tokenizer.vocab_size:,} tokens"
        + (f" and, whatever the options say, its {', '.join(told)}" if told else "")
    )
    return dataclasses.replace(origin, state=state)


def crop_block_size(state: State, config: GPTConfig, block_size: int) -> State:
    """Weights for another context: learned positions are cut to their first `block_size` rows.

    Raises:
        UsageError: there are fewer positions than asked for.
    """
    if config.positions != "learned":
        return state
    rows: Tensor = state["wpe.weight"]
    if block_size > len(rows):
        raise UsageError(
            f"the weights to begin from have {len(rows)} positions; give {len(rows)} or fewer",
            "model.block_size",
            block_size,
        )
    return {**state, "wpe.weight": rows[:block_size]}


def closing_documents(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with each document closed by a token, for `--data.eos true`.

    Raises:
        UsageError: its vocabulary has no token for that.
    """
    if tokenizer.eos_id is not None:
        return tokenizer
    state = tokenizer.state()
    if not {END_OF_TEXT, END_OF_SEQUENCE} & set(state.get("special_tokens", ())):
        raise UsageError(
            "the vocabulary of the weights to begin from has no token that could close a "
            "document; leave the option out",
            "data.eos",
            True,
        )
    return from_state({**state, "eos": True})


# ---------------------------------------------------------------------- a whole checkpoint


def write_checkpoint(origin: Origin, path: Path) -> None:
    """Write weights as a checkpoint: for predict, validate, test, init_from and Lightning.

    It holds no optimizer, so that a run can begin from it but not go on.
    """
    options = dataclasses.asdict(origin.config)
    del options["vocab_size"]  # the tokenizer's
    options["dropout_at"] = list(options["dropout_at"])
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
