"""Causal attention with one signature: `eager` is the reference, the others are faster.

Args of all:
    q: (B, n_head, n_query, head_size) queries, at the last n_query positions of the keys.
    k, v: (B, n_kv_head, n_key, head_size) keys and values, n_key >= n_query; each head is used by
        n_head / n_kv_head consecutive heads of queries.
    dropout: Probability of dropping an attention weight.

All return (B, n_head, n_query, head_size).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _visible(n_query: int, n_key: int, device: torch.device) -> Tensor:
    """Return (n_query, n_key) booleans: True where a query sees a key."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_size)), where no query sees a later position.

    Returns:
        (B, n_head, n_query, n_key), rows sum to 1.

    Source: Vaswani et al. 2017, equation 1.
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # (B, n_head, n_key, head_size)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    scores = scores.masked_fill(~_visible(q.size(-2), k.size(-2), q.device), -math.inf)
    return scores.softmax(dim=-1)


def eager(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """`weights` times values, in plain operations."""
    v = v.repeat_interleave(q.size(1) // v.size(1), dim=1)
    return F.dropout(weights(q, k), dropout) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Compute `eager` by the fused kernel that PyTorch chooses for device and sizes."""
    n_query, n_key = q.size(-2), k.size(-2)
    shared = q.size(1) != k.size(1)
    if n_query == n_key:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=shared
        )
    # a single query is the last position and sees every key
    mask = None if n_query == 1 else _visible(n_query, n_key, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=shared
    )


def flash(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Compute `sdpa` by FlashAttention (Dao et al. 2022) only.

    Raises:
        RuntimeError: FlashAttention doesn't support the device, the dtype or the mask.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return sdpa(q, k, v, dropout)


BACK_ENDS: dict[str, Attend] = {"sdpa": sdpa, "eager": eager, "flash": flash}
