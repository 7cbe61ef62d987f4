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
LoRAPlace = Literal["c_attn", "c_proj", "c_fc"]
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
        token_dropout: Probability that training hides an input token: its embedding is replaced by
            a learned mask, which generation and exports don't have (Xie et al. 2017).
        token_noise: Probability that training replaces an input token by any token, each equally
            often.
        lora_r: Rank of the low-rank changes that fine-tuning learns in place of the weights, which
            stay as they are (LoRA, Hu et al. 2021); 8 is usual. 0 for none.
        lora_alpha: The changes count lora_alpha / lora_r times; once or twice lora_r is usual.
        lora_dropout: Probability of dropping an input of a change.
        lora_on: Matrices with a change: c_attn, of queries, keys and values; c_proj, at the end of
            attention and MLP; c_fc, at the beginning of the MLP.
        attention: sdpa, the fastest of PyTorch's fused kernels for device and sizes; flash, only
            FlashAttention; eager, the reference implementation.
        activation_checkpointing: Keep only the input of each block for the backward pass, which
            computes the block again: less memory, about a third more operations (Chen et al. 2016).
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
    token_dropout: float = 0.0
    token_noise: float = 0.0
    lora_r: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_on: tuple[LoRAPlace, ...] = ("c_attn",)
    attention: Back = "sdpa"
    activation_checkpointing: bool = False

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

    @property
    def is_stochastic(self) -> bool:
        """Whether a training step draws random numbers."""
        dropped = self.dropout or (self.lora_r and self.lora_dropout)
        return bool(dropped or self.token_dropout or self.token_noise)

    def dropped(self, place: DropoutPlace) -> float:
        """Probability of dropping a value at a place."""
        return self.dropout if place in self.dropout_at else 0.0

    def __post_init__(self) -> None:
        plain_data.check_fields(self, "model")
        # a list in YAML and checkpoints; a tuple makes the config hashable
        object.__setattr__(self, "dropout_at", tuple(self.dropout_at))
        object.__setattr__(self, "lora_on", tuple(self.lora_on))
        self._check_sizes()
        self._check_combinations()

    def _require(self, is_valid: bool, name: str, reason: str) -> None:
        if not is_valid:
            raise UsageError(reason, f"model.{name}", getattr(self, name))

    def _check_sizes(self) -> None:
        require = self._require
        with_n_embd = f"channels with {opt('model.n_embd')} {self.n_embd}"
        for field in dataclasses.fields(self):
            is_small = (
                not isinstance(value := getattr(self, field.name), int) or value < SIZES_BELOW
            )
            require(is_small, field.name, f"must be below {SIZES_BELOW}")
        require(self.vocab_size >= 0, "vocab_size", "must be 1 or more")
        require(self.block_size <= LARGEST_BLOCK, "block_size", f"must be at most {LARGEST_BLOCK}")
        require(
            abs(self.mlp_ratio) < SIZES_BELOW and self.hidden < SIZES_BELOW,
            "mlp_ratio",
            f"must give the MLP fewer than {SIZES_BELOW} {with_n_embd}; 4 is usual",
        )
        for name in ("n_head", "n_embd", "block_size"):
            require(getattr(self, name) >= 1, name, "must be 1 or more")
        if self.mlp_hidden is None:
            reason = f"gives the MLP {self.hidden} {with_n_embd}; it needs 1 or more"
            require(self.hidden >= 1, "mlp_ratio", reason)
        else:
            require(self.mlp_hidden >= 1, "mlp_hidden", "must be 1 or more")
        require(self.n_layer >= 0, "n_layer", "must be 0 or more")
        require(
            0 <= self.token_shift < self.block_size,
            "token_shift",
            f"must be at least 0 and below {opt('model.block_size')} {self.block_size}; "
            "configs/best_cpu.yaml has 3",
        )
        reason = f"must be from 0 to {opt('model.n_embd')} {self.n_embd}; 8 is usual"
        require(0 <= self.lora_r <= self.n_embd, "lora_r", reason)
        for name in ("dropout", "lora_dropout", "token_dropout", "token_noise"):
            require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")
        for name in ("position_base", "norm_eps", "logit_softcap", "lora_alpha"):
            value = getattr(self, name)
            reason = f"must be above 0, from {SMALLEST} to {LARGEST}"
            require(value is None or SMALLEST <= value <= LARGEST, name, reason)

    def _check_combinations(self) -> None:
        require = self._require
        n_head, n_embd = f"{opt('model.n_head')} {self.n_head}", opt("model.n_embd")
        below = self.n_embd // self.n_head * self.n_head
        nearest = " or ".join(str(size) for size in (below, below + self.n_head) if size)
        reason = f"must be a multiple of {n_head}; use {nearest}"
        require(self.n_embd % self.n_head == 0, "n_embd", reason)
        if self.n_kv_head is not None and (self.n_kv_head < 1 or self.n_head % self.n_kv_head):
            small = [n for n in range(1, math.isqrt(self.n_head) + 1) if self.n_head % n == 0]
            fit = sorted({*small, *(self.n_head // n for n in small)})
            reason = f"must divide {n_head}; use one of {', '.join(map(str, fit))}"
            require(False, "n_kv_head", reason)
        if self.positions == "rotary":
            reason = (
                f"needs an even number of channels in a head, and {n_embd} {self.n_embd} / "
                f"{n_head} is odd"
            )
            require(self.head_size % 2 == 0, "positions", reason)
        if self.positions == "sinusoidal":
            reason = f"needs an even {n_embd}, and {self.n_embd} is odd"
            require(self.n_embd % 2 == 0, "positions", reason)
        if self.n_positions is not None:
            reason = f"needs {opt('model.positions')} learned, not {self.positions}"
            require(self.positions == "learned", "n_positions", reason)
            reason = f"must be at least {opt('model.block_size')} {self.block_size}"
            require(self.n_positions >= self.block_size, "n_positions", reason)
        reason = f"must be below 1 together with {opt('model.token_noise')} {self.token_noise}"
        require(self.token_dropout + self.token_noise < 1, "token_dropout", reason)
        if self.lora_r:
            reason = f"needs {opt('model.lora_r')} 0: what LoRA freezes can't learn a mask"
            require(not self.token_dropout, "token_dropout", reason)
            has = {"c_attn"} if self.mixer == "attention" else set()
            reason = "names no matrix of this model; give [c_attn], [c_proj] or [c_fc]"
            require(bool({*self.lora_on} & (has | {"c_proj", "c_fc"})), "lora_on", reason)
        if self.mixer == "none":
            reason = f"needs {opt('model.mixer')} attention, not none"
            require(self.positions != "rotary", "positions", reason)
            require(not self.qk_norm, "qk_norm", reason)
            require(self.n_kv_head is None, "n_kv_head", reason)
            require(self.attn_proj, "attn_proj", reason)
