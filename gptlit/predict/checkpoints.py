"""The checkpoints that `gptlit predict` compares: their order, steps and validation losses."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlit.checkpoints import checkpoint
from gptlit.messages import UsageError
from gptlit.runs import metrics_file


@dataclass(frozen=True)
class Compared:
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


def find(names: Sequence[str]) -> list[Compared]:
    """Find the checkpoints that several `--ckpt_path` name, in their order.

    A folder stands for all its checkpoints, by step. Files of a folder that hold the same weights,
    as best and last often do, are one checkpoint.

    Args:
        names: Names as for `checkpoint.resolve`, or folders of runs or of their checkpoints.

    Raises:
        UsageError: a missing or corrupt file, or a folder without checkpoints.
    """
    found = [each for name in names for each in _find(name)]
    if len({each.path.parent for each in found}) > 1:
        found = [
            dataclasses.replace(each, name=f"{_run_of(each.path).name}/{each.name}")
            for each in found
        ]
    return found


def _run_of(path: Path) -> Path:
    """The folder of a checkpoint's run, or else the folder that the checkpoint is in."""
    folder = path.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _find(name: str) -> list[Compared]:
    folder = Path(name).expanduser()
    if name in checkpoint.ALIASES or not folder.is_dir():
        return [_described(*checkpoint.read_named(name))]
    paths = sorted(folder.glob("checkpoints/*.ckpt")) or sorted(folder.glob("*.ckpt"))
    if not paths:
        raise UsageError(
            f"is a folder without checkpoints; give a run's folder, {checkpoint.RUNS}/version_N",
            "ckpt_path",
            name,
        )
    distinct: list[tuple[Compared, dict[str, Any]]] = []
    for path in paths:
        content = checkpoint.read(path)
        found = _described(path, content)
        for index, (other, weights) in enumerate(distinct):
            if other.step == found.step and _same(weights, content["state_dict"]):
                # only one that was saved after a validation at this step has its loss
                later = max(other, found, key=lambda each: each.val_step or -1)
                both = dataclasses.replace(later, name=f"{other.name}, {found.name}")
                distinct[index] = (both, weights)
                break
        else:
            distinct.append((found, content["state_dict"]))
    return sorted((each for each, _ in distinct), key=lambda each: each.step)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = [name for name in one if name.startswith(checkpoint.NET_PREFIX)]
    return all(name in other and torch.equal(one[name], other[name]) for name in names)


def _described(path: Path, content: dict[str, Any]) -> Compared:
    step = int(content["global_step"])
    # earlier versions saved a snapshot before the validation at its step: metrics.csv has its loss
    known = metrics_file.by_step(_run_of(path) / "metrics.csv", "val/loss")
    evaluated = content[checkpoint.KEY].get("evaluated", {})
    if "val/loss" in evaluated:
        known[int(evaluated["step"])] = evaluated["val/loss"]
    last = max((each for each in known if each <= step), default=None)
    return Compared(path, path.stem, step, None if last is None else known[last], last)
