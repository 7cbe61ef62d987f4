"""GPTConfig: the options of a GPT, with their types, defaults, help and checks."""

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

SIZES_BELOW = 2**31  # keeps arithmetic with sizes within 64 bits
LARGEST_BLOCK = 2**17  # tables of positions and the cache take memory for each position
SMALLEST, LARGEST = 1e-30, 1e30  # bounds of factors, finite and above 0 in float32 too


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and parts of a GPT; configs/sources has those of several published models.

    Args:
        vocab_size: Number of distinct tokens.
        n_layer: Number of blocks; 0 leaves embedding, norm and head (dante_basic).
        n_head: Number of attention heads in a block; must divide n_embd.
        n_kv_head: Number of key and value heads, each shared by n_head / n_kv_head query heads
            (Ainslie et al. 2023, Llama); null for n_head.
        n_embd: Width of the model, in channels.
        block_size: Context length: the most tokens that the model sees at once.
        mlp_ratio: Width of the MLP's hidden layer as a multiple of n_embd.
        mlp_hidden: Width of the MLP's hidden layer in channels; null for mlp_ratio.
        mixer: attention, or none, so that each token sees only itself (llm_from_scratch_tinylm).
        positions: learned, a learned row for each position (GPT-2); sinusoidal, a fixed table
            (Vaswani et al. 2017); rotary, queries and keys rotated by their position (Su et al.
            2021, Llama); none.
        position_base: Base of the wavelengths of sinusoidal and rotary positions.
        n_positions: Number of learned positions, if more than block_size (session4 has 512).
        norm: layer, LayerNorm; rms, RMSNorm without mean and bias (Zhang and Sennrich 2019, Llama).
        norm_place: pre, before each branch (GPT-2); post, after adding it (session4,
            dante_advanced).
        norm_weight: A learned factor for each channel of a norm.
        norm_eps: Number added to the variance in a norm.
        qk_norm: RMSNorm on the queries and keys of each head (Henry et al. 2020).
        activation: gelu; gelu_tanh (GPT-2 as published); relu; relu2, its square (So et al. 2021);
            swiglu, gated (Shazeer 2020, Llama).
        bias: Biases in linear layers and layer norms (GPT-2).
        attn_proj: An output projection of attention.
        tie_weights: One matrix for the embedding and the head (GPT-2).
        head_bias: A bias in the head (dante_basic).
        logit_softcap: Squash logits smoothly to within +- this number (Gemma 2); null for none.
        token_shift: Number of earlier positions of which attention and MLP see a learned share in
            each channel (RWKV has 1); 0 for none.
        init: gpt2, normal with deviation 0.02; torch, PyTorch's own; unit, embeddings with
            deviation 1 and matrices with 1 / sqrt(inputs). `GPT.init_weights` has the table.
        zero_init: Initialise output projections and an untied head with zeros: the first loss is
            ln(vocab_size).
        dropout: Probability of dropping a value.
        dropout_at: Places of dropout: embedding, after it; attention, in its weights; branch, at
            the end of each; block, at the end of each. GPT-2 has the first three.
        attention: sdpa, the fastest of PyTorch's fused kernels for device and sizes; flash, only
            FlashAttention; eager, the reference implementation.
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
        """Number of channels of a head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return round(self.mlp_ratio * self.n_embd) if self.mlp_hidden is None else self.mlp_hidden

    def dropped(self, place: DropoutPlace) -> float:
        """Probability of dropping a value at a place."""
        return self.dropout if place in self.dropout_at else 0.0

    def __post_init__(self) -> None:
        plain_data.check_fields(self, "model")
        # a list in YAML and checkpoints; a tuple makes the config hashable
        object.__setattr__(self, "dropout_at", tuple(self.dropout_at))
        self._check_bounds()
        for name in ("n_head", "n_embd", "block_size", "hidden"):
            if (value := getattr(self, name)) < 1:
                if name == "hidden" and self.mlp_hidden is None:
                    n_embd = f"{opt('model.n_embd')} {self.n_embd}"
                    raise UsageError(
                        f"gives the MLP {value} channels with {n_embd}; it needs 1 or more",
                        "model.mlp_ratio",
                        self.mlp_ratio,
                    )
                option = {"hidden": "mlp_hidden"}.get(name, name)
                raise UsageError("must be 1 or more", f"model.{option}", value)
        if self.n_layer < 0:
            raise UsageError("must be 0 or more", "model.n_layer", self.n_layer)
        if not 0 <= self.token_shift < self.block_size:
            raise UsageError(
                f"must be at least 0 and below {opt('model.block_size')} {self.block_size}; "
                "configs/best_cpu.yaml has 3",
                "model.token_shift",
                self.token_shift,
            )
        if not 0 <= self.dropout < 1:
            raise UsageError("must be at least 0 and below 1", "model.dropout", self.dropout)
        if self.n_embd % self.n_head:
            below = self.n_embd // self.n_head * self.n_head
            nearest = [size for size in (below, below + self.n_head) if size]
            raise UsageError(
                f"must be a multiple of {opt('model.n_head')} {self.n_head}; use "
                f"{' or '.join(map(str, nearest))}",
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
                f"must give the MLP fewer than {SIZES_BELOW} channels with {opt('model.n_embd')} "
                f"{self.n_embd}; 4 is usual",
                "model.mlp_ratio",
                self.mlp_ratio,
            )

    def _check_combinations(self) -> None:
        if self.kv_heads < 1 or self.n_head % self.kv_heads:
            small = [n for n in range(1, math.isqrt(self.n_head) + 1) if self.n_head % n == 0]
            fit = sorted({*small, *(self.n_head // n for n in small)})
            raise UsageError(
                f"must divide {opt('model.n_head')} {self.n_head}; use one "
                f"of {', '.join(map(str, fit))}",
                "model.n_kv_head",
                self.kv_heads,
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise UsageError(
                f"needs an even number of channels in a head, and {opt('model.n_embd')} "
                f"{self.n_embd} / {opt('model.n_head')} {self.n_head} is odd",
                "model.positions",
                self.positions,
            )
        if self.positions == "sinusoidal" and self.n_embd % 2:
            reason = f"needs an even {opt('model.n_embd')}, and {self.n_embd} is odd"
            raise UsageError(reason, "model.positions", self.positions)
        if self.n_positions is not None and self.positions != "learned":
            reason = f"needs {opt('model.positions')} learned, not {self.positions}"
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
