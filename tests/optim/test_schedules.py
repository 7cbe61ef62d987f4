import math
from typing import Any

import pytest

from gptlit.optim.optimizers import Recipe
from gptlit.optim.schedules import lr_factor, warmup_cosine


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (50, 1.5e-4),
        (100, 3e-4),
        (2550, 1.65e-4),
        (5000, 3e-5),
        (5001, 3e-5),
        (9999, 3e-5),
    ],
)
def test_warmup_and_cosine(step: int, rate: float) -> None:
    assert 3e-4 * warmup_cosine(100, 5000, 0.1)(step) == pytest.approx(rate, rel=1e-9)


def test_schedules_without_warmup_or_cosine() -> None:
    assert warmup_cosine(0, 10, 0.1)(0) == 1
    assert [warmup_cosine(4, 4, 0.5)(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 0.5, 0.5]
    assert [warmup_cosine(10, 4, 0.5)(step) for step in (4, 9, 10)] == [0.4, 0.9, 0.5]


def rates(name: str, steps: int, end: int, **options: Any) -> list[float]:
    recipe = Recipe(schedule=name, lr=1.0, **options)  # type: ignore[arg-type]  # a schedule's name
    factor = lr_factor(recipe, end)
    return [factor(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("linear", {}, [0, 0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2]),
        ("wsd", {}, [0, 0.5, 1, 1, 1, 1, 0.84, 0.68, 0.52, 0.36, 0.2, 0.2, 0.2]),
        ("wsd", {"decay_fraction": 0.2}, [0, 0.5, *[1] * 7, 0.6, 0.2, 0.2, 0.2]),
        # the same as linear: no steps at the peak are left after the warmup
        ("wsd", {"decay_fraction": 1.0}, [0, 0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
        ("constant", {}, [0, 0.5, *[1] * 11]),
    ],
)
def test_schedules_by_hand(name: str, options: dict[str, Any], wanted: list[float]) -> None:
    """A warmup of 2 steps and a final 0.2 at step 10."""
    found = rates(name, len(wanted), 10, warmup_steps=2, min_lr=0.2, **options)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_the_cosine_follows_the_recipe() -> None:
    found = rates("cosine", 12, 10, warmup_steps=2, min_lr=0.2)
    wanted = [0.2 + 0.4 * (1 + math.cos(math.pi * (step - 2) / 8)) for step in range(2, 10)]
    assert found == pytest.approx([0, 0.5, *wanted, 0.2, 0.2], abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "wsd"])
def test_a_decay_to_zero_within_the_warmup(name: str) -> None:
    assert rates(name, 6, 3, warmup_steps=4, min_lr=0.0) == [0, 0.25, 0.5, 0.75, 0, 0]
    assert rates(name, 3, 1, warmup_steps=0, min_lr=0.0) == [1, 0, 0]
