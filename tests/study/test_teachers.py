"""Studies whose runs learn from runs that they make first."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import gptlit as library
from gptlit.checkpoints import checkpoint
from gptlit.messages import UsageError
from gptlit.steps.distillation import hash_of
from gptlit.study import study_file
from tests.conftest import Result
from tests.study.test_run import results

Call = Callable[..., Result]
FOLDER = Path("lightning_logs/mine")
CHAIN: dict[str, Any] = {
    "teachers": {"seeds": [1, 2], "model.n_embd": 32},
    "settings": [
        {"name": "alone", "model.teachers": []},
        {"name": "taught", "model.distill_weight": 0.7},
    ],
    "seeds": [3, 4],
}
RUNS = [
    "teacher,seed=1", "teacher,seed=2",
    "alone,seed=3", "alone,seed=4", "taught,seed=3", "taught,seed=4",
]  # fmt: skip


def last(run: str) -> Path:
    return FOLDER / run / "checkpoints" / "last.ckpt"


def made(err: str) -> list[str]:
    return re.findall(r"\[\d+/\d+\] (\S+): val/loss", err)


def test_a_chain_of_teachers_and_students(gptlit: Call, mine: Callable[..., Path]) -> None:
    path = mine(**CHAIN)
    planned = gptlit("study", path, "--dry_run").out.splitlines()
    assert [line.partition(": ")[0] for line in planned] == RUNS
    done = gptlit("study", path)
    assert done.code == 0, done.err
    assert made(done.err) == RUNS
    hashes = [hash_of(library.load(last(run))[0].state_dict()) for run in RUNS[:2]]
    for run in RUNS:
        saved = checkpoint.read(last(run))[checkpoint.KEY]
        assert saved.get("teachers", []) == (hashes if run.startswith("taught") else [])
    shown = re.findall(r"^ *(teacher|alone|taught) +\d\.\d{4} +\d\.\d{4} +2 ", done.out, re.M)
    assert sorted(shown) == ["alone", "taught", "teacher"]
    assert [row["run"] for row in results()] == RUNS
    assert [row["seed"] for row in results()] == ["1", "2", "3", "4", "3", "4"]
    assert len({row["val/loss"] for row in results()}) == 6
    # again: nothing is made
    again = gptlit("study", path)
    assert (again.code, again.out, made(again.err)) == (0, done.out, [])


def test_other_teachers_make_their_students_anew(gptlit: Call, mine: Callable[..., Path]) -> None:
    assert gptlit("study", mine(**CHAIN)).code == 0
    path = mine(**CHAIN | {"teachers": {"seeds": [1, 2], "model.n_embd": 24}})
    refused = gptlit("study", path)
    assert refused.code == 2
    assert "teacher,seed=1 and 1 more: made with other options: --model.n_embd 32" in refused.err
    done = gptlit("study", path, "--remake")
    assert done.code == 0
    assert made(done.err) == [run for run in RUNS if "alone" not in run]


def test_one_student_of_teachers_by_their_best_checkpoints(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    path = mine(teachers={"seeds": [1, 2]}, at="best")
    done = gptlit("study", path)
    assert done.code == 0, done.err
    assert made(done.err) == [*RUNS[:2], "student"]
    config = yaml.safe_load((FOLDER / "student" / "config.yaml").read_text())
    wanted = [str((FOLDER / run / "checkpoints/best.ckpt").absolute()) for run in RUNS[:2]]
    assert config["model"]["teachers"] == wanted
    assert "student" in (FOLDER / "plot.svg").read_text()


def test_a_plot_over_an_option_leaves_the_teachers_out(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    path = mine(teachers={}, grid={"model.distill_weight": [0.2, 0.8]})
    done = gptlit("study", path)
    assert done.code == 0, done.err
    assert made(done.err) == ["teacher", "student,distill_weight=0.2", "student,distill_weight=0.8"]
    plot = (FOLDER / "plot.svg").read_text()
    assert "model.distill_weight" in plot
    assert "teacher" not in plot


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teachers": [1]}, "teachers: [1]: must be options by name"),
        ({"teachers": {"seeds": 3}}, "seeds: 3: must be a list of whole numbers"),
        ({"teachers": {"preflight": True}}, "preflight: does not apply to a study"),
        ({"teachers": {"model.teachers": []}}, "model.teachers: the study's teachers set it"),
        ({"teachers": {}, "settings": [{"name": "teacher"}]}, "settings: teacher: is the name of"),
        (
            {"teachers": {}, "random": {"runs": 2, "by": "optuna", "over": {"model.lr": [1, 2]}}},
            "random: by: optuna: excludes teachers",
        ),
    ],
)
def test_invalid_chains_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"config": "tiny.yaml", **content}))
    with pytest.raises(UsageError, match=re.escape(message)):
        study_file.read(path, [])


def test_another_tokenizer_is_refused_before_the_first_run(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    refused = gptlit("study", mine(teachers={"data.tokenizer": "word"}))
    assert refused.code == 2
    assert re.search(
        r"student: has another tokenizer than its teachers: word of \d+ tokens, and the "
        r"student's char of 39 tokens$",
        refused.err.strip(),
    )
    assert not FOLDER.exists()
