"""Power laws are recovered from their points, and no other law fits better."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from gptlit.messages import UsageError
from gptlit.study.power_law import fit

SIZES = [1e4, 3e4, 1e5, 3e5, 1e6]


@settings(max_examples=25)
@given(st.floats(0.3, 3), st.floats(0.5, 4), st.floats(0.05, 1.5))
def test_a_law_is_recovered(floor: float, share: float, alpha: float) -> None:
    scale = share * 1e4**alpha
    found = fit(SIZES, [floor + scale / n**alpha for n in SIZES])
    assert found.floor == pytest.approx(floor, rel=1e-3, abs=1e-3)
    assert found.alpha == pytest.approx(alpha, rel=1e-3)
    assert found.residual < 1e-4
    assert found(2e5) == pytest.approx(floor + scale / 2e5**alpha, rel=1e-4)
    assert not found.bounded


def test_of_noisy_points_no_other_law_is_nearer() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, len(SIZES))
    losses = [1.2 + 50 / n**0.4 + e for n, e in zip(SIZES, noise, strict=True)]
    found = fit(SIZES, losses)
    best = np.inf
    for alpha in np.linspace(0.05, 2, 60):
        powers = np.array(SIZES) ** -alpha
        for floor in np.linspace(0, min(losses), 60):
            rest = np.array(losses) - floor
            scale = max(0.0, powers @ rest / (powers @ powers))
            best = min(best, float(np.sqrt(np.mean((rest - scale * powers) ** 2))))
    assert found.residual <= best + 1e-12


def test_the_floor_is_never_below_zero() -> None:
    # points of a law with E = -1
    found = fit(SIZES, [-1 + 30 / n**0.2 for n in SIZES])
    assert found.floor == 0
    assert found.has_floor


def test_three_sizes_do_not_determine_the_floor() -> None:
    found = fit(SIZES[:3], [2 + 50 / n**0.4 for n in SIZES[:3]])
    assert (found.floor, found.has_floor) == (0, False)
    exact = fit(SIZES[:2] * 2, [50 / n**0.4 for n in SIZES[:2]] * 2)
    assert (exact.alpha, exact.n_points) == (pytest.approx(0.4), 4)


def test_a_rising_loss_is_fitted_by_a_constant() -> None:
    assert fit(SIZES, [1.0, 1.1, 1.2, 1.3, 1.4]).scale == 0


def test_one_size_is_too_few() -> None:
    with pytest.raises(UsageError, match="at least two distinct sizes"):
        fit([1e4, 1e4], [2.0, 2.1])
