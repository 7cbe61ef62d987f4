"""`gptlit compare`: what differs between runs, their figures, curves and texts."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import gptlit as library
from gptlit.charts.axes import Point
from gptlit.charts.text import Signs
from gptlit.checkpoints import run_paths
from gptlit.reports import comparison, comparison_text
from gptlit.reports.comparison import Comparison, Row
from gptlit.runs import metrics_file
from gptlit.terminal import width
from tests.browser import Browser
from tests.conftest import Result, Run
from tests.pseudo_terminal import seen

Call = Callable[..., Result]
COLUMNS = ["step", "train/loss", "val/loss", "val/bits_per_byte", "speed/step_ms",
           "speed/tokens_per_s"]  # fmt: skip


def write_run(name: str, losses: dict[int, float], bits: float, **options: object) -> Path:
    """Write a run whose val/loss has these values by step, `bits` times as much per byte."""
    folder = run_paths.RUNS / name
    (folder / "checkpoints").mkdir(parents=True)
    given = {"model.lr": 0.1, "data.tokenizer": "char", "data.path": "a.txt", "threads": 2}
    nested: dict[str, dict[str, object]] = {}
    for option, value in {**given, **options}.items():
        group, _, own = option.rpartition(".")
        nested.setdefault(group, {})[own] = value
    nested |= nested.pop("", {})  # type: ignore[arg-type]  # options without a group
    (folder / "config.yaml").write_text(yaml.safe_dump(nested))
    rows = [
        {
            "step": str(step - 1),
            "train/loss": str(loss - 0.1),
            "val/loss": str(loss),
            "val/bits_per_byte": str(loss * bits),
            "speed/step_ms": "60",
            "speed/tokens_per_s": "500",
        }
        for step, loss in losses.items()
    ]
    metrics_file.write(folder / "metrics.csv", COLUMNS, rows)
    state = {"state": "finished", "parameters": 1234, "step": max(losses, default=0)}
    (folder / "run.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def written(gptlit: Call) -> Call:
    """`gptlit` in a folder with three runs, of which the last has another tokenizer."""
    write_run("one", {10: 3.0, 20: 2.0, 30: 2.5}, 1.5)
    write_run("two", {10: 2.9, 20: 2.4, 30: 1.9}, 1.5, **{"model.lr": 0.2, "threads": 1})
    write_run("three", {10: 6.0, 30: 4.0}, 0.5, **{"data.tokenizer": "bpe:512"})
    return gptlit


def compared(*names: str) -> Comparison:
    return comparison.compare(comparison.find(names))


def rows(table: list[Row]) -> dict[str, list[str]]:
    return {
        row.name: [f"{cell}{'!' * (i in row.best)}" for i, cell in enumerate(row.cells)]
        for row in table
    }


def test_figures_and_options(written: Call) -> None:
    found = compared("one", "lightning_logs/two")
    assert found.names == ["one", "two"]
    figures = rows(found.figures)
    config = figures.pop("config")
    assert len({*config}) == 1
    assert figures == {
        "tokenizer": ["char"] * 2,
        "state": ["finished"] * 2,
        "parameters": ["1,234"] * 2,
        "steps": ["30"] * 2,
        "tokens": ["900"] * 2,
        "minutes": ["0.03"] * 2,
        "tokens/s": ["500"] * 2,
        "train/loss, last": ["2.4000", "1.8000"],
        "val/loss, last": ["2.5000", "1.9000"],
        "val/loss, best": ["2.0000", "1.9000!"],
        "at step": ["20", "30"],
        "val/bits_per_byte, best": ["3.0000", "2.8500!"],
    }
    assert rows(found.options) == {"model.lr": ["0.1", "0.2"]}
    assert found.notes == []
    assert found.figure is not None
    assert [run.label for run in found.figure.runs] == ["one", "two"]
    assert [*found.figure.runs[0].val] == [Point(10, 3.0), Point(20, 2.0), Point(30, 2.5)]
    assert found.figure.y == "loss (nats per token)"


def test_runs_with_different_tokenizers_compare_by_bits_per_byte(written: Call) -> None:
    found = compared("one", "two", "three")
    figures = rows(found.figures)
    assert figures["tokenizer"] == ["char", "char", "bpe:512"]
    assert figures["val/loss, best"] == ["2.0000", "1.9000", "4.0000"]
    assert figures["val/bits_per_byte, best"] == ["3.0000", "2.8500", "2.0000!"]
    (note,) = found.notes
    assert "different tokenizers" in note
    assert "bits per byte do" in note
    assert found.figure is not None
    assert (found.figure.y, found.figure.metric) == ("bits per byte", "val/bits_per_byte")
    *_, three = found.figure.runs
    assert ([*three.val], [*three.train]) == ([Point(10, 3.0), Point(30, 2.0)], [])


def test_notes_on_texts_and_states(written: Call) -> None:
    write_run("other", {10: 3.0}, 1.5, **{"data.path": "b.txt"})
    write_run("empty", {}, 1.5)
    run = run_paths.RUNS / "empty" / "run.json"
    run.write_text(run.read_text().replace("finished", "diverged"))
    found = compared("one", "other", "empty")
    assert found.notes == [
        "The runs differ in data.path, so they may be validated on different texts, whose losses "
        "do not compare.",
        "empty is diverged.",
    ]
    assert rows(found.figures)["val/loss, best"] == ["2.0000!", "3.0000", "-"]
    assert found.figure is not None
    assert [run.label for run in found.figure.runs] == ["one", "other"]
    assert compared("empty", "lightning_logs/empty/../one").figure is not None


def test_a_folder_of_runs(written: Call) -> None:
    assert compared("lightning_logs").names == ["one", "three", "two"]
    shutil.copytree(run_paths.RUNS, "moved")
    # names that would be equal are distinguished by their folders
    names = compared("one", "moved").names
    assert names == ["lightning_logs/one", "moved/one", "moved/three", "moved/two"]


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal(written: Call, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    words = ("compare", "one", "two", "three", "--max_new_tokens=0")
    shown = seen(columns, monkeypatch, *words)
    assert all(width(line) <= columns for line in shown.lines)
    assert {"bpe:512", "model.lr", "2.0000*"} <= shown.words
    assert re.search("[\u2801-\u28ff]", shown.text)


def test_a_table_that_is_too_wide_is_printed_in_parts_with_short_names(written: Call) -> None:
    names = [f"a_long_name_of_run_{index}" for index in range(5)]
    table = [Row("val/loss", [f"{index}.00000000" for index in range(5)], frozenset({0}))]
    made = Comparison(names, table, [], [], None)
    lines = [*comparison_text.plain(made, 40, Signs())]
    assert all(width(line) <= 40 for line in lines)
    assert lines[:6] == [
        *(f"{letter}  {name}" for letter, name in zip("12345", names, strict=True)),
        "",
    ]
    assert [line.split() for line in lines[6:]] == [
        ["1", "2"], ["val/loss", "0.00000000*", "1.00000000"], [],
        ["3", "4"], ["val/loss", "2.00000000", "3.00000000"], [],
        ["5"], ["val/loss", "4.00000000"], ["*", "lowest"],
    ]  # fmt: skip
    # a pipe has lines of any length
    assert next(comparison_text.plain(made, None, Signs())).split() == names
    # the letters of curves, where all runs have one
    found = compared("one", "two")
    assert found.figure is not None
    lines = [*comparison_text.plain(found, 30, Signs())]
    assert lines[:4] == ["A  one", "B  two", "", f"{'A':>{len(lines[3])}}"]
    (single, *_) = comparison_text._table(["x" * 90], [Row("a", ["1"])], 30)
    assert width(single) <= 30


def test_texts_are_those_of_the_best_checkpoints(
    run: Run, gptlit: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "none"):
        shutil.copytree(run.folder, run_paths.RUNS / name)
    best = run_paths.RUNS / "two" / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-100])
    shutil.rmtree(run_paths.RUNS / "none" / "checkpoints")
    (run_paths.RUNS / "none" / "samples.txt").write_text(
        "=== step 20, val/loss 3\nthe old\n\n=== step 40, val/loss 2\nthe new\none\n\n"
    )
    words = ["--prompt=the", "--prompt=ߊ king", "--max_new_tokens=9", "--seed=5"]
    result = gptlit("compare", "one", "two", "none", *words, "--output=report.md")
    assert result.code == 0
    assert result.err.splitlines() == [
        "gptlit: one: writing sample texts (best.ckpt, step 40)",
        "gptlit: two: writing sample texts (last.ckpt, step 40)",
        "gptlit: 3 runs compared in report.md",
    ]
    report = Path("report.md").read_text()
    model, tokenizer = library.load(run_paths.RUNS / "one" / "checkpoints" / "best.ckpt")
    options = {"max_new_tokens": 9, "seed": 5}
    for prompt in ("the", " king"):
        text = library.generate(model, tokenizer, prompt, **options)
        assert report.count(text.strip("\n")) == 2, text
    assert "```text\nthe new\none\n```" in report
    assert "the old" not in report
    sources = re.findall(r"^\*\*(\w+)\*\* \((.*)\)$", report, re.MULTILINE)
    assert [name for name, _ in sources] == ["one", "two", "none"] * 2
    assert [source for _, source in sources[:3]] == [
        "best.ckpt, step 40", "last.ckpt, step 40", "samples.txt, step 40",
    ]  # fmt: skip
    assert sources[5][1] == "no checkpoint, and samples.txt has no such prompt"


def test_markdown(written: Call) -> None:
    assert written("compare", "one", "two", "--output=a.md", "--max_new_tokens=0").code == 0
    lines = Path("a.md").read_text().splitlines()
    assert lines[0] == "# 2 runs compared"
    assert "| | one | two |" in lines
    assert r"| val/bits\_per\_byte, best | 3.0000 | **2.8500** |" in lines
    assert "| model.lr | 0.1 | 0.2 |" in lines
    assert [line for line in lines if line.startswith("## ")] == [
        "## Figures", "## Options that differ", "## Curves",
    ]  # fmt: skip
    assert any("⠤A⠤ one" in line for line in lines)


def test_signs_of_markdown_are_escaped() -> None:
    assert comparison_text.escaped("a|b_c*`<") == r"a\|b\_c\*\`\<"
    assert comparison_text.fenced("a\n````b")[0] == "`````text"


def test_a_page(written: Call, browser: Browser, run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, run_paths.RUNS / "<trained>")
    words = ["--prompt=the", "--max_new_tokens=5", "--output=report.html"]
    assert written("compare", "one", "two", "three", "<trained>", *words).code == 0
    path = tmp_path / "report.html"
    assert not re.findall(
        r'(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg")', path.read_text()
    )
    for columns, dark in ((1280, False), (390, True)):
        page = browser.open(path.as_uri(), columns, 800, dark)
        assert page.errors == []
        assert page.requests == [path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= columns
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(22, 25, 29)" if dark else "rgb(255, 255, 255)")
    cells = page.evaluate(
        "[...document.querySelectorAll('tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert ["", "one", "two", "three", "<trained>"] in cells
    assert any(row[:4] == ["model.lr", "0.1", "0.2", "0.1"] for row in cells)
    bold = "[...document.querySelectorAll('.best')].map(cell => cell.innerText)"
    assert page.evaluate(bold) == ["2.0000"]
    assert page.evaluate("document.querySelectorAll('article').length") == 4
    assert page.evaluate("document.querySelectorAll('svg').length") == 1
    model, tokenizer = library.load(run.folder / "checkpoints" / "best.ckpt")
    text = library.generate(model, tokenizer, "the", max_new_tokens=5)
    shown = page.evaluate("[...document.querySelectorAll('.text')].map(p => p.textContent)")
    assert shown == ["", "", "", text]
    # the colours of names are those of the curves
    keys = page.evaluate(
        "[...document.querySelectorAll('thead')].map(h => [...h.querySelectorAll('.key')]"
        ".map(k => k.style.background))"
    )
    assert keys[0] == [f"var(--{index})" for index in range(4)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "gptlit compare: needs two runs or more, 26 at most, not 0; gptlit runs lists"),
        (("one",), "gptlit compare: needs two runs or more, 26 at most, not 1; gptlit runs lists"),
        (("one", "one"), "gptlit compare: needs two runs or more, 26 at most, not 1"),
        (("one", "nosuch"), "nosuch: no such run, folder or CSV"),
        (("one", "lightning_logs/two/metrics.csv"), "metrics.csv: is not a run's folder, nor"),
        (("one", "bare"), "bare: is not a run's folder, nor a folder of runs; gptlit runs lists"),
        (("one", "two", "--output=a.pdf"), "--output a.pdf: must end in .html or .md; leave it"),
        (("one", "two", "--x=epoch"), "--x epoch: one has logged no loss over it; the runs have"),
        (("one", "two", "--seed=-1"), "--seed -1: must be 0 or more, and below 2^63"),
        (("one", "two", "--max_new_tokens=-1"), "--max_new_tokens -1: must be 0 or more"),
        (("one", "two", "--temperature=-1"), "--temperature -1"),
    ],
)
def test_wrong_input(written: Call, words: tuple[str, ...], message: str) -> None:
    Path("bare").mkdir()
    result = written("compare", *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert len(result.err.splitlines()) == 1
