"""Checks of the state that a run resumes from, other than its weights.

Optimizer, schedule, loops and callbacks restore whatever a checkpoint contains, and would fail
later. Here each part is compared with the state that this run itself would save; an invalid part
is refused by name, and unknown entries are left out.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints.weight_shapes import check_tensors, checked
from gptlit.messages import UsageError
from gptlit.model.config import GPTConfig
from gptlit.steps.user_batches import text_of
from gptlit.training import loop_state
from gptlit.training.monitors import is_from

AVERAGED = "averaged"  # a checkpoint's key of the raw weights, if its own are averages
# an optimizer's values for a parameter
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


class _Training(TypedDict):
    optimizer_states: list[_Optimizer]
    lr_schedulers: list[_Scheduler]
    loops: dict[str, dict[str, Any]]


class _Average(TypedDict):
    updates: int
    weights: dict[str, Any]
    is_kept: NotRequired[bool]  # False: these are the averages, and the checkpoint's own are raw


def check(
    content: dict[str, Any],
    trainer: L.Trainer,
    config: GPTConfig,
    new_optimizer: Callable[[], torch.optim.Optimizer],
) -> None:
    """Refuse state that Lightning would fail to restore, now or later.

    Args:
        content: Content of the checkpoint, changed in place.
        trainer: Trainer that restores it.
        config: Config of the net.
        new_optimizer: Makes an optimizer of the run.

    Raises:
        UsageError: The message names the invalid part.
    """
    try:
        _check_loop_and_callbacks(content, trainer)
        if trainer.state.fn == "fit" and "state_dict" in content:
            _check_training(content, new_optimizer())
            _check_average(content, config)
    except UsageError as error:
        raise UsageError(str(error), "ckpt_path", trainer.ckpt_path) from error


def _check_loop_and_callbacks(content: dict[str, Any], trainer: L.Trainer) -> None:
    assert trainer.state.fn is not None
    verb = trainer.state.fn.value
    # without the position of a loader that was in use before, as in Lightning's tuner
    loop = {**getattr(trainer, f"{verb}_loop").state_dict(), "state_dict": {}}
    # the user's own loaders may have no position
    has_place = verb == "fit" and bool(content["global_step"]) and text_of(trainer) is not None
    loop_state.check_loop(content, f"{verb}_loop", loop, has_place)
    states = content.get("callbacks", {})
    plain_data.check(dict[str, dict[str, Any]], states, "callbacks")
    for callback in trainer.callbacks:
        if not (state := states.get(callback.state_key)):
            continue
        # of a user's own callback only its author knows which states are valid
        if is_from(callback, "lightning", "gptlit"):
            example = _of_any_number(dict(callback.state_dict()))
            added = {name: example[name] for name in getattr(callback, "ADDED_STATE", ())}
            name = f"callbacks.{callback.state_key.partition('{')[0]}"
            plain_data.like(example, added | state, name)
        if isinstance(callback, ModelCheckpoint):
            name = f"callbacks.{type(callback).__name__}"
            _check_saved_paths(state, str(callback.dirpath or "."), name)


def _check_saved_paths(state: Mapping[str, Any], folder: str, name: str) -> None:
    """Refuse a ModelCheckpoint's state with paths that lead out of its folder.

    Lightning removes these files and folders when a better checkpoint is saved.
    """
    keys = ("best_model_path", "kth_best_model_path", "last_model_path", "dirpath")
    best = state.get("best_k_models", {})
    plain_data.check(dict[str, Any], best, f"{name}.best_k_models")
    for path in [*map(state.get, keys), *best]:
        plain_data.check(str | None, path, name)
        if path and _leads_out(path, folder):
            raise UsageError(f"{name} {plain_data.shown(path)}: leads out of its folder {folder}")


def _leads_out(path: str, folder: str) -> bool:
    if re.search(r"://|::", path):  # on a server, or a local file by another name
        return not re.search("://", folder) or not path.startswith(folder)
    # as Lightning compares them: it follows neither links nor ".."
    inside = Path(folder).absolute() in Path(path).absolute().parents
    return inside and Path(folder).resolve() not in Path(path).resolve().parents


def _of_any_number(example: Any) -> Any:
    """Return an example whose integers allow any number, since a time of 0 s can become 0.28 s."""
    if isinstance(example, dict):
        return {name: _of_any_number(each) for name, each in example.items()}
    return float(example) if type(example) is int else example


def _check_training(content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Check a checkpoint's optimizer and schedule against a new optimizer of the run."""
    plain_data.check(_Training, content, "")
    for name in ("optimizer_states", "lr_schedulers"):
        if len(content[name]) != 1:
            raise UsageError(f"{name} has {len(content[name])} entries, and a run has one")
    content["optimizer_states"] = [_optimizer(content["optimizer_states"][0], optimizer)]
    content["lr_schedulers"] = [_scheduler(content["lr_schedulers"][0], optimizer)]


