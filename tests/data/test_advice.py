"""The rule of `gptlit data --advise`: exact cases, bounds, and agreement with other parts."""

import itertools
import math

import pytest

from gptlit.data import advice, small_texts
from gptlit.data.advice import REGULARISATION, SIZES, Size, TextSize, advise, val_fraction
from gptlit.messages import UsageError
from gptlit.model import cost
from gptlit.model.gpt import GPT, GPTConfig

MINUTES = (0.1, 1, 5, 60, 600)
CHARS = (1_000, 10_000, 50_000, 200_000, 1_115_394, 5_000_000, 10**9)
NONE, MASKED, LITTLE, MUCH = REGULARISATION.values()


def by_characters(n_chars: int) -> TextSize:
    """Return the sizes of a text by characters, with the advised validation share."""
    n_val = math.ceil(val_fraction(n_chars) * n_chars)
    return TextSize((n_chars - n_val,), n_val, 65)


@pytest.mark.parametrize(
    ("n_chars", "minutes", "size", "regularisation", "block", "batch", "steps"),
    [
        (1_000, 5, SIZES[0], MUCH, 64, 12, 45),
        (50_000, 0.1, Size(2, 2, 48), MASKED, 256, 3, 520),
        (50_000, 0.4, Size(2, 2, 64), LITTLE, 256, 3, 1330),
        (50_000, 5, Size(4, 2, 64), MUCH, 256, 3, 2340),
        (1_115_394, 5, Size(4, 3, 96), NONE, 256, 3, 4335),
        (5_000_000, 5, Size(4, 3, 96), NONE, 256, 3, 4335),
        (5_000_000, 60, Size(4, 6, 192), NONE, 256, 6, 7720),
        (10**9, 5, Size(4, 3, 96), NONE, 256, 3, 4335),
    ],
)
def test_cases(
    n_chars: int,
    minutes: float,
    size: Size,
    regularisation: advice.Regularisation,
    block: int,
    batch: int,
    steps: int,
) -> None:
    found = advise(by_characters(n_chars), minutes)
    assert (found.size, found.regularisation) == (size, regularisation)
    assert (found.block_size, found.batch_size, found.max_steps) == (block, batch, steps)


@pytest.mark.parametrize(
    ("n_chars", "share"),
    [(200, 0.1), (1_000, 0.1), (50_000, 0.1), (1_115_394, 0.09), (4_788_569, 0.02), (10**9, 1e-4)],
)
def test_validation_shares(n_chars: int, share: float) -> None:
    assert val_fraction(n_chars) == share


@pytest.mark.parametrize("minutes", MINUTES)
def test_more_text_never_means_a_smaller_net_or_more_passes(minutes: float) -> None:
    found = [advise(by_characters(n_chars), minutes) for n_chars in CHARS]
    for less, more in itertools.pairwise(found):
        assert less.size.n_parameters <= more.size.n_parameters
        assert less.block_size <= more.block_size
    # where the net is the same
    levels = [*REGULARISATION.values()]
    for less, more in itertools.pairwise(found):
        if less.size == more.size:
            assert more.passes <= less.passes * 1.05  # whole steps
            assert levels.index(more.regularisation) <= levels.index(less.regularisation)


@pytest.mark.parametrize("n_chars", CHARS)
def test_more_minutes_never_mean_a_smaller_net_or_fewer_tokens(n_chars: int) -> None:
    found = [advise(by_characters(n_chars), minutes) for minutes in MINUTES]
    for less, more in itertools.pairwise(found):
        assert less.size.n_parameters <= more.size.n_parameters
        assert less.passes <= more.passes * 1.02


@pytest.mark.parametrize("n_chars", CHARS)
@pytest.mark.parametrize("minutes", MINUTES)
def test_a_run_fits_its_text_and_its_time(n_chars: int, minutes: float) -> None:
    text = by_characters(n_chars)
    found = advise(text, minutes)
    assert found.passes <= advice.MOST_PASSES
    assert found.minutes <= minutes * 1.001
    # the time is used, except where the passes or the rounding to whole intervals bound it
    is_bounded = found.passes > 0.95 * advice.MOST_PASSES
    assert is_bounded or found.minutes > 0.95 * minutes
    n_windows = text.n_windows(found.block_size)
    assert n_windows >= max(small_texts.LEAST_WINDOWS, found.batch_size)
    assert text.n_val >= found.block_size
    assert found.max_steps % found.val_check_interval == 0


def test_the_smallest_text() -> None:
    least = small_texts.LEAST_CHARS
    assert advise(by_characters(least), 5).block_size == small_texts.LEAST_BLOCK
    with pytest.raises(UsageError, match=r"too short, with 36 tokens .* 80 characters or more"):
        advise(by_characters(40), 5)
    assert advise(TextSize((4_000,), 0, 65), 5).block_size == 256  # without validation


@pytest.mark.parametrize("minutes", [0, -1, math.inf, math.nan])
def test_invalid_minutes(minutes: float) -> None:
    with pytest.raises(UsageError, match=r"^minutes .*: must be a number above 0, such as 5$"):
        advise(by_characters(50_000), minutes)


def test_spans_of_the_training_split_have_windows_of_their_own() -> None:
    assert TextSize((100, 50, 8), 20, 65).n_windows(10) == 9 + 4
    assert TextSize((100, 50, 8), 20, 65).n_train == 158


@pytest.mark.parametrize("size", SIZES)
def test_operations_are_those_of_the_net(size: Size) -> None:
    model = GPT(GPTConfig(65, **size._asdict(), block_size=32, bias=False, tie_weights=False))
    assert size.flops_per_token(32, 65) == cost.training_flops_per_token(model)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert size.n_parameters == matrices - (2 * 65 + 32) * size.n_embd


def test_a_large_vocabulary_leaves_less_compute() -> None:
    few, many = (advise(TextSize((10**7,), 10**5, n), 5) for n in (65, 50_257))
    assert many.size.n_parameters < few.size.n_parameters
    assert many.max_steps < few.max_steps
