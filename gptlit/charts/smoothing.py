"""Moving averages of logged values."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gptlit.messages import UsageError

AUTO_SHARE = 50  # a window of a fiftieth of the values


@dataclass(frozen=True)
class Smoothing:
    """A moving average.

    Args:
        kind: none; mean, the mean of the last values; ema, the exponential moving average; or auto,
            a mean over a fiftieth of the values.
        size: Number of values of a mean, or decay of an exponential average.
    """

    kind: Literal["none", "auto", "mean", "ema"]
    size: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.size:g}" if self.kind in ("mean", "ema") else self.kind

    def of(self, n_values: int) -> "Smoothing":
        """Return the average that `auto` stands for; none where it would change nothing."""
        if self.kind == "auto":
            return Smoothing("mean", n_values // AUTO_SHARE).of(n_values)
        return Smoothing("none") if self.kind == "mean" and self.size <= 1 else self

    def apply(self, values: Sequence[float]) -> list[float]:
        """Return as many values, each averaged with those before it."""
        chosen = self.of(len(values))
        if chosen.kind == "mean":
            return simple(values, int(chosen.size))
        return exponential(values, chosen.size) if chosen.kind == "ema" else list(values)


def parse(text: str) -> Smoothing:
    """Return the smoothing that an option names: none, auto, mean:20 or ema:0.9.

    Raises:
        UsageError: It names none.
    """
    kind, _, size = text.partition(":")
    if text in ("none", "auto"):
        return Smoothing("none" if text == "none" else "auto")
    if kind == "mean" and re.fullmatch(r"[1-9]\d{0,8}", size):
        return Smoothing("mean", int(size))
    if kind == "ema" and re.fullmatch(r"0?\.\d+|0", size):
        return Smoothing("ema", float(size))
    reason = "must be none, auto, mean:N with a number of values, or ema:A with 0 <= A < 1"
    raise UsageError(f"{reason}, such as mean:20 or ema:0.9", "smooth", text)


def simple(values: Sequence[float], size: int) -> list[float]:
    """Return the mean of each value and the size - 1 before it; of fewer at the beginning."""
    windows = (values[max(0, end - size) : end] for end in range(1, len(values) + 1))
    return [math.fsum(window) / len(window) for window in windows]


def exponential(values: Sequence[float], decay: float) -> list[float]:
    """Return m_t / (1 - decay^t) with m_t = decay m_(t-1) + (1 - decay) x_t and m_0 = 0.

    The divisor removes the influence of m_0, as in Adam (Kingma and Ba 2015).
    """
    smoothed, mean = [], 0.0
    for count, value in enumerate(values, 1):
        mean = decay * mean + (1 - decay) * value
        smoothed.append(mean / (1 - decay**count))
    return smoothed
