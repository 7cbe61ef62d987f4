import math

import pytest
import torch

from gptlit.steps.losses import TextLoss, text_metrics


def test_a_uniform_guess_has_the_closed_form() -> None:
    """27 equally likely characters; 138 of them make 148 bytes."""
    metric = TextLoss()
    for n_tokens in (100, 37, 1):
        metric.update(torch.tensor(n_tokens * math.log(27)), n_tokens)
    metrics = text_metrics("val", metric.compute(), 148 / 138)
    assert metrics["val/loss"].item() == pytest.approx(math.log(27), rel=1e-6)
    assert metrics["val/perplexity"].item() == pytest.approx(27, rel=1e-6)
    assert metrics["val/bits_per_byte"].item() == pytest.approx(138 * math.log2(27) / 148, rel=1e-6)


def test_the_mean_is_over_tokens_not_batches() -> None:
    metric = TextLoss()
    metric.update(torch.tensor(30.0), 10)
    metric.update(torch.tensor(1.0), 1)
    assert metric.compute().item() == pytest.approx(31 / 11)


def test_small_losses_are_not_lost_in_a_large_sum() -> None:
    metric = TextLoss()
    metric.update(torch.tensor(1e8), 1)
    for _ in range(1000):
        metric.update(torch.tensor(0.01), 1)
    assert (metric.compute() * 1001).item() == pytest.approx(1e8 + 10, abs=1e-3)
