"""Llama, Qwen3 and nanochat in a few lines of plain PyTorch, by their publishers' names."""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def random_llama(
    n_layer: int, C: int, heads: int, kv: int, hidden: int, V: int, *, qk_norm: bool = False,
    tied: bool = False,
) -> Weights:  # fmt: skip
    size = C // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, C)}
    for n in range(n_layer):
        at = f"model.layers.{n}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (C, C),
            f"{at}self_attn.k_proj.weight": (kv * size, C),
            f"{at}self_attn.v_proj.weight": (kv * size, C),
            f"{at}self_attn.o_proj.weight": (C, C),
            f"{at}mlp.gate_proj.weight": (hidden, C),
            f"{at}mlp.up_proj.weight": (hidden, C),
            f"{at}mlp.down_proj.weight": (C, hidden),
            f"{at}input_layernorm.weight": (C,),
            f"{at}post_attention_layernorm.weight": (C,),
        }
        if qk_norm:
            shapes |= {f"{at}self_attn.{name}_norm.weight": (size,) for name in "qk"}
    shapes["model.norm.weight"] = (C,)
    if not tied:
        shapes["lm_head.weight"] = (V, C)
    return {name: torch.randn(shape) * 0.3 + (len(shape) == 1) for name, shape in shapes.items()}


def rotated(x: Tensor, base: float, pairs: str) -> Tensor:
    """Rotate (heads, T, size) by position with complex numbers, for pairs of channels.

    Args:
        x: Queries or keys.
        base: Base of the wavelengths.
        pairs: "halves", (i, i + size / 2); or "neighbours", (2 i, 2 i + 1).
    """
    T, size = x.shape[1:]
    angles = torch.outer(torch.arange(T), base ** -(torch.arange(0, size, 2) / size))
    turn = torch.polar(torch.ones_like(angles), angles)
    if pairs == "halves":
        y = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * turn
        return torch.cat([y.real, y.imag], dim=-1)
    y = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn
    return torch.view_as_real(y).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (heads, T, size) queries to (kv, T, size) keys; returns (T, C)."""
    shared = q.size(0) // k.size(0)
    T, rows = q.size(1), []
    for head in range(q.size(0)):
        scores = q[head] @ k[head // shared].T / q.size(-1) ** 0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1) > 0, -torch.inf)
        rows.append(scores.softmax(-1) @ v[head // shared])
    return torch.cat(rows, dim=-1)


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x if weight is None else x * weight


def llama_logits(
    w: Weights, ids: Tensor, heads: int, *, eps: float, base: float, pairs: str = "halves"
) -> Tensor:
    """Return the (T, V) logits of (T,) ids; norms queries and keys where there are weights."""
    x = w["model.embed_tokens.weight"][ids]
    T, C = x.shape
    n_layer = len({name.split(".")[2] for name in w if name.startswith("model.layers.")})

    def split(y: Tensor) -> Tensor:
        return y.view(T, -1, C // heads).transpose(0, 1)

    for n in range(n_layer):
        at = f"model.layers.{n}."
        y = rms(x, w[f"{at}input_layernorm.weight"], eps)
        projected = {}
        for name in "qkv":
            z = y @ w[f"{at}self_attn.{name}_proj.weight"].T
            projected[name] = split(z + w.get(f"{at}self_attn.{name}_proj.bias", torch.zeros(1)))
        q, k, v = projected.values()
        if f"{at}self_attn.q_norm.weight" in w:
            q = rms(q, w[f"{at}self_attn.q_norm.weight"], eps)
            k = rms(k, w[f"{at}self_attn.k_norm.weight"], eps)
        y = attend(rotated(q, base, pairs), rotated(k, base, pairs), v)
        x = x + y @ w[f"{at}self_attn.o_proj.weight"].T
        y = rms(x, w[f"{at}post_attention_layernorm.weight"], eps)
        gate = F.silu(y @ w[f"{at}mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ w[f"{at}mlp.up_proj.weight"].T)) @ w[f"{at}mlp.down_proj.weight"].T
    x = rms(x, w["model.norm.weight"], eps)
    return x @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T


def nanochat_logits(w: Weights, ids: Tensor, heads: int, eps: float) -> Tensor:
    """Return the (T, V) logits of (T,) ids."""
    x = rms(w["transformer.wte.weight"][ids], None, eps)
    T, C = x.shape
    n_layer = len({name.split(".")[2] for name in w if name.startswith("transformer.h.")})
    for n in range(n_layer):
        at = f"transformer.h.{n}."
        y = rms(x, None, eps)
        q, k, v = (
            (y @ w[f"{at}attn.c_{name}.weight"].T).view(T, -1, C // heads).transpose(0, 1)
            for name in "qkv"
        )
        # backwards: the conjugate of the rotation of the conjugates
        q, k = (rotated(_mirrored(z), 10_000.0, "halves") for z in (q, k))
        q, k = (rms(_mirrored(z), None, eps) for z in (q, k))
        x = x + attend(q, k, v) @ w[f"{at}attn.c_proj.weight"].T
        y = F.relu(rms(x, None, eps) @ w[f"{at}mlp.c_fc.weight"].T) ** 2
        x = x + y @ w[f"{at}mlp.c_proj.weight"].T
    logits = rms(x, None, eps) @ w["lm_head.weight"].T
    return 15 * torch.tanh(logits / 15)


def _mirrored(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left, -right], dim=-1)
