"""nanoGPT's checkpoints and vocabularies, read without running any code they may hold.

Source: github.com/karpathy/nanoGPT, train.py and data/*/prepare.py.
"""

import pickle
from pathlib import Path
from typing import NoReturn

from gptlit.config import GPTConfig
from gptlit.inputs import refuse_endless
from gptlit.interchange import State, fitting, from_theirs
from gptlit.messages import UsageError
from gptlit.tokenizer import BytePairTokenizer, CharTokenizer, Tokenizer
from gptlit.weight_files import load_plain

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


def read_nanogpt(
    checkpoint: Path, meta: Path | None, folder: Path
) -> tuple[GPTConfig, State, Tokenizer]:
    """A model's config, weights and tokenizer from what nanoGPT's train.py wrote.

    Args:
        checkpoint: `ckpt.pt`.
        meta: `meta.pkl` of its data set; without it the tokenizer is GPT-2's.
        folder: Where GPT-2's tokenizer is kept once it is fetched.

    Raises:
        UsageError: missing, torn, of another program, would have to run code, or no pair.
    """
    content = load_plain(checkpoint)
    content = content if isinstance(content, dict) else {}
    given, weights = content.get("model_args"), content.get("model")
    if not isinstance(given, dict) or not isinstance(weights, dict):
        raise UsageError(f"{checkpoint.name}: not a checkpoint of nanoGPT: no model_args and model")
    for name in SIZES:
        if not isinstance(given.get(name), int):
            raise UsageError(f"{checkpoint.name}: model_args has no whole number {name}")
    config = GPTConfig(
        **{name: given[name] for name in SIZES},
        bias=bool(given.get("bias", True)),  # always there before it was an option
        dropout=float(given.get("dropout", 0.0)),
    )
    return config, from_theirs(weights, config, conv1d=False), _tokenizer(config, meta, folder)


def _tokenizer(config: GPTConfig, meta: Path | None, folder: Path) -> Tokenizer:
    if meta is not None:
        tokenizer = read_meta(meta)
        if tokenizer.vocab_size != config.vocab_size:
            raise UsageError(
                f"{meta.name}: has {tokenizer.vocab_size} characters, and the model a vocabulary "
                f"of {config.vocab_size}: it is of another data set"
            )
        return tokenizer
    try:
        return fitting(BytePairTokenizer.published("gpt2", folder), config.vocab_size)
    except UsageError as error:
        raise UsageError(f"{error}; give the meta.pkl of its data set, if it had one") from error


class _Plain(pickle.Unpickler):
    """Unpickles numbers, strings and their containers, and nothing that has a name."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def read_meta(path: Path) -> CharTokenizer:
    """The characters of a `meta.pkl`, as nanoGPT's character-level data sets have them.

    Raises:
        UsageError: missing, torn, would have to run code, or not of characters in the order of
            their code points.
    """
    refuse_endless(path, "meta.pkl")
    try:
        with path.open("rb") as file:
            content = _Plain(file).load()
    except FileNotFoundError as error:
        raise UsageError(f"{path.name}: no such file") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path.name}: refused: torn, or not of plain data only ({error})"
        ) from error
    except Exception as error:  # a torn pickle can raise anything
        raise UsageError(f"{path.name}: torn or not a pickle ({type(error).__name__})") from error
    ids = content.get("stoi") if isinstance(content, dict) else None
    if not isinstance(ids, dict) or not all(isinstance(key, str) for key in ids):
        raise UsageError(f"{path.name}: has no table stoi of characters, as nanoGPT's have")
    characters = sorted(ids)
    if any(len(character) != 1 for character in characters):
        raise UsageError(f"{path.name}: its tokens aren't single characters")
    if [ids[character] for character in characters] != list(range(len(characters))):
        raise UsageError(
            f"{path.name}: its characters aren't numbered from 0 in the order of their code "
            "points, as nanoGPT's prepare.py does it and gptlit's tokenizers need it"
        )
    return CharTokenizer("".join(characters))
