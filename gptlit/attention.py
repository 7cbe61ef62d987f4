"""Causal attention behind one signature: `eager` is the reference, `sdpa` the fast one."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _visible(n_query: int, n_key: int, device: torch.device) -> Tensor:
    """(n_query, n_key) booleans: the queries are the last of the keys' positions."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def eager(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(head_size)) v, where no query sees a later position.

    Args:
        q: (B, n_head, n_query, head_size); its positions are the last n_query of the keys'.
        k: (B, n_head, n_key, head_size), n_key >= n_query.
        v: like k.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, n_head, n_query, head_size)

    Source: Vaswani et al. 2017, equation 1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    scores = scores.masked_fill(~_visible(q.size(-2), k.size(-2), q.device), -math.inf)
    return F.dropout(scores.softmax(dim=-1), dropout) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """As `eager`, by PyTorch's fused kernels."""
    n_query, n_key = q.size(-2), k.size(-2)
    if n_query == n_key:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    # a single query is the last position and sees every key
    mask = None if n_query == 1 else _visible(n_query, n_key, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
