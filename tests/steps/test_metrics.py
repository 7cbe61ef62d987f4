import math

import pytest
import torch

from gptlit.steps.losses import RunningLoss, TextLoss, text_metrics


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


def test_an_epochs_sums_do_not_depend_on_when_they_are_fetched() -> None:
    losses = (torch.rand(200, generator=torch.Generator().manual_seed(1)) * 5).tolist()
    wanted, often, rarely = RunningLoss(), RunningLoss(), RunningLoss()
    for index, loss in enumerate(map(torch.tensor, losses)):
        wanted.add(loss, torch.zeros(100 + index, dtype=torch.int64))
        for metric, every in ((often, 7), (rarely, 150)):
            metric.add_later(loss, torch.tensor(100 + index) if index % 2 else 100 + index)
            if index % every == 0:
                metric.fetch()
    assert rarely.tokens < wanted.tokens
    for metric in (often, rarely):
        metric.fetch()
        assert metric.nats.item() == wanted.nats.item()
        assert metric.tokens == wanted.tokens


def test_an_epoch_leaves_out_losses_that_are_not_finite() -> None:
    metric = RunningLoss()
    for loss in (2.0, math.nan, 4.0, math.inf):
        metric.add_later(torch.tensor(loss), 10)
    metric.fetch()
    assert metric.nats == 60
    assert metric.tokens == 20


def test_an_epochs_losses_are_fetched_at_the_latest_when_they_are_many() -> None:
    metric = RunningLoss()
    for _ in range(RunningLoss.AT_ONCE):
        metric.add_later(torch.tensor(1.0), 1)
    assert metric.tokens == RunningLoss.AT_ONCE


def test_sums_keep_their_precision_in_a_run_in_bfloat16() -> None:
    metric = TextLoss().to(torch.bfloat16)
    for _ in range(1000):
        metric.update(torch.tensor(1.0, dtype=torch.bfloat16), 1)
    assert metric.nats == 1000
