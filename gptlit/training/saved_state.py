"""What a run goes on from besides its weights, compared with what this run itself would save.

Optimizer, schedule, loops and callbacks restore whatever a checkpoint has for them, and fail by
it later. Here each part of unknown origin is refused by name, or what is of no use left out.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints.weight_shapes import check_tensors
from gptlit.messages import UsageError

# of an optimizer's numbers for a parameter, those that are not of its shape
SCALARS = {"step"}
LINES = {"mean_square"}  # Muon's, one for each row or each column
ADAMS = {"step", "exp_avg", "exp_avg_sq"}
OTHERS = {"momentum_buffer", "mean_square"}


class _Group(TypedDict):
    params: list[int | str]


class _Optimizer(TypedDict):
    state: dict[Any, dict[str, Any]]
    param_groups: list[_Group]


class _Scheduler(TypedDict):
    last_epoch: int
    _step_count: int
    _last_lr: list[float]
    base_lrs: NotRequired[list[float]]
    _is_initial: NotRequired[bool]
    _get_lr_called_within_step: NotRequired[bool]


class _Place(TypedDict):
    epoch: int
    position: int


class _Loaders(TypedDict):
    combined_loader: list[_Place]


class _Training(TypedDict):
    optimizer_states: list[_Optimizer]
    lr_schedulers: list[_Scheduler]
    loops: dict[str, dict[str, Any]]


class _Average(TypedDict):
    updates: int
    weights: dict[str, Any]


def check_callbacks(
    content: Mapping[str, Any], callbacks: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Refuse states of callbacks that aren't made like those they have now.

    Args:
        content: Of the checkpoint.
        callbacks: The key and the state of each.

    Raises:
        UsageError: names the part that can't be restored.
    """
    plain_data.check(dict[str, dict[str, Any]], content.get("callbacks", {}), "callbacks")
    for key, state in callbacks:
        if found := content.get("callbacks", {}).get(key):
            plain_data.like(
                _of_any_number(dict(state)), found, f"callbacks.{key.partition('{')[0]}"
            )


def check_saved_paths(state: Mapping[str, Any], folder: str, name: str) -> None:
    """Refuse a ModelCheckpoint's state with paths that lead out of its folder.

    Lightning removes what lies there when a better checkpoint is saved, with all that is in it.

    Args:
        state: Of the callback, as a checkpoint has it.
        folder: The callback's.
        name: What messages call the state.

    Raises:
        UsageError: names the path.
    """
    names = ("best_model_path", "kth_best_model_path", "last_model_path", "dirpath")
    paths = [state.get(each) for each in names]
    best = state.get("best_k_models", {})
    plain_data.check(dict[str, Any], best, f"{name}.best_k_models")
    for path in [*paths, *best]:
        plain_data.check(str | None, path, name)
        if path and _leads_out(path, folder):
            raise UsageError(f"{name} {plain_data.shown(path)}: leads out of its folder {folder}")


def _leads_out(path: str, folder: str) -> bool:
    if re.search(r"://|::", path):  # on a server, or a local file by another name
        return not re.search("://", folder) or not path.startswith(folder)
    # as Lightning compares them, which follows neither links nor ".."
    inside = Path(folder).absolute() in Path(path).absolute().parents
    return inside and Path(folder).resolve() not in Path(path).resolve().parents


def _of_any_number(example: Any) -> Any:
    """An example whose whole numbers stand for any: a time of 0 s can become one of 0.28 s."""
    if isinstance(example, dict):
        return {name: _of_any_number(each) for name, each in example.items()}
    return float(example) if type(example) is int else example


