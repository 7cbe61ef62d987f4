"""Fitting a power law to measured losses: loss = E + A / N ** alpha."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptlit.messages import UsageError

LEAST_FOR_FLOOR = 4  # sizes: any three points are fitted exactly by some E, A and alpha
ALPHAS = np.geomspace(0.01, 4.0, 400)
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + scale / N ** alpha (Hoffmann et al. 2022's form, in one variable).

    Args:
        floor: E, the irreducible loss; 0 or more.
        scale: A.
        alpha: Exponent.
        residual: Root mean squared difference to the losses, in their unit.
        n_points: Number of fitted points.
        has_floor: Whether there were enough sizes to estimate E, which is 0 otherwise.
        bounded: Whether alpha is at an end of its search range, so that it is only a bound.
    """

    floor: float
    scale: float
    alpha: float
    residual: float
    n_points: int
    has_floor: bool
    bounded: bool

    def __call__(self, n: float) -> float:
        return self.floor + self.scale / n**self.alpha


def fit(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """Fit a power law by least squares, with floor and scale at 0 or more.

    For a given alpha the law is linear, and solved as such; alpha is searched from 0.01 to 4, on a
    grid and by golden section around its best value. With fewer than LEAST_FOR_FLOOR distinct
    sizes the floor is 0.

    Args:
        sizes: N of each point, above 0.
        losses: Loss of each point.

    Raises:
        UsageError: There are fewer than two distinct sizes.
    """
    n, y = np.asarray(sizes, dtype=float), np.asarray(losses, dtype=float)
    if len(set(sizes)) < 2:
        raise UsageError("a power law needs at least two distinct sizes")
    with_floor = len(set(sizes)) >= LEAST_FOR_FLOOR
    middle = float(np.exp(np.log(n).mean()))  # keeps powers near 1

    def solved(alpha: float) -> tuple[float, float, float]:
        return _linear((n / middle) ** -alpha, y, with_floor)

    errors = [solved(alpha)[2] for alpha in ALPHAS]
    best = int(np.argmin(errors))
    low, high = ALPHAS[max(best - 1, 0)], ALPHAS[min(best + 1, len(ALPHAS) - 1)]
    while high - low > 1e-10:
        one, other = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, other) if solved(one)[2] <= solved(other)[2] else (one, high)
    alpha = float((low + high) / 2)
    floor, scale, squared = solved(alpha)
    at_end = best in (0, len(ALPHAS) - 1)
    residual = (squared / len(y)) ** 0.5
    return PowerLaw(floor, scale * middle**alpha, alpha, residual, len(y), with_floor, at_end)


def _linear(powers: np.ndarray, y: np.ndarray, with_floor: bool) -> tuple[float, float, float]:
    """Fit y = floor + scale * powers with both 0 or more; also returns the sum of squares."""
    candidates = [(0.0, max(0.0, float(powers @ y / (powers @ powers))))]
    if with_floor:
        centred = powers - powers.mean()
        scale = float(centred @ y / (centred @ centred))
        floor = float(y.mean() - scale * powers.mean())
        candidates.append((max(0.0, float(y.mean())), 0.0))
        if floor >= 0 and scale >= 0:
            candidates.append((floor, scale))
    errors = [float(((y - floor - scale * powers) ** 2).sum()) for floor, scale in candidates]
    best = int(np.argmin(errors))
    return *candidates[best], errors[best]
