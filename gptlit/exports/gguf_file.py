"""Writes GGUF files, which llama.cpp and the programs that are built on it load."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptlit.checkpoints.weight_shapes import HEAD, State, for_writing
from gptlit.exports import gguf_tokenizer, hub_weights
from gptlit.exports.hub_classes import GPT2, HubClass, holding, in_words, nearest, written_out
from gptlit.messages import UsageError, note, opt
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILENAME = "model.gguf"
# activations that llama.cpp computes in an architecture, which has transformers' name
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "llama": ("swiglu",),
    "qwen3": ("swiglu",),
    "arcee": ("relu2",),
    "nemotron": ("relu2",),
    "stablelm": ("swiglu",),
    "starcoder2": ("gelu_tanh", "gelu"),
    "gpt2": ("gelu_tanh", "gelu"),
}
# these rotate pairs of neighbours, as Llama's own code does
_NEIGHBOURS = ("llama", "arcee")
_NEEDS_HEAD = ("nemotron", "stablelm")
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_GPT2_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def architecture(config: GPTConfig) -> HubClass:
    """Return the class of transformers whose architecture llama.cpp has and that holds a config.

    Raises:
        UsageError: There is none; names the options that stand in the way.
    """
    kind = holding(config)
    if kind is None:
        like, obstacles = nearest(config)
        raise _refused(f"{obstacles} stands in the way of its {like.model_type}")
    if kind.model_type not in ARCHITECTURES:
        wrong = {name: getattr(config, name) for name in kind.differs if name != "bias"}
        raise _refused(f"it has none with {in_words(wrong)}")
    if config.bias and kind.model_type == "arcee":
        raise _refused(f"its arcee has no biases, but the model {in_words({'bias': True})}")
    if config.activation not in (known := ARCHITECTURES[kind.model_type]):
        activation = in_words({"activation": config.activation})
        raise _refused(f"its {kind.model_type} has {known[0]} instead of {activation}")
    return kind


def _refused(reason: str) -> UsageError:
    return UsageError(
        f"llama.cpp has no architecture for this model: {reason}; {opt('format')} hf writes it for "
        "transformers",
        "format",
        "gguf",
    )


def fill(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str = "f32") -> str:
    """Write model.gguf; return the name of its architecture.

    Args:
        model: Model.
        tokenizer: Its tokenizer.
        folder: Existing folder to write to.
        dtype: Type of the matrices: f32, f16, bf16 or q8_0.

    Raises:
        UsageError: llama.cpp can't hold the model or the tokenizer, or gguf isn't installed.
    """
    config, state = for_writing(model.config, model.state_dict())
    kind = architecture(config)
    vocabulary = gguf_tokenizer.vocabulary(tokenizer)
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        reason = "needs the package gguf: pip install 'gptlit[gguf]'"
        raise UsageError(reason, "format", "gguf") from error
    if config.activation == "gelu":
        note("warning: llama.cpp approximates gelu by tanh, so logits differ in the third decimal")
    config, state = written_out(config, state)
    if vocabulary.end is None:
        config, state = _with_end(config, state, vocabulary)
    writer = GGUFWriter(folder / FILENAME, kind.model_type)
    _add_options(writer, config, kind)
    _add_vocabulary(writer, vocabulary)
    for name, tensor in _tensors(config, state, kind).items():
        _add_tensor(writer, name, tensor, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kind.model_type


def _with_end(
    config: GPTConfig, state: State, vocabulary: gguf_tokenizer.Vocabulary
) -> tuple[GPTConfig, State]:
    """Return the model with one more token, the end of a text, which llama.cpp always has.

    Its logit is the mean of all others, so that it is never the largest.
    """
    vocabulary.end = len(vocabulary.tokens)
    vocabulary.tokens.append("<|endoftext|>")
    vocabulary.types.append(gguf_tokenizer.CONTROL)
    rows = {name: state[name] for name in ("wte.weight", HEAD)}
    longer = {name: torch.cat([each, each.mean(0, keepdim=True)]) for name, each in rows.items()}
    config = dataclasses.replace(config, vocab_size=config.vocab_size + 1)
    return config, {**state, **longer}


def _tensors(config: GPTConfig, state: State, kind: HubClass) -> State:
    """Return weights by llama.cpp's names."""
    if kind is GPT2:
        _, full = written_out(dataclasses.replace(config, bias=True), state)
        full["wpe.weight"] = full["wpe.weight"][: config.block_size]
        names, found = _GPT2_NAMES, full
        if config.tie_weights:
            del found[HEAD]
    else:
        # llama.cpp adds nothing to the weights of norms
        as_llama = dataclasses.replace(kind, norm_minus=0.0)
        names, found = _NAMES, hub_weights.weights(config, state, as_llama)
        if kind.model_type in _NEEDS_HEAD:
            found.setdefault(HEAD, state[HEAD])
    tensors = {}
    for name, tensor in found.items():
        stem, _, form = name.rpartition(".")
        layer, _, part = stem.removeprefix("model.layers.").removeprefix("h.").partition(".")
        if layer.isdigit():
            if kind.model_type in _NEIGHBOURS and part in ("self_attn.q_proj", "self_attn.k_proj"):
                tensor = _neighbours(tensor, config.head_size)
            tensors[f"blk.{layer}.{names[part]}.{form}"] = tensor
        else:
            tensors[f"{names[stem]}.{form}"] = tensor
    return tensors


def _neighbours(tensor: Tensor, head_size: int) -> Tensor:
    """Put the channels (i, i + head_size / 2) of a head, which are rotated together, in pairs."""
    rows = tensor.reshape(-1, 2, head_size // 2, *tensor.shape[1:])  # (heads, 2, pairs, ...)
    return rows.transpose(1, 2).reshape(tensor.shape)


def _add_options(writer: "GGUFWriter", config: GPTConfig, kind: HubClass) -> None:
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.norm == "rms":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if kind is not GPT2:
        writer.add_rope_dimension_count(config.head_size)
        writer.add_rope_freq_base(config.position_base)
        writer.add_key_length(config.head_size)
        writer.add_value_length(config.head_size)
    if kind.model_type == "stablelm":
        writer.add_parallel_residual(False)


def _add_vocabulary(writer: "GGUFWriter", vocabulary: gguf_tokenizer.Vocabulary) -> None:
    assert vocabulary.end is not None
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges([f"{left} {right}" for left, right in vocabulary.merges])
    writer.add_bos_token_id(vocabulary.end)
    writer.add_eos_token_id(vocabulary.end)
    # gptlit puts no token before a prompt
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _add_tensor(writer: "GGUFWriter", name: str, tensor: Tensor, dtype: str) -> None:
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    kinds: dict[str, Any] = {"f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
    array = tensor.detach().float().contiguous().numpy()
    kind = kinds.get(dtype, Kind.F32)
    if tensor.dim() < 2 or name.startswith("position_embd"):
        kind = Kind.F32
    elif kind == Kind.Q8_0 and tensor.size(1) % 32:  # numbers of a block of q8_0
        kind = Kind.F16
    writer.add_tensor(name, quants.quantize(array, kind), raw_dtype=kind)
