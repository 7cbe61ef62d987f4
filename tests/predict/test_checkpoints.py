import shutil
from pathlib import Path

import pytest
import torch

from gptlit.checkpoints.checkpoint import KEY
from gptlit.messages import UsageError
from gptlit.predict.checkpoints import find
from gptlit.training.module import LitGPT
from tests.conftest import Run, read_metrics


@pytest.fixture
def losses(run: Run) -> dict[int, float]:
    rows = read_metrics(run.folder)
    return {int(row["step"]) + 1: float(row["val/loss"]) for row in rows if row["val/loss"]}


def test_a_runs_checkpoints_in_order_of_step(run: Run, losses: dict[int, float]) -> None:
    found = find([str(run.folder)])
    assert [each.step for each in found] == [10, 20, 30, 40]
    assert [each.val_step for each in found] == [None, 20, 20, 40]
    known = [None, losses[20], losses[20], losses[40]]
    assert [each.val_loss for each in found] == [
        value and pytest.approx(value, rel=1e-6) for value in known
    ]
    # each file once; files with the same weights are one entry
    names = [name for each in found for name in each.name.split(", ")]
    assert sorted(names) == sorted(path.stem for path in run.folder.glob("checkpoints/*.ckpt"))
    assert "last, step_40" in found[-1].name
    assert find([str(run.folder / "checkpoints")]) == found


def test_a_checkpoint_holds_its_last_validation(
    run: Run, losses: dict[int, float], tmp_path: Path
) -> None:
    for name, step in (("last", 40), ("step_30", 20)):
        copy = tmp_path / f"{name}.ckpt"
        copy.write_bytes((run.folder / "checkpoints" / copy.name).read_bytes())
        (found,) = find([str(copy)])
        assert (found.name, found.val_step) == (name, step)
        assert found.val_loss == pytest.approx(losses[step], rel=1e-6)
    # and so does a model that is loaded from it
    described = torch.load(tmp_path / "step_30.ckpt", weights_only=True)[KEY]
    model = LitGPT.load_from_checkpoint(tmp_path / "step_30.ckpt", map_location="cpu")
    assert model.evaluated == described["evaluated"]
    assert {"val/loss", "val/bits_per_byte", "train/loss_eval"} < set(model.evaluated)


def test_several_checkpoints_keep_their_order_and_get_distinct_names(
    run: Run, tmp_path: Path
) -> None:
    other = tmp_path / "version_7" / "checkpoints" / "last.ckpt"
    other.parent.mkdir(parents=True)
    shutil.copyfile(run.folder / "checkpoints" / "last.ckpt", other)
    found = find([str(other), str(run.folder / "checkpoints" / "step_10.ckpt")])
    assert [each.name for each in found] == ["version_7/last", "version_0/step_10"]


def test_other_weights_of_the_same_step_are_another_checkpoint(run: Run, tmp_path: Path) -> None:
    last = run.folder / "checkpoints" / "last.ckpt"
    for name in ("a", "b", "c"):
        content = torch.load(last, weights_only=True)
        if name == "b":
            content["state_dict"]["net.ln_f.bias"] += 1
        torch.save(content, tmp_path / f"{name}.ckpt")
    assert [each.name for each in find([str(tmp_path)])] == ["a, c", "b"]


def test_invalid_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder without checkpoints; .*version_N"):
        find([str(tmp_path)])
    (tmp_path / "half.ckpt").write_bytes(b"PK")
    with pytest.raises(UsageError, match="half.ckpt"):
        find([str(tmp_path)])
