"""Reads nanochat's checkpoints and tokenizers, without running any code that they may hold.

nanochat's model differs from gptlit's GPT in two ways that other weights express exactly: it norms
embeddings, and it rotates queries and keys the other way round.
Source: github.com/karpathy/nanochat, gpt.py, checkpoint_manager.py and tokenizer.py.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints import torch_files
from gptlit.checkpoints.weight_shapes import EMBEDDING as WTE
from gptlit.checkpoints.weight_shapes import HEAD, Rows, State, check_tensors, checked, gathered
from gptlit.corpora.inputs import refuse_endless
from gptlit.messages import UsageError, errors_about
from gptlit.model.config import GPTConfig
from gptlit.tokenizers.bytepair import BytePairTokenizer, check_byte_pairs

SOFTCAP = 15.0  # of the logits, the same for all models
_ENCODING = ("tiktoken.core", "Encoding")


class _Options(TypedDict):
    """The options of nanochat's model."""

    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int


class _Meta(TypedDict):
    """The parts of a meta_*.json that are read."""

    model_config: _Options


class _EncodingState(TypedDict):
    """The state of a pickled tiktoken.Encoding."""

    name: str
    pat_str: str
    mergeable_ranks: dict[bytes, int]
    special_tokens: dict[str, int]


def read_nanochat(
    weights: Path, tokenizer: Path | None, folder: Path
) -> tuple[GPTConfig, State, BytePairTokenizer]:
    """Read a model's config, weights and tokenizer from nanochat's files.

    Args:
        weights: Path of a model_*.pt, next to its meta_*.json.
        tokenizer: Path of the tokenizer.pkl; None for the one in the folder of the weights.
        folder: Not used.

    Raises:
        UsageError: Missing, torn, could run code, or with a part that gptlit's GPT doesn't have.
    """
    meta = weights.with_name(f"{weights.stem.replace('model', 'meta', 1)}.json")
    try:
        content = plain_data.read_json(meta)
    except FileNotFoundError as error:
        raise UsageError(f"{meta.name}: no such file next to {weights.name}") from error
    with errors_about(meta.name):
        plain_data.check(_Meta, content, "")
        config = _config(content["model_config"])
    state = torch_files.load_named(weights)
    with errors_about(weights.name):
        if not isinstance(state, dict):
            raise UsageError("not a checkpoint of nanochat")
        state = _from_nanochat(state, config)
    return (
        config,
        state,
        read_tokenizer(tokenizer or weights.with_name("tokenizer.pkl"), config.vocab_size),
    )


def _config(options: _Options) -> GPTConfig:
    pattern = options.get("window_pattern", "L")
    if not isinstance(pattern, str) or pattern.strip("Ll"):
        raise UsageError(f"window_pattern {plain_data.shown(pattern)}: only full context is read")
    n_head, n_kv_head = options["n_head"], options["n_kv_head"]
    return GPTConfig(
        vocab_size=options["vocab_size"],
        n_layer=options["n_layer"],
        n_head=n_head,
        n_embd=options["n_embd"],
        n_kv_head=None if n_kv_head == n_head else n_kv_head,
        block_size=options["sequence_len"],
        positions="rotary",
        norm="rms",
        norm_weight=False,
        norm_eps=torch.finfo(torch.float32).eps,
        qk_norm=True,
        activation="relu2",
        bias=False,
        tie_weights=False,
        logit_softcap=SOFTCAP,
    )


def _from_nanochat(theirs: Mapping[str, Tensor], config: GPTConfig) -> State:
    """Return weights by gptlit's names, in float32."""
    left = {str(name).removeprefix("_orig_mod."): each for name, each in theirs.items()}
    check_tensors(left)
    # later versions add learned parts that gptlit's GPT doesn't have
    if others := sorted(name for name in left if re.search(r"lambdas|value_embeds|gate", name)):
        raise UsageError(f"{others[0]}: a part that gptlit's GPT doesn't have")
    state = gathered(left, _parts(config))
    state[WTE] = F.rms_norm(state[WTE], (config.n_embd,), eps=config.norm_eps)
    for name in state:
        if name.endswith("c_attn.weight"):
            # with the halves of queries and keys exchanged, the opposite rotation gives the scores
            n_rows = (config.n_head + config.kv_heads) * config.head_size
            heads = state[name][:n_rows].view(-1, 2, config.head_size // 2, config.n_embd)
            state[name][:n_rows] = heads.flip(1).view(n_rows, config.n_embd)
    return checked(state, config)


def _parts(config: GPTConfig) -> Iterator[tuple[str, Rows]]:
    """Yield the name of each weight, and the names and shapes of the tensors that are its rows."""
    C, kv_rows, V = config.n_embd, config.kv_heads * config.head_size, config.vocab_size
    yield "wte.weight", [("transformer.wte.weight", (V, C))]
    for layer in range(config.n_layer):
        theirs = f"transformer.h.{layer}."
        yield (
            f"h.{layer}.attn.c_attn.weight",
            [
                (f"{theirs}attn.c_q.weight", (C, C)),
                (f"{theirs}attn.c_k.weight", (kv_rows, C)),
                (f"{theirs}attn.c_v.weight", (kv_rows, C)),
            ],
        )
        shapes = {"attn.c_proj": (C, C), "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
        for name, shape in shapes.items():
            yield f"h.{layer}.{name}.weight", [(f"{theirs}{name}.weight", shape)]
    yield HEAD, [(HEAD, (V, C))]


def read_tokenizer(path: Path, vocab_size: int) -> BytePairTokenizer:
    """Read a tokenizer.pkl, a pickled tiktoken.Encoding, as plain data.

    Raises:
        UsageError: Missing, torn, could run code, or not of the model.
    """
    refuse_endless(path, "tokenizer.pkl")
    state = torch_files.load_pickle(path, state_of=_ENCODING)
    with errors_about(path.name):
        plain_data.check(_EncodingState, state, "")
        pieces = sorted(state["mergeable_ranks"], key=state["mergeable_ranks"].__getitem__)
        if [state["mergeable_ranks"][piece] for piece in pieces] != list(range(len(pieces))):
            raise UsageError("the ranks of its pieces aren't 0, 1, 2, ...")
        special = state["special_tokens"]
        check_byte_pairs(state["pat_str"], pieces, special)
        tokenizer = BytePairTokenizer("bpe", state["name"], state["pat_str"], pieces, special)
        if tokenizer.vocab_size != vocab_size:
            sizes = f"{tokenizer.vocab_size} tokens, and the model a vocabulary of {vocab_size}"
            raise UsageError(f"has {sizes}; give the tokenizer.pkl of the model")
        return tokenizer
