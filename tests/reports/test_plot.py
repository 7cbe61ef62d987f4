"""`gptlit plot`: pictures, pages and charts of text, and what they say of the runs."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

from gptlit.charts.axes import Point
from gptlit.charts.smoothing import parse
from gptlit.reports import figure
from gptlit.reports.curves import Log
from gptlit.terminal import width
from tests.conftest import Result, Run
from tests.pseudo_terminal import seen

Call = Callable[..., Result]
SVG = "{http://www.w3.org/2000/svg}"
LOG = Log(
    "a",
    [
        {"step": step, "loss": 10 / step, "lr": 0.1 / step} | ({"val_loss": v} if v else {})
        for step, v in ((1, 0), (10, 3.0), (100, 2.0), (1000, 2.5))
    ],
)


@pytest.fixture
def two(run: Run, gptlit: Call, tmp_path: Path) -> Call:
    """`gptlit` in a folder with two runs that differ in one option."""
    runs = tmp_path / "lightning_logs"
    for name, rate in (("one", 0.1), ("two", 0.2)):
        shutil.copytree(run.folder, runs / name)
        path = runs / name / "config.yaml"
        options = yaml.safe_load(path.read_text())
        options["model"]["lr"] = rate
        path.write_text(yaml.safe_dump(options))
    return gptlit


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_figure_of_a_run() -> None:
    made = figure.make([LOG], ["a"], None, parse("mean:2"), log="x")
    losses, rates = made.panels()
    pale, smooth, val, best = losses.series
    assert [point.y for point in pale.points] == [10, 1, 0.1, 0.01]
    assert [point.y for point in smooth.points] == pytest.approx([10, 5.5, 0.55, 0.055])
    assert [*val.points] == [Point(10, 3.0), Point(100, 2.0), Point(1000, 2.5)]
    assert [*best.points] == [Point(100, 2.0)]
    assert [each.name for each in losses.series] == [
        "", "train/loss, mean:2", "val/loss", "best 2.0000 at 100",
    ]  # fmt: skip
    assert [point.y for point in rates.series[0].points] == [0.1, 0.01, 0.001, 0.0001]
    assert losses.x is rates.x
    assert losses.x.place(10) - losses.x.place(1) == pytest.approx(
        losses.x.place(100) - losses.x.place(10)
    )
    assert [text for _, text in losses.x.ticks] == ["1", "10", "100", "1000"] or losses.x.log
    assert len(figure.make([LOG], ["a"], "step", parse("none"), lr=False).panels()) == 1


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    log = Log("a", [{"step": 0, "loss": 3.0, "lr": 0.1}, {"step": 5, "loss": 2.0, "lr": 0.0}])
    (run,) = figure.make([log], ["a"], "step", parse("none"), log="xy").runs
    assert (run.train, run.lr) == ([Point(5, 2.0)], [Point(5, 0.0)])


def test_an_svg_shows_the_runs_by_what_differs(two: Call) -> None:
    result = two("plot", "one", "two", "--output", "loss.svg")
    assert result.code == 0, result.err
    assert result.err == "gptlit: 2 runs drawn in loss.svg\n"
    svg = Path("loss.svg").read_text()
    shown = texts(svg)
    assert {"2 runs", "lr=0.1", "lr=0.2", "optimizer step", "loss (nats per token)", "lr"} <= {
        *shown
    }
    assert len([text for text in shown if text.startswith("best ")]) == 2
    assert two("plot", "lightning_logs", "--output", "all.svg").code == 0
    assert Path("all.svg").read_text() == svg


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_a_png(two: Call, theme: str) -> None:
    assert two("plot", "one", "--output=loss.PNG", f"--theme={theme}").code == 0
    image = Image.open("loss.PNG")
    assert image.format == "PNG"
    assert sum(image.convert("RGB").getpixel((3, 3))) > 700 or theme == "dark"


def test_a_page_needs_no_other_file(two: Call) -> None:
    assert two("plot", "one", "two", "--output=loss.html", "--x=minutes").code == 0
    page = Path("loss.html").read_text()
    assert not re.findall(r'(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg")', page)
    whole = ElementTree.fromstring(page.partition("\n")[2].replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width">', ""))  # fmt: skip
    cells = [cell.text for cell in whole.iter("td")]
    assert cells[::6] == ["lr=0.1", "lr=0.2"]
    assert "prefers-color-scheme: dark" in page
    assert "minutes of training steps" in page


@pytest.mark.parametrize("columns", [60, 80])
def test_a_terminal(two: Call, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    shown = seen(columns, monkeypatch, "plot", "one", "two")
    assert all(width(line) <= columns for line in shown.lines)
    assert len(shown.lines) <= 26, shown.text
    assert re.search("[\u2801-\u28ff]", shown.text)
    assert {"lr=0.1", "lr=0.2", "best"} <= shown.words


def test_no_colours_without_a_terminal_or_with_no_color(
    two: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in two("plot", "one", "two").out
    coloured = seen(80, monkeypatch, "plot", "one", "two")
    assert any("\x1b[3" in frame for frame in coloured.frames)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = seen(80, monkeypatch, "plot", "one", "two")
    assert not any("\x1b[3" in frame for frame in plain.frames)
    # lines that can't be distinguished are left out
    assert len(re.findall("[\u2801-\u28ff]", plain.text)) <= len(
        re.findall("[\u2801-\u28ff]", coloured.text)
    )


def test_ascii_where_the_encoding_has_no_more(two: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptlit.__main__ import main

    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    assert main(["plot", "one", "--smooth", "none"]) == 0
    lines = written.getvalue().decode("ascii").splitlines()
    assert "\\" not in "".join(lines)
    assert any("+-" in line for line in lines)


def test_the_newest_run_is_the_default(
    run: Run, gptlit: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.cwd)
    assert gptlit("plot").out == gptlit("plot", "last").out == gptlit("plot", run.folder).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nosuch",), "nosuch: no such run, folder or CSV"),
        (("one", "--output=a.pdf"), "--output a.pdf: must end in .png, .svg or .html; leave it"),
        (("one", "--smooth=3"), "--smooth 3: must be none, auto, mean:N"),
        (("one", "--x=hours"), "--x hours: expected one of step, tokens, epoch, minutes"),
        (("one", "other.csv", "--x=tokens"), "--x tokens: other has logged no loss over it; the "
         "runs have step"),
        (("one", "--columns=it"), "--columns it: must be MEANING=NAME"),
        (("one", "--columns=time=it"), "--columns time=it: must be MEANING=NAME,..., with the "
         "meanings step, epoch,"),
        (("negative.csv", "--log=y"), "--log y: negative has no loss that a logarithmic axis"),
        (("one", "--output=no/such/\0.png"), "--output no/such/\0.png"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_a_line(two: Call, words: tuple[str, ...], message: str) -> None:
    Path("other.csv").write_text("step,loss\n1,3\n2,2\n")
    Path("negative.csv").write_text("step,loss\n1,-3\n2,-2\n")
    if "\0" in words[-1]:
        Path("no").write_text("a file where a folder would be")
        words = ("one", "--output=no/a.png")
        message = "--output no/a.png: can't be written"
    refused = two("plot", *words)
    assert refused.code in (1, 2)
    assert refused.out == ""
    assert message in refused.err
    assert len(refused.err.splitlines()) == 1


def test_runs_without_a_common_axis_are_refused(gptlit: Call) -> None:
    Path("a.csv").write_text("step,loss\n1,3\n")
    Path("b.csv").write_text("epoch,loss\n1,3\n")
    refused = gptlit("plot", "a.csv", "b.csv")
    assert refused.err.startswith("gptlit: error: the runs have no unit of the x axis in common")
    assert gptlit("plot", "b.csv").code == 0


def test_broken_event_files_are_refused_in_a_line(gptlit: Call) -> None:
    Path("events.out.tfevents.1.x").write_bytes(b"no events" * 100)
    refused = gptlit("plot", "events.out.tfevents.1.x")
    assert (refused.code, refused.out) == (2, "")
    assert "has no tag that is known as a loss" in refused.err


def test_colours_that_come_again_are_dashed() -> None:
    made = figure.make([LOG] * 8, [f"run {index}" for index in range(8)], "step", parse("none"))
    lines = {each.name: each for each in made.panels()[0].series}
    assert [lines[f"run {index}"].dashed for index in (0, 6, 7)] == [False, False, True]


def test_too_many_runs_are_refused(two: Call) -> None:
    assert "30 runs, and a figure shows 26 at most" in two("plot", *["one"] * 30).err
