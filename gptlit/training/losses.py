"""What training minimises: cross-entropy, and what may be added to it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlit.data.loaders import IGNORED


def objective(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What is minimised, and the cross-entropy proper, in nats a token; means of what is scored.

    Args:
        logits: (B, T, V)
        targets: (B, T) token ids, or IGNORED.
        label_smoothing: The share of the target that is spread evenly over the vocabulary
            (Szegedy et al. 2016).
        z_loss: Weight of the square of log Z, the logarithm of the sum of the logits' exponentials
            (Chowdhery et al. 2022, PaLM: 1e-4); keeps logits from drifting.

    Returns:
        Two scalars, the same one where nothing is added; the second has no gradient otherwise.
    """
    logits, targets = logits.flatten(0, 1), targets.flatten()  # (B T, V), (B T)
    if not label_smoothing and not z_loss:
        loss = F.cross_entropy(logits, targets)
        return loss, loss
    minimised = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if z_loss:
        scored = targets != IGNORED
        squares = logits.float().logsumexp(dim=-1).square() * scored  # (B T)
        minimised = minimised + z_loss * squares.sum() / scored.sum()
    with torch.no_grad():
        return minimised, F.cross_entropy(logits, targets)
