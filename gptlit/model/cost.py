"""What a GPT costs, by arithmetic: parameters, floating point operations, memory.

Shapes: B batch, T time, V vocabulary, C channels, H heads. Sizes are in bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from gptlit.model.config import DropoutPlace
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim import optimizers
from gptlit.optim.optimizers import Recipe

ADAMW = Recipe()
COMPONENTS = ("embedding", "attention", "mlp", "norms", "head")
# tokens per parameter at which a given amount of compute trains best (Hoffmann et al. 2022)
RULE_OF_20 = 20


# ---------------------------------------------------------------------- parameters


def component(name: str) -> str:
    """Which of COMPONENTS a parameter belongs to, by its name; a tied head is the embedding."""
    parts = name.split(".")
    if any(part.startswith("ln_") or part in ("q_norm", "k_norm") for part in parts):
        return "norms"
    if parts[0] in ("wte", "wpe"):
        return "embedding"
    if parts[0] == "lm_head":
        return "head"
    return "attention" if "attn" in parts else "mlp"


def parameters(model: GPT) -> dict[str, int]:
    """How many parameters each component has; their sum is `model.num_parameters()`."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        counts[component(name)] += parameter.numel()
    return counts


def trainable(model: GPT) -> int:
    """Parameters that a step changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def decayed(model: GPT, recipe: Recipe = ADAMW) -> tuple[int, int]:
    """Trainable parameters that weight decay shrinks, and those it leaves alone."""
    counts = {True: 0, False: 0}
    for part, options in _groups(model, recipe):
        counts[options["weight_decay"] > 0] += sum(p.numel() for p in part)
    return counts[True], counts[False]


def _groups(model: GPT, recipe: Recipe) -> Iterator[tuple[list[nn.Parameter], dict[str, Any]]]:
    parts = optimizers.split(model.named_parameters(), recipe.optimizer)
    yield from zip(parts, optimizers.group_options(recipe), strict=True)


def optimizer_values(model: GPT, recipe: Recipe = ADAMW) -> int:
    """Numbers that an optimizer remembers: two moments by Adam's rule, one by momentum.

    Muon's second ones are of a matrix's longer side alone.
    """
    values = 0
    for part, options in _groups(model, recipe):
        moments = 2 if "betas" in options else options["momentum"] > 0
        values += moments * sum(p.numel() for p in part)
        if options.get("beta2") is not None:
            values += sum(max(p.shape) for p in part)
    return values


def matmul_parameters(model: GPT) -> int:
    """Weights that each token is multiplied by: of linear layers, a tied head among them."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(layer.weight.numel() for layer in linear)


# ---------------------------------------------------------------------- operations


def flops_per_token(model: GPT, *, causal: bool = False) -> int:
    """Operations of a forward pass for one token of a full window.

    2 for each weight of a matrix, and 2 T C each for queries times keys and for weights times
    values in each layer. Norms, activations and softmax are left out.

    Args:
        model: A GPT.
        causal: Count only the half of attention that is not masked, (T + 1) / 2 keys on average.

    Source: Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022 (PaLM), appendix B.
    """
    config = model.config
    attending = 0
    if config.mixer == "attention":
        keys = config.block_size + 1 if causal else 2 * config.block_size
        attending = config.n_layer * 2 * keys * config.n_embd
    return 2 * matmul_parameters(model) + attending


def training_flops_per_token(model: GPT, *, causal: bool = False) -> int:
    """Operations of forward and backward: three times the forward pass (same sources).

    A matrix product's backward is two products of the same size. What a kernel computes anew
    in its backward, as FlashAttention does, is no work of the model and is left out.
    """
    return 3 * flops_per_token(model, causal=causal)


# ---------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Precision:
    """Bytes of one value, by where it occurs."""

    weight: int  # weights, gradients, moments
    stream: int  # residual stream and norms
    product: int  # what matrix products take and give
    loss: int  # log-probabilities


