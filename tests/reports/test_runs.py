"""`gptlit runs`: states, differences and sizes of runs, in any order, width and format."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from gptlit.checkpoints import checkpoint
from gptlit.cli.configs import find_config
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.reports import folders, options
from gptlit.runs import metrics_file
from gptlit.runs.report import Report, Throughput
from gptlit.terminal import width
from tests.conftest import GPT2_TINY, TINY, Result, Run, made_up_text, read_metrics
from tests.pseudo_terminal import seen

Call = Callable[..., Result]
RUNS = Path("lightning_logs")


def write_run(
    folder: Path,
    losses: dict[int, float],
    state: dict[str, Any] | None = None,
    config: str = "tiny.yaml",
    **changes: Any,
) -> Path:
    """Write a run's files by hand: val/loss by step, run.json, and options of a shipped config."""
    (folder / "checkpoints").mkdir(parents=True)
    chosen = yaml.safe_load(find_config(config).read_text())
    for name, value in changes.items():
        group, _, own = name.rpartition("__")
        chosen.setdefault(group, {})[own] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(chosen))
    rows = [
        {"step": str(step - 1), "val/loss": str(loss), "speed/step_ms": "60"}
        for step, loss in losses.items()
    ]
    metrics_file.write(folder / "metrics.csv", ["step", "val/loss", "speed/step_ms"], rows)
    if state is not None:
        (folder / "run.json").write_text(json.dumps({"parameters": 99, "step": 0} | state))
    return folder


