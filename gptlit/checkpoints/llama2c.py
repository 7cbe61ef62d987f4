"""Reads the .bin files of llama2.c: a Llama's weights, and its tokenizer.

Source: github.com/karpathy/llama2.c, export.py and tokenizer.py.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gptlit.checkpoints.llama_names import from_llama, from_llama_weights, parts
from gptlit.checkpoints.weight_shapes import HEAD, Shape, State
from gptlit.corpora.inputs import refuse_endless
from gptlit.messages import UsageError, errors_about
from gptlit.model.config import GPTConfig
from gptlit.plain_data import shown
from gptlit.tokenizers.hugging_face import SPACE, JsonTokenizer

_MAGIC = 0x616B3432  # of all versions but the first, which has no magic number
_HEADER = struct.Struct("<7i")
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
# a matrix or vector of all layers after the other, by the end of its name
_ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
_MLP = [f"mlp.{name}_proj.weight" for name in ("gate", "down", "up")]
_NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
_SPECIAL = ("<unk>", "<s>", "</s>")


def read_llama2c(
    weights: Path, tokenizer: Path | None, folder: Path
) -> tuple[GPTConfig, State, JsonTokenizer]:
    """Read a model's config, weights and tokenizer from files of llama2.c.

    Args:
        weights: Path of a .bin of float32 weights, of version 0 or 1.
        tokenizer: Path of its tokenizer.bin; None for the one in the folder of the weights.
        folder: Not used.

    Raises:
        UsageError: Missing, torn, quantized, or with sizes that differ from those of the file.
    """
    tokenizer = tokenizer or weights.with_name("tokenizer.bin")
    for path in (weights, tokenizer):
        refuse_endless(path, "llama2c")
        if not path.is_file():
            raise UsageError(f"{path.name}: no such file")
    with errors_about(weights.name):
        config, state = _read_weights(weights)
    with errors_about(tokenizer.name):
        content = _tokenizer_json(tokenizer.read_bytes(), config.vocab_size)
        return config, state, JsonTokenizer(tokenizer.stem, content, config.vocab_size)


def _read_weights(path: Path) -> tuple[GPTConfig, State]:
    with path.open("rb") as file:
        head = file.read(256)
    if len(head) < 256:
        raise UsageError("torn, or not a file of llama2.c")
    magic, version = struct.unpack_from("<Ii", head)
    is_first = magic != _MAGIC
    if not is_first and version != 1:
        raise UsageError(f"version {version}: only float32 weights are read, of version 0 or 1")
    sizes = dict(zip(_SIZES, _HEADER.unpack_from(head, 0 if is_first else 8), strict=True))
    # the first version marks an untied head by a negative size
    is_tied = sizes["vocab_size"] > 0 if is_first else bool(head[36])
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    options = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": is_tied}
    config = from_llama(options | sizes)
    start = _HEADER.size if is_first else 256
    n_numbers, rest = divmod(path.stat().st_size - start, 4)
    needed = _n_numbers(config, is_first)
    if rest or needed != n_numbers:
        n_bytes = f"{path.stat().st_size:,} bytes"
        raise UsageError(f"{n_bytes}; by its sizes it should have {start + 4 * needed:,}")
    named = list(_in_order(config, is_first))
    numbers = torch.from_numpy(np.fromfile(path, dtype="<f4", offset=start))
    tensors = numbers.split([math.prod(shape) for _, shape in named])
    theirs = {
        name: tensor.view(shape)
        for (name, shape), tensor in zip(named, tensors, strict=True)
        if name
    }
    state = from_llama_weights(theirs, config)
    n_rows = (config.n_head + config.kv_heads) * config.head_size  # of queries and keys
    for name in state:
        if name.endswith("c_attn.weight"):
            # llama2.c rotates the pairs of channels (2 i, 2 i + 1)
            heads = state[name][:n_rows].view(-1, config.head_size // 2, 2, config.n_embd)
            state[name][:n_rows] = heads.transpose(1, 2).reshape(n_rows, config.n_embd)
    return config, state


def _n_numbers(config: GPTConfig, is_first: bool) -> int:
    """Return the numbers in a file, without a list of its layers, whose number is not trusted."""
    without, with_one = (
        sum(
            math.prod(shape)
            for _, tensors in parts(dataclasses.replace(config, n_layer=n_layer))
            for _, shape in tensors
        )
        for n_layer in (0, 1)
    )
    tables = config.block_size * config.head_size if is_first else 0
    return without + config.n_layer * (with_one - without) + tables


def _in_order(config: GPTConfig, is_first: bool) -> Iterator[tuple[str, Shape]]:
    """Yield names as in Hugging Face's files, and shapes, in a file's order; "" for a table."""
    shapes = {name: shape for _, tensors in parts(config) for name, shape in tensors}
    top = ["model.norm.weight", "model.embed_tokens.weight"]
    if is_first:
        order = [top[1], _NORMS[0], *_ATTENTION, _NORMS[1], *_MLP, top[0], "", ""]
    else:
        order = [*_NORMS, *top, *_ATTENTION, *_MLP]
    for name in [*order, *([] if config.tie_weights else [HEAD])]:
        if name in shapes:
            yield name, shapes[name]
        elif not name:  # cosines, then sines, of rotary positions
            yield "", (config.block_size, config.head_size // 2)
        else:
            for layer in range(config.n_layer):
                full = f"model.layers.{layer}.{name}"
                yield full, shapes[full]


def _tokenizer_json(content: bytes, vocab_size: int) -> str:
    """Return a SentencePiece BPE from a tokenizer.bin as the content of a tokenizer.json."""
    vocab, scores, at = {}, [], 4  # after the length of the longest piece
    for id_ in range(vocab_size):
        if at + 8 > len(content):
            raise UsageError(f"torn, or of fewer than the model's {vocab_size:,} tokens")
        score, length = struct.unpack_from("<fi", content, at)
        piece = content[at + 8 : at + 8 + length]
        if length < 0 or len(piece) != length:
            raise UsageError("torn, or not a tokenizer of llama2.c")
        token = _SPECIAL[id_] if id_ < 3 else piece.decode(errors="replace").replace(" ", SPACE)
        if token in vocab:
            raise UsageError(f"has the piece {shown(token)} twice")
        vocab[token] = id_
        scores.append(score)
        at += 8 + length
    if at != len(content):
        raise UsageError(f"has more than the model's {vocab_size:,} tokens")
    ranked = sorted((id_ for id_ in vocab.values() if id_ > 258), key=lambda id_: -scores[id_])
    tokens = list(vocab)
    merges = [
        [token[:cut], token[cut:]]
        for token in (tokens[id_] for id_ in ranked)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    how = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [
        {"id": id_, "content": name, "special": True, **how} for id_, name in enumerate(_SPECIAL)
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    begin = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    described = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": SPACE}, space],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": begin,
            "pair": begin,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": merges,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }
    return json.dumps(described, ensure_ascii=False)
