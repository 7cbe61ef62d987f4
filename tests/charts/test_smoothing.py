"""Moving averages equal independent formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.charts.smoothing import Smoothing, exponential, parse, simple
from gptlit.messages import UsageError

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


@given(values=VALUES, size=st.integers(1, 50))
def test_a_simple_average_is_a_convolution(values: list[float], size: int) -> None:
    sums = np.convolve(values, np.ones(size))[: len(values)]
    counts = np.minimum(np.arange(1, len(values) + 1), size)
    assert simple(values, size) == pytest.approx(list(sums / counts), abs=1e-9)


@given(values=VALUES, decay=st.floats(0, 0.99))
def test_an_exponential_average_is_a_weighted_mean(values: list[float], decay: float) -> None:
    """The value k steps ago has the weight decay^k; the weights are divided by their sum."""
    smoothed = exponential(values, decay)
    for end in range(1, len(values) + 1):
        weights = decay ** np.arange(end - 1, -1, -1)
        assert smoothed[end - 1] == pytest.approx(
            float(np.average(values[:end], weights=weights)), abs=1e-8
        )


def test_exact_values() -> None:
    assert simple([4.0, 2.0, 3.0, 7.0], 2) == [4.0, 3.0, 2.5, 5.0]
    assert exponential([4.0, 2.0], 0.5) == [4.0, (0.25 * 4 + 0.5 * 2) / 0.75]


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("none", [1.0, 3.0], [1.0, 3.0]),
        ("mean:2", [1.0, 3.0], [1.0, 2.0]),
        ("mean:1", [1.0, 3.0], [1.0, 3.0]),
        ("ema:0", [1.0, 3.0], [1.0, 3.0]),
        ("auto", [1.0, 3.0], [1.0, 3.0]),  # too few to be averaged
    ],
)
def test_the_option(text: str, values: list[float], expected: list[float]) -> None:
    assert parse(text).apply(values) == expected
    assert str(parse(text)) == text


def test_auto_averages_a_fiftieth_of_the_values() -> None:
    assert parse("auto").of(99) == Smoothing("none")
    assert parse("auto").of(1000) == Smoothing("mean", 20)


@pytest.mark.parametrize("text", ["", "mean", "mean:0", "mean:2.5", "ema:1", "ema:-0.5", "sma:3"])
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"^smooth {text}: must be none, auto, mean:N"):
        parse(text)
