"""Checkpoints side by side: which are meant, in which order, and how far each was trained."""

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
class Stage:
    """A checkpoint among others.

    Args:
        path: Its file.
        name: What tells it from the others.
        step: The optimizer steps made before it was saved.
        val_loss: Nats per token in the run's last validation up to then; None where none is known.
        val_step: The step of that validation.
    """

    path: Path
    name: str
    step: int
    val_loss: float | None = None
    val_step: int | None = None


def find(names: Sequence[str]) -> list[Stage]:
    """What several `--ckpt_path` mean, in their order; of a folder, all its checkpoints by step.

    Files of a folder that hold the same weights, as best and last often do, are one stage.

    Args:
        names: As for `checkpoint.resolve`, or the folder of a run, or of its checkpoints.

    Raises:
        UsageError: no such file, a folder without checkpoints, or a file that isn't one.
    """
    found = [stage for name in names for stage in _find(name)]
    if len({stage.path.parent for stage in found}) > 1:
        found = [
            dataclasses.replace(stage, name=f"{run_of(stage.path).name}/{stage.name}")
            for stage in found
        ]
    return found


def run_of(path: Path) -> Path:
    """The folder of the run that a checkpoint is of, or the checkpoint's own if it has none."""
    folder = path.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _find(name: str) -> list[Stage]:
    folder = Path(name).expanduser()
    if name in checkpoint.ALIASES or not folder.is_dir():
        return [_stage(*checkpoint.read_named(name))]
    paths = sorted(folder.glob("checkpoints/*.ckpt")) or sorted(folder.glob("*.ckpt"))
    if not paths:
        raise UsageError(
            f"--ckpt_path {name}: a folder without checkpoints; give that of a run, "
            f"{checkpoint.RUNS}/version_N"
        )
    distinct: list[tuple[Stage, dict[str, Any]]] = []
    for path in paths:
        content = checkpoint.read(path)
        stage = _stage(path, content)
        for index, (other, weights) in enumerate(distinct):
            if other.step == stage.step and _same(weights, content["state_dict"]):
                # the one that was saved after its own validation knows of it
                knows = max(other, stage, key=lambda each: each.val_step or -1)
                both = dataclasses.replace(knows, name=f"{other.name}, {stage.name}")
                distinct[index] = (both, weights)
                break
        else:
            distinct.append((stage, content["state_dict"]))
    return sorted((stage for stage, _ in distinct), key=lambda stage: stage.step)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    names = [name for name in one if name.startswith(checkpoint.NET_PREFIX)]
    return all(name in other and torch.equal(one[name], other[name]) for name in names)


def _stage(path: Path, content: dict[str, Any]) -> Stage:
    step = int(content["global_step"])
    known = logged(run_of(path) / "metrics.csv")
    # earlier versions saved a snapshot before the validation at its step: the run tells of it
    evaluated = content[checkpoint.KEY].get("evaluated", {})
    if "val/loss" in evaluated:
        known[int(evaluated["step"])] = evaluated["val/loss"]
    last = max((each for each in known if each <= step), default=None)
    return Stage(path, path.stem, step, None if last is None else known[last], last)


def logged(metrics: Path, figure: str = "val/loss") -> dict[int, float]:
    """A figure by the step after which it was logged, for each row that has it."""
    rows = [row for row in metrics_file.read(metrics)[1] if row.get(figure)]
    # steps are logged from 0, an evaluation under the step that went before it
    return {int(row["step"]) + 1: float(row[figure]) for row in rows}
