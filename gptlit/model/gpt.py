"""A decoder-only GPT in plain PyTorch, to be read from top to bottom.

Shapes: B batch, T time, V vocabulary, C channels (`n_embd`). Modules have the names of GPT-2's
weights. A `GPTConfig` chooses the parts when the model is built; `forward` runs what was chosen.
The model computes logits; the loss, the optimizer and FLOP counts are in other files.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptlit.model import attention, lora
from gptlit.model.activations import ACTIVATIONS, Softcap
from gptlit.model.config import GPTConfig
from gptlit.model.input_noise import InputNoise
from gptlit.model.positions import Rotary, added_positions

__all__ = ["GPT", "GPTConfig", "KVCache"]


class KVCache:
    """Keys and values of the positions seen so far, allocated once; for inference only.

    Args:
        config: Config of the model.
        batch_size: B; all rows hold the same number of positions.
        like: Tensor whose device and dtype the cache takes.
        n_positions: Most positions that the cache can hold; block_size if left out.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, like: Tensor, n_positions: int | None = None
    ) -> None:
        n_positions = n_positions or config.block_size
        size = (config.n_layer, batch_size, 2 * config.kv_heads, n_positions)
        # zeros, since masked positions must still hold finite numbers
        self.store = torch.zeros(*size, config.head_size, device=like.device, dtype=like.dtype)
        self._rows = self.store  # also those that `resized` has left out
        self.layers = self.store.unbind()  # keys, then values
        self.inputs: dict[nn.Module, Tensor] = {}  # the last inputs of each token shift
        self.length = 0

    def append(self, layer: int, kv: Tensor) -> Tensor:
        """Add (B, 2 kv_heads, T, head_size) keys and values after the first `length` positions.

        Returns all of them, (B, 2 kv_heads, length + T, head_size). The model increases `length`
        once a step, after every layer has appended.
        """
        end = self.length + kv.size(2)
        self.layers[layer][:, :, self.length : end] = kv
        return self.layers[layer][:, :, :end]

    def resized(self, rows: Sequence[int], n_rows: int, length: int) -> "KVCache":
        """Return a cache of n_rows whose first ones are `rows`; this one is not to be used again.

        Both share their memory, so that only rows that move are copied; it grows by doubling.

        Args:
            rows: Rows of this cache that are kept; rows[i] >= i.
            n_rows: Rows of the new one, those that begin empty included.
            length: Most positions of a row.
        """
        store = self._rows
        if n_rows > store.size(1):
            size = (store.size(0), max(n_rows, 2 * store.size(1)), *store.shape[2:])
            store = torch.zeros(size, device=store.device, dtype=store.dtype)
            store[:, : self.store.size(1), :, :length] = self.store[:, :, :, :length]
        for row, before in enumerate(rows):
            if row != before:
                store[:, row, :, :length] = store[:, before, :, :length]
        other = copy.copy(self)
        other._rows, other.store = store, store[:, :n_rows]
        other.layers = other.store.unbind()
        other.inputs = {
            shift: F.pad(inputs[list(rows)], (0, 0, 0, 0, 0, n_rows - len(rows)))
            for shift, inputs in self.inputs.items()
        }
        return other


def norm(config: GPTConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.n_embd, config.norm_eps, elementwise_affine=config.norm_weight)
    return nn.LayerNorm(config.n_embd, config.norm_eps, config.norm_weight, bias=config.bias)


def head_norm(config: GPTConfig) -> nn.Module:
    return nn.RMSNorm(config.head_size, config.norm_eps, elementwise_affine=config.norm_weight)


