"""What a sweep wrote, as a table for a terminal, in Markdown, as .jsonl or in TensorBoard."""

import dataclasses
import itertools
import json
import re
import statistics
import textwrap
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gptlit.checkpoints import checkpoint
from gptlit.generation.settings import BeamSettings
from gptlit.messages import note
from gptlit.predict.checkpoints import Stage, run_of
from gptlit.predict.modes import Format
from gptlit.predict.sweep import Row, Sweep, as_json
from gptlit.terminal import (
    align_row,
    column_widths,
    format_value,
    printable,
    shortened,
    visible,
    wrapped,
)

K = TypeVar("K", bound=Hashable)
LEAST_TEXT = 30  # columns; where a table leaves less for the text, it stands below its figures
LONGEST_PROMPT = 20
LONGEST_PROMPT_IN_CAPTION = 60
AT_THE_LEFT = ("checkpoint", "prompt", "text")
FIGURES = {"logprob": ".2f", "entropy": ".2f", "distinct": ".0%"}
LEGEND = (
    "logprob: mean log probability of the text's tokens by the model itself, in nats; entropy: "
    "of its predictions, likewise; distinct: share of words that differ"
)


def report(sweep: Sweep, rows: Iterable[Row], form: Format, room: int) -> Iterator[str]:
    """A sweep in one of the forms, part by part, as text of so many columns; one for TensorBoard
    goes to a folder."""
    if form == "text":
        return as_text(sweep, rows, room)
    if form == "markdown":
        return as_markdown(sweep, rows)
    if form == "jsonl":
        return as_jsonl(sweep, rows)
    folder = _claim(sweep.stages[0].path)
    to_tensorboard(sweep, rows, folder)
    note(f"in {folder}; see it by: tensorboard --logdir {folder.parent}")
    return iter(())


def _claim(path: Path) -> Path:
    """A new folder sweep_N beside the run's that a checkpoint is of."""
    run = run_of(path)
    root = run.parent if checkpoint.is_run(run) else checkpoint.RUNS
    if root.is_relative_to(Path.cwd()):
        root = root.relative_to(Path.cwd())
    for number in itertools.count():
        try:
            (folder := root / f"sweep_{number}").mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def caption(sweep: Sweep) -> str:
    """What all rows have in common."""
    parts = []
    if len(sweep.stages) == 1:
        (stage,) = sweep.stages
        parts.append(str(stage.path))
        parts += [f"{name} {told}" for name, told in _told_of(stage).items()][1:]
    if sweep.weights != "float32":
        parts.append(f"weights {sweep.weights}")
    if len(sweep.prompts) == 1:
        parts.append(f"prompt {shortened(repr(sweep.prompts[0]), LONGEST_PROMPT_IN_CAPTION)}")
    if len(sweep.seeds) == 1 and not sweep.is_all_search:
        parts.append(f"seed {sweep.seeds[0]}")
    usual = dataclasses.asdict(BeamSettings())
    combined = [dataclasses.replace(sweep.settings, **each) for each in sweep.combinations]
    used = {name: value for settings in combined for name, value in settings.used().items()}
    parts += [
        f"{name} {format_value(value, 'none')}"
        for name, value in used.items()
        if name not in sweep.combinations[0]
        and (name in ("temperature", "max_new_tokens") or value != usual[name])
    ]
    return ", ".join(parts)


def _told_of(stage: Stage) -> dict[str, str]:
    loss = "-" if stage.val_loss is None else f"{stage.val_loss:.3f}"
    if stage.val_step not in (None, stage.step):
        loss += f" @{stage.val_step}"
    return {"checkpoint": stage.name, "step": str(stage.step), "val/loss": loss}


def _labels(
    sweep: Sweep, stage: Stage, settings: dict[str, Any], seed: int | None, prompt: str
) -> dict[str, str]:
    """What tells a row from the others."""
    labels = _told_of(stage) if len(sweep.stages) > 1 else {}
    labels |= {name: format_value(value, "none") for name, value in settings.items()}
    if len(sweep.seeds) > 1 and not sweep.is_all_search:
        labels["seed"] = "-" if seed is None else str(seed)
    if len(sweep.prompts) > 1:
        labels["prompt"] = shortened(visible(prompt), LONGEST_PROMPT)
    return labels


def cells(sweep: Sweep, row: Row) -> dict[str, str]:
    """All of a row but its text, by column."""
    told = _labels(sweep, row.stage, row.settings, row.seed, row.written.prompt)
    for name, value in row.figures.items():
        told[name] = "-" if value is None else format(value, FIGURES[name])
    return told


def _widths(sweep: Sweep) -> dict[str, int]:
    """The width of each column but the text's, known before any text is written."""
    labels = [
        _labels(sweep, stage, combination, seed, prompt)
        for stage, combination in itertools.product(sweep.stages, sweep.combinations)
        for seed, prompt in itertools.product(sweep.seeds_of(combination), sweep.prompts)
    ]
    names = [*labels[0], *FIGURES]
    rows = [[each.get(name, "") for name in names] for each in labels]
    return dict(zip(names, column_widths([names, *rows]), strict=True))