FULL = Precision(4, 4, 4, 4)
MIXED = Precision(4, 4, 2, 4)
HALF = Precision(2, 2, 2, 2)
DOUBLE = Precision(8, 8, 8, 8)


def bytes_of(precision: str) -> Precision:
    """Sizes at a precision by Lightning's name of it: 32-true, bf16-mixed, 16-true, ..."""
    if precision.startswith("64"):
        return DOUBLE
    if precision.startswith("32"):
        return FULL
    return HALF if precision.endswith("-true") else MIXED


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes, by what for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    average: int = 0  # of the weights

    @property
    def total(self) -> int:
        """All of them; not all need be there at the same moment."""
        trained = self.weights + self.gradients + self.optimizer + self.average
        return trained + self.activations


def memory(
    model: GPT,
    batch_size: int,
    precision: str,
    device: str = "cpu",
    recipe: Recipe = ADAMW,
    averaged: bool = False,
) -> Memory:
    """What training takes on one device.

    Args:
        model: A GPT.
        batch_size: B, windows that one forward pass takes; each has block_size tokens.
        precision: By Lightning's name.
        device: cpu or cuda, whose kernels keep different things.
        recipe: With the optimizer; AdamW when left out.
        averaged: Whether a moving average of the weights is kept, in float32 at least.
    """
    sizes = bytes_of(precision)
    kept = Kept(model.config, batch_size, sizes, device)
    copies = 0
    if sizes.product < sizes.weight:  # autocast keeps its halved copies until the backward
        copies = matmul_parameters(model) * sizes.product
    n_trainable = trainable(model)
    return Memory(
        weights=model.num_parameters() * sizes.weight,
        gradients=n_trainable * sizes.weight,
        optimizer=optimizer_values(model, recipe) * sizes.weight,
        activations=kept.peak() + copies,
        average=model.num_parameters() * max(4, sizes.weight) if averaged else 0,
    )


