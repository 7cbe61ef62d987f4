"""Noise on a GPT's inputs in training: some tokens are hidden by a mask, others are wrong."""

import torch
from torch import Tensor, nn

from gptlit.model.config import GPTConfig


class InputNoise(nn.Module):
    """Embeds tokens; in training, some as a learned mask, and some as other tokens.

    The choices are independent, and drawn by the generator of the ids' device. A mask is an
    embedding that belongs to no token, so that it is never a target.

    Args:
        config: Config of the model, with the probabilities.

    Source: Xie et al. 2017 ("Data noising as smoothing in neural network language models"), blank
    noising, and unigram noising with equal frequencies.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.masked, self.wrong = config.token_dropout, config.token_noise
        # without random numbers, so that the other weights are those of a model without it
        self.mask = nn.Parameter(torch.zeros(1, config.n_embd)) if self.masked else None

    def forward(self, idx: Tensor, wte: nn.Module) -> Tensor:
        """Return the (B, T, C) embeddings by `wte` of (B, T) token ids, with noise in training."""
        if not self.training:
            return wte(idx)
        draws = torch.rand(idx.shape, device=idx.device)  # (B, T), in [0, 1)
        if self.wrong:
            idx = torch.where(draws < self.wrong, torch.randint_like(idx, self.vocab_size), idx)
        x = wte(idx)  # (B, T, C)
        if self.mask is not None:
            x = torch.where((draws >= 1 - self.masked)[..., None], self.mask, x)
        return x
