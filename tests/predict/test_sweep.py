"""`gptlit predict --sweep`, and tables of several checkpoints."""

import html
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import UsageError
from gptlit.predict import options, sweep_tables
from gptlit.predict.checkpoints import ComparedCheckpoint
from gptlit.predict.sweep import Row, parse_grid, sweepable
from gptlit.terminal import printable, width
from tests.conftest import Result, Run

Call = Callable[..., Result]
GRID = ["--sweep", "temperature=0.5,1.5", "top_k=3,none"]


def call(gptlit: Call, run: Run, *options: Any, ckpt: str = "last") -> Result:
    path = run.folder / "checkpoints" / f"{ckpt}.ckpt"
    return gptlit("predict", "--ckpt_path", path, "--prompt=the", "--max_new_tokens=15", *options)


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_numeric_settings_and_the_seed_can_be_swept() -> None:
    names = sweepable()
    assert {"temperature", "top_k", "min_p", "repetition_penalty", "max_new_tokens"} < set(names)
    assert "seed" in names
    assert not {"stop", "ban"} & set(names)


def test_values_are_parsed_as_those_of_the_options() -> None:
    words = ["temperature=0.5,1,1.0", "top_k=5,none"]
    grid = parse_grid([" ".join(words)], options.parser())
    assert grid == parse_grid(words, options.parser())
    assert grid == {"temperature": [0.5, 1.0], "top_k": [5, None]}
    assert isinstance(grid["top_k"][0], int)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("temprature=1", "--sweep temprature: .*Did you mean temperature?"),
        ("stop=a", "--sweep stop: not a numeric setting"),
        ("temperature", "--sweep temperature: write temperature=VALUE"),
        ("temperature=", "--sweep temperature=: write"),
        ("top_k=5,,7", "--sweep top_k=5,,7: write"),
        ("top_k=many", "--sweep top_k many: expected"),
        ("top_k=2.5", "--sweep top_k 2.5: expected"),
        ("top_k=1 top_k=2", "top_k is given twice"),
    ],
)
def test_invalid_grids(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_grid([words], options.parser())


def test_each_row_is_the_text_of_its_settings_alone(gptlit: Call, run: Run) -> None:
    found = rows(call(gptlit, run, *GRID, "--num_samples=2", "--format=jsonl"))
    wanted = list(itertools.product([0.5, 1.5], [3, None], [1337, 1338]))
    assert [(row["temperature"], row["top_k"], row["seed"]) for row in found] == wanted
    for row in found:
        k = "null" if row["top_k"] is None else row["top_k"]
        options = [f"--temperature={row['temperature']}", f"--top_k={k}", f"--seed={row['seed']}"]
        (alone,) = rows(call(gptlit, run, *options, "--format=jsonl"))
        for name in ("text", "ids", "seed"):
            assert row[name] == alone[name]
        assert row["logprob"] == pytest.approx(sum(alone["logprobs"]) / 15)
        assert row["entropy"] == pytest.approx(sum(alone["entropies"]) / 15)
    assert len({row["text"] for row in found}) > 4


def test_seeds_can_be_swept(gptlit: Call, run: Run) -> None:
    swept = rows(call(gptlit, run, "--sweep", "seed=5,6", "--format=jsonl"))
    counted = rows(call(gptlit, run, "--seed=5", "--num_samples=2", "--format=jsonl"))
    assert [row["text"] for row in swept] == [row["text"] for row in counted]


def test_checkpoints_by_settings(gptlit: Call, run: Run) -> None:
    options = ["--prompt=the", "--max_new_tokens=9", "--format=jsonl"]
    whole = rows(gptlit("predict", "--ckpt_path", run.folder, *options, "--sweep", "top_k=1,4"))
    assert [(row["step"], row["top_k"]) for row in whole] == [
        (step, k) for step in (10, 20, 30, 40) for k in (1, 4)
    ]
    for row in whole:
        (alone,) = rows(
            gptlit("predict", "--ckpt_path", row["checkpoint"], f"--top_k={row['top_k']}", *options)
        )
        assert row["text"] == alone["text"]
    files = [run.folder / "checkpoints" / f"step_{step}.ckpt" for step in (30, 10)]
    two = rows(gptlit("predict", *(f"--ckpt_path={path}" for path in files), *options))
    assert [row["step"] for row in two] == [30, 10]


def test_a_flag_wins_over_its_variable(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTLIT_PREDICT__CKPT_PATH", "nowhere.ckpt")
    assert call(gptlit, run).code == 0
    monkeypatch.setenv("GPTLIT_PREDICT__SWEEP", " ".join(GRID[1:]))
    assert len(rows(call(gptlit, run, "--format=jsonl"))) == 4


@pytest.mark.parametrize("columns", [20, 45, 80, 140])
def test_a_table_fits_any_terminal_and_holds_every_text(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    options = [*GRID, "--num_samples=2"]
    table = call(gptlit, run, *options).out
    assert all(width(line) <= max(columns, 30) for line in table.splitlines())
    squeezed = re.sub(r"\s", "", table)
    assert "val/loss" in squeezed
    assert "seed" in squeezed
    for row in rows(call(gptlit, run, *options, "--format=jsonl")):
        if columns == 140:  # in narrow tables texts are wrapped
            assert row["text"].split()[0] in table
        assert f"{row['logprob']:.2f}" in table
        assert f"{row['distinct']:.0%}" in table


def test_a_wide_table_has_one_line_for_a_short_text(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = call(gptlit, run, "--sweep", "top_k=3,9", "--ban=\n", "--echo=false").out
    caption, rest = text.split("\n\n", 1)
    shared = "prompt 'the', seed 1337, temperature 0.8, max_new_tokens 15, ban [\"\\n\"]"
    assert shared in " ".join(caption.split())
    head, first, second, *_ = filter(None, rest.splitlines())
    assert head.split() == ["top_k", "logprob", "entropy", "distinct", "text"]
    assert (first.split()[0], second.split()[0]) == ("3", "9")
    at = head.index("text")
    found = rows(call(gptlit, run, "--sweep", "top_k=3,9", "--ban=\n", "--format=jsonl"))
    assert [first[at:], second[at:]] == [row["text"].rstrip() for row in found]


def test_a_table_in_a_file_has_a_fixed_width(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for columns in (30, 100, 150):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert call(gptlit, run, *GRID, "--output_file=table.txt").code == 0
        tables.append(Path("table.txt").read_text(encoding="utf-8"))
    assert tables[0] == tables[1] == tables[2]
    monkeypatch.setenv("COLUMNS", "100")
    assert call(gptlit, run, *GRID).out == tables[0]


def test_int8_weights_are_named_in_the_table(gptlit: Call, run: Run) -> None:
    options = ["--sweep", "top_k=3,9", "--weights=int8"]
    caption = call(gptlit, run, *options).out.split("\n\n", 1)[0]
    assert "weights int8" in " ".join(caption.split())
    found = rows(call(gptlit, run, *options, "--format=jsonl"))
    assert {row["weights"] for row in found} == {"int8"}


def row_of(text: str) -> Row:
    written = GeneratedText("", text, [1, 2], [-1.0, -2.0], [0.5, 1.0])
    return Row(ComparedCheckpoint(Path("a.ckpt"), "a", 3), {}, 7, written)


def test_metrics_are_means_and_shares() -> None:
    assert row_of("to be or\nnot to be").metrics == {
        "logprob": -1.5,
        "entropy": 0.75,
        "distinct": 4 / 6,
    }
    empty = Row(ComparedCheckpoint(Path("a.ckpt"), "a", 3), {}, 7, GeneratedText("", " "))
    assert set(empty.metrics.values()) == {None}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_is_escaped_for_markdown(text: str) -> None:
    cell = sweep_tables._escaped(text)
    assert not set("\n|*`[]\\$~") & set(cell)
    assert not re.search(r"<(?!br>)", cell)
    back = html.unescape(cell.replace("<br>", "\n")).replace("\xa0", " ")
    assert back == printable(text)


def test_a_table_in_markdown(gptlit: Call, run: Run) -> None:
    result = call(gptlit, run, *GRID, "--format=markdown", "--output_file=table.md")
    assert (result.code, result.out) == (0, "")
    lines = Path("table.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.count("|") for line in table} == {7}
    assert table[0] == "| temperature | top_k | logprob | entropy | distinct | text |"
    assert [line.split(" | ")[1] for line in table[2:]] == ["3", "none", "3", "none"]


def test_a_prompt_outside_the_vocabulary_of_a_model(gptlit: Call, run: Run) -> None:
    result = call(gptlit, run, *GRID, "--prompt=ß")
    assert (result.code, result.out) == (2, "")
    assert "last.ckpt: --prompt: 'ß' not in the vocabulary" in result.err
    skipped = call(gptlit, run, *GRID, "--prompt=ß", "--unknown=skip")
    assert skipped.code == 0
    assert skipped.err.count("dropped 'ß'") == 1