class Kept:
    """Bytes of activations that autograd keeps from the forward pass for the backward.

    Counted operation by operation: a linear layer keeps its input, a norm its input and
    statistics, fused attention queries, keys, values, output and log-sums, and so on. A tensor
    that two operations keep counts once.

    Args:
        config: The model's.
        batch_size: B
        sizes: Of a value.
        device: cpu or cuda.
    """

    def __init__(self, config: GPTConfig, batch_size: int, sizes: Precision, device: str) -> None:
        self.config = config
        self.sizes = sizes
        self.on_gpu = device == "cuda"
        self.batch_size = batch_size
        self.n = batch_size * config.block_size  # tokens
        self.wide = self.n * config.n_embd  # values of the residual stream

    def total(self) -> int:
        """After the forward pass and the loss."""
        return self._embedding() + self.config.n_layer * self._block() + self._head()

    def peak(self) -> int:
        """The most there is at any time: what is kept, and what the backward works with.

        It begins at the loss, with gradients of log-probabilities and of logits. Later, with
        the loss's part released, come the widest tensors of the last block.
        """
        config, sizes, total = self.config, self.sizes, self.total()
        moments = [total + 2 * self.n * config.vocab_size * sizes.loss]
        if config.n_layer:
            in_block = total - self._head() + self.wide * sizes.stream
            moments.append(in_block + self._mlp_gradients())
            if config.mixer == "attention":
                moments.append(in_block - self._mlp() + self._attention_gradients())
        return max(moments)

    def _embedding(self) -> int:
        return 8 * self.n + self._mask("embedding", self.sizes.stream)

    def _block(self) -> int:
        parts = [self._norm(self.n, self.config.n_embd), self._mlp()]
        if self.config.mixer == "attention":
            parts += [self._norm(self.n, self.config.n_embd), self._attention()]
        return sum(parts) + self._mask("block", self.sizes.stream)

    def _head(self) -> int:
        logits = self.n * self.config.vocab_size
        softcap = logits * self.sizes.product if self.config.logit_softcap else 0
        ln_f = self._norm(self.n, self.config.n_embd) + self.wide * self.sizes.product
        return ln_f + softcap + logits * self.sizes.loss + 8 * self.n

    def _norm(self, rows: int, size: int) -> int:
        """Of a norm: its input, and mean and scale or only scale of each row."""
        if self.config.norm == "layer":
            return rows * (size * self.sizes.stream + 2 * 4)
        return self._rms_norm(rows, size, fused=self.on_gpu)

    def _rms_norm(self, rows: int, size: int, *, fused: bool) -> int:
        if fused:
            return rows * (size * self.sizes.stream + 4)
        # written out, it works in float32 at least, and keeps what the factors multiply
        tensors = 1 + self.config.norm_weight
        return rows * (size * max(4, self.sizes.stream) * tensors + 4)

    def _mask(self, place: DropoutPlace, size: int) -> int:
        """Of a dropout: a boolean for each value on a GPU, a factor on a CPU."""
        if not self.config.dropped(place):
            return 0
        return self.wide * (1 if self.on_gpu else size)

    def _branch_input(self) -> int:
        """Of a branch's first layer, and of the token shift ahead of it: all positions it saw."""
        shift = 0
        if self.config.token_shift:
            before = self.batch_size * self.config.token_shift * self.config.n_embd
            shift = (before + self.wide) * self.sizes.stream
        return self.wide * self.sizes.product + shift

    def _mlp(self) -> int:
        # relu's output is the next layer's input; swiglu has two halves, a gate and a product
        hidden = {"relu": 1, "swiglu": 4}.get(self.config.activation, 2)
        kept = self.n * self.config.hidden * hidden * self.sizes.product
        return self._branch_input() + kept + self._mask("branch", self.sizes.product)

    def _mlp_gradients(self) -> int:
        # the activation's own gradient takes the place of its output, where that was kept
        hidden = {"relu": 2, "relu2": 3, "swiglu": 2}.get(self.config.activation, 1)
        return self.n * self.config.hidden * hidden * self.sizes.product

    @property
    def _fused(self) -> bool:
        """Whether attention runs without writing down its weights."""
        config = self.config
        if config.attention == "eager":
            return False
        if self.on_gpu:
            # only FlashAttention shares heads, and it needs half precision
            return self.sizes.product == 2 or config.kv_heads == config.n_head
        return not config.dropped("attention")

    def _attention(self) -> int:
        config, product = self.config, self.sizes.product
        keys = self.n * config.kv_heads * config.head_size  # values of all keys
        turned = config.qk_norm or config.positions == "rotary"
        kept = self._branch_input() + self._mask("branch", product)
        kept += self.wide * product  # its output
        if config.qk_norm:
            for heads in (config.n_head, config.kv_heads):
                kept += self._rms_norm(self.n * heads, config.head_size, fused=False)
            if product == self.sizes.stream >= 4 and self._fused:
                kept -= (self.wide + keys) * product  # its inputs are part of what follows
        if not self._fused:
            weights = self._weights() * (3 if config.dropped("attention") else 1)
            return kept + 3 * self.wide * self._written_out + weights
        if turned:
            kept += (self.wide + keys) * product
            kept += self.wide * product * config.attn_proj  # the output, in another layout
        kept += (self.wide + 2 * keys) * product
        return kept + 4 * self.n * config.n_head

    @property
    def _written_out(self) -> int:
        """Bytes of a value in attention that isn't fused."""
        # PyTorch's own way of writing it out works in float32 at least
        return (
            self.sizes.product if self.config.attention == "eager" else max(4, self.sizes.product)
        )

    def _weights(self) -> int:
        """Of all heads: (B, H, T, T)."""
        return self.n * self.config.n_head * self.config.block_size * self._written_out

    def _attention_gradients(self) -> int:
        if self._fused:
            return 3 * self.wide * self.sizes.product
        weights = 1 if self.config.dropped("attention") else 2
        return self.wide * self._written_out + weights * self._weights()
