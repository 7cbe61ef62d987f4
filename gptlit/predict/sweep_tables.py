"""The texts of a sweep as a table for the terminal, in Markdown, or as .jsonl."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from gptlit.generation.settings import BeamSettings
from gptlit.predict.checkpoints import ComparedCheckpoint
from gptlit.predict.modes import Format
from gptlit.predict.sweep import Row, Sweep
from gptlit.terminal import (
    align_row,
    column_widths,
    format_value,
    printable,
    shortened,
    visible,
    wrapped,
)

LEAST_TEXT = 30  # columns of the texts; in a narrower terminal they are below their metrics
LONGEST_PROMPT = 20
LONGEST_PROMPT_IN_CAPTION = 60
LEFT_ALIGNED = ("checkpoint", "prompt", "text")
METRICS = {"logprob": ".2f", "entropy": ".2f", "distinct": ".0%"}
LEGEND = (
    "logprob: mean log probability of the text's tokens by the model itself, in nats; entropy: "
    "mean entropy of its predictions, in nats; distinct: share of distinct words"
)


def report(sweep: Sweep, rows: Iterable[Row], form: Format, columns: int) -> Iterator[str]:
    """Format a sweep part by part, as text for a terminal of so many columns, markdown or jsonl."""
    if form == "text":
        return as_text(sweep, rows, columns)
    if form == "markdown":
        return as_markdown(sweep, rows)
    return as_jsonl(sweep, rows)


def caption(sweep: Sweep) -> str:
    """Return the checkpoint and settings that all rows have in common."""
    parts = []
    if len(sweep.checkpoints) == 1:
        (checkpoint,) = sweep.checkpoints
        parts.append(str(checkpoint.path))
        parts += [f"{name} {value}" for name, value in _progress(checkpoint).items()][1:]
    if sweep.weights != "float32":
        parts.append(f"weights {sweep.weights}")
    if len(sweep.prompts) == 1:
        parts.append(f"prompt {shortened(repr(sweep.prompts[0]), LONGEST_PROMPT_IN_CAPTION)}")
    if len(sweep.seeds) == 1 and not sweep.is_all_search:
        parts.append(f"seed {sweep.seeds[0]}")
    defaults = dataclasses.asdict(BeamSettings())
    combined = [dataclasses.replace(sweep.settings, **each) for each in sweep.combinations]
    used = {name: value for settings in combined for name, value in settings.used().items()}
    parts += [
        f"{name} {format_value(value, 'none')}"
        for name, value in used.items()
        if name not in sweep.combinations[0]
        and (name in ("temperature", "max_new_tokens") or value != defaults[name])
    ]
    return ", ".join(parts)


def _progress(checkpoint: ComparedCheckpoint) -> dict[str, str]:
    loss = "-" if checkpoint.val_loss is None else f"{checkpoint.val_loss:.3f}"
    if checkpoint.val_step not in (None, checkpoint.step):
        loss += f" @{checkpoint.val_step}"
    return {"checkpoint": checkpoint.name, "step": str(checkpoint.step), "val/loss": loss}


def _labels(
    sweep: Sweep,
    checkpoint: ComparedCheckpoint,
    settings: dict[str, Any],
    seed: int | None,
    prompt: str,
) -> dict[str, str]:
    """Return the values that distinguish a row from the others, by column."""
    labels = _progress(checkpoint) if len(sweep.checkpoints) > 1 else {}
    labels |= {name: format_value(value, "none") for name, value in settings.items()}
    if len(sweep.seeds) > 1 and not sweep.is_all_search:
        labels["seed"] = "-" if seed is None else str(seed)
    if len(sweep.prompts) > 1:
        labels["prompt"] = shortened(visible(prompt), LONGEST_PROMPT)
    return labels


def cells(sweep: Sweep, row: Row) -> dict[str, str]:
    """Return the labels and metrics of a row, by column."""
    metrics = {
        name: "-" if value is None else format(value, METRICS[name])
        for name, value in row.metrics.items()
    }
    return _labels(sweep, row.checkpoint, row.settings, row.seed, row.written.prompt) | metrics


def _widths(sweep: Sweep) -> dict[str, int]:
    """Return the width of each column but the text's, known before any text is written."""
    labels = [
        _labels(sweep, checkpoint, combination, seed, prompt)
        for checkpoint, combination in itertools.product(sweep.checkpoints, sweep.combinations)
        for seed, prompt in itertools.product(sweep.seeds_of(combination), sweep.prompts)
    ]
    names = [*labels[0], *METRICS]
    rows = [[each.get(name, "") for name in names] for each in labels]
    return dict(zip(names, column_widths([names, *rows]), strict=True))


