"""Draw a run's losses over the steps, with some of its sample texts below, as one SVG file.

    python examples/plot_run.py lightning_logs/version_0 run.svg

docs/images/run.svg was made so, from `gptlit fit --config small.yaml --trainer.max_steps 1000
--trainer.val_check_interval 100`.
"""

import csv
import re
import sys
from html import escape
from pathlib import Path

from gptlit.charts.axes import Point, Series, axis
from gptlit.charts.layout import HEIGHT, WIDTH
from gptlit.charts.svg import chart

LINES = 9  # of each sample text
ROW, GAP, COLUMN = 15, 24, 240  # pixels


def losses(run: Path, metric: str) -> list[Point]:
    """The logged values of one metric over the optimizer steps."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[metric]]
    return [Point(int(row["step"]) + 1, float(row[metric])) for row in rows]


def samples(run: Path) -> list[tuple[str, list[str]]]:
    """The first, the middle and the last sample text: a title and the lines of each."""
    parts = re.split(r"^=== (step .*)\n", (run / "samples.txt").read_text(), flags=re.MULTILINE)
    found = [(t, text.splitlines()) for t, text in zip(parts[1::2], parts[2::2], strict=True)]
    return [found[0], found[len(found) // 2], found[-1]] if len(found) > 2 else found


def plot(run: Path) -> str:
    """The SVG document."""
    train, val = losses(run, "train/loss"), losses(run, "val/loss")
    series = [
        Series("train/loss", train, marked=False),
        Series("val/loss", val),
    ]
    points = train + val
    x = axis("optimizer step", [point.x for point in points], log=False)
    y = axis("loss (nats per token)", [point.y for point in points], log=False)
    curves = chart("A model of characters learns Shakespeare", series, x, y, theme="light")
    height = HEIGHT + (LINES + 1) * ROW + 2 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="9.5">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        curves,
    ]
    for column, (title, lines) in enumerate(samples(run)):
        left, top = 8 + column * COLUMN, HEIGHT + GAP
        parts.append(f'<text x="{left}" y="{top}" font-weight="bold">{escape(title)}</text>')
        for row, line in enumerate(lines[:LINES], start=1):
            cut = line if len(line) <= 40 else line[:39] + "…"
            place = f'x="{left}" y="{top + row * ROW}" xml:space="preserve"'
            parts.append(f"<text {place}>{escape(cut)}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    run, file = map(Path, sys.argv[1:])
    file.write_text(plot(run), encoding="utf-8")