class TokenShift(nn.Module):
    """Adds to each channel a learned share of its values at each of the n positions before.

    With n = 1 it is RWKV's (Peng et al. 2023, section 3.1); in general it is a causal convolution
    over each channel, which begins as the identity (So et al. 2021, Primer, place one after qkv).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # the nearest position first; vectors, so that no optimizer treats them as a matrix
        self.shares = nn.ParameterList(
            torch.zeros(config.n_embd) for _ in range(config.token_shift)
        )

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        n, T = len(self.shares), x.size(1)
        if cache is not None and cache.length:
            before = cache.inputs[self]
        else:
            before = x.new_zeros(x.size(0), n, x.size(2))
        seen = torch.cat([before, x], dim=1)  # (B, n + T, C)
        if cache is not None:
            cache.inputs[self] = seen[:, -n:]
        for distance, share in enumerate(self.shares, start=1):
            x = torch.addcmul(x, seen[:, n - distance : n - distance + T], share)
        return x  # (B, T, C)


class Attention(nn.Module):
    """Causal self-attention with one or more heads.

    Args:
        config: Config of the model.
        layer: Number of the block.
        turn: Rotary positions, whose tables all layers share.
    """

    def __init__(self, config: GPTConfig, layer: int, turn: Rotary | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)
        self.head_size = config.head_size
        self.dropout = config.dropped("attention")
        self.attend = attention.BACK_ENDS[config.attention]
        self.shift = TokenShift(config) if config.token_shift else None
        self.c_attn = nn.Linear(config.n_embd, sum(self.heads) * config.head_size, bias=config.bias)
        self.q_norm = head_norm(config) if config.qk_norm else None
        self.k_norm = head_norm(config) if config.qk_norm else None
        self.turn = turn
        # created even if unused, so that all configs draw the same random numbers
        project = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = project if config.attn_proj else nn.Identity()
        self.resid_dropout = nn.Dropout(config.dropped("branch"))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, C = x.shape
        past = 0 if cache is None else cache.length
        if self.shift is not None:
            x = self.shift(x, cache)
        heads = self.c_attn(x).view(B, T, -1, self.head_size)  # (B, T, all heads, head_size)
        # (B, n_head, T, head_size) and, for k and v, (B, kv_heads, T, head_size)
        q, k, v = heads.transpose(1, 2).split_with_sizes(self.heads, dim=1)
        q, k = self.prepare(q, k, slice(past, past + T))
        if cache is not None:
            kv = cache.append(self.layer, torch.cat([k, v], dim=1))
            k, v = kv.chunk(2, dim=1)  # (B, kv_heads, past + T, head_size)
        dropout = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, dropout)  # (B, n_head, T, head_size)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        return self.resid_dropout(y) if self.training else y

    def prepare(self, q: Tensor, k: Tensor, at: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Norm and rotate (B, heads, T, head_size) queries and keys, where the config does."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.turn is not None:
            q, k = self.turn(q, at), self.turn(k, at)
        return q, k


class MLP(nn.Module):
    """Two linear layers, wider between them, with an activation."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        into = config.hidden * (2 if config.activation == "swiglu" else 1)
        self.shift = TokenShift(config) if config.token_shift else None
        self.c_fc = nn.Linear(config.n_embd, into, bias=config.bias)
        self.act = ACTIVATIONS[config.activation]()
        self.c_proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropped("branch"))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        if self.shift is not None:
            x = self.shift(x, cache)
        x = self.c_proj(self.act(self.c_fc(x)))  # (B, T, C)
        return self.dropout(x) if self.training else x


class Block(nn.Module):
    """Attention, unless the config leaves it out, then the MLP, each added to its input."""

    def __init__(self, config: GPTConfig, layer: int, turn: Rotary | None = None) -> None:
        super().__init__()
        self.is_post = config.norm_place == "post"
        self.attn: Attention | None = None
        if config.mixer == "attention":
            self.ln_1 = norm(config)
            self.attn = Attention(config, layer, turn)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropped("block"))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        if self.is_post:  # norms of the sums
            if self.attn is not None:
                x = self.ln_1(x + self.attn(x, cache))
            x = self.ln_2(x + self.mlp(x, cache))
        else:  # norms of the branches' inputs; the residual stream itself has none
            if self.attn is not None:
                x = x + self.attn(self.ln_1(x), cache)
            x = x + self.mlp(self.ln_2(x), cache)
        return self.drop(x) if self.training else x  # (B, T, C)


