import math
from collections.abc import Callable

import pytest
import torch

from gptlit.generation import sampling
from gptlit.generation.sampling import (
    DRAWS_AT_ONCE,
    Rules,
    Streams,
    apply_count_penalties,
    apply_min_p,
    apply_repetition_penalty,
    apply_settings,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    apply_typical_p,
    ban,
    draw,
    entropy,
    force,
    next_token,
)
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError

LOGITS = torch.tensor([[2.0, 1.0, 0.5]])


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [
        (1.0, [0.6285, 0.2312, 0.1402]),
        (0.5, [0.8438, 0.1142, 0.0420]),
        (2.0, [0.4810, 0.2918, 0.2272]),
    ],
)
def test_temperature(temperature: float, wanted: list[float]) -> None:
    probabilities = apply_temperature(LOGITS, temperature).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([wanted]), atol=5e-5, rtol=0)


def test_top_k_keeps_exactly_k_even_of_equals() -> None:
    kept = apply_top_k(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), 2)
    assert torch.isfinite(kept).sum() == 2
    torch.testing.assert_close(
        apply_top_k(LOGITS, 2), torch.tensor([[2.0, 1.0, -math.inf]]), rtol=0, atol=0
    )
    torch.testing.assert_close(apply_top_k(LOGITS, 9), LOGITS, rtol=0, atol=0)


def test_temperature_and_top_k_commute() -> None:
    logits = torch.randn(5, 20)
    one = apply_top_k(apply_temperature(logits, 0.7), 4)
    other = apply_temperature(apply_top_k(logits, 4), 0.7)
    torch.testing.assert_close(one, other)


def test_draw_is_the_inverse_distribution_function() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log()  # ends at 0.2, 0.2, 0.7, 1
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53], dtype=torch.float64)
    ids = draw(logits.expand(len(u), -1), u)
    assert ids.tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_returns_a_token_of_probability_0() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, -math.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        assert draw(logits, torch.tensor([u], dtype=torch.float64)).item() == 1


def test_draw_has_the_right_frequencies() -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = torch.bincount(draw(LOGITS.expand(len(u), -1), u), minlength=3)
    torch.testing.assert_close(counts / 10_000, LOGITS.softmax(-1)[0], atol=1e-4, rtol=0)


def test_temperature_zero_and_top_one_are_greedy() -> None:
    logits = torch.randn(6, 30)
    u = torch.rand(6, dtype=torch.float64)
    greedy = logits.argmax(-1)
    assert torch.equal(next_token(logits, u, SamplingSettings(temperature=0)), greedy)
    assert torch.equal(next_token(logits, u, SamplingSettings(temperature=1.3, top_k=1)), greedy)
    assert torch.equal(next_token(logits, u, SamplingSettings(temperature=1.3, top_p=1e-9)), greedy)
    assert torch.equal(next_token(logits, u, SamplingSettings(temperature=1.3, min_p=1.0)), greedy)


FOUR = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def left(logits: torch.Tensor) -> list[int]:
    """The tokens that are still possible."""
    return torch.isfinite(logits[0]).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("p", "wanted"), [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3])]
)
def test_top_p_is_the_fewest_likeliest(p: float, wanted: list[int]) -> None:
    assert left(apply_top_p(FOUR, p)) == wanted
    assert left(apply_top_p(FOUR, 1.0)) == [0, 1, 2, 3]
    kept = apply_top_p(FOUR, p)[0, wanted]
    torch.testing.assert_close(kept, FOUR[0, wanted], rtol=0, atol=0)


def test_top_p_keeps_no_more_ties_than_needed() -> None:
    assert len(left(apply_top_p(torch.zeros(1, 10), 0.25))) == 3


@pytest.mark.parametrize(("p", "wanted"), [(0.2, [0, 1, 2, 3]), (0.3, [1, 2, 3]), (0.6, [1, 3])])
def test_min_p_is_relative_to_the_likeliest(p: float, wanted: list[int]) -> None:
    assert left(apply_min_p(FOUR, p)) == wanted


def test_typical_p_prefers_tokens_of_expected_surprise() -> None:
    # entropy 1.2799; surprises 2.303, 0.916, 1.609, 1.204: nearest are 3, 2, 1, 0
    assert entropy(FOUR).item() == pytest.approx(1.2799, abs=1e-4)
    kept = [left(apply_typical_p(FOUR, p)) for p in (0.1, 0.31, 0.51, 0.91)]
    assert kept == [[3], [2, 3], [1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [(0.2, 0.041), (0.5, 0.491), (0.8, 0.918), (1.0, 1.107), (1.5, 1.357)],
)
def test_entropies_of_the_course(temperature: float, wanted: float) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.1]])
    assert entropy(logits / temperature).item() == pytest.approx(wanted, abs=6e-4)


def test_temperature_and_top_p_do_not_commute() -> None:
    one = apply_top_p(apply_temperature(FOUR, 3.0), 0.5)
    other = apply_temperature(apply_top_p(FOUR, 0.5), 3.0)
    assert left(one) == [1, 3]
    assert left(other) == [1, 3]
    flat = torch.tensor([[3.0, 1.0, 0.0]])
    assert left(apply_top_p(flat / 4, 0.5)) != left(apply_top_p(flat, 0.5))


