"""Converts GPT-2's weights and options from and to the names of Hugging Face and nanoGPT.

gptlit has GPT-2's own names; the others have a prefix before all of them but the head's.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gptlit.checkpoints.weight_shapes import (
    HEAD,
    State,
    check_tensors,
    checked,
    in_float32,
    shapes,
)
from gptlit.messages import UsageError, opt
from gptlit.model.config import Activation, DropoutPlace, GPTConfig
from gptlit.plain_data import check, in_short
from gptlit.terminal import format_value
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.state import from_state

PREFIX = "transformer."
# the matrices that Hugging Face has as (inputs, outputs)
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# the causal mask, which older files have among the weights
_MASK = re.compile(r"\.attn\.(masked_)?bias$")

# Hugging Face's names of activations; two of them are the tanh approximation
ACTIVATIONS: dict[str, Activation] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}
# options with one value in Hugging Face's GPT-2 class
HF_ONLY: dict[str, Any] = {
    "mixer": "attention",
    "positions": "learned",
    "norm": "layer",
    "norm_place": "pre",
    "norm_weight": True,
    "qk_norm": False,
    "attn_proj": True,
    "head_bias": False,
    "logit_softcap": None,
    "token_shift": 0,
}
# defaults of Hugging Face's GPT2Config, for what config.json leaves out
HF_DEFAULTS: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
}
# options of GPT2Config that change the computation, with the values of gptlit's GPT
HF_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
HF_DROPOUT: dict[str, DropoutPlace] = {
    "embd_pdrop": "embedding",
    "attn_pdrop": "attention",
    "resid_pdrop": "branch",
}

# ---------------------------------------------------------------------- names and shapes


def to_gpt2_weights(state: Mapping[str, Tensor], config: GPTConfig) -> State:
    """Return weights as Hugging Face's GPT2LMHeadModel has them, with zeros for missing biases."""
    weights = {}
    for name, shape in shapes(dataclasses.replace(config, bias=True)):
        if name == HEAD and config.tie_weights:
            continue  # safetensors refuse a tensor under two names
        tensor = state[name].detach() if name in state else torch.zeros(shape)
        prefixed = name if name == HEAD else PREFIX + name
        weights[prefixed] = (tensor.t() if name.endswith(CONV1D) else tensor).contiguous()
    return weights


def from_gpt2_weights(theirs: Mapping[str, Tensor], config: GPTConfig, conv1d: bool) -> State:
    """Return weights by gptlit's names, in float32, from Hugging Face's or nanoGPT's.

    Args:
        theirs: Tensors by their names, with or without `transformer.` (GPT-2's published files
            omit it) and torch.compile's `_orig_mod.` in front.
        config: Config of their model.
        conv1d: Whether matrices of blocks are (inputs, outputs), as in Hugging Face's files.

    Raises:
        UsageError: A weight is missing, unknown, or of another shape.
    """
    named = {str(name).removeprefix("_orig_mod."): tensor for name, tensor in theirs.items()}
    state: State = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in named.items()
        if not _MASK.search(name)
    }
    check_tensors(state)
    for name, tensor in state.items():
        if conv1d and name.endswith(CONV1D) and tensor.dim() == 2:
            state[name] = tensor.t()
    if not config.bias:
        for name in [name for name in state if name.endswith(".bias")]:
            if state[name].any():
                raise UsageError(f"{name} isn't zero, though the config has no biases")
            del state[name]
    return in_float32(checked(state, config))


def pad_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return the tokenizer for a vocabulary of a padded size, with names for the unused ids.

    Raises:
        UsageError: The vocabulary is smaller than the tokenizer's, or it isn't a BPE.
    """
    size = tokenizer.vocab_size
    if size == vocab_size:
        return tokenizer
    if size > vocab_size or not isinstance(tokenizer, BytePairTokenizer):
        raise UsageError(f"the model has a vocabulary of {vocab_size}, its tokenizer of {size}")
    state = tokenizer.state()
    unused = {f"<|unused_{id_}|>": id_ for id_ in range(size, vocab_size)}
    return from_state({**state, "special_tokens": state["special_tokens"] | unused})


# ---------------------------------------------------------------------- options


def to_hugging_face(config: GPTConfig) -> dict[str, Any]:
    """Return the options of Hugging Face's GPT2Config for the same model.

    Raises:
        UsageError: Its class doesn't have an option of the model; names it.
    """
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    has = {**dataclasses.asdict(config), "n_kv_head": config.kv_heads}
    allowed: dict[str, tuple[Any, ...]] = {name: (value,) for name, value in HF_ONLY.items()}
    allowed |= {"n_kv_head": (config.n_head,), "activation": tuple(activations)}
    for name, values in allowed.items():
        if has[name] not in values:
            raise UsageError(
                f"Hugging Face's GPT-2 has {', '.join(map(_as_flag, values))} only; "
                f"{opt('format')} safetensors writes any model",
                f"model.{name}",
                _as_flag(has[name]),
            )
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions or config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.hidden,
        "activation_function": activations[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_weights,
        **{name: config.dropped(place) for name, place in HF_DROPOUT.items()},
        **HF_FIXED,
    }


def _as_flag(value: Any) -> str:
    return str(value) if isinstance(value, float) else format_value(value)


def from_hugging_face(options: Mapping[str, Any]) -> GPTConfig:
    """Return the config of a GPT-2 in Hugging Face's format.

    Raises:
        UsageError: Not a GPT-2, or with options that gptlit's GPT doesn't have.
    """
    completed = {**HF_DEFAULTS, **HF_FIXED, **options}
    nullable = {"n_inner": int | None, **dict.fromkeys(HF_DROPOUT, float | None)}
    for name, default in {**HF_DEFAULTS, **HF_FIXED}.items():
        check(nullable.get(name, type(default)), completed[name], name)
    for name, value in {"model_type": "gpt2", **HF_FIXED}.items():
        if completed[name] != value:
            raise UsageError(f"{name} {in_short(str(completed[name]))}: only {value} is read")
    if (activation := completed["activation_function"]) not in ACTIVATIONS:
        only = ", ".join(ACTIVATIONS)
        raise UsageError(f"activation_function {in_short(activation)}: only {only} are read")
    n_inner = completed["n_inner"] or 4 * completed["n_embd"]
    for name in ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd", "n_inner"):
        value = n_inner if name == "n_inner" else completed[name]
        if value < (name != "n_layer"):
            raise UsageError(f"{name} {value}: must be a whole number above 0")
    # gptlit has one probability for all places; the weights don't depend on it
    dropout = max(float(completed[name] or 0) for name in HF_DROPOUT)
    places = [place for name, place in HF_DROPOUT.items() if completed[name] or not dropout]
    return GPTConfig(
        **{name: completed[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        block_size=completed["n_positions"],
        mlp_hidden=None if n_inner == 4 * completed["n_embd"] else n_inner,
        activation=ACTIVATIONS[activation],
        norm_eps=float(completed["layer_norm_epsilon"]),
        tie_weights=completed["tie_word_embeddings"],
        dropout=dropout,
        dropout_at=tuple(places),
    )
