"""A decoder-only GPT in plain PyTorch: cache, parts, block, GPT, to be read top to bottom.

Shapes: B batch, T time, V vocabulary, C channels (`n_embd`). Names are those of GPT-2's
weights. What a model consists of is chosen when it is built, from a `GPTConfig`: `forward`
runs what was chosen. The model computes logits; the loss and the optimizer live elsewhere.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.model import attention
from gptlit.model.config import GPTConfig

__all__ = ["GPT", "GPTConfig", "KVCache"]


class KVCache:
    """What has to be known of the positions seen so far, allocated once; for inference only.

    Args:
        config: The model's.
        batch_size: B; every row holds the same number of positions.
        like: A tensor whose device and dtype the cache takes.
        n_positions: How many positions there is room for; block_size if left out.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, like: Tensor, n_positions: int | None = None
    ) -> None:
        n_positions = n_positions or config.block_size
        size = (config.n_layer, batch_size, 2 * config.kv_heads, n_positions)
        # zeros, since a place that is masked out must still be a number
        self.store = torch.zeros(*size, config.head_size, device=like.device, dtype=like.dtype)
        self.layers = self.store.unbind()  # keys, then values
        self.inputs: dict[nn.Module, Tensor] = {}  # of each token shift, its last ones
        self.length = 0

    def append(self, layer: int, kv: Tensor) -> Tensor:
        """Keep (B, 2 kv_heads, T, head_size) keys and values behind the `length` there are.

        Returns all of them, (B, 2 kv_heads, length + T, head_size). `length` itself grows once
        a step, by the model, when every layer has appended.
        """
        end = self.length + kv.size(2)
        self.layers[layer][:, :, self.length : end] = kv
        return self.layers[layer][:, :, :end]


# ---------------------------------------------------------------------- parts


class LearnedPositions(nn.Embedding):
    """Adds a learned row for each position."""

    def forward(self, x: Tensor, past: int) -> Tensor:  # type: ignore[override]  # other inputs
        return x + self.weight[past : past + x.size(1)]


class SinusoidalPositions(nn.Module):
    """Adds sines and cosines of each position, of wavelengths 2 pi to 2 pi base.

    Source: Vaswani et al. 2017, section 3.5.
    """

    weight: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        angles = _angles(config.block_size, config.n_embd, config.position_base)  # (T, C / 2)
        table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (T, C)
        self.register_buffer("weight", table, persistent=False)

    def forward(self, x: Tensor, past: int) -> Tensor:
        return x + self.weight[past : past + x.size(1)]


class NoPositions(nn.Module):
    """Adds nothing: the order of tokens is left to rotary positions, or to causality."""

    def forward(self, x: Tensor, past: int) -> Tensor:
        return x


def positions(config: GPTConfig) -> nn.Module:
    """What a config adds to embeddings to tell positions apart."""
    if config.positions == "learned":
        return LearnedPositions(config.n_positions or config.block_size, config.n_embd)
    return SinusoidalPositions(config) if config.positions == "sinusoidal" else NoPositions()


class Rotary(nn.Module):
    """Turns the pairs of channels (i, i + head_size / 2) by an angle that grows with position.

    The product of a query and a key then depends on how far apart they are.
    Source: Su et al. 2021, in the order of channels that Llama has.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        angles = _angles(config.block_size, config.head_size, config.position_base)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (T, head_size / 2)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, at: slice | Tensor) -> Tensor:
        """(..., T, head_size) turned by the places, T or (..., T) of them."""
        cos, sin = self.cos[at], self.sin[at]
        left, right = x.float().chunk(2, dim=-1)  # (..., T, head_size / 2)
        turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
        return turned.to(x.dtype)  # (..., T, head_size)


def _angles(n_positions: int, n_channels: int, base: float) -> Tensor:
    """(n_positions, n_channels / 2): position / base^(2 i / n_channels)."""
    powers = torch.arange(0, n_channels, 2, dtype=torch.float64) / n_channels
    positions = torch.arange(n_positions, dtype=torch.float64)
    return (positions[:, None] * base**-powers).float()


def norm(config: GPTConfig, size: int) -> nn.Module:
    """The norm of a config, over `size` channels."""
    if config.norm == "rms":
        return nn.RMSNorm(size, config.norm_eps, elementwise_affine=config.norm_weight)
    return nn.LayerNorm(size, config.norm_eps, config.norm_weight, bias=config.bias)


class TokenShift(nn.Module):
    """Adds to each channel a learned share of what it was at each of the n positions before.

    For n = 1 that is RWKV's (Peng et al. 2023, section 3.1); in all it is a causal convolution over
    each channel alone, beginning as the identity (So et al. 2021, Primer, have one behind qkv).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # the nearest position's first; vectors, so that no optimizer takes them for a matrix
        self.shares = nn.ParameterList(
            torch.zeros(config.n_embd) for _ in range(config.token_shift)
        )

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        n, T = len(self.shares), x.size(1)
        before = x.new_zeros(x.size(0), n, x.size(2))
        if cache is not None and cache.length:
            before = cache.inputs[self]
        seen = torch.cat([before, x], dim=1)  # (B, n + T, C)
        if cache is not None:
            cache.inputs[self] = seen[:, -n:]
        for distance, share in enumerate(self.shares, start=1):
            x = torch.addcmul(x, seen[:, n - distance : n - distance + T], share)
        return x


