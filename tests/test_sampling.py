import math

import pytest
import torch

from gptlit.sampling import DRAWS_AT_ONCE, Streams, apply_temperature, apply_top_k, draw, next_token

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


def test_draw_never_gives_what_has_no_probability() -> None:
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
    assert torch.equal(next_token(logits, u, 0.0, None), greedy)
    assert torch.equal(next_token(logits, u, 1.3, 1), greedy)


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
