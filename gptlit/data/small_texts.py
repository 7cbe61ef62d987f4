"""What suits a small text: sizes of splits, windows, batches and intervals, by arithmetic."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

SMALL_CHARS = 100_000  # below, a config's sizes are compared with the text's
LEAST_VALIDATION = 1_000  # characters, where a tenth of the text has as many
LARGEST_SHARE = 0.1
LEAST_BLOCK = 8
LEAST_WINDOWS = 8
LEAST_CHARS = 80  # whose last tenth is a window of LEAST_BLOCK characters
PASSES = 10  # over the text between two validations, at most
VALIDATIONS = 40
LEAST_INTERVAL = 5  # steps between validations, which take longer than a step of a small text
SAMPLES = 10
PROMPT_CHARS = 24


def val_fraction(given: float, n_chars: int) -> float:
    """A share for validation that has LEAST_VALIDATION characters, or a tenth of the text.

    Args:
        given: The config's share; 0, and what is large enough already, stay.
        n_chars: Of the text.
    """
    if not given or given * n_chars >= LEAST_VALIDATION:
        return given
    return max(given, min(LARGEST_SHARE, math.ceil(100 * LEAST_VALIDATION / n_chars) / 100))


def block_size(
    given: int, n_windows: Callable[[int], int], n_val: int | None, least_windows: int
) -> int | None:
    """The largest of `given`, its half, its quarter and so on that the text has windows for.

    Args:
        given: The config's block size.
        n_windows: Gives the number of training windows of a block size.
        n_val: Tokens of the validation split, which has a window at least; None without one.
        least_windows: Training windows that a step takes, at least; LEAST_WINDOWS otherwise.

    Returns:
        The block size; None if there is none, down to LEAST_BLOCK.
    """
    size = given
    while size >= min(given, LEAST_BLOCK):
        if (n_val is None or n_val >= size) and n_windows(size) >= max(
            least_windows, LEAST_WINDOWS
        ):
            return size
        size //= 2
    return None


def batch_size(given: int, n_windows: int, batches_per_step: int) -> int:
    """The largest batch up to `given` of which an epoch has one step at least.

    Args:
        given: The config's batch size.
        n_windows: Training windows of the text.
        batches_per_step: Processes times accumulated batches.
    """
    return max(1, min(given, n_windows // batches_per_step))


def val_check_interval(given: int, n_steps: int, steps_per_epoch: int) -> int:
    """Steps between validations, so that the best of a text seen many times isn't missed.

    Where more than PASSES passes over the text lie between two validations, there are
    VALIDATIONS of them in a run, or more where those are needed to divide it; of a short run,
    one in LEAST_INTERVAL steps.

    Args:
        given: The config's interval.
        n_steps: Of the run; 0 or less if it has no end.
        steps_per_epoch: Steps in a pass over the text.
    """
    if n_steps <= 0 or given <= PASSES * steps_per_epoch or given * VALIDATIONS <= n_steps:
        return given
    most = min(n_steps, max(LEAST_INTERVAL, n_steps // VALIDATIONS))
    return next((n for n in range(most, most // 2, -1) if n_steps % n == 0), most)


def sample_interval(given: int, n_steps: int, interval: int) -> int:
    """Steps between samples, at least: SAMPLES in a run of more than twice as many validations.

    Args:
        given: The config's.
        n_steps: Of the run; 0 or less if it has no end.
        interval: Steps between validations.
    """
    if n_steps <= 2 * SAMPLES * interval:
        return given
    return max(given, n_steps // SAMPLES)


def opening(text: str) -> str:
    """A prompt from a text: the beginning of its first line, in whole words if possible."""
    line = next((line.strip() for line in text.split("\n") if line.strip()), "")
    if len(line) <= PROMPT_CHARS:
        return line
    words = line[: PROMPT_CHARS + 1].rpartition(" ")[0]
    return words.rstrip() or line[:PROMPT_CHARS]


def expectation(n_bytes: int, passes: float | None) -> list[str]:
    """What a small text can give, in short lines; nothing for one that isn't seen many times.

    Args:
        n_bytes: Of the text.
        passes: How often the run sees it; None for a run without an end.
    """
    if passes is not None and passes <= PASSES:
        return []
    size = f"{n_bytes:,} bytes" if n_bytes < 1000 else f"{n_bytes / 1000:.1f} KB"
    often = "without end" if passes is None else f"{passes:,.0f} times"
    return [
        f"{size} of text, seen {often}, will be recited;",
        "for new text in its style give about 1 MB",
    ]


def changed(name: str, before: Any, now: Any) -> Sequence[str]:
    """["block_size 64 -> 32"], or nothing where both are the same."""
    if before == now:
        return []
    old, new = (json.dumps(value, ensure_ascii=False) for value in (before, now))
    return [f"{name} {old} -> {new}"]
