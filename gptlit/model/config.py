"""GPTConfig: what a GPT consists of, by typed options, checked where they arrive."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from gptlit import plain_data
from gptlit.messages import UsageError, opt

Positions = Literal["learned", "sinusoidal", "rotary", "none"]
Norm = Literal["layer", "rms"]
NormPlace = Literal["pre", "post"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu"]
Mixer = Literal["attention", "none"]
Init = Literal["gpt2", "torch", "unit"]
DropoutPlace = Literal["embedding", "attention", "branch", "block"]
Back = Literal["sdpa", "eager", "flash"]

SIZES_BELOW = 2**31  # of a dimension; also what keeps arithmetic with sizes within 64 bits
# of positions: tables of rotary and sinusoidal ones, and the cache, take memory for each
LARGEST_BLOCK = 2**17
SMALLEST, LARGEST = 1e-30, 1e30  # of factors, which have to be float32's as well


@dataclass(frozen=True)
class GPTConfig:
    """The sizes and parts of a GPT. S1, S4 and S5 are the systems in configs/sources.

    Args:
        vocab_size: Number of distinct tokens.
        n_layer: Number of blocks; 0 leaves embedding, norm and head (S4's basic model).
        n_head: Attention heads in a block; divides n_embd.
        n_kv_head: Heads of keys and values, each shared by n_head / n_kv_head queries' heads
            (Ainslie et al. 2023, Llama); n_head when left out.
        n_embd: Width: channels of the residual stream.
        block_size: Context: the most tokens the model sees at once.
        mlp_ratio: Width of the MLP between its layers, in n_embd (S5 compares 2, 4 and 8).
        mlp_hidden: The same in channels; wins over mlp_ratio.
        mixer: attention; none leaves it out, so that each token sees only itself (S5's TinyLM).
        positions: learned, a row for each (GPT-2, S1, S5); sinusoidal, added as well (Vaswani
            et al. 2017, S4); rotary, queries and keys turned by their position (Su et al. 2021,
            Llama); none.
        position_base: The base of sinusoidal and rotary wavelengths (S5 shows 500 and 50000).
        n_positions: Rows of the learned table where they are more than block_size (S1: 512).
        norm: layer, LayerNorm; rms, without mean and bias (Zhang and Sennrich 2019, Llama).
        norm_place: pre, ahead of each branch (GPT-2, S5); post, after its sum (S1, S4).
        norm_weight: A learned factor for each channel of a norm.
        norm_eps: Added to the variance.
        qk_norm: RMSNorm on each head's queries and keys (Henry et al. 2020).
        activation: gelu (S4, S5), gelu_tanh (GPT-2 as published), relu (S1), relu2, its square
            (So et al. 2021), swiglu, gated (Shazeer 2020, Llama).
        bias: Biases in linear layers and layer norms, as GPT-2 has them; S5 has none.
        attn_proj: The output projection of attention; S4's single head has none.
        tie_weights: The head's matrix is the embedding's (GPT-2).
        head_bias: A bias in the head (S4).
        logit_softcap: Squash logits smoothly to within +-this (Gemma 2).
        token_shift: Add to each channel, ahead of attention and MLP, a learned share of what it was
            at each of so many positions before (RWKV has 1); 0 for none.
        init: gpt2, normal with 0.02 (`GPT.init_weights` has the table); torch, PyTorch's own
            (S1, S4, S5); unit, embeddings of unit scale, matrices of 1 / sqrt(inputs).
        zero_init: Output projections, and an untied head, begin at zero: each branch begins
            silent, and the first loss is ln(vocab_size).
        dropout: Probability of dropping a value.
        dropout_at: Where: after the embedding, in attention's weights, at the end of each
            branch, at the end of each block. GPT-2 has the first three, S1 only branch, S4 only
            block, S5 embedding and branch.
        attention: sdpa, PyTorch's fused kernels, whichever suits; flash, that one or an error;
            eager, the reference.
    """

    vocab_size: int
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int | None = None
    n_embd: int = 128
    block_size: int = 64
    mlp_ratio: float = 4.0
    mlp_hidden: int | None = None
    mixer: Mixer = "attention"
    positions: Positions = "learned"
    position_base: float = 10_000.0
    n_positions: int | None = None
    norm: Norm = "layer"
    norm_place: NormPlace = "pre"
    norm_weight: bool = True
    norm_eps: float = 1e-5
    qk_norm: bool = False
    activation: Activation = "gelu"
    bias: bool = True
    attn_proj: bool = True
    tie_weights: bool = True
    head_bias: bool = False
    logit_softcap: float | None = None
    token_shift: int = 0
    init: Init = "gpt2"
    zero_init: bool = False
    dropout: float = 0.0
    dropout_at: tuple[DropoutPlace, ...] = ("embedding", "attention", "branch")
    attention: Back = "sdpa"

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def hidden(self) -> int:
        """Channels between the MLP's layers."""
        return round(self.mlp_ratio * self.n_embd) if self.mlp_hidden is None else self.mlp_hidden

    def dropped(self, place: DropoutPlace) -> float:
        """The probability of dropping a value at a place."""
        return self.dropout if place in self.dropout_at else 0.0

    def __post_init__(self) -> None:
        plain_data.check_fields(self, "model")
        # as YAML and checkpoints have it, a list; a config is hashable and plain
        object.__setattr__(self, "dropout_at", tuple(self.dropout_at))
        self._check_bounds()
        for name in ("n_head", "n_embd", "block_size", "hidden"):
            if (value := getattr(self, name)) < 1:
                if name == "hidden" and self.mlp_hidden is None:
                    of = f"{opt('model.n_embd')} {self.n_embd}"
                    raise UsageError(
                        f"gives the MLP {value} channels of {of}; it needs 1 or more",
                        "model.mlp_ratio",
                        self.mlp_ratio,
                    )
                option = {"hidden": "mlp_hidden"}.get(name, name)
                raise UsageError("must be 1 or more", f"model.{option}", value)
        if self.n_layer < 0:
            raise UsageError("must be 0 or more", "model.n_layer", self.n_layer)
        if not 0 <= self.token_shift < self.block_size:
            raise UsageError(
                f"must be at least 0 and below {opt('model.block_size')} {self.block_size}; 3 is "
                "what configs/best_cpu.yaml has",
                "model.token_shift",
                self.token_shift,
            )
        if not 0 <= self.dropout < 1:
            raise UsageError("must be at least 0 and below 1", "model.dropout", self.dropout)
        if self.n_embd % self.n_head:
            below = self.n_embd // self.n_head * self.n_head
            nearest = [size for size in (below, below + self.n_head) if size]
            raise UsageError(
                f"not divisible by {opt('model.n_head')} {self.n_head}; "
                f"{' or '.join(map(str, nearest))} would work",
                "model.n_embd",
                self.n_embd,
            )
        for name in ("position_base", "norm_eps", "logit_softcap"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UsageError("must be above 0", f"model.{name}", value)
            if value is not None and not SMALLEST <= value <= LARGEST:
                reason = f"must be at least {SMALLEST} and at most {LARGEST}"
                raise UsageError(reason, f"model.{name}", value)
        self._check_combinations()

    def _check_bounds(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value >= SIZES_BELOW:
                raise UsageError(f"must be below {SIZES_BELOW}", f"model.{field.name}", value)
        if self.vocab_size < 0:
            raise UsageError("must be 1 or more", "model.vocab_size", self.vocab_size)
        if self.block_size > LARGEST_BLOCK:
            reason = f"must be at most {LARGEST_BLOCK}"
            raise UsageError(reason, "model.block_size", self.block_size)
        if not abs(self.mlp_ratio) < SIZES_BELOW or self.hidden >= SIZES_BELOW:
            raise UsageError(
                f"gives the MLP no size below {SIZES_BELOW} of {opt('model.n_embd')} "
                f"{self.n_embd}; 4 is usual",
                "model.mlp_ratio",
                self.mlp_ratio,
            )

    def _check_combinations(self) -> None:
        if self.kv_heads < 1 or self.n_head % self.kv_heads:
            small = [n for n in range(1, math.isqrt(self.n_head) + 1) if self.n_head % n == 0]
            fit = sorted({*small, *(self.n_head // n for n in small)})
            raise UsageError(
                f"must divide {opt('model.n_head')} {self.n_head}; "
                f"{', '.join(map(str, fit))} would work",
                "model.n_kv_head",
                self.kv_heads,
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise UsageError(
                f"turns pairs of channels, and {opt('model.n_embd')} {self.n_embd} / "
                f"{opt('model.n_head')} {self.n_head} is odd",
                "model.positions",
                self.positions,
            )
        if self.positions == "sinusoidal" and self.n_embd % 2:
            reason = f"fills pairs of channels, and {opt('model.n_embd')} {self.n_embd} is odd"
            raise UsageError(reason, "model.positions", self.positions)
        if self.n_positions is not None and self.positions != "learned":
            reason = f"is of {opt('model.positions')} learned, not {self.positions}"
            raise UsageError(reason, "model.n_positions", self.n_positions)
        if self.n_positions is not None and self.n_positions < self.block_size:
            reason = f"must be at least {opt('model.block_size')} {self.block_size}"
            raise UsageError(reason, "model.n_positions", self.n_positions)
        if self.mixer == "none":
            given = {
                "positions": self.positions == "rotary",
                "qk_norm": self.qk_norm,
                "n_kv_head": self.n_kv_head is not None,
                "attn_proj": not self.attn_proj,
            }
            for name, is_given in given.items():
                if is_given:
                    reason = f"needs {opt('model.mixer')} attention, not none"
                    raise UsageError(reason, f"model.{name}", getattr(self, name))