class GPT(nn.Module):
    """Computes the logits of the next tokens from token ids."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size {config.vocab_size}: a GPT needs at least one token")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = added_positions(config)
        self.drop = nn.Dropout(config.dropped("embedding"))
        turn = Rotary(config) if config.positions == "rotary" else None
        self.h = nn.ModuleList(Block(config, layer, turn) for layer in range(config.n_layer))
        self.ln_f = norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.cap = Softcap(config.logit_softcap) if config.logit_softcap else nn.Identity()
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.noise = InputNoise(config) if config.token_dropout or config.token_noise else None
        self.init_weights()
        if config.lora_r:
            lora.adapt(self, config)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise all parameters, in the order of `named_parameters()`, by the config's `init`.

        | parameter         | gpt2                  | unit                    | torch            |
        | ----------------- | --------------------- | ----------------------- | ---------------- |
        | wte, wpe, mask    | n(0.02)               | n(1)                    | n(1)             |
        | linear layers     | n(0.02)               | n(1 / sqrt(inputs))     | PyTorch's own    |
        | c_proj            | n(0.02 / sqrt(2 L))   | n(1 / sqrt(inputs 2 L)) | PyTorch's own    |
        | lm_head, not tied | n(0.02)               | n(1 / sqrt(inputs))     | PyTorch's own    |
        | biases            | 0                     | 0                       | PyTorch's own    |
        | norms             | weight 1, bias 0      | weight 1, bias 0        | weight 1, bias 0 |
        | token shift       | 0                     | 0                       | 0                |

        n(s) is normal with mean 0 and standard deviation s; L is n_layer. The smaller c_proj
        keeps the variance of the residual stream, a sum of 2 L branches, independent of the depth
        (Radford et al. 2019, section 2.3). With zero_init, each c_proj and an untied head are 0.
        """
        unit = self.config.init == "unit"
        depth = math.sqrt(2 * max(1, self.config.n_layer))
        for name, parameter in self.named_parameters():
            is_output = name.endswith("c_proj.weight")
            if self.config.zero_init and (is_output or name == "lm_head.weight"):
                parameter.zero_()
            elif parameter.dim() < 2 or (self.config.init == "torch" and name != "noise.mask"):
                continue
            elif name.startswith(("wte", "wpe", "noise")):
                parameter.normal_(0, 0.02 if self.config.init == "gpt2" else 1)
            else:
                scale = 1 / math.sqrt(parameter.size(1)) if unit else 0.02
                parameter.normal_(0, scale / depth if is_output else scale)
        if self.config.init != "torch":
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()

    def num_parameters(self) -> int:
        """Return the number of parameters; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, idx: Tensor, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """Return the logits of each next token.

        Args:
            idx: (B, T) token ids of any integer type, which follow the positions in the cache.
            cache: Keys and values of earlier positions; grows by T positions.
            last: Compute the last position's logits only, at a T-th of the head's cost.

        Returns:
            (B, T, V) logits, or (B, 1, V) if `last`.

        Raises:
            ValueError: More positions than block_size, or a shape other than (B, T).
            TypeError: The ids are not integers.
        """
        x = self.hidden(idx, cache)  # (B, T, C)
        return self.logits(x[:, -1:] if last else x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) logits of (..., C) hidden states."""
        return self.cap(self.lm_head(hidden))

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the normed output of the last block, (B, T, C), for `forward`'s arguments."""
        if idx.dim() != 2:
            raise ValueError(f"idx: must have the shape (B, T), not {tuple(idx.shape)}")
        T = idx.size(1)
        past = 0 if cache is None else cache.length
        if idx.dtype != torch.int64:
            if idx.is_floating_point() or idx.is_complex() or idx.dtype == torch.bool:
                name = str(idx.dtype).removeprefix("torch.")
                raise TypeError(f"idx: token ids must be integers, not {name}")
            idx = idx.long()
        if past + T > self.config.block_size:
            raise ValueError(f"{past + T} positions exceed block_size {self.config.block_size}")
        x = self.wte(idx) if self.noise is None else self.noise(idx, self.wte)  # (B, T, C)
        x = self.drop(self.wpe(x, past))
        recomputes = self.config.activation_checkpointing and self.training and cache is None
        for block in self.h:
            x = self._recomputed(block, x) if recomputes else block(x, cache)
        if cache is not None:
            cache.length += T
        return self.ln_f(x)

    def _recomputed(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return a block's output; the backward pass computes the block again, dropping alike."""
        has_dropout = bool(self.config.dropout)
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=has_dropout)
