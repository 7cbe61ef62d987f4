"""Converts weights and options from the names of Llama, Mistral and Qwen in Hugging Face's files.

They have the same parts: rotary positions, RMSNorm, SwiGLU, and heads of keys and values that heads
of queries share. Qwen3 also norms queries and keys, and Qwen2 has biases in front of attention.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from gptlit.checkpoints.weight_shapes import (
    HEAD,
    Rows,
    State,
    check_tensors,
    checked,
    gathered,
    in_float32,
)
from gptlit.messages import UsageError
from gptlit.model.config import LARGEST_BLOCK, GPTConfig
from gptlit.plain_data import check, in_short

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# sizes by gptlit's names
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "mlp_hidden",
    "max_position_embeddings": "block_size",
}
# defaults of the other options that are read, for what config.json leaves out
_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
# options that change the computation, with the values of gptlit's GPT
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "use_sliding_window": False,
}
_NULLABLE = {
    "num_key_value_heads": int | None,
    "head_dim": int | None,
    "sliding_window": int | None,
    "partial_rotary_factor": float,
}
# the frequencies of rotary positions, which older files have among the weights
_FREQUENCIES = "rotary_emb.inv_freq"


def from_llama(options: Mapping[str, Any]) -> GPTConfig:
    """Return the config of a Llama, Mistral, Qwen2 or Qwen3 in Hugging Face's format.

    Raises:
        UsageError: Lacks a size, or has a part that gptlit's GPT doesn't have; names it.
    """
    completed = {**_DEFAULTS, **_FIXED, **options}
    for name in _SIZES:
        if name not in completed:
            raise UsageError(f"has no {name}")
        check(int, completed[name], name)
        if completed[name] < (name != "num_hidden_layers"):
            raise UsageError(f"{name} {completed[name]}: must be a whole number above 0")
    for name, default in {**_DEFAULTS, **_FIXED}.items():
        check(_NULLABLE.get(name, type(default)), completed[name], name)
    for name, value in _FIXED.items():
        if completed[name] != value:
            raise UsageError(f"{name} {in_short(str(completed[name]))}: only {value} is read")
    n_head, head_dim = completed["num_attention_heads"], completed["head_dim"]
    if head_dim is not None and head_dim * n_head != completed["hidden_size"]:
        raise UsageError(
            f"head_dim {head_dim}: only hidden_size / num_attention_heads is read, which is "
            f"{completed['hidden_size']} / {n_head}"
        )
    sizes = {ours: completed[theirs] for theirs, ours in _SIZES.items()}
    # within the window a sliding one sees everything
    window = completed["sliding_window"] if completed["model_type"] == "mistral" else None
    sizes["block_size"] = min(sizes["block_size"], window or LARGEST_BLOCK, LARGEST_BLOCK)
    n_kv_head = completed["num_key_value_heads"]
    return GPTConfig(
        **sizes,
        n_kv_head=None if n_kv_head == n_head else n_kv_head,
        positions="rotary",
        position_base=_rotary_base(options),
        norm="rms",
        norm_eps=float(completed["rms_norm_eps"]),
        qk_norm=completed["model_type"] == "qwen3",
        activation="swiglu",
        # Qwen2 always has some
        bias=any(completed[name] for name in ("attention_bias", "mlp_bias"))
        or completed["model_type"] == "qwen2",
        tie_weights=completed["tie_word_embeddings"],
    )


def _rotary_base(options: Mapping[str, Any]) -> float:
    """Return rope_theta, which newer files have in rope_parameters, if nothing scales positions."""
    newer = options.get("rope_parameters") or {}
    scaling = options.get("rope_scaling") or newer
    for name, value in (("rope_parameters", newer), ("rope_scaling", scaling)):
        check(dict[str, Any], value, name)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise UsageError(f"rope_type {in_short(str(kind))}: only default is read")
    base = newer.get("rope_theta", options.get("rope_theta", 10_000.0))
    check(float, base, "rope_theta")
    return float(base)


# ---------------------------------------------------------------------- weights


def parts(config: GPTConfig) -> Iterator[tuple[str, Rows]]:
    """Yield the name of each weight, and the names and shapes of the tensors that are its rows."""
    C, kinds = config.n_embd, ("weight", "bias") if config.bias else ("weight",)
    kv_rows = config.kv_heads * config.head_size
    yield "wte.weight", [("model.embed_tokens.weight", (config.vocab_size, C))]
    for layer in range(config.n_layer):
        ours, theirs = f"h.{layer}.", f"model.layers.{layer}."
        attention, mlp = f"{theirs}self_attn.", f"{theirs}mlp."
        # by gptlit's names: their tensors with their rows, and the columns of all
        matrices = {
            "attn.c_attn": ({"q_proj": C, "k_proj": kv_rows, "v_proj": kv_rows}, attention, C),
            "attn.c_proj": ({"o_proj": C}, attention, C),
            "mlp.c_fc": ({"gate_proj": config.hidden, "up_proj": config.hidden}, mlp, C),
            "mlp.c_proj": ({"down_proj": C}, mlp, config.hidden),
        }
        yield f"{ours}ln_1.weight", [(f"{theirs}input_layernorm.weight", (C,))]
        for name, (rows, prefix, columns) in matrices.items():
            for kind in kinds:
                rest = (columns,) if kind == "weight" else ()
                tensors = [(f"{prefix}{each}.{kind}", (n, *rest)) for each, n in rows.items()]
                yield f"{ours}{name}.{kind}", tensors
        if config.qk_norm:
            for name in ("q_norm", "k_norm"):
                yield (
                    f"{ours}attn.{name}.weight",
                    [(f"{attention}{name}.weight", (config.head_size,))],
                )
        yield f"{ours}ln_2.weight", [(f"{theirs}post_attention_layernorm.weight", (C,))]
    yield "ln_f.weight", [("model.norm.weight", (C,))]
    if not config.tie_weights:
        yield HEAD, [(HEAD, (config.vocab_size, C))]


def from_llama_weights(theirs: Mapping[str, Tensor], config: GPTConfig) -> State:
    """Return weights by gptlit's names, in float32; missing biases are zeros.

    Raises:
        UsageError: A weight is missing, unknown, of another shape, or not finite.
    """
    left = {name: each for name, each in theirs.items() if not str(name).endswith(_FREQUENCIES)}
    check_tensors(left)
    return in_float32(checked(gathered(left, parts(config)), config))
