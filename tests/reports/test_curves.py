"""Curves are the values that runs, TensorBoard and other tools have logged."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.charts.axes import Point
from gptlit.messages import UsageError, naming_flags
from gptlit.reports import curves
from gptlit.reports.curves import Log, XAxis
from tests.conftest import Result, Run, read_metrics
from tests.conftest import curves as event_curves

Call = Callable[..., Result]


def read_one(path: Path | str, **columns: str) -> Log:
    (log,) = curves.read(str(path), columns)
    return log


def values(log: Log, name: str, x: XAxis = "step") -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in log.points(name, x)]


def test_a_runs_points_are_those_of_its_metrics(run: Run) -> None:
    log = read_one(run.folder)
    rows = read_metrics(run.folder)
    for name, column in (("loss", "train/loss"), ("val_loss", "val/loss"), ("lr", "optim/lr")):
        logged = [(int(row["step"]) + 1, float(row[column])) for row in rows if row[column]]
        assert values(log, name) == logged
    assert [x for x, _ in values(log, "val_loss")] == [20, 40]


def test_a_runs_axes(run: Run) -> None:
    log = read_one(run.folder)
    windows = 4  # batch_size; block_size is 8
    assert [x for x, _ in values(log, "val_loss", "tokens")] == [20 * windows * 8, 40 * windows * 8]
    timed = {
        int(row["step"]) + 1: float(row["speed/step_ms"])
        for row in read_metrics(run.folder)
        if row["speed/step_ms"]
    }
    # logged every two steps, each for both of them
    expected = sum(2 * ms for ms in timed.values()) / 60e3
    assert values(log, "val_loss", "minutes")[-1][0] == pytest.approx(expected)
    assert log.options["model.n_embd"] == 16


def test_epochs_are_counted_from_the_end_of_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: {n_layer: 1}\n")
    header = "epoch,step,train/loss,train/loss_epoch\n"
    (run / "metrics.csv").write_text(header + "0,9,3.0,\n0,11,,2.5\n1,17,2.0,\n")
    assert values(read_one(run), "loss", "epoch") == [(10 / 12, 3.0), (18 / 12, 2.0)]
    (run / "metrics.csv").write_text(header + "0,9,3.0,\n")
    assert not read_one(run).has("epoch")


def test_event_files_give_the_same_values(run: Run, tmp_path: Path) -> None:
    """Steps of event files are kept as they are; gptlit logs from 0."""
    shutil.copytree(run.folder, tmp_path / "events")
    (tmp_path / "events" / "metrics.csv").unlink()
    log, from_table = read_one(tmp_path / "events"), read_one(run.folder)
    logged = event_curves(run.folder)
    for name, tag in (("loss", "train/loss"), ("val_loss", "val/loss"), ("lr", "optim/lr")):
        steps, read = zip(*values(log, name), strict=True)
        assert list(steps) == [step for step, _ in logged[tag]]
        # as rounded text
        assert read == pytest.approx([float(value) for _, value in logged[tag]], rel=1e-6)
        by_table = values(from_table, name)
        assert [step + 1 for step in steps] == [step for step, _ in by_table]
        assert read == pytest.approx([value for _, value in by_table], rel=1e-6)
    (file,) = (tmp_path / "events").glob("events.out.tfevents.*")
    assert values(read_one(file), "loss") == values(log, "loss")
    minutes = [x for x, _ in values(log, "loss", "minutes")]
    assert minutes[0] >= 0
    assert minutes == sorted(minutes)


@pytest.mark.parametrize("new_style", [False, True])
def test_tensorboard_folders_of_other_tools(tmp_path: Path, new_style: bool) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for name, offset in (("one", 0.0), ("two/deep", 1.0)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in (0, 100, 200):
                at = 1e9 + 60 * step
                loss = 3 - step / 100 + offset
                writer.add_scalar("Loss/train", loss, step, at, new_style=new_style)
                writer.add_scalar("Loss/valid", loss + 0.5, step, at, new_style=new_style)
                writer.add_scalar("epoch", step / 200, step, at, new_style=new_style)
            writer.add_text("sample", "text", 0)
    one, two = curves.read(str(tmp_path), {})
    assert (one.name, two.name) == ("one", "deep")
    assert values(one, "loss") == [(0, 3.0), (100, 2.0), (200, 1.0)]
    assert values(two, "val_loss", "epoch") == [(0, 4.5), (0.5, 3.5), (1, 2.5)]
    assert values(one, "loss", "minutes") == [(0, 3.0), (100, 2.0), (200, 1.0)]
    with pytest.raises(UsageError, match="has no such tag; it has Loss/train, Loss/valid, epoch"):
        curves.read(str(tmp_path), {"loss": "nosuch"})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("step,loss,val_loss\n1,3.0,3.5\n2,2.0,\n", [(1, 3.0), (2, 2.0)]),
        ("\ufeffIteration;Train Loss\n1;3.0\n2;2.0\n", [(1, 3.0), (2, 2.0)]),
        ("iter\ttrain/loss\tlr\n1\t3.0\t0.1\n\n2\tnan\t0.1\n3\tx\t0.1\n", [(1, 3.0)]),
        (
            "Wall time,Step,Value\n1700000000.0,10,3.0\n1700000060.0,20,2.0\n",
            [(10, 3.0), (20, 2.0)],
        ),
        ("step,Loss,LOSS\n1,3.0,9\n2,2.0,9\n", [(1, 3.0), (2, 2.0)]),
        # the last value of a step counts, and the order is that of the steps
        ("global_step,training_loss\n2,2.0\n1,9.0\n1,3.0\n", [(1, 3.0), (2, 2.0)]),
        ("step,val_loss,loss,train_loss_epoch\n1,4,3,9\n2,4,2\n", [(1, 3.0), (2, 2.0)]),
    ],
)
def test_csvs_of_other_tools(
    tmp_path: Path, content: str, expected: list[tuple[float, float]]
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content, encoding="utf-8")
    log = read_one(path)
    assert values(log, "loss") == expected
    assert log.name == "log"


def test_unix_times_and_seconds_are_minutes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,time,loss\n1,1700000000,3\n2,1700000090,2\n")
    assert values(read_one(path), "loss", "minutes") == [(0, 3), (1.5, 2)]
    path.write_text("step,elapsed,loss\n1,30,3\n2,90,2\n")
    assert values(read_one(path), "loss", "minutes") == [(0.5, 3), (1.5, 2)]


def test_lightnings_own_metrics(tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    run.mkdir()
    with (run / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "train_loss", "val_loss"])
        writer.writerows([[0, 49, 3.0, ""], [0, 49, "", 3.5], [1, 99, 2.0, ""]])
    log = read_one(run)
    assert (values(log, "loss"), values(log, "val_loss")) == ([(49, 3.0), (99, 2.0)], [(49, 3.5)])
    assert log.name == "version_0"


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("n,loss,ce,held out\n1,9,3,4\n2,9,2,3\n")
    log = read_one(path, step="n", loss="ce", val_loss="held out")
    assert (values(log, "loss"), values(log, "val_loss")) == ([(1, 3), (2, 2)], [(1, 4), (2, 3)])


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", {}, "has no rows below the names of its columns"),
        ("step,loss\n", {}, "has no rows below the names of its columns"),
        ("step,accuracy\n1,2\n", {}, "no column that is known as a loss; name one by --columns "
         "loss=NAME; it has step, accuracy"),
        ("n,loss\n1,2\n", {}, "has no column of steps; name one by --columns step=NAME or"),
        ("step,loss\n1,2\n", {"loss": "ce"}, "--columns loss=ce: .* has no such column; it has "
         "step, loss"),
    ],
)  # fmt: skip
def test_unclear_csvs_are_refused(
    tmp_path: Path, content: str, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    with naming_flags():
        with pytest.raises(UsageError) as refused:
            curves.read(str(path), columns)
        refused.match(message)


def test_names_of_runs(
    run: Run, gptlit: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nosuch", "last"):
        with pytest.raises(UsageError, match=f"^{name}: no (such run|run in lightning_logs)"):
            curves.read(name, {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="^empty: holds no metrics.csv and no event files"):
        curves.read("empty", {})
    monkeypatch.chdir(run.cwd)
    expected = values(read_one(run.folder), "loss")
    for name in ("last", "version_0", "lightning_logs", "lightning_logs/version_0/metrics.csv"):
        log = read_one(name)
        assert values(log, "loss") == expected
        assert log.options


def test_a_run_whose_config_is_broken_is_drawn_all_the_same(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "copy")
    (tmp_path / "copy" / "config.yaml").write_text("model: {")
    log = read_one(tmp_path / "copy")
    assert log.points("loss", "step") == read_one(run.folder).points("loss", "step")
    assert log.options == {}


def test_points_without_a_value_are_left_out() -> None:
    log = Log("a", [{"step": 1, "loss": 3.0}, {"step": 2}, {"loss": 2.0}])
    assert log.points("loss", "step") == [Point(1, 3.0)]
    assert log.has("step")
    assert not log.has("tokens")
