"""LoRA adapters as files of their own, in the format of Hugging Face's peft.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, with peft's names for
GPT2LMHeadModel, or for LlamaForCausalLM where the model has Llama's parts. A Llama's queries, keys
and values have an A each, which here is the same one, and their own rows of B.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints import llama_names
from gptlit.checkpoints.weight_files import new_folder, tensors_of, write_json, write_tensors
from gptlit.checkpoints.weight_shapes import check_tensors, is_finite, shapes
from gptlit.messages import UsageError, note, opt
from gptlit.model import lora
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "gptlit_base.json"  # the fingerprint of the matrices that are changed, by gptlit alone
_PREFIX = "base_model.model."
# options that change what an adapter computes, with the values that are read
_FIXED: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
}
_EMPTY = ("modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
          "alora_invocation_tokens")  # fmt: skip
_STARTS = ("gaussian", "eva", "orthogonal")  # others, such as pissa, change the base as well


class Place(NamedTuple):
    """The rows of a matrix that a pair of lora_A and lora_B changes."""

    name: str  # of the weight, by gptlit
    row: int
    n_rows: int
    n_columns: int


class _Options(TypedDict):
    """The options of peft's LoraConfig that are read."""

    r: int
    lora_alpha: float
    peft_type: NotRequired[str]


def has_llama_parts(config: GPTConfig) -> bool:
    """Whether LlamaForCausalLM has the places of a model's matrices, under its own names."""
    parts = (config.norm, config.positions, config.activation, config.norm_place)
    return parts == ("rms", "rotary", "swiglu", "pre") and config.attn_proj


def places(config: GPTConfig) -> dict[str, Place]:
    """Return the places of the matrices that an adapter can change, by peft's names of them."""
    found: dict[str, Place] = {}
    for name, shape in shapes(dataclasses.replace(config, lora_r=0)):
        if name.startswith("h.") and len(shape) == 2:
            found[f"transformer.{name}"] = Place(name, 0, *shape)
    if has_llama_parts(config):
        for name, tensors in llama_names.parts(config):
            row = 0
            for theirs, shape in tensors if name.startswith("h.") else ():
                if len(shape) == 2:
                    found[theirs] = Place(name, row, *shape)
                    row += shape[0]
    return {name.removesuffix(".weight"): place for name, place in found.items()}


# ---------------------------------------------------------------------- writing


def write(config: GPTConfig, state: Mapping[str, Tensor], folder: Path, base: str | None) -> None:
    """Write the changes of a model with LoRA.

    Args:
        config: Config of the model, with its rank.
        state: Weights of the model by gptlit's names.
        folder: Folder to write; must be new or empty.
        base: Name or path of the weights that the changes belong to, for peft.

    Raises:
        UsageError: The model has no LoRA, or the folder isn't empty.
    """
    if not config.lora_r:
        raise UsageError("the model was trained without LoRA, so that it has no adapter")
    kind = "model." if has_llama_parts(config) else "transformer."
    tensors: dict[str, Tensor] = {}
    changed: set[str] = set()
    for theirs, at in places(config).items():
        layer = at.name.removesuffix(".weight")
        if theirs.startswith(kind) and f"{layer}.{lora.A}" in state:
            changed.add(at.name)
            first, second = (state[f"{layer}.{each}"].detach() for each in (lora.A, lora.B))
            rows = second[at.row : at.row + at.n_rows]
            pair = {"A": first.clone(), "B": rows.clone()}
            tensors |= {f"{_PREFIX}{theirs}.lora_{each}.weight": pair[each] for each in pair}
    targets = {name.split(".")[-3] for name in tensors}
    options = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted(targets),
        # GPT-2's class in transformers has its matrices as (inputs, outputs)
        "fan_in_fan_out": kind == "transformer.",
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(folder) as new:
        write_json(new / CONFIG, options)
        write_tensors(new / WEIGHTS, tensors)
        # not in WEIGHTS, whose header has no order, nor in CONFIG, whose names peft checks
        write_json(new / BASE, _fingerprint(state, changed))


def _fingerprint(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, str]:
    """Return a hash of matrices, which are the same in float32 and rounded to bfloat16."""
    found = hashlib.sha256()
    for name in sorted(names):
        rounded = weights[name].detach().to("cpu", torch.bfloat16).contiguous()
        found.update(f"{name} {tuple(rounded.shape)}".encode())
        found.update(rounded.view(torch.int16).numpy().tobytes())
    return {"sha256": found.hexdigest()}


