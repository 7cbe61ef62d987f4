"""Reads nanoGPT's checkpoints and vocabularies, without running any code that they may hold.

Source: github.com/karpathy/nanoGPT, train.py and data/*/prepare.py.
"""

from pathlib import Path
from typing import TypedDict

from gptlit import plain_data
from gptlit.checkpoints import torch_files
from gptlit.checkpoints.gpt2_names import from_gpt2_weights, pad_vocabulary
from gptlit.checkpoints.weight_shapes import State
from gptlit.corpora.inputs import refuse_endless
from gptlit.messages import UsageError, errors_about
from gptlit.model.config import GPTConfig
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer


class _Arguments(TypedDict):
    """The options of nanoGPT's model."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool
    dropout: float


def read_nanogpt(
    checkpoint: Path, meta: Path | None, folder: Path
) -> tuple[GPTConfig, State, Tokenizer]:
    """Read a model's config, weights and tokenizer from the files of nanoGPT's train.py.

    Args:
        checkpoint: Path of `ckpt.pt`.
        meta: Path of the `meta.pkl` of its data set; without it the tokenizer is GPT-2's.
        folder: Folder where GPT-2's tokenizer is kept after it was fetched.

    Raises:
        UsageError: Missing, torn, of another program, could run code, or not of one data set.
    """
    content = torch_files.load_named(checkpoint)
    content = content if isinstance(content, dict) else {}
    given, weights = content.get("model_args"), content.get("model")
    if not isinstance(given, dict) or not isinstance(weights, dict):
        raise UsageError(f"{checkpoint.name}: not a checkpoint of nanoGPT: no model_args and model")
    # older checkpoints, always with biases, don't have the option
    given = {"bias": True, "dropout": 0.0, **given}
    with errors_about(checkpoint.name):
        plain_data.check(_Arguments, given, "model_args")
        config = GPTConfig(**{name: given[name] for name in _Arguments.__annotations__})
        state = from_gpt2_weights(weights, config, conv1d=False)
    return config, state, _tokenizer(config, meta, folder)


def _tokenizer(config: GPTConfig, meta: Path | None, folder: Path) -> Tokenizer:
    if meta is not None:
        tokenizer = read_meta(meta)
        if tokenizer.vocab_size != config.vocab_size:
            raise UsageError(
                f"{meta.name}: has {tokenizer.vocab_size} characters, and the model has a "
                f"vocabulary of {config.vocab_size}; give the meta.pkl of the model's data set"
            )
        return tokenizer
    try:
        return pad_vocabulary(BytePairTokenizer.published("gpt2", folder), config.vocab_size)
    except UsageError as error:
        raise UsageError(f"{error}; give the meta.pkl of its data set, if it had one") from error


def read_meta(path: Path) -> CharTokenizer:
    """Read the characters of the `meta.pkl` of a character-level data set.

    Raises:
        UsageError: Missing, torn, could run code, or not of characters in the order of their code
            points.
    """
    refuse_endless(path, "meta.pkl")
    content = torch_files.load_pickle(path)
    ids = content.get("stoi") if isinstance(content, dict) else None
    with errors_about(path.name):
        if not isinstance(ids, dict) or not all(isinstance(key, str) for key in ids):
            raise UsageError("has no table stoi of characters, as nanoGPT's have")
        plain_data.check(dict[str, int], ids, "stoi")
        characters = sorted(ids)
        if any(len(character) != 1 for character in characters):
            raise UsageError("its tokens aren't single characters")
        if [ids[character] for character in characters] != list(range(len(characters))):
            raise UsageError(
                "its characters aren't numbered from 0 in the order of their code points, as "
                "nanoGPT's prepare.py does it and gptlit's tokenizers need it"
            )
    return CharTokenizer("".join(characters))