def check_training(content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Make what a checkpoint has for a run's training fit for being restored.

    Args:
        content: Of the checkpoint, changed in place.
        optimizer: A new one of the run's.

    Raises:
        UsageError: names the part that can't be restored.
    """
    plain_data.check(_Training, content, "")
    for name in ("optimizer_states", "lr_schedulers"):
        if len(content[name]) != 1:
            raise UsageError(f"{name} has {len(content[name])} of them, and a run one")
    content["optimizer_states"] = [_optimizer(content["optimizer_states"][0], optimizer)]
    content["lr_schedulers"] = [_scheduler(content["lr_schedulers"][0], optimizer)]


def _optimizer(saved: Any, new: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with the new one's options, which are the run's own."""
    groups = new.state_dict()["param_groups"]
    sizes = [[len(group["params"]) for group in each] for each in (saved["param_groups"], groups)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"optimizer_states.param_groups have {sizes[0]} parameters, and the model {sizes[1]}"
        )
    named = [name for group in saved["param_groups"] for name in group["params"]]
    owners = [(parameter, group) for group in new.param_groups for parameter in group["params"]]
    known = dict(zip(named, owners, strict=True))
    if len(known) < len(named):
        raise UsageError("optimizer_states.param_groups have a parameter twice")
    for name, state in saved["state"].items():
        where = f"optimizer_states.state.{plain_data.in_short(str(name))}"
        if name not in known:
            raise UsageError(f"{where} is of no parameter")
        parameter, group = known[name]
        names = ADAMS if "betas" in group else OTHERS
        if state and (not state.keys() <= names or (names is ADAMS and state.keys() < names)):
            raise UsageError(f"{where} must have {', '.join(sorted(names))}")
        for key, tensor in state.items():
            if key == "momentum_buffer" and tensor is None:
                continue
            check_tensors({key: tensor}, f"{where}.")
            _check_shape(key, tensor, parameter, where)
    pairs = zip(saved["param_groups"], groups, strict=True)
    return {
        "state": saved["state"],
        "param_groups": [{**group, "params": old["params"]} for old, group in pairs],
    }


def _check_shape(key: str, tensor: Tensor, parameter: Tensor, where: str) -> None:
    shape = tuple(parameter.shape)
    lines = (shape[0], 1) if len(shape) < 2 or shape[0] >= shape[1] else (1, shape[1])
    wanted = () if key in SCALARS else lines if key in LINES else shape
    if tuple(tensor.shape) != wanted:
        raise UsageError(f"{where}.{key} is of shape {tuple(tensor.shape)}, and should be {wanted}")


def _scheduler(saved: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A schedule's state without what it would take for its own attributes."""
    n_groups = len(optimizer.param_groups)
    if len(saved["_last_lr"]) != n_groups or saved["last_epoch"] < 0:
        raise UsageError("lr_schedulers: must have a rate for each group, and last_epoch 0 or more")
    kept = {name: saved[name] for name in _Scheduler.__annotations__ if name in saved}
    return {**kept, "lr_lambdas": [None] * n_groups}


def check_loop(
    content: dict[str, Any], name: str, example: Mapping[str, Any], has_place: bool
) -> None:
    """Make what a checkpoint has for one of the Trainer's loops fit for being restored.

    Args:
        content: Of the checkpoint, changed in place.
        name: Of the loop, such as fit_loop.
        example: Its state as it is now.
        has_place: Whether it has begun an epoch, and the loader its place in the text.

    Raises:
        UsageError: names the part that can't be restored.
    """
    if "loops" not in content:
        return
    plain_data.check(dict[str, dict[str, Any]], content["loops"], "loops")
    loop = content["loops"].get(name)
    loop = plain_data.like(dict(example), {} if loop is None else loop, f"loops.{name}")
    _check_counts(loop, f"loops.{name}")
    if has_place:
        loaders = loop["state_dict"]
        plain_data.check(_Loaders, loaders, f"loops.{name}")
        if len(loaders["combined_loader"]) != 1:
            raise UsageError(f"loops.{name}.state_dict: a run has one loader")
    content["loops"] = {**content["loops"], name: loop}


def _check_counts(part: Any, name: str) -> None:
    if isinstance(part, dict):
        for key, each in part.items():
            _check_counts(each, f"{name}.{key}")
    elif isinstance(part, list):
        for index, each in enumerate(part):
            _check_counts(each, f"{name}[{index}]")
    elif isinstance(part, int) and not 0 <= part < 2**63:
        raise UsageError(f"{name} {plain_data.shown(part)}: must be 0 or more")


def check_average(kept: Any) -> None:
    """Refuse what is no state of an average of weights; the weights are compared elsewhere."""
    plain_data.check(_Average, kept, "averaged")
    if kept["updates"] < 0:
        raise UsageError(f"averaged.updates {kept['updates']}: must be 0 or more")
