"""The training objective, compared with sums over log-probabilities."""

import math

import pytest
import torch

from gptlit.data.loaders import IGNORED
from gptlit.steps.losses import objective

LOGITS = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [5.0, 5.0, 5.0]]])
TARGETS = torch.tensor([[1, 0, IGNORED]])


def log_z(row: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in row))


def by_hand(label_smoothing: float, z_loss: float) -> tuple[float, float]:
    """Compute the objective and the cross-entropy over the two scored rows."""
    minimised, plain = 0.0, 0.0
    for row, target in zip(LOGITS[0].tolist()[:2], (1, 0), strict=True):
        nats = [log_z(row) - value for value in row]
        smooth = sum(nats) / len(nats)
        plain += nats[target] / 2
        own = (1 - label_smoothing) * nats[target] + label_smoothing * smooth
        minimised += (own + z_loss * log_z(row) ** 2) / 2
    return minimised, plain


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_objective_by_hand(label_smoothing: float, z_loss: float) -> None:
    minimised, plain = objective(LOGITS, TARGETS, label_smoothing, z_loss)
    wanted = by_hand(label_smoothing, z_loss)
    assert (minimised.item(), plain.item()) == pytest.approx(wanted, rel=1e-6)


def test_the_gradient_of_z_loss() -> None:
    """The gradient of z (log Z)^2 is 2 z log Z softmax, and 0 for ignored targets."""
    logits = LOGITS.clone().requires_grad_()
    with_z, _ = objective(logits, TARGETS, z_loss=0.01)
    without, _ = objective(logits, TARGETS)
    (gradient,) = torch.autograd.grad(with_z - without, logits)
    scale = 2 * 0.01 * LOGITS.logsumexp(-1, keepdim=True) / 2
    wanted = scale * LOGITS.softmax(-1) * torch.tensor([1.0, 1.0, 0.0])[:, None]
    torch.testing.assert_close(gradient, wanted, atol=1e-7, rtol=1e-5)


def test_without_additions_there_is_one_loss() -> None:
    minimised, plain = objective(LOGITS, TARGETS)
    assert minimised is plain
