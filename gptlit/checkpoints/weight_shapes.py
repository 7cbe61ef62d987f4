"""Names and shapes of a config's weights, and checks of weights from files.

Shapes are computed without allocating tensors, so that the sizes in a file's config are compared
with its tensors before any memory is taken for them.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gptlit.messages import UsageError
from gptlit.model import lora
from gptlit.model.config import GPTConfig
from gptlit.plain_data import in_short

State = dict[str, Tensor]
Shape = tuple[int, ...]
Rows = list[tuple[str, Shape]]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HEAD, EMBEDDING, MASK = "lm_head.weight", "wte.weight", "noise.mask"


class NotFinite(UsageError):
    """A weight has NaN or infinite numbers."""


def shapes(config: GPTConfig) -> Iterator[tuple[str, Shape]]:
    """Yield the name and shape of each weight of a GPT, in the order of its `state_dict()`."""
    C = config.n_embd
    yield EMBEDDING, (config.vocab_size, C)
    if config.positions == "learned":
        yield "wpe.weight", (config.n_positions or config.block_size, C)
    for layer in range(config.n_layer):
        for name, shape in _of_block(config):
            yield f"h.{layer}.{name}", shape
    yield from _of_norm(config, "ln_f")
    yield HEAD, (config.vocab_size, C)
    if config.head_bias:
        yield "lm_head.bias", (config.vocab_size,)
    if config.token_dropout:
        yield MASK, (1, C)


def _of_block(config: GPTConfig) -> Iterator[tuple[str, Shape]]:
    C, heads = config.n_embd, config.n_head + 2 * config.kv_heads
    into = config.hidden * (2 if config.activation == "swiglu" else 1)
    if config.mixer == "attention":
        yield from _of_norm(config, "ln_1")
        yield from _of_shift(config, "attn")
        yield from _of_linear(config, "attn.c_attn", C, heads * config.head_size)
        if config.qk_norm and config.norm_weight:
            yield "attn.q_norm.weight", (config.head_size,)
            yield "attn.k_norm.weight", (config.head_size,)
        if config.attn_proj:
            yield from _of_linear(config, "attn.c_proj", C, C)
    yield from _of_norm(config, "ln_2")
    yield from _of_shift(config, "mlp")
    yield from _of_linear(config, "mlp.c_fc", C, into)
    yield from _of_linear(config, "mlp.c_proj", config.hidden, C)


def _of_norm(config: GPTConfig, name: str) -> Iterator[tuple[str, Shape]]:
    if config.norm_weight:
        yield f"{name}.weight", (config.n_embd,)
        if config.bias and config.norm == "layer":
            yield f"{name}.bias", (config.n_embd,)


def _of_shift(config: GPTConfig, name: str) -> Iterator[tuple[str, Shape]]:
    for distance in range(config.token_shift):
        yield f"{name}.shift.shares.{distance}", (config.n_embd,)


def _of_linear(config: GPTConfig, name: str, n_in: int, n_out: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (n_out, n_in)
    if config.bias:
        yield f"{name}.bias", (n_out,)
    if config.lora_r and name.rpartition(".")[2] in config.lora_on:
        yield f"{name}.{lora.A}", (config.lora_r, n_in)
        yield f"{name}.{lora.B}", (n_out, config.lora_r)


def for_writing(config: GPTConfig, state: State) -> tuple[GPTConfig, State]:
    """Return a model's config and weights without the parts that only training needs.

    They are the mask of hidden tokens, and LoRA's changes, which are added to their matrices.
    """
    config, state = lora.merged(dataclasses.replace(config, token_dropout=0.0), state)
    return config, {name: tensor for name, tensor in state.items() if name != MASK}


# ---------------------------------------------------------------------- weights from files


def checked(state: Mapping[str, Any], config: GPTConfig, prefix: str = "") -> State:
    """Return the weights of a model in its own order, after checks; a tied head may be missing.

    No memory is allocated, also where a config has sizes beyond any memory.

    Args:
        state: Content of a file: tensors by gptlit's names, if it is valid.
        config: Config of their model.
        prefix: Prefix of the names in messages.

    Raises:
        UsageError: A weight is missing, unknown, of another shape, not of floating point numbers,
            or not finite.
    """
    if config.vocab_size < 1:
        raise UsageError(f"vocab_size {config.vocab_size}: a model has 1 token or more")
    state = dict(state)
    if config.tie_weights and EMBEDDING in state:
        state.setdefault(HEAD, state[EMBEDDING])
    check_tensors(state, prefix)
    _compare(state, config, prefix)
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise NotFinite(f"{prefix}{name} is not finite: it has NaN or infinite numbers")
    if config.tie_weights:
        if not torch.equal(state[HEAD], state[EMBEDDING]):
            raise UsageError(f"{prefix}{HEAD} isn't {EMBEDDING}, though the model's head is tied")
        state[HEAD] = state[EMBEDDING]
    return {name: state[name] for name, _ in shapes(config)}


def _compare(state: Mapping[str, Tensor], config: GPTConfig, prefix: str) -> None:
    """Refuse weights that don't fit a config, at the first one that is missing."""
    known = set()
    for name, shape in shapes(config):
        if name not in state:
            layers = len({key.split(".")[1] for key in state if key.startswith("h.")})
            cause = ""
            if name.startswith("h.") and layers < config.n_layer:
                cause = f": n_layer is {config.n_layer}, and they have {layers} layers"
            raise UsageError(f"the weights lack {prefix}{name}, of shape {shape}{cause}")
        if (found := tuple(state[name].shape)) != shape:
            reason = f"is of shape {found}; by its sizes it should be {shape}"
            raise UsageError(f"{prefix}{name} {reason}")
        known.add(name)
    if unknown := [prefix + in_short(name) for name in state if name not in known]:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        names = f"{', '.join(unknown[:3])}{more}"
        raise UsageError(f"the weights have {names}, which a GPT with these options doesn't have")


