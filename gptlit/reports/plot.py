"""`gptlit plot`: loss curves of runs, as a chart in the terminal, a PNG, an SVG or an HTML page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gptlit.charts import smoothing
from gptlit.charts.svg import svg
from gptlit.charts.text import signs_of
from gptlit.charts.themes import Theme
from gptlit.files import write_atomically, writing
from gptlit.messages import UsageError, note, opt
from gptlit.parser import OneLineErrors, with_environment
from gptlit.reports import curves, figure, options, page
from gptlit.reports.curves import NAMES, XAxis
from gptlit.reports.figure import Figure
from gptlit.terminal import columns, columns_of, count_of

SUFFIXES = (".png", ".svg", ".html")
WIDEST, ROWS = 100, 20  # of a chart in the terminal


def parser() -> OneLineErrors:
    """Return the parser of `gptlit plot`."""
    parser = OneLineErrors(prog="gptlit plot", allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="*", type=str, default=None, help="Runs: folders of runs or of studies, "
        "folders or event files of TensorBoard, CSVs of any tool; last, the newest run, if none is "
        "given. Of a folder in lightning_logs the name is enough.")  # fmt: skip
    add("--output", type=str, default=None, help="File to write: a .png, .svg or .html, which is "
        "one self-contained page. Left out, the chart is printed.")  # fmt: skip
    add("--x", type=XAxis | None, default=None, help="Unit of the x axis; left out, the first that "
        "all runs have. Minutes are those of training steps, without validations.")  # fmt: skip
    add("--smooth", type=str, default="auto", help="Moving average of the training loss: mean:N "
        "over N logged values, ema:A exponential with decay A, none, or auto, a mean over a "
        "fiftieth of them. Pictures show the loss itself too, in pale.")  # fmt: skip
    add("--log", type=Literal["none", "x", "y", "xy"], default="none", help="Axes that are "
        "logarithmic.")  # fmt: skip
    add("--lr", type=bool, default=True, help="Show the learning rate below, where it was logged.")
    add("--columns", type=str, default=None, help="Columns or tags that other tools named "
        "otherwise, such as step=it,loss=ce: step, epoch, tokens, minutes, seconds, loss, "
        "val_loss, lr.")  # fmt: skip
    add("--theme", type=Theme, default="auto", help="Colours of a picture; auto is light in a PNG, "
        "and what the viewer prefers in SVG and HTML.")  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> None:
    """Run `gptlit plot` with these arguments.

    Raises:
        UsageError: An argument is invalid, or there is no loss to draw.
        RunError: The file can't be written.
    """
    asked = parser().parse_args(with_environment("plot", argv))
    output = Path(asked.output).expanduser() if asked.output else None
    if output and output.suffix.lower() not in SUFFIXES:
        reason = f"must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise UsageError(f"{reason}; leave it out for a chart in the terminal", "output", output)
    smooth, names = smoothing.parse(asked.smooth), _columns(asked.columns)
    logs = [log for name in asked.runs or ["last"] for log in curves.read(name, names)]
    if len(logs) > (most := len(figure.LETTERS)):
        reason = f"{len(logs)} runs, and a figure shows {most} at most; name some of them"
        raise UsageError(reason)
    labels = options.labels([(log.name, log.options) for log in logs])
    log = asked.log.replace("none", "")
    made = figure.make(logs, labels, asked.x, smooth, log, asked.lr)
    if output is None:
        # some terminals wrap a line that fills the last column
        width = min(WIDEST, (columns_of(sys.stdout) or columns()) - 1)
        print("\n".join(figure.text(made, width, ROWS, signs_of(sys.stdout))))
        return
    with writing(opt("output"), output):
        write_atomically(output, _encoded(made, output.suffix.lower(), asked.theme))
    note(f"{count_of(len(logs), 'run')} drawn in {output}")


def _columns(text: str | None) -> dict[str, str]:
    """Return the columns that an option names, by their meaning."""
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    for meaning, equals, name in pairs:
        if meaning.strip() not in NAMES or not equals or not name.strip():
            reason = f"must be MEANING=NAME,..., with the meanings {', '.join(NAMES)}"
            raise UsageError(f"{reason}, such as step=it,loss=ce", "columns", text)
    return {meaning.strip(): name.strip() for meaning, _, name in pairs}


def _encoded(made: Figure, suffix: str, theme: Theme) -> bytes:
    if suffix == ".html":
        return page.html(made, theme).encode()
    picture = figure.picture(made)
    if suffix == ".svg":
        return svg(picture, theme).encode()
    from gptlit.charts.png import png

    return png(picture, theme)