class ReLU2(nn.Module):
    """The square of ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class SwiGLU(nn.Module):
    """The first half, by SiLU, opens and closes the second."""

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class Softcap(nn.Module):
    """Squashes values smoothly to within +-cap."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return self.cap * torch.tanh(x / self.cap)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "relu2": ReLU2,
    "swiglu": SwiGLU,
}

# ---------------------------------------------------------------------- branches and blocks


class Attention(nn.Module):
    """Causal self-attention of one or more heads.

    Args:
        config: The model's.
        layer: The number of its block.
        turn: Rotary positions, whose tables all layers have in common.
    """

    def __init__(self, config: GPTConfig, layer: int, turn: Rotary | None = None) -> None:
        super().__init__()
        size, n_kv_head = config.head_size, config.kv_heads
        self.layer = layer
        self.heads = (config.n_head, n_kv_head, n_kv_head)
        self.head_size = size
        self.dropout = config.dropped("attention")
        self.attend = attention.BACK_ENDS[config.attention]
        self.shift = TokenShift(config) if config.token_shift else None
        self.c_attn = nn.Linear(config.n_embd, sum(self.heads) * size, bias=config.bias)
        self.q_norm = norm_of_heads(config) if config.qk_norm else None
        self.k_norm = norm_of_heads(config) if config.qk_norm else None
        self.turn = turn
        project = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = project if config.attn_proj else nn.Identity()
        self.resid_dropout = nn.Dropout(config.dropped("branch"))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, C = x.shape
        past = 0 if cache is None else cache.length
        if self.shift is not None:
            x = self.shift(x, cache)
        heads = self.c_attn(x).view(B, T, -1, self.head_size).transpose(1, 2)
        q, k, v = heads.split_with_sizes(self.heads, dim=1)  # (B, heads, T, head_size)
        q, k = self.prepare(q, k, slice(past, past + T))
        if cache is not None:
            kv = cache.append(self.layer, torch.cat([k, v], dim=1))
            k, v = kv.chunk(2, dim=1)  # (B, kv_heads, past + T, head_size)
        y = self.attend(q, k, v, self.dropout if self.training else 0.0)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, T, C)
        return self.resid_dropout(y) if self.training else y

    def prepare(self, q: Tensor, k: Tensor, at: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Norm and turn (B, heads, T, head_size) queries and keys, if the config does."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.turn is not None:
            q, k = self.turn(q, at), self.turn(k, at)
        return q, k


def norm_of_heads(config: GPTConfig) -> nn.Module:
    """RMSNorm over a head's channels."""
    return nn.RMSNorm(config.head_size, config.norm_eps, elementwise_affine=config.norm_weight)


class MLP(nn.Module):
    """Two linear layers, wider between, with an activation."""

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
        x = self.c_proj(self.act(self.c_fc(x)))
        return self.dropout(x) if self.training else x


class Block(nn.Module):
    """Attention, if there is any, then MLP, each added to what came in."""

    def __init__(self, config: GPTConfig, layer: int, turn: Rotary | None = None) -> None:
        super().__init__()
        self.is_post = config.norm_place == "post"
        self.attn: Attention | None = None
        if config.mixer == "attention":
            self.ln_1 = norm(config, config.n_embd)
            self.attn = Attention(config, layer, turn)
        self.ln_2 = norm(config, config.n_embd)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropped("block"))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        if self.is_post:  # the sums are normed, so that no residual stream goes from end to end
            if self.attn is not None:
                x = self.ln_1(x + self.attn(x, cache))
            x = self.ln_2(x + self.mlp(x, cache))
        else:  # branches work on a normed copy of the residual stream
            if self.attn is not None:
                x = x + self.attn(self.ln_1(x), cache)
            x = x + self.mlp(self.ln_2(x), cache)
        return self.drop(x) if self.training else x


# ---------------------------------------------------------------------- the model


