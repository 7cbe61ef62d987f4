"""A decoder-only GPT in plain PyTorch: config, parts, block, GPT, to be read top to bottom.

Shapes: B batch, T time, V vocabulary, C channels (`n_embd`). Names are those of GPT-2's
weights. The model computes logits; the loss and the optimizer live elsewhere.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit import attention
from gptlit.messages import UsageError


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.

    Args:
        vocab_size: Number of distinct tokens.
        n_layer: Number of blocks.
        n_head: Attention heads in a block; divides n_embd.
        n_embd: Width: channels of the residual stream.
        block_size: Context: the most tokens the model sees at once.
        dropout: Probability of dropping a value, after the embeddings, in attention and at
            the end of both branches of a block.
        bias: Biases in linear layers and layer norms, as GPT-2 has them.
    """

    vocab_size: int
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 64
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "block_size"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"--model.{name} {value}: must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"--model.dropout {self.dropout}: must be at least 0 and below 1")
        if self.n_embd % self.n_head:
            below = self.n_embd // self.n_head * self.n_head
            nearest = [size for size in (below, below + self.n_head) if size]
            raise UsageError(
                f"--model.n_embd {self.n_embd}: not divisible by --model.n_head {self.n_head}; "
                f"{' or '.join(map(str, nearest))} would work"
            )


class KVCache:
    """The keys and values of the positions seen so far, allocated once; for inference only.

    Args:
        config: The model's.
        batch_size: B; every row holds the same number of positions.
        like: A tensor whose device and dtype the cache takes.
    """

    def __init__(self, config: GPTConfig, batch_size: int, like: Tensor) -> None:
        head_size = config.n_embd // config.n_head
        size = (config.n_layer, 2, batch_size, config.n_head, config.block_size, head_size)
        self.store = torch.empty(size, device=like.device, dtype=like.dtype)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (B, n_head, T, head_size) keys and values behind the `length` there are.

        Returns all of them, (B, n_head, length + T, head_size). `length` itself grows once
        a step, by the model, when every layer has appended.
        """
        end = self.length + k.size(2)
        keys, values = self.store[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head_size)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head_size)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head_size)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, n_head, length + T, head_size)
        y = attention.sdpa(q, k, v, self.dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Two linear layers, four times as wide between, with GELU."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention, then MLP, each on a normed copy and added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token ids in, logits of the next token out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size {config.vocab_size}: a GPT needs at least one token")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation.

        | parameter                 | value                            |
        | ------------------------- | -------------------------------- |
        | embeddings, linear layers | normal(0, 0.02)                  |
        | c_proj                    | normal(0, 0.02 / sqrt(2 n_layer)) |
        | biases                    | 0                                |
        | layer norms               | weight 1, bias 0                 |

        The smaller c_proj keeps the variance of the residual stream, the sum of 2 n_layer
        branches, independent of the depth (Radford et al. 2019, section 2.3).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1)
            elif name.endswith("c_proj.weight"):
                parameter.normal_(0, 0.02 / math.sqrt(2 * self.config.n_layer))
            else:
                parameter.normal_(0, 0.02)

    def num_parameters(self) -> int:
        """Parameters in all; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, idx: Tensor, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """The logits of each next token.

        Args:
            idx: (B, T) token ids; with a cache, those behind the positions it holds.
            cache: Keys and values seen so far; grows by T positions.
            last: Only the last position's logits, at a T-th of the head's cost.

        Returns:
            (B, T, V) logits, or (B, 1, V) if `last`.

        Raises:
            ValueError: more positions than block_size.
        """
        T = idx.size(1)
        past = 0 if cache is None else cache.length
        if past + T > self.config.block_size:
            raise ValueError(f"{past + T} positions exceed block_size {self.config.block_size}")
        x = self.drop(self.wte(idx) + self.wpe.weight[past : past + T])  # (B, T, C)
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.length += T
        if last:
            x = x[:, -1:]
        return self.lm_head(self.ln_f(x))  # (B, T, V)