def test_the_order_is_the_documented_one() -> None:
    settings = SamplingSettings(temperature=2.0, top_k=3, top_p=0.8, min_p=0.5, typical_p=0.9)
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * 3
    shaped = apply_top_p(apply_top_k(apply_temperature(logits, 2.0), 3), 0.8)
    wanted = apply_typical_p(apply_min_p(shaped, 0.5), 0.9)
    torch.testing.assert_close(apply_settings(logits, settings), wanted, rtol=0, atol=0)


def test_repetition_penalty_is_hugging_faces() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    counts = torch.tensor([[3.0, 1.0, 0.0, 0.0]])
    assert apply_repetition_penalty(logits, counts, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_count_penalties() -> None:
    counts = torch.tensor([[3.0, 1.0, 0.0]])
    wanted = [[-0.5 * 3 - 1, -0.5 - 1, 0]]
    assert apply_count_penalties(torch.zeros(1, 3), counts, 0.5, 1.0).tolist() == wanted


def test_banned_and_forced_tokens() -> None:
    assert left(ban(FOUR, torch.tensor([1, 3]))) == [0, 2]
    assert left(force(FOUR, 2)) == [2]
    assert draw(force(FOUR.expand(3, -1), 2), torch.rand(3).double()).tolist() == [2, 2, 2]


@pytest.mark.parametrize("warns", [None, True, False])
def test_deterministic_algorithms_only_warn_while_a_token_is_drawn(
    warns: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA they would refuse cumulative sums."""
    seen = []

    def mode() -> tuple[bool, bool]:
        enabled = torch.are_deterministic_algorithms_enabled()
        return enabled, torch.is_deterministic_algorithms_warn_only_enabled()

    monkeypatch.setattr(sampling, "draw", lambda *_: seen.append(mode()))
    try:
        torch.use_deterministic_algorithms(warns is not None, warn_only=bool(warns))
        before = mode()
        next_token(LOGITS, torch.tensor([0.5]), SamplingSettings())
        assert seen == [(warns is not None, warns is not None)]
        assert mode() == before
    finally:
        torch.use_deterministic_algorithms(False)


def test_rules_are_applied_in_order_and_count_written_tokens() -> None:
    """Bans, then penalties, then forced tokens; reordered rows keep their counts."""
    settings = SamplingSettings(repetition_penalty=2.0, frequency_penalty=0.5, min_new_tokens=3)
    prompt = torch.tensor([[0], [1]])
    rules = Rules(settings, prompt, 4, banned=[3], forced=[3, 2], eos_id=0)
    level, no = torch.tensor([[2.0, 2.0, 2.0, 2.0]] * 2), -math.inf
    assert rules.apply(level).tolist() == [[no, no, no, 0.0]] * 2  # forced, though banned
    rules.add(torch.tensor([3, 3]))
    assert rules.apply(level).tolist() == [[no, no, 0.0, no]] * 2
    rules.add(torch.tensor([2, 1]))
    assert rules.apply(level).tolist() == [[no, 2.0, 0.5, no], [no, 0.5, 2.0, no]]
    rules.reorder([1, 1])
    rules.add(torch.tensor([1, 2]))  # the end is let be from the fourth token on
    assert rules.apply(level).tolist() == [[2.0, 0.0, 2.0, no], [2.0, 0.5, 0.5, no]]


@pytest.mark.parametrize(
    "function",
    [
        lambda logits: apply_top_k(logits, 4),
        lambda logits: apply_top_p(logits, 0.7),
        lambda logits: apply_min_p(logits, 0.1),
        lambda logits: apply_typical_p(logits, 0.7),
        lambda logits: apply_repetition_penalty(logits, (logits > 1).float(), 1.3),
    ],
)
def test_a_row_is_the_same_alone_and_in_a_batch(function: Callable[..., torch.Tensor]) -> None:
    logits = torch.randn(6, 15)
    together = function(logits)
    for row in range(6):
        torch.testing.assert_close(function(logits[row : row + 1])[0], together[row])
    assert torch.isfinite(together).any(dim=1).all()


@pytest.mark.parametrize(
    "option",
    [
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"typical_p": 2.0},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": math.inf},
        {"presence_penalty": math.nan},
    ],
)
def test_invalid_settings_are_refused(option: dict[str, float]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UsageError, match=f"^{name} {value}: must be"):
        SamplingSettings(**option)  # type: ignore[arg-type]  # any option


def test_a_stream_does_not_depend_on_its_neighbours() -> None:
    alone, among = Streams([7]), Streams([6, 7, 8])
    for _ in range(2 * DRAWS_AT_ONCE + 3):
        assert among.next()[1] == alone.next()[0]


def test_streams_are_uniform_and_differ() -> None:
    streams = Streams([1, 2])
    drawn = torch.stack([streams.next() for _ in range(4000)])
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1
    torch.testing.assert_close(drawn.mean(0), torch.full((2,), 0.5).double(), atol=0.02, rtol=0)
    assert (drawn[:, 0] != drawn[:, 1]).all()