def _as_ids(idx: Tensor) -> Tensor:
    """Token ids of another integer type as those that embeddings take."""
    if idx.is_floating_point() or idx.is_complex() or idx.dtype == torch.bool:
        name = str(idx.dtype).removeprefix("torch.")
        raise TypeError(f"idx: token ids must be integers, not {name}")
    return idx.long()


class GPT(nn.Module):
    """Token ids in, logits of the next token out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size {config.vocab_size}: a GPT needs at least one token")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = positions(config)
        self.drop = nn.Dropout(config.dropped("embedding"))
        turn = Rotary(config) if config.positions == "rotary" else None
        self.h = nn.ModuleList(Block(config, layer, turn) for layer in range(config.n_layer))
        self.ln_f = norm(config, config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.cap = Softcap(config.logit_softcap) if config.logit_softcap else nn.Identity()
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """The initialisation of the config.

        | parameter         | gpt2                  | unit                    | torch            |
        | ----------------- | --------------------- | ----------------------- | ---------------- |
        | wte, wpe          | n(0.02)               | n(1)                    | n(1)             |
        | linear layers     | n(0.02)               | n(1 / sqrt(inputs))     | PyTorch's own    |
        | c_proj            | n(0.02 / sqrt(2 L))   | n(1 / sqrt(inputs 2 L)) | PyTorch's own    |
        | lm_head, not tied | n(0.02)               | n(1 / sqrt(inputs))     | PyTorch's own    |
        | biases            | 0                     | 0                       | PyTorch's own    |
        | norms             | weight 1, bias 0      | weight 1, bias 0        | weight 1, bias 0 |
        | token shift       | 0                     | 0                       | 0                |

        n(s) is normal with mean 0 and standard deviation s; L is n_layer. The smaller c_proj
        keeps the variance of the residual stream, the sum of 2 L branches, independent of the
        depth (Radford et al. 2019, section 2.3). With zero_init, each c_proj and an untied head
        are 0.
        """
        unit = self.config.init == "unit"
        depth = math.sqrt(2 * max(1, self.config.n_layer))
        for name, parameter in self.named_parameters():
            is_output = name.endswith("c_proj.weight")
            if self.config.zero_init and (is_output or name == "lm_head.weight"):
                parameter.zero_()
            elif self.config.init == "torch" or parameter.dim() < 2:
                continue
            elif name.startswith(("wte", "wpe")):
                parameter.normal_(0, 1 if unit else 0.02)
            else:
                scale = 1 / math.sqrt(parameter.size(1)) if unit else 0.02
                parameter.normal_(0, scale / depth if is_output else scale)
        if self.config.init != "torch":
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()

    def num_parameters(self) -> int:
        """Parameters in all; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, idx: Tensor, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """The logits of each next token.

        Args:
            idx: (B, T) token ids of any integer type; with a cache, those behind the positions it
                holds.
            cache: What is known of the positions seen so far; grows by T positions.
            last: Only the last position's logits, at a T-th of the head's cost.

        Returns:
            (B, T, V) logits, or (B, 1, V) if `last`.

        Raises:
            ValueError: more positions than block_size, or not (B, T).
            TypeError: the ids are not integers.
        """
        if idx.dim() != 2:
            raise ValueError(f"idx: must have the shape (B, T), not {tuple(idx.shape)}")
        T = idx.size(1)
        past = 0 if cache is None else cache.length
        if idx.dtype != torch.int64:
            idx = _as_ids(idx)
        if past + T > self.config.block_size:
            raise ValueError(f"{past + T} positions exceed block_size {self.config.block_size}")
        x = self.drop(self.wpe(self.wte(idx), past))  # (B, T, C)
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.length += T
        if last:
            x = x[:, -1:]
        return self.cap(self.lm_head(self.ln_f(x)))  # (B, T, V)

    @torch.no_grad()
    def attention_weights(self, idx: Tensor) -> Tensor:
        """How much each position looks at each: (n_layer, B, n_head, T, T), rows sum to 1.

        Args:
            idx: (B, T) token ids.

        Raises:
            ValueError: the model has no attention.
        """
        layers = [module for module in self.modules() if isinstance(module, Attention)]
        if not layers:
            raise ValueError("a model without attention has no attention weights")
        seen: list[Tensor] = []

        def looked_at(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
            seen.append(attention.weights(q, k))
            return attention.eager(q, k, v, dropout)

        before = [layer.attend for layer in layers]
        try:
            for layer in layers:
                layer.attend = looked_at
            self(idx)
        finally:
            for layer, attend in zip(layers, before, strict=True):
                layer.attend = attend
        return torch.stack(seen)