def listed(gptlit: Call, *arguments: object) -> list[dict[str, Any]]:
    result = gptlit("runs", *arguments, "--format=json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_a_run_is_summarised_as_its_files_say(run: Run, gptlit: Call) -> None:
    (found,) = listed(gptlit, run.folder.parent, f"--config={GPT2_TINY}")
    content = checkpoint.read(run.folder / "checkpoints" / "last.ckpt")
    rows = read_metrics(run.folder)
    assert found["name"] == "version_0"
    assert found["parameters"] == GPT(GPTConfig(**content["gptlit"]["config"])).num_parameters()
    assert (found["steps"], found["state"]) == (40, "finished")
    assert found["best"] == min(float(row["val/loss"]) for row in rows if row["val/loss"])
    timed = [float(row["speed/step_ms"]) for row in rows if row["speed/step_ms"]]
    assert found["minutes"] == pytest.approx(40 * sum(timed) / len(timed) / 60e3)
    assert found["config"] == GPT2_TINY.stem
    assert found["differs"].items() >= {
        ("model.n_embd", 16), ("data.path", str(run.text)), ("trainer.max_steps", 40),
    }  # fmt: skip
    given = {word.removeprefix("--").split("=")[0] for word in TINY}
    assert {*found["differs"]} <= given | {
        "data.path", "trainer.max_steps", "trainer.val_check_interval", "snapshot_every",
        "samples.prompts",  # adapted to the text
    }  # fmt: skip


@pytest.mark.parametrize("config", ["tiny", "small", "best_cpu", "dante"])
def test_a_run_of_a_config_alone_differs_in_nothing(gptlit: Call, config: str) -> None:
    printed = gptlit("fit", "--config", config, "--print_config")
    Path("config.yaml").write_text(printed.out)
    assert options.nearest_config(options.of_run(Path())) == (config, {})


def test_states(gptlit: Call) -> None:
    ends = {"trainer__max_steps": 30}
    for name, losses, state in (
        ("finished", {30: 2.0}, {"state": "finished", "step": 34}),
        ("interrupted", {30: 2.0}, {"state": "interrupted", "step": 34}),
        ("diverged", {10: 2.0}, {"state": "diverged", "step": 14}),
        ("killed", {10: 2.0}, {"state": "running"}),
        ("killed_at_its_end", {30: 2.0}, {"state": "running"}),
        ("running", {10: 2.0}, {"state": "running"}),
        ("older", {30: 2.0}, None),
        ("older_interrupted", {29: 2.0}, None),
        ("older_diverged", {30: float("nan")}, None),
        ("odd", {29: 2.0}, {"state": ["finished"], "step": "x"}),
    ):
        write_run(RUNS / name, losses, state, **ends)
        (RUNS / name / ".lock").touch()  # as a killed process leaves it
    with FileLock(RUNS / "running" / ".lock"):
        found = {each["name"]: each for each in listed(gptlit)}
    assert {name: each["state"] for name, each in found.items()} == {
        "finished": "finished", "interrupted": "interrupted", "diverged": "diverged",
        "killed": "interrupted", "killed_at_its_end": "finished", "running": "running",
        "older": "finished", "older_interrupted": "interrupted", "older_diverged": "diverged",
        "odd": "interrupted",
    }  # fmt: skip
    assert {found[name]["steps"] for name in ("finished", "interrupted")} == {34}
    assert found["killed"]["steps"] == 10
    assert found["older"]["parameters"] is None
    assert found["older_diverged"]["best"] is None
    assert found["finished"]["minutes"] == pytest.approx(34 * 60 / 60e3)


def test_a_run_records_how_it_ends(gptlit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my.txt").write_text(made_up_text())
    train = ["fit", *TINY, "--data.path=my.txt", "--trainer.max_steps=6", "--data.val_fraction=0"]
    diverging = ["--model.lr=1e30", "--model.warmup_steps=0", "--trainer.gradient_clip_val=0"]
    assert gptlit(*train, *diverging).code == 1
    assert gptlit(*train).code == 0

    def interrupt(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", interrupt)
        assert gptlit(*train).code == 143
    states = [(each["state"], each["steps"]) for each in listed(gptlit, "--sort=name")]
    assert states[1:] == [("finished", 6), ("interrupted", 1)]
    assert states[0][0] == "diverged"
    resumed = gptlit("fit", "--ckpt_path", RUNS / "version_2" / "checkpoints" / "last.ckpt")
    assert resumed.code == 0, resumed.err
    assert listed(gptlit, "--sort=name")[2]["state"] == "finished"
    # a command that trains nothing changes nothing, also one that fails when training begins
    before = (RUNS / "version_2" / "run.json").read_bytes()
    resume = ["fit", "--ckpt_path", RUNS / "version_2" / "checkpoints" / "last.ckpt"]
    assert gptlit(*resume).code == 2

    def refuse(*_: Any) -> None:
        raise UsageError("no training today")

    monkeypatch.setattr(Report, "on_train_start", refuse)
    assert "no training today" in gptlit(*resume, "--trainer.max_steps=8").err
    assert (RUNS / "version_2" / "run.json").read_bytes() == before


def test_broken_and_foreign_folders_are_a_line_each(gptlit: Call) -> None:
    write_run(RUNS / "whole", {10: 2.0})
    for name, config in (
        ("torn", b"model: {n_layer: 4"),
        ("list", b"- 1\n"),
        ("bytes", b"\xff\xfe\x00"),
        ("deep", b"[" * 5000),
        ("endless", b"a: &a [*a]"),
    ):
        broken = write_run(RUNS / name, {10: 2.0})
        (broken / "config.yaml").write_bytes(config)
    odd = write_run(RUNS / "odd", {10: 2.0})
    (odd / "config.yaml").write_text("a: 2001-01-01\nb: !!binary aGk=\n1: {2: !!set {x}}\n")
    shutil.rmtree(RUNS / "list" / "checkpoints")
    headless = write_run(RUNS / "headless", {10: 2.0})
    (headless / "config.yaml").unlink()
    cut = write_run(RUNS / "cut", {10: 2.0, 20: 1.0})
    table = cut / "metrics.csv"
    table.write_bytes(table.read_bytes()[:-4])
    (RUNS / "notes").mkdir()
    (RUNS / "notes" / "a.txt").touch()
    (RUNS / "a\nname").mkdir()
    (RUNS / "file.txt").touch()
    (RUNS / "loop").symlink_to(RUNS.absolute(), target_is_directory=True)
    result = gptlit("runs", "--sort=name")
    assert result.code == 0
    lines = {line.split()[0]: line for line in result.out.splitlines()[1:]}
    assert {"whole", "torn", "list", "bytes", "deep", "endless", "headless", "cut"} <= {*lines}
    assert all("broken" in lines[name] for name in ("torn", "list", "bytes", "deep", "endless"))
    assert lines["torn"].endswith("config.yaml: not YAML")
    assert lines["headless"].endswith("config.yaml: No such file or directory")
    assert " 10  2.0000" in lines["cut"]
    assert "a=2001-01-01, b=b'hi'" in lines["odd"]
    assert {each["name"] for each in listed(gptlit)} == {*lines}
    assert "gptlit: notes: is not a run\n" in result.err
    assert "gptlit: a\\nname: is not a run\n" in result.err
    assert "Traceback" not in result.out + result.err


def test_order_and_filter(gptlit: Call) -> None:
    for index, (name, best) in enumerate({"v_9": 1.5, "v_10": 1.2, "study/lr=1": 1.4}.items()):
        folder = write_run(
            RUNS / name,
            {10: 3.0, 20: best, 30: 2.0},
            {"state": "finished", "parameters": 100 - index},
        )
        for path in [*folder.iterdir(), folder]:
            os.utime(path, (1e9 + index, 1e9 + index))
    write_run(RUNS / "v_11", {}, config="small.yaml")

    def names(*arguments: str) -> list[str]:
        return [each["name"] for each in listed(gptlit, *arguments)]

    assert names() == ["v_9", "v_10", "study/lr=1", "v_11"]
    assert names("--sort=name") == ["study/lr=1", "v_9", "v_10", "v_11"]
    assert names("--sort=best") == ["v_10", "study/lr=1", "v_9", "v_11"]
    # those without a value stay last
    assert names("--sort=best", "--reverse") == ["v_9", "study/lr=1", "v_10", "v_11"]
    assert names("--sort=parameters")[:3] == ["study/lr=1", "v_10", "v_9"]
    assert names("--config=small") == ["v_11"]
    Path("mine.yaml").write_text((RUNS / "v_9" / "config.yaml").read_text())
    assert names("--config=mine.yaml") == ["v_9", "v_10", "study/lr=1"]
    assert names(str(RUNS / "study")) == ["lr=1"]
    assert names(str(RUNS / "v_9")) == [str(RUNS / "v_9")]


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_terminal_of_any_width(
    gptlit: Call, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    gptlit("--version")  # changes to an empty folder
    for index in range(3):
        state = {"state": "finished", "parameters": 12_345_678, "step": 10_000}
        changes = {"model__lr": 0.5, "data__path": "/a/b.txt", "data__val_fraction": 0.123}
        changes |= {"trainer__gradient_clip_val": 0.4567, "trainer__log_every_n_steps": 123}
        write_run(RUNS / f"version_{index}", {10_000: 1.25}, state, **changes)
    shown = seen(columns, monkeypatch, "runs")
    assert all(width(line) <= columns for line in shown.lines)
    assert len(shown.lines) == (4 if columns == 140 else 7)
    assert {"12.3M", "10,000", "1.2500", "finished", "tiny"} <= {w.strip(":") for w in shown.words}
    assert "lr=0.5, path=b.txt" in shown.text
    piped = gptlit("runs")
    assert len(piped.out.splitlines()) == 4
    assert "\x1b" not in piped.out


def test_no_runs(gptlit: Call) -> None:
    refused = gptlit("runs")
    assert (refused.code, refused.out) == (2, "")
    assert "lightning_logs: no such folder; give the folder of runs" in refused.err
    RUNS.mkdir()
    assert gptlit("runs").err == "gptlit: no run; train one with gptlit fit\n"
    assert listed(gptlit) == []
    assert "--sort loss: expected one of name, when" in gptlit("runs", "--sort=loss").err
    assert "--config nosuch: no such file" in gptlit("runs", "--config=nosuch").err


def test_labels_are_the_options_that_differ() -> None:
    one, other = {"model.lr": 0.1, "model.n_layer": 2}, {"model.lr": 0.2, "model.n_layer": 2}
    assert options.labels([("a", one), ("b", other)]) == ["lr=0.1", "lr=0.2"]
    assert options.labels([("a", one), ("b", one)]) == ["a", "b"]
    assert options.labels([("a", one), ("b", one), ("c", other)]) == [
        "a, lr=0.1",
        "b, lr=0.1",
        "lr=0.2",
    ]
    assert options.labels([("a", one), ("b", {})]) == ["a", "b"]
    assert options.labels([("a", one)]) == ["a"]


def test_looking_at_a_lock_leaves_it_usable(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {10: 2.0})
    (run / ".lock").touch()
    assert folders.summarise(run, "run").state == "interrupted"
    with FileLock(run / ".lock", timeout=0):
        assert folders.summarise(run, "run").state == "running"
