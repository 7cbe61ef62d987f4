"""What a model's predictions are worth: loss, perplexity, bits per byte, exact over a split."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

# Apple's GPUs have no float64, in which a sum over a split is exact to about 1e-12
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


class TextLoss(Metric):
    """The mean loss in nats per token, over all tokens seen on all ranks."""

    nats: Tensor
    tokens: Tensor
    full_state_update = False
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, tokens: Tensor | int) -> None:
        """Add a batch: the sum of its losses in nats, and its tokens."""
        self.nats += nats.to(SUM_DTYPE)
        self.tokens += tokens

    def compute(self) -> Tensor:
        return self.nats / self.tokens


def text_figures(loss: Tensor, bytes_per_token: float | None) -> dict[str, Tensor]:
    """What a mean loss means: `loss`, `perplexity` and `bits_per_byte`.

    Args:
        loss: Nats per token.
        bytes_per_token: UTF-8 bytes of the text scored per token of it, which makes the
            figure one that compares models across tokenizers; None leaves it out.
    """
    figures = {"loss": loss, "perplexity": loss.exp()}
    if bytes_per_token is not None:
        figures["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return figures
