"""What a model's predictions are worth: loss, perplexity, bits per byte, exact over a split."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

# Apple's GPUs have no float64, in which a sum over a split is exact to about 1e-12
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64


class TextLoss(Metric):
    """The mean loss over all tokens seen, on all ranks.

    `compute` gives `loss` in nats per token, `perplexity` = exp(loss), and `bits_per_byte` =
    total nats / ln 2 / bytes of text, which compares models across tokenizers.
    """

    nats: Tensor
    tokens: Tensor
    bytes: Tensor
    full_state_update = False
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, tokens: Tensor | int, n_bytes: Tensor | int) -> None:
        """Add a batch: the sum of its losses in nats, its tokens, and the bytes they spell."""
        self.nats += nats.to(SUM_DTYPE)
        self.tokens += tokens
        self.bytes += n_bytes

    def compute(self) -> dict[str, Tensor]:
        loss = self.nats / self.tokens
        return {
            "loss": loss,
            "perplexity": loss.exp(),
            "bits_per_byte": self.nats / math.log(2) / self.bytes,
        }
