"""Converts GPT-2's weights and options from and to the names of Hugging Face and nanoGPT.

gptlit has GPT-2's own names, so that the differences fit into one table, `KEYS`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from gptlit.checkpoints.weight_shapes import State, check_tensors, checked
from gptlit.messages import UsageError, opt
from gptlit.model.config import Activation, DropoutPlace, GPTConfig
from gptlit.plain_data import check, in_short
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.state import from_state


class Key(NamedTuple):
    """A weight's name in other files, and whether Hugging Face has it as (inputs, outputs)."""

    theirs: str
    conv1d: bool = False


# from gptlit's names to those of Hugging Face's GPT2LMHeadModel and of nanoGPT; * is the layer
KEYS = {
    "wte.weight": Key("transformer.wte.weight"),
    "wpe.weight": Key("transformer.wpe.weight"),
    "h.*.ln_1.weight": Key("transformer.h.*.ln_1.weight"),
    "h.*.ln_1.bias": Key("transformer.h.*.ln_1.bias"),
    "h.*.attn.c_attn.weight": Key("transformer.h.*.attn.c_attn.weight", conv1d=True),
    "h.*.attn.c_attn.bias": Key("transformer.h.*.attn.c_attn.bias"),
    "h.*.attn.c_proj.weight": Key("transformer.h.*.attn.c_proj.weight", conv1d=True),
    "h.*.attn.c_proj.bias": Key("transformer.h.*.attn.c_proj.bias"),
    "h.*.ln_2.weight": Key("transformer.h.*.ln_2.weight"),
    "h.*.ln_2.bias": Key("transformer.h.*.ln_2.bias"),
    "h.*.mlp.c_fc.weight": Key("transformer.h.*.mlp.c_fc.weight", conv1d=True),
    "h.*.mlp.c_fc.bias": Key("transformer.h.*.mlp.c_fc.bias"),
    "h.*.mlp.c_proj.weight": Key("transformer.h.*.mlp.c_proj.weight", conv1d=True),
    "h.*.mlp.c_proj.bias": Key("transformer.h.*.mlp.c_proj.bias"),
    "ln_f.weight": Key("transformer.ln_f.weight"),
    "ln_f.bias": Key("transformer.ln_f.bias"),
    "lm_head.weight": Key("lm_head.weight"),
}
_BY_THEIRS = {key.theirs: (ours, key.conv1d) for ours, key in KEYS.items()}
_LAYER = re.compile(r"(?<=\.h\.)\d+(?=\.)")
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
HELD: dict[str, Any] = {
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


class _GPT2Options(TypedDict):
    """The types of `HF_DEFAULTS`."""

    model_type: str
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None
    activation_function: str
    layer_norm_epsilon: float
    tie_word_embeddings: bool
    embd_pdrop: float | None
    attn_pdrop: float | None
    resid_pdrop: float | None
    scale_attn_weights: bool
    scale_attn_by_inverse_layer_idx: bool
    add_cross_attention: bool


HF_DROPOUT: dict[str, DropoutPlace] = {
    "embd_pdrop": "embedding",
    "attn_pdrop": "attention",
    "resid_pdrop": "branch",
}

# ---------------------------------------------------------------------- names and shapes


def keys(n_layer: int) -> dict[str, Key]:
    """`KEYS` for each layer."""
    filled = {}
    for ours, key in KEYS.items():
        for layer in map(str, range(n_layer if "*" in ours else 1)):
            filled[ours.replace("*", layer)] = key._replace(theirs=key.theirs.replace("*", layer))
    return filled


def to_theirs(state: Mapping[str, Tensor], config: GPTConfig) -> State:
    """Weights as Hugging Face's GPT2LMHeadModel has them, with zeros for missing biases."""
    theirs = {}
    for ours, key in keys(config.n_layer).items():
        if ours == "lm_head.weight" and config.tie_weights:
            continue  # safetensors refuse a tensor under two names
        if ours in state:
            tensor = state[ours].detach()
        else:
            tensor = torch.zeros(len(state[ours.replace("bias", "weight")]))
        theirs[key.theirs] = (tensor.t() if key.conv1d else tensor).contiguous()
    return theirs


def from_theirs(found: Mapping[str, Tensor], config: GPTConfig, conv1d: bool) -> State:
    """Weights by gptlit's names, in float32, from Hugging Face's or nanoGPT's.

    Args:
        found: Tensors by their names, with or without `transformer.` (GPT-2's published files
            omit it) and torch.compile's `_orig_mod.` in front.
        config: Config of their model.
        conv1d: Whether matrices of blocks are (inputs, outputs), as in Hugging Face's files.

    Raises:
        UsageError: a weight is missing, unknown, or of another shape.
    """
    theirs = {}
    for name, tensor in found.items():
        plain = str(name).removeprefix("_orig_mod.")
        if not _MASK.search(plain):
            has_prefix = plain.startswith(("transformer.", "lm_head."))
            theirs[plain if has_prefix else f"transformer.{plain}"] = tensor
    check_tensors(theirs)
    state: State = {}
    for name, tensor in theirs.items():
        layer = _LAYER.search(name)
        ours, turned = _BY_THEIRS.get(_LAYER.sub("*", name), (name, False))
        turned = turned and conv1d and tensor.dim() == 2
        state[ours.replace("*", layer[0]) if layer else ours] = tensor.t() if turned else tensor
    if not config.bias:
        for ours in [ours for ours in state if ours.endswith(".bias")]:
            if state[ours].any():
                raise UsageError(f"{ours} isn't zero, though the config has no biases")
            del state[ours]
    state = checked(state, config)
    single = {id(tensor): tensor.float().contiguous() for tensor in state.values()}
    return {name: single[id(tensor)] for name, tensor in state.items()}  # keeps a tied head tied


def fitting(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The tokenizer for a vocabulary of a padded size, with names for the unused ids.

    Raises:
        UsageError: the vocabulary is smaller than the tokenizer's, or it isn't a BPE.
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
    """The options of Hugging Face's GPT2Config for the same model.

    Raises:
        UsageError: its class doesn't have an option of the model; names it.
    """
    held = {**HELD, "n_kv_head": config.n_head}
    has = {**dataclasses.asdict(config), "n_kv_head": config.kv_heads}
    for name, value in held.items():
        if has[name] != value:
            raise UsageError(
                f"Hugging Face's GPT-2 has {_as_flag(value)} only; {opt('format')} safetensors "
                "writes any model",
                f"model.{name}",
                _as_flag(has[name]),
            )
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if config.activation not in activations:
        raise UsageError(
            f"Hugging Face's GPT-2 has {', '.join(activations)} only; {opt('format')} safetensors "
            "writes any model",
            "model.activation",
            config.activation,
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
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def from_hugging_face(options: Mapping[str, Any]) -> GPTConfig:
    """The config of a GPT-2 in Hugging Face's format.

    Raises:
        UsageError: not a GPT-2, or with options that gptlit's GPT doesn't have.
    """
    given = {**HF_DEFAULTS, **HF_FIXED, **options}
    check(_GPT2Options, given, "")
    for name, value in {"model_type": "gpt2", **HF_FIXED}.items():
        if given[name] != value:
            raise UsageError(f"{name} {in_short(str(given[name]))}: only {value} is read")
    if (activation := given["activation_function"]) not in ACTIVATIONS:
        raise UsageError(
            f"activation_function {in_short(activation)}: only {', '.join(ACTIVATIONS)} are read"
        )
    sizes = {name: given[name] for name in ("vocab_size", "n_positions", "n_layer", "n_head")}
    sizes |= {"n_embd": given["n_embd"], "n_inner": given["n_inner"] or 4 * given["n_embd"]}
    for name, value in sizes.items():
        if value < (name != "n_layer"):
            raise UsageError(f"{name} {value}: must be a whole number above 0")
    # gptlit has one probability for all places; the weights don't depend on it
    dropout = max(float(given[name] or 0) for name in HF_DROPOUT)
    places = [place for name, place in HF_DROPOUT.items() if given[name] or not dropout]
    return GPTConfig(
        vocab_size=sizes["vocab_size"],
        n_layer=sizes["n_layer"],
        n_head=sizes["n_head"],
        n_embd=sizes["n_embd"],
        block_size=sizes["n_positions"],
        mlp_hidden=None if sizes["n_inner"] == 4 * sizes["n_embd"] else sizes["n_inner"],
        activation=ACTIVATIONS[activation],
        norm_eps=float(given["layer_norm_epsilon"]),
        tie_weights=given["tie_word_embeddings"],
        dropout=dropout,
        dropout_at=tuple(places),
    )