def _optimizer(saved: Any, new: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's saved state, with the options of the run's new optimizer."""
    saved_groups, groups = saved["param_groups"], new.state_dict()["param_groups"]
    saved_sizes, sizes = ([len(each["params"]) for each in part] for part in (saved_groups, groups))
    if saved_sizes != sizes:
        raise UsageError(
            f"optimizer_states.param_groups have {saved_sizes} parameters, and the model {sizes}"
        )
    names = [name for group in saved_groups for name in group["params"]]
    owners = [(parameter, group) for group in new.param_groups for parameter in group["params"]]
    known = dict(zip(names, owners, strict=True))
    if len(known) < len(names):
        raise UsageError("optimizer_states.param_groups have a parameter twice")
    for name, state in saved["state"].items():
        where = f"optimizer_states.state.{plain_data.in_short(str(name))}"
        if name not in known:
            raise UsageError(f"{where} belongs to no parameter of the model")
        parameter, group = known[name]
        keys = ADAMS if "betas" in group else OTHERS
        if state and (not state.keys() <= keys or (keys is ADAMS and state.keys() < keys)):
            raise UsageError(f"{where} must have {', '.join(sorted(keys))}")
        for key, tensor in state.items():
            if key == "momentum_buffer" and tensor is None:
                continue
            check_tensors({key: tensor}, f"{where}.")
            _check_shape(key, tensor, parameter, where)
    pairs = zip(saved_groups, groups, strict=True)
    merged = [{**group, "params": saved_group["params"]} for saved_group, group in pairs]
    return {"state": saved["state"], "param_groups": merged}


def _check_shape(key: str, tensor: Tensor, parameter: Tensor, where: str) -> None:
    expected = tuple(parameter.shape)
    if key == "step":
        expected = ()
    elif key == "mean_square":  # Muon's, one for each row or each column
        is_wide = len(expected) > 1 and expected[1] > expected[0]
        expected = (1, expected[1]) if is_wide else (expected[0], 1)
    if (shape := tuple(tensor.shape)) != expected:
        raise UsageError(f"{where}.{key} is of shape {shape}, and should be {expected}")


def _scheduler(saved: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a schedule's state without unknown entries, which would become its attributes."""
    n_groups = len(optimizer.param_groups)
    if len(saved["_last_lr"]) != n_groups or saved["last_epoch"] < 0:
        raise UsageError("lr_schedulers: must have a rate for each group, and last_epoch 0 or more")
    known = {name: saved[name] for name in _Scheduler.__annotations__ if name in saved}
    return {**known, "lr_lambdas": [None] * n_groups}


def _check_average(content: Mapping[str, Any], config: GPTConfig) -> None:
    if (saved := content.get(AVERAGED)) is None:
        return
    plain_data.check(_Average, saved, AVERAGED)
    if saved["updates"] < 0:
        raise UsageError(f"{AVERAGED}.updates {saved['updates']}: must be 0 or more")
    checked(saved["weights"], config, f"{AVERAGED}.weights.")
