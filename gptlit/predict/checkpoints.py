"""The checkpoints that `gptlit predict` compares: their order, steps and validation losses."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlit.checkpoints import checkpoint, run_paths
from gptlit.messages import UsageError
from gptlit.runs import metrics_file


@dataclass(frozen=True)
class ComparedCheckpoint:
    """A checkpoint that is compared with others.

    Args:
        path: Path of its file.
        name: Name that distinguishes it from the others.
        step: Number of optimizer steps made before it was saved.
        val_loss: Nats per token in the last validation before it was saved; None if unknown.
        val_step: Step of that validation.
    """

    path: Path
    name: str
    step: int
    val_loss: float | None = None
    val_step: int | None = None


def find(names: Sequence[str]) -> list[ComparedCheckpoint]:
    """Find the checkpoints that several `--ckpt_path` name, in their order.

    A folder names all its checkpoints, by step. Files of a folder that hold the same weights,
    as best and last often do, are one checkpoint.

    Args:
        names: Names as for `run_paths.resolve`, or folders of runs or of their checkpoints.

    Raises:
        UsageError: A missing or corrupt file, or a folder without checkpoints.
    """
    checkpoints = [each for name in names for each in _find(name)]
    if len({each.path.parent for each in checkpoints}) > 1:
        checkpoints = [
            dataclasses.replace(each, name=f"{_run_of(each.path).name}/{each.name}")
            for each in checkpoints
        ]
    return checkpoints


def _run_of(path: Path) -> Path:
    """Return the folder of a checkpoint's run, or else the checkpoint's own folder."""
    folder = path.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _find(name: str) -> list[ComparedCheckpoint]:
    folder = Path(name).expanduser()
    if name in run_paths.ALIASES or not folder.is_dir():
        return [_described(*checkpoint.read_named(name))]
    paths = sorted(folder.glob("checkpoints/*.ckpt")) or sorted(folder.glob("*.ckpt"))
    if not paths:
        raise UsageError(
            f"is a folder without checkpoints; give a run's folder, {run_paths.RUNS}/version_N",
            "ckpt_path",
            name,
        )
    distinct: list[tuple[ComparedCheckpoint, dict[str, Any]]] = []
    for path in paths:
        content = checkpoint.read(path)
        described, weights = _described(path, content), content["state_dict"]
        for index, (other, other_weights) in enumerate(distinct):
            if other.step == described.step and _are_equal(other_weights, weights):
                # only one that was saved after a validation at this step has its loss
                later = max(other, described, key=lambda each: each.val_step or -1)
                both = dataclasses.replace(later, name=f"{other.name}, {described.name}")
                distinct[index] = (both, weights)
                break
        else:
            distinct.append((described, weights))
    return sorted((each for each, _ in distinct), key=lambda each: each.step)


def _are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = [name for name in one if name.startswith(checkpoint.NET_PREFIX)]
    return all(name in other and torch.equal(one[name], other[name]) for name in names)


def _described(path: Path, content: dict[str, Any]) -> ComparedCheckpoint:
    step = int(content["global_step"])
    # earlier versions saved a snapshot before the validation at its step: metrics.csv has its loss
    losses = metrics_file.by_step(_run_of(path) / "metrics.csv", "val/loss")
    evaluated = content[checkpoint.KEY].get("evaluated", {})
    if "val/loss" in evaluated:
        losses[int(evaluated["step"])] = evaluated["val/loss"]
    val_step = max((each for each in losses if each <= step), default=None)
    val_loss = None if val_step is None else losses[val_step]
    return ComparedCheckpoint(path, path.stem, step, val_loss, val_step)