def as_text(sweep: Sweep, rows: Iterable[Row], room: int) -> Iterator[str]:
    """A table row by row, as wide as a terminal; where that is too narrow, texts with a head.

    Args:
        sweep: What is compared.
        rows: Its rows, each told as soon as it comes.
        room: The columns of the terminal.
    """
    room = max(room, LEAST_TEXT)
    yield _paragraph(caption(sweep), room) + "\n"
    widths = _widths(sweep)
    left = sum(widths.values()) + 2 * len(widths)
    if room - left < LEAST_TEXT:
        for row in rows:
            head = ", ".join(f"{name} {told}" for name, told in cells(sweep, row).items())
            lines = wrapped(sweep.text(row).strip("\n"), room - 2)
            yield _paragraph(head, room) + "".join(f"  {line}".rstrip() + "\n" for line in lines)
            yield "\n"
    else:
        yield _line({name: name for name in widths}, widths, "text") + "\n"
        for row in rows:
            first, *more = wrapped(sweep.text(row).strip("\n"), room - left)
            lines = [_line(cells(sweep, row), widths, first)]
            lines += [(" " * left + line).rstrip() for line in more]
            yield "\n".join(lines) + "\n\n"
    yield _paragraph(LEGEND, room)


def _paragraph(text: str, room: int) -> str:
    return "\n".join(wrapped(text, room)) + "\n"


def _line(told: dict[str, str], widths: dict[str, int], text: str) -> str:
    left = [index for index, name in enumerate(widths) if name in AT_THE_LEFT]
    cells = [told[name] for name in widths]
    return f"{align_row(cells, list(widths.values()), left)}  {text}".rstrip()


def as_markdown(sweep: Sweep, rows: Iterable[Row]) -> Iterator[str]:
    """A table in GitHub's Markdown, row by row, in which a text keeps its lines."""
    names = [*_widths(sweep), "text"]
    rule = [":---" if name in AT_THE_LEFT else "---:" for name in names]
    yield f"{_escaped(caption(sweep))}\n\n"
    yield f"| {' | '.join(map(_escaped, names))} |\n| {' | '.join(rule)} |\n"
    for row in rows:
        told = [*cells(sweep, row).values(), sweep.text(row).strip("\n")]
        yield f"| {' | '.join(map(_escaped, told))} |\n"
    yield f"\n{LEGEND}\n"


def _escaped(text: str) -> str:
    """A text that Markdown takes as it is: entities mean the same to each of its readers."""
    special = r"[\\`*\[\]<>|~$&#]|(?<![^\W_])_|_(?![^\W_])"
    text = re.sub(special, lambda found: f"&#{ord(found[0])};", printable(text))
    text = re.sub(r"^ | (?= )", "&nbsp;", text, flags=re.MULTILINE)
    return text.replace("\n", "<br>")


def as_jsonl(sweep: Sweep, rows: Iterable[Row]) -> Iterator[str]:
    """An object in a line for each row."""
    return (json.dumps(as_json(row, sweep)) + "\n" for row in rows)


def to_tensorboard(sweep: Sweep, rows: Iterable[Row], folder: Path) -> None:
    """Write the table as a text, and each combination as a run: its texts and figures by step.

    So that TensorBoard draws a curve for each combination over the stages of training.

    Args:
        sweep: What is compared.
        rows: Its rows.
        folder: Where to, a folder of its own.
    """
    from torch.utils.tensorboard import SummaryWriter

    told = list(rows)
    with SummaryWriter(str(folder)) as board:
        board.add_text("sweep", "".join(as_markdown(sweep, told)))
    several_runs = len({run_of(stage.path) for stage in sweep.stages}) > 1
    for name, group in _grouped(told, lambda row: _name(row, several_runs)).items():
        with SummaryWriter(str(folder / name)) as board:
            for step, texts in _grouped(group, lambda row: row.stage.step).items():
                for figure in FIGURES:
                    known = [value for row in texts if (value := row.figures[figure]) is not None]
                    if known:
                        board.add_scalar(figure, statistics.fmean(known), step)
                for index, row in enumerate(texts):
                    # indented by four, Markdown keeps lines and spaces
                    body = textwrap.indent(sweep.text(row), "    ", lambda _: True)
                    board.add_text(f"text/{index}", body, step)


def _name(row: Row, several_runs: bool) -> str:
    settings = [f"{name}={format_value(value, 'none')}" for name, value in row.settings.items()]
    run = [run_of(row.stage.path).name] if several_runs else []
    return ",".join(run + settings) or "texts"


def _grouped(rows: Iterable[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    groups: dict[K, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