# ---------------------------------------------------------------------- reading


def apply(model: GPT, folder: Path) -> None:
    """Add an adapter's changes to a model's matrices, in place.

    A warning says where gptlit wrote the adapter for other weights than the model's.

    Args:
        model: The model that the adapter was trained on.
        folder: Folder in peft's format.

    Raises:
        UsageError: Missing, torn, of another kind than LoRA, or of a model of other sizes; or the
            model has LoRA of its own, which isn't merged.
    """
    _add(model, _read(model, folder))


def adapted(model: GPT, folder: Path) -> GPT:
    """Return a model with an adapter's changes; it shares with the given one what they leave alone.

    Args:
        model: The model that the adapter was trained on, which stays as it is.
        folder: Folder in peft's format.

    Raises:
        UsageError: As by `apply`.
    """
    changes = _read(model, folder)
    changed = {at.name for at, _ in changes}
    shared = {id(each): each for name, each in model.named_parameters() if name not in changed}
    other = copy.deepcopy(model, shared)  # takes what it is given for copies that it has made
    _add(other, changes)
    return other


def _add(model: GPT, changes: Iterable[tuple[Place, Tensor]]) -> None:
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for at, change in changes:
            rows = weights[at.name][at.row : at.row + at.n_rows]
            rows.copy_(rows.float() + change.to(rows.device))


def _read(model: GPT, folder: Path) -> list[tuple[Place, Tensor]]:
    try:
        if model.config.lora_r:
            raise UsageError("the model has changes by LoRA already; gptlit merge makes it plain")
        changes = list(_changes(folder, places(model.config)))
        base = plain_data.read_json(folder / BASE) if (folder / BASE).is_file() else None
    except UsageError as error:
        raise UsageError(str(error), "adapter", folder) from error
    own = _fingerprint(dict(model.named_parameters()), {at.name for at, _ in changes})
    if base not in (None, own):
        note(
            f"warning: {opt('adapter')} {folder}: was trained on other weights than this model's, "
            "so that its texts can be poor"
        )
    return changes


def _changes(folder: Path, known: Mapping[str, Place]) -> Iterator[tuple[Place, Tensor]]:
    scale = _scale(folder)
    tensors = dict(tensors_of(folder / WEIGHTS))
    check_tensors(tensors)
    pairs = {name.removesuffix(".lora_A.weight") for name in tensors if ".lora_A." in name}
    if others := sorted(tensors.keys() - {f"{p}.lora_{x}.weight" for p in pairs for x in "AB"}):
        raise UsageError(f"{plain_data.in_short(others[0])}: only lora_A and lora_B are read")
    for name in sorted(pairs):
        place = known.get(name.removeprefix(_PREFIX))
        if place is None:
            module = plain_data.in_short(name.removeprefix(_PREFIX))
            raise UsageError(f"changes {module}, which the model doesn't have")
        first, second = (tensors.get(f"{name}.lora_{each}.weight") for each in "AB")
        assert first is not None
        if second is None or first.dim() != 2 or second.dim() != 2 or len(first) != second.size(1):
            raise UsageError(f"{plain_data.in_short(name)}: its lora_A and lora_B don't fit")
        found, fits = (len(second), first.size(1)), (place.n_rows, place.n_columns)
        if found != fits:
            raise UsageError(
                f"was trained on another model: {place.name} of "
                f"{found[0]} x {found[1]}, and the model's has {fits[0]} x {fits[1]}"
            )
        change = scale * (second.float() @ first.float())
        if not is_finite(change):
            raise UsageError(f"{plain_data.in_short(name)} is not finite")
        yield place, change


def _scale(folder: Path) -> float:
    try:
        options = plain_data.read_json(folder / CONFIG)
    except FileNotFoundError as error:
        raise UsageError(f"no {CONFIG} in it; give the folder of a LoRA adapter") from error
    plain_data.check(_Options, options, CONFIG)
    for name, value in _FIXED.items():
        if (found := options.get(name, value)) != value:
            raise UsageError(f"{name} {plain_data.shown(found)}: only {value} is read")
    for name in _EMPTY:
        if options.get(name):
            raise UsageError(f"{name}: adapters with it aren't read")
    start = options.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in _STARTS:
        raise UsageError(f"init_lora_weights {plain_data.shown(start)}: changes the base as well")
    if options["r"] < 1:
        raise UsageError(f"r {options['r']}: must be 1 or more")
    return float(options["lora_alpha"]) / options["r"]
