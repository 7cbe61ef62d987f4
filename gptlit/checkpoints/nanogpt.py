"""nanoGPT's checkpoints and vocabularies, read without running any code they may hold.

Source: github.com/karpathy/nanoGPT, train.py and data/*/prepare.py.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from gptlit import plain_data
from gptlit.checkpoints.gpt2_names import fitting, from_theirs
from gptlit.checkpoints.weight_files import load_plain
from gptlit.checkpoints.weight_shapes import State
from gptlit.corpora.inputs import refuse_endless
from gptlit.messages import UsageError
from gptlit.model.config import GPTConfig
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer

LARGEST_META = 16 * 2**20  # bytes; a vocabulary of 100,000 characters has a tenth


class _Arguments(TypedDict):
    """What nanoGPT's model is made of."""

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
    # a bias was always there before it was an option
    given = {"bias": True, "dropout": 0.0, **given}
    try:
        plain_data.check(_Arguments, given, "model_args")
        config = GPTConfig(**{name: given[name] for name in _Arguments.__annotations__})
        state = from_theirs(weights, config, conv1d=False)
    except UsageError as error:
        raise UsageError(f"{checkpoint.name}: {error}") from error
    return config, state, _tokenizer(config, meta, folder)


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
            pickled = file.read(LARGEST_META + 1)
        content = _Plain(io.BytesIO(_of_its_size(pickled))).load()
    except FileNotFoundError as error:
        raise UsageError(f"{path.name}: no such file") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path.name}: refused: torn, or not of plain data only ({error})"
        ) from error
    except Exception as error:  # a torn pickle can raise anything
        raise UsageError(f"{path.name}: torn or not a pickle ({type(error).__name__})") from error
    try:
        return _characters(content)
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from error


def _of_its_size(pickled: bytes) -> bytes:
    """A pickle that takes no more memory than in proportion to its size.

    Unpickling makes room for the numbers that a pickle gives its parts, and for arrays of bytes
    of an announced length: 9 bytes can take 4 GB.

    Raises:
        pickle.UnpicklingError: another one.
    """
    if len(pickled) > LARGEST_META:
        raise pickle.UnpicklingError(f"more than {LARGEST_META:,} bytes")
    for opcode, argument, _ in pickletools.genops(pickled):
        is_number = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_number and int(argument or 0) not in range(len(pickled)):
            raise pickle.UnpicklingError(f"a part is numbered {argument}")
        if opcode.name == "BYTEARRAY8":
            raise pickle.UnpicklingError("an array of bytes")
    return pickled


def _characters(content: Any) -> CharTokenizer:
    ids = content.get("stoi") if isinstance(content, dict) else None
    if not isinstance(ids, dict) or not all(isinstance(key, str) for key in ids):
        raise UsageError("has no table stoi of characters, as nanoGPT's have")
    plain_data.check(dict[str, int], ids, "stoi")
    characters = sorted(ids)
    if any(len(character) != 1 for character in characters):
        raise UsageError("its tokens aren't single characters")
    if [ids[character] for character in characters] != list(range(len(characters))):
        raise UsageError(
            "its characters aren't numbered from 0 in the order of their code "
            "points, as nanoGPT's prepare.py does it and gptlit's tokenizers need it"
        )
    return CharTokenizer("".join(characters))
