"""Sizes of splits, windows, batches and intervals that suit a small text, and its first words."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gptlit.corpora.catalog import Text
from gptlit.corpora.cleaning import AS_IT_IS, Cleaner

SMALL_CHARS = 100_000  # below, a config's sizes are compared with the text's size
LEAST_VALIDATION = 1_000  # characters, if a tenth of the text has as many
LARGEST_SHARE = 0.1
LEAST_BLOCK = 8
LEAST_WINDOWS = 8
LEAST_CHARS = 80  # a tenth of them is a window of LEAST_BLOCK characters
PASSES = 10  # over the text between two validations, at most
VALIDATIONS = 40
LEAST_INTERVAL = 5  # steps, as a validation takes longer than a step of a small text
SAMPLES = 10
HEAD_CHARS = 1_000_000  # of the text, searched for the prompts of a config
PROMPT_CHARS = 24


def val_fraction(fraction: float, n_chars: int) -> float:
    """Return a validation share of LEAST_VALIDATION characters, or a tenth of the text.

    Args:
        fraction: Share in the config; kept if it is 0 or large enough.
        n_chars: Number of characters of the text.
    """
    if not fraction or fraction * n_chars >= LEAST_VALIDATION:
        return fraction
    return max(fraction, min(LARGEST_SHARE, math.ceil(100 * LEAST_VALIDATION / n_chars) / 100))


def block_size(
    largest: int, n_windows: Callable[[int], int], n_val: int | None, least_windows: int
) -> int | None:
    """Return the largest of `largest`, its half, its quarter, ... that the text has windows for.

    Args:
        largest: Block size in the config.
        n_windows: Function of a block size that returns the number of training windows.
        n_val: Tokens of the validation split, which needs a window; None without the split.
        least_windows: Training windows of a step; LEAST_WINDOWS are needed in any case.

    Returns:
        The block size; None if LEAST_BLOCK is too large.
    """
    size, least_windows = largest, max(least_windows, LEAST_WINDOWS)
    while size >= min(largest, LEAST_BLOCK):
        if (n_val is None or n_val >= size) and n_windows(size) >= least_windows:
            return size
        size //= 2
    return None


def batch_size(largest: int, n_windows: int, batches_per_step: int) -> int:
    """Return the largest batch size up to `largest` with which an epoch has a step.

    Args:
        largest: Batch size in the config.
        n_windows: Number of training windows of the text.
        batches_per_step: Processes times accumulated batches.
    """
    return max(1, min(largest, n_windows // batches_per_step))


def val_check_interval(interval: int, n_steps: int, steps_per_epoch: int) -> int:
    """Return steps between validations, few enough to find the best step on a small text.

    If more than PASSES passes over the text lie between two validations, a run has VALIDATIONS of
    them, or more so that they divide it evenly; a short run has one every LEAST_INTERVAL steps.

    Args:
        interval: Interval in the config.
        n_steps: Steps of the run; 0 or less if it has no end.
        steps_per_epoch: Steps in a pass over the text.
    """
    if n_steps <= 0 or interval <= PASSES * steps_per_epoch or interval * VALIDATIONS <= n_steps:
        return interval
    most = min(n_steps, max(LEAST_INTERVAL, n_steps // VALIDATIONS))
    return next((n for n in range(most, most // 2, -1) if n_steps % n == 0), most)


def sample_interval(least: int, n_steps: int, interval: int) -> int:
    """Return the least steps between samples, for SAMPLES in a run that has more than twice as
    many validations.

    Args:
        least: Interval in the config.
        n_steps: Steps of the run; 0 or less if it has no end.
        interval: Steps between validations.
    """
    if n_steps <= 2 * SAMPLES * interval:
        return least
    return max(least, n_steps // SAMPLES)


def beginning(text: Text) -> str:
    """Return the first HEAD_CHARS characters of the cleaned text."""
    documents = text.documents()
    blocks: Iterable[str] = itertools.chain.from_iterable(documents)
    if text.options.cleaning != AS_IT_IS:
        blocks = Cleaner(text.options.cleaning)("".join(blocks) for blocks in documents)
    head = ""
    for block in blocks:
        head += block
        if len(head) >= HEAD_CHARS:
            break
    return head[:HEAD_CHARS]


def prompts(given: list[str], head: str) -> list[str]:
    """Return the given prompts if they occur in the beginning of a text, or else its opening."""
    return given if all(prompt in head for prompt in given) else [opening(head)]


def opening(text: str) -> str:
    """Return the beginning of a text's first line, in whole words if possible, as a prompt."""
    line = next((line.strip() for line in text.split("\n") if line.strip()), "")
    if len(line) <= PROMPT_CHARS:
        return line
    words = line[: PROMPT_CHARS + 1].rpartition(" ")[0]
    return words.rstrip() or line[:PROMPT_CHARS]


def expectation(n_bytes: int, passes: float | None) -> list[str]:
    """Return lines on what to expect of a small text; none if it isn't seen many times.

    Args:
        n_bytes: Bytes of the text.
        passes: Passes over the text in the run; None for a run without an end.
    """
    if passes is not None and passes <= PASSES:
        return []
    size = f"{n_bytes:,} bytes" if n_bytes < 1000 else f"{n_bytes / 1000:.1f} KB"
    often = "without end" if passes is None else f"{passes:,.0f} times"
    return [
        f"{size} of text, seen {often}: the model will memorise it;",
        "for new text in its style give about 1 MB",
    ]


def changed(name: str, before: Any, now: Any) -> Sequence[str]:
    """Return ["block_size 64 -> 32"], or [] if both are the same."""
    if before == now:
        return []
    old, new = (json.dumps(value, ensure_ascii=False) for value in (before, now))
    return [f"{name} {old} -> {new}"]
