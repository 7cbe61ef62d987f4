"""The state in a checkpoint that a run resumes from besides its weights, checked part by part.

Optimizer, schedule, loops and callbacks restore whatever a checkpoint contains, and would fail
later. Here each part is compared with the state that this run itself would save; invalid parts
are refused by name, and unused ones left out.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints import weight_shapes
from gptlit.checkpoints.weight_shapes import check_tensors
from gptlit.messages import UsageError
from gptlit.model.config import GPTConfig
from gptlit.training import loop_state
from gptlit.training.user_batches import text_of

AVERAGED = "averaged"  # a checkpoint's key of the weights that its averaged weights stand for
# an optimizer's values for a parameter that do not have the parameter's shape
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


class _Training(TypedDict):
    optimizer_states: list[_Optimizer]
    lr_schedulers: list[_Scheduler]
    loops: dict[str, dict[str, Any]]


class _Average(TypedDict):
    updates: int
    weights: dict[str, Any]


def check(
    content: dict[str, Any],
    trainer: L.Trainer,
    config: GPTConfig,
    new_optimizer: Callable[[], torch.optim.Optimizer],
) -> None:
    """Refuse what Lightning would fail to restore, now or later.

    Args:
        content: Content of the checkpoint, changed in place.
        trainer: The Trainer that restores it.
        config: Config of the net.
        new_optimizer: Makes an optimizer of the run.

    Raises:
        UsageError: names the part that can't be restored.
    """
    try:
        assert trainer.state.fn is not None
        fn, is_fit = trainer.state.fn.value, trainer.state.fn == "fit"
        # without the position of a loader that was in use before, as in Lightning's tuner
        loop = {**getattr(trainer, f"{fn}_loop").state_dict(), "state_dict": {}}
        # which the user's own loaders need not have
        has_place = is_fit and bool(content["global_step"]) and text_of(trainer) is not None
        loop_state.check_loop(content, f"{fn}_loop", loop, has_place)
        # only its author knows which states a user's own callback can have
        known = [each for each in trainer.callbacks if _is_known(type(each))]
        check_callbacks(content, [(each.state_key, each.state_dict()) for each in known])
        for each in trainer.callbacks:
            if isinstance(each, ModelCheckpoint) and (
                state := content.get("callbacks", {}).get(each.state_key)
            ):
                name = f"callbacks.{type(each).__name__}"
                check_saved_paths(state, str(each.dirpath or "."), name)
        if is_fit and "state_dict" in content:
            check_training(content, new_optimizer())
            if (kept := content.get(AVERAGED)) is not None:
                check_average(kept)
                weight_shapes.checked(kept["weights"], config, f"{AVERAGED}.weights.")
    except UsageError as error:
        raise UsageError(str(error), "ckpt_path", trainer.ckpt_path) from error


def _is_known(made: type) -> bool:
    return made.__module__.partition(".")[0] in ("lightning", "gptlit")


def check_callbacks(
    content: Mapping[str, Any], callbacks: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Refuse states of callbacks that differ in structure from their current states.

    Args:
        content: Content of the checkpoint.
        callbacks: Key and state of each callback.

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

    Lightning removes these files and folders when a better checkpoint is saved.

    Args:
        state: State of the callback in the checkpoint.
        folder: Folder of the callback.
        name: Name of the state in messages.

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
    # as Lightning compares them: it follows neither links nor ".."
    inside = Path(folder).absolute() in Path(path).absolute().parents
    return inside and Path(folder).resolve() not in Path(path).resolve().parents


def _of_any_number(example: Any) -> Any:
    """An example whose integers allow any number: a time of 0 s can become one of 0.28 s."""
    if isinstance(example, dict):
        return {name: _of_any_number(each) for name, each in example.items()}
    return float(example) if type(example) is int else example


def check_training(content: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Check a checkpoint's optimizer and schedule, so that they can be restored.

    Args:
        content: Content of the checkpoint, changed in place.
        optimizer: A new optimizer of the run.

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
    """An optimizer's saved state, with the options of the run's new optimizer."""
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
    """A schedule's state without unknown entries, which it would take as attributes."""
    n_groups = len(optimizer.param_groups)
    if len(saved["_last_lr"]) != n_groups or saved["last_epoch"] < 0:
        raise UsageError("lr_schedulers: must have a rate for each group, and last_epoch 0 or more")
    kept = {name: saved[name] for name in _Scheduler.__annotations__ if name in saved}
    return {**kept, "lr_lambdas": [None] * n_groups}


def check_average(kept: Any) -> None:
    """Refuse an invalid state of a moving average; its weights are checked elsewhere."""
    plain_data.check(_Average, kept, AVERAGED)
    if kept["updates"] < 0:
        raise UsageError(f"{AVERAGED}.updates {kept['updates']}: must be 0 or more")
