"""Options and weights by the names of transformers' classes that are built like Llama."""

import math
from typing import Any

import torch
from torch import Tensor

from gptlit.checkpoints.gpt2_names import ACTIVATIONS
from gptlit.checkpoints.weight_shapes import HEAD, State
from gptlit.exports.hub_classes import HubClass
from gptlit.model.config import GPTConfig

# names of the number in a norm, where it isn't Llama's
_NORM_EPS = {
    "nemotron": "norm_eps",
    "starcoder2": "norm_epsilon",
    "stablelm": "layer_norm_eps",
}


def options(config: GPTConfig, kind: HubClass) -> dict[str, Any]:
    """Return the content of config.json for a class that is built like Llama."""
    to_theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    activation = to_theirs.get(config.activation, "silu")
    described = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": activation,
        "max_position_embeddings": config.block_size,
        _NORM_EPS.get(kind.model_type, "rms_norm_eps"): config.norm_eps,
        # in the words of transformers 5, and of older versions and other programs
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.position_base,
            "partial_rotary_factor": 1.0,
        },
        "rope_theta": config.position_base,
        "partial_rotary_factor": 1.0,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": config.dropped("attention"),
        "tie_word_embeddings": is_tied(config, kind),
    }
    return described | _special(config, kind, activation)


def _special(config: GPTConfig, kind: HubClass, activation: str) -> dict[str, Any]:
    """Return options that only one class has."""
    full = ["full_attention"] * config.n_layer
    special: dict[str, dict[str, Any]] = {
        "qwen3": {"use_sliding_window": False, "layer_types": full},
        "smollm3": {"no_rope_layers": [0] * config.n_layer, "layer_types": full},
        "vaultgemma": {
            "hidden_activation": activation,
            "query_pre_attn_scalar": config.head_size,
            "final_logit_softcapping": config.logit_softcap,
            "attn_logit_softcapping": None,
            "layer_types": full,
        },
        "starcoder2": {
            "use_bias": config.bias,
            "residual_dropout": config.dropped("branch"),
            "embedding_dropout": config.dropped("embedding"),
        },
        "stablelm": {"use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False},
    }
    return special.get(kind.model_type, {})


def is_tied(config: GPTConfig, kind: HubClass) -> bool:
    """Whether the folder has one matrix for the embedding and the head."""
    # VaultGemma multiplies embeddings by a number, but not the head
    return config.tie_weights and kind.model_type != "vaultgemma"


def weights(config: GPTConfig, state: State, kind: HubClass) -> State:
    """Return weights by a class's names.

    Args:
        config: Config of the model.
        state: Its weights by gptlit's names, as `hub_classes.written_out` returns them.
        kind: Class that is built like Llama.
    """
    theirs = {"model.embed_tokens.weight": state["wte.weight"]}
    if kind.model_type == "vaultgemma":
        theirs["model.embed_tokens.weight"] = state["wte.weight"] / math.sqrt(config.n_embd)
    if not is_tied(config, kind):
        theirs[HEAD] = state[HEAD]
    theirs |= _norm("model.norm", state, "ln_f", config, kind)
    for layer in range(config.n_layer):
        theirs |= _block(f"model.layers.{layer}.", state, f"h.{layer}.", config, kind)
    for llama, other in kind.names.items():
        theirs = {name.replace(f".{llama}.", f".{other}."): each for name, each in theirs.items()}
    # copies, since rows of one matrix share memory, which safetensors refuses
    return {name: tensor.detach().clone().contiguous() for name, tensor in theirs.items()}


def _block(theirs: str, state: State, ours: str, config: GPTConfig, kind: HubClass) -> State:
    size, is_gated = config.head_size, config.activation == "swiglu"
    rows = [size * n for n in (config.n_head, config.kv_heads, config.kv_heads)]
    found: State = {}
    for form in ("weight", "bias"):
        if f"{ours}mlp.c_fc.{form}" not in state:
            continue
        parts = state[f"{ours}attn.c_attn.{form}"].split(rows)
        into = state[f"{ours}mlp.c_fc.{form}"].chunk(2 if is_gated else 1)
        named = {
            **{f"self_attn.{name}_proj": part for name, part in zip("qkv", parts, strict=True)},
            "self_attn.o_proj": state[f"{ours}attn.c_proj.{form}"],
            **dict(zip(("mlp.gate_proj", "mlp.up_proj")[-len(into) :], into, strict=True)),
            "mlp.down_proj": state[f"{ours}mlp.c_proj.{form}"],
        }
        found |= {f"{theirs}{name}.{form}": tensor for name, tensor in named.items()}
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            found[f"{theirs}self_attn.{name}.weight"] = state[f"{ours}attn.{name}.weight"]
    found |= _norm(f"{theirs}input_layernorm", state, f"{ours}ln_1", config, kind)
    return found | _norm(f"{theirs}post_attention_layernorm", state, f"{ours}ln_2", config, kind)


def _norm(theirs: str, state: State, ours: str, config: GPTConfig, kind: HubClass) -> State:
    weight = state[f"{ours}.weight"]
    found: dict[str, Tensor] = {f"{theirs}.weight": weight - kind.norm_minus}
    if config.norm == "layer":  # these classes always have a bias
        found[f"{theirs}.bias"] = state.get(f"{ours}.bias", torch.zeros_like(weight))
    return found