def as_text(sweep: Sweep, rows: Iterable[Row], columns: int) -> Iterator[str]:
    """Format a table row by row; in a narrow terminal, each text below its labels and metrics."""
    columns = max(columns, LEAST_TEXT)
    yield _paragraph(caption(sweep), columns) + "\n"
    widths = _widths(sweep)
    left = sum(widths.values()) + 2 * len(widths)
    if columns - left < LEAST_TEXT:
        for row in rows:
            head = ", ".join(f"{name} {value}" for name, value in cells(sweep, row).items())
            lines = wrapped(sweep.text(row).strip("\n"), columns - 2)
            text = "".join(f"  {line}".rstrip() + "\n" for line in lines)
            yield f"{_paragraph(head, columns)}{text}\n"
    else:
        yield _line({name: name for name in widths}, widths, "text") + "\n"
        for row in rows:
            first, *others = wrapped(sweep.text(row).strip("\n"), columns - left)
            lines = [_line(cells(sweep, row), widths, first)]
            lines += [(" " * left + line).rstrip() for line in others]
            yield "\n".join(lines) + "\n\n"
    yield _paragraph(LEGEND, columns)


def _paragraph(text: str, columns: int) -> str:
    return "\n".join(wrapped(text, columns)) + "\n"


def _line(values: dict[str, str], widths: dict[str, int], text: str) -> str:
    left = [index for index, name in enumerate(widths) if name in LEFT_ALIGNED]
    cells = [values[name] for name in widths]
    return f"{align_row(cells, list(widths.values()), left)}  {text}".rstrip()


def as_markdown(sweep: Sweep, rows: Iterable[Row]) -> Iterator[str]:
    """Format a table in GitHub's Markdown, row by row; texts keep their line breaks."""
    names = [*_widths(sweep), "text"]
    rule = [":---" if name in LEFT_ALIGNED else "---:" for name in names]
    yield f"{_escaped(caption(sweep))}\n\n"
    yield f"| {' | '.join(map(_escaped, names))} |\n| {' | '.join(rule)} |\n"
    for row in rows:
        values = [*cells(sweep, row).values(), sweep.text(row).strip("\n")]
        yield f"| {' | '.join(map(_escaped, values))} |\n"
    yield f"\n{LEGEND}\n"


def as_jsonl(sweep: Sweep, rows: Iterable[Row]) -> Iterator[str]:
    """Format all values of each row as a line of JSON."""
    for row in rows:
        values = {
            "checkpoint": str(row.checkpoint.path),
            "step": row.checkpoint.step,
            "val/loss": row.checkpoint.val_loss,
            "val/step": row.checkpoint.val_step,
            "weights": sweep.weights,
            **({} if row.seed is None else {"seed": row.seed}),
            **dataclasses.replace(sweep.settings, **row.settings).used(),
            **row.metrics,
            **dataclasses.asdict(row.written),
        }
        yield json.dumps(values) + "\n"


def _escaped(text: str) -> str:
    """Escape a text for Markdown, by entities, which are the same in all its dialects."""
    special = r"[\\`*\[\]<>|~$&#]|(?<![^\W_])_|_(?![^\W_])"
    text = re.sub(special, lambda found: f"&#{ord(found[0])};", printable(text))
    text = re.sub(r"^ | (?= )", "&nbsp;", text, flags=re.MULTILINE)
    return text.replace("\n", "<br>")
