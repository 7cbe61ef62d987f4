import math

import pytest
import torch

from gptlit.metrics import TextLoss


def test_a_uniform_guess_has_the_closed_form() -> None:
    """V equally likely characters, of which some take two bytes."""
    metric = TextLoss()
    vocab_size, n_bytes = 27, 0
    for n_tokens, n_long in ((100, 10), (37, 0), (1, 1)):
        metric.update(torch.tensor(n_tokens * math.log(vocab_size)), n_tokens, n_tokens + n_long)
        n_bytes += n_tokens + n_long
    figures = metric.compute()
    assert figures["loss"].item() == pytest.approx(math.log(27), rel=1e-6)
    assert figures["perplexity"].item() == pytest.approx(27, rel=1e-6)
    assert figures["bits_per_byte"].item() == pytest.approx(138 * math.log2(27) / n_bytes, rel=1e-6)


def test_the_mean_is_over_tokens_not_batches() -> None:
    metric = TextLoss()
    metric.update(torch.tensor(30.0), 10, 10)
    metric.update(torch.tensor(1.0), 1, 1)
    assert metric.compute()["loss"].item() == pytest.approx(31 / 11)


def test_small_losses_are_not_lost_in_a_large_sum() -> None:
    metric = TextLoss()
    metric.update(torch.tensor(1e8), 1, 1)
    for _ in range(1000):
        metric.update(torch.tensor(0.01), 1, 1)
    assert (metric.compute()["loss"] * 1001).item() == pytest.approx(1e8 + 10, abs=1e-3)