def gathered(theirs: Mapping[str, Tensor], parts: Iterable[tuple[str, Rows]]) -> State:
    """Return weights by gptlit's names, in float32, from those of a program that has them in parts.

    Args:
        theirs: Weights by their names. Those without a place keep theirs, which `checked` refuses.
        parts: Name of each weight, and the names and shapes of the tensors that are its rows, in
            order. Missing biases are zeros.

    Raises:
        UsageError: A tensor is missing or of another shape.
    """
    left, state = dict(theirs), {}
    for name, tensors in parts:
        rows = []
        for their_name, shape in tensors:
            if their_name not in left and not name.endswith(".bias"):
                raise UsageError(f"the weights lack {their_name}, of shape {shape}")
            rows.append(left.pop(their_name) if their_name in left else torch.zeros(shape))
            if (found := tuple(rows[-1].shape)) != shape:
                reason = f"is of shape {found}; by its sizes it should be {shape}"
                raise UsageError(f"{their_name} {reason}")
        state[name] = torch.cat([each.float() for each in rows]) if rows[1:] else rows[0].float()
    return {**state, **left}


def in_float32(state: State) -> State:
    """Return weights in float32; a tied head stays tied."""
    single = {id(tensor): tensor.float().contiguous() for tensor in state.values()}
    return {name: single[id(tensor)] for name, tensor in state.items()}


def check_tensors(state: Mapping[Any, Any], prefix: str = "") -> None:
    """Refuse anything but tensors of floating point numbers that don't share memory.

    Raises:
        UsageError: Names the first one, and its type.
    """
    views: set[Any] = set()
    storages: set[int] = set()
    needed = held = 0  # bytes
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise UsageError(f"{prefix}{in_short(str(name))} is a {kind}, not a tensor")
        shown = prefix + in_short(name)
        if wrong := _kind(tensor):
            raise UsageError(
                f"{shown} is a tensor of {wrong}; weights are of floating point numbers, "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES)}"
            )
        storage, n_bytes = tensor.untyped_storage(), tensor.numel() * tensor.element_size()
        place = storage.data_ptr()
        view = (place, tensor.storage_offset(), tensor.shape, tensor.stride())
        is_tied = view in views and name.endswith((HEAD, EMBEDDING))  # one tensor, two names
        needed += n_bytes * (not is_tied)
        held += storage.nbytes() * (place not in storages)
        views.add(view)
        storages.add(place)
        # views can repeat numbers, so that a small file announces large sizes
        if n_bytes > storage.nbytes() or needed > held:
            raise UsageError(
                f"{shown}: takes {n_bytes:,} bytes by its shape {tuple(tensor.shape)}, more than "
                "the file has for it"
            )


def _kind(tensor: Tensor) -> str | None:
    """Return the reason why a tensor can't be a weight; None if it can."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_nested:
        return type(tensor).__name__ if type(tensor) is not Tensor else "other tensors"
    if tensor.is_quantized:
        return "quantized numbers"
    if tensor.layout != torch.strided:
        return f"layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_meta:
        return "no values"
    return None if tensor.dtype in DTYPES else str(tensor.dtype).removeprefix("torch.")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; takes little memory for any size."""
    if not tensor.numel():
        return True
    # doubles must be finite in single precision, too
    return all(bool(bound.float().isfinite()) for bound in torch.aminmax(tensor.detach()))
