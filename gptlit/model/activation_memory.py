"""Memory of the activations that a training step keeps for its backward pass, by arithmetic."""

from dataclasses import dataclass

from gptlit.model.config import DropoutPlace, GPTConfig


@dataclass(frozen=True)
class Precision:
    """Bytes of a value."""

    value: int  # weights, gradients, moments, residual stream, norms, log probabilities
    product: int  # inputs and outputs of matrix products


FULL = Precision(4, 4)
MIXED = Precision(4, 2)
HALF = Precision(2, 2)
DOUBLE = Precision(8, 8)


def bytes_of(precision: str) -> Precision:
    """Return bytes of values at a precision, by Lightning's name such as 32-true or bf16-mixed."""
    if precision.startswith("64"):
        return DOUBLE
    if precision.startswith("32"):
        return FULL
    return HALF if precision.endswith("-true") else MIXED


class KeptActivations:
    """Bytes of the activations that autograd keeps from the forward pass for the backward pass.

    They are the sum over operations: a linear layer keeps its input; a norm keeps its input and
    statistics; fused attention keeps queries, keys, values, output and log-sums. A tensor that two
    operations keep counts once.

    Args:
        config: Config of the model.
        batch_size: B
        sizes: Bytes of a value.
        device: cpu or cuda.
        rows: Rows of logits in a chunk of the loss; None if all logits are computed at once.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        sizes: Precision,
        device: str,
        rows: int | None = None,
    ) -> None:
        self.config = config
        self.sizes = sizes
        self.rows = rows
        self.on_gpu = device == "cuda"
        self.batch_size = batch_size
        self.n = batch_size * config.block_size  # tokens
        self.wide = self.n * config.n_embd  # values of the residual stream

    def total(self) -> int:
        """Return bytes after the forward pass and the loss."""
        of_block = self._block()
        if self.config.activation_checkpointing:
            of_block = self.wide * self.sizes.value  # its input
        return self._embedding() + self.config.n_layer * of_block + self._head()

    def peak(self) -> int:
        """Return the most bytes at any time, including the gradients of the backward pass.

        The peak is at the loss, with gradients of log probabilities and logits, or, after the loss
        is released, at the widest tensors of the last block.
        """
        config, sizes, total = self.config, self.sizes, self.total()
        if self.rows is None:
            moments = [total + 2 * self.n * config.vocab_size * sizes.value]
        else:
            moments = [total + self._chunk(self.rows), total + self._chunked_gradients()]
        if config.n_layer:
            in_block = total - self._head() + self.wide * sizes.value
            if config.activation_checkpointing:
                in_block += self._block() - self.wide * sizes.value
            moments.append(in_block + self._mlp_gradients())
            if config.mixer == "attention":
                moments.append(in_block - self._mlp() + self._attention_gradients())
        return max(moments)

    def _embedding(self) -> int:
        masked = self.n if self.config.token_dropout else 0  # which tokens are
        return 8 * self.n + masked + self._mask("embedding", self.sizes.value)

    def _block(self) -> int:
        parts = [self._norm(self.n, self.config.n_embd), self._mlp()]
        if self.config.mixer == "attention":
            parts += [self._norm(self.n, self.config.n_embd), self._attention()]
        return sum(parts) + self._mask("block", self.sizes.value)

    def _head(self) -> int:
        if self.rows is not None:
            return self._norm(self.n, self.config.n_embd) + self._chunked_gradients()
        logits = self.n * self.config.vocab_size
        softcap = logits * self.sizes.product if self.config.logit_softcap else 0
        ln_f = self._norm(self.n, self.config.n_embd) + self.wide * self.sizes.product
        return ln_f + softcap + logits * self.sizes.value + 8 * self.n

    def _chunked_gradients(self) -> int:
        """Return bytes of the gradients that a loss in chunks keeps: of hidden states and head."""
        head = self.config.vocab_size * (self.config.n_embd + self.config.head_bias)
        return self.wide * self.sizes.value + head * max(4, self.sizes.value)

    def _chunk(self, rows: int) -> int:
        """Return bytes of a chunk: hidden states, the head as multiplied, and the logits."""
        product, wide = self.sizes.product, max(4, self.sizes.value)
        head = self.config.vocab_size * self.config.n_embd
        lower = product < wide  # the head has a copy, and its gradient is summed from products
        logits = product + wide
        if lower and not self.on_gpu:
            logits += wide  # a copy, where softmax doesn't convert
        elif lower and self.config.logit_softcap:
            logits += product
        return (
            self.wide * self.sizes.value
            + 2 * head * product * lower
            + min(rows, self.n) * self.config.vocab_size * logits
        )

    def _norm(self, rows: int, size: int) -> int:
        """Return bytes of a norm: its input, and the scale and, in LayerNorm, mean of each row."""
        if self.config.norm == "layer":
            return rows * (size * self.sizes.value + 2 * 4)
        return self._rms_norm(rows, size, fused=self.on_gpu)

    def _rms_norm(self, rows: int, size: int, *, fused: bool) -> int:
        if fused:
            return rows * (size * self.sizes.value + 4)
        # in plain operations it works in float32 at least, and keeps the factors' inputs
        tensors = 1 + self.config.norm_weight
        return rows * (size * max(4, self.sizes.value) * tensors + 4)

    def _mask(self, place: DropoutPlace, size: int) -> int:
        """Return bytes of a dropout: a boolean for each value on a GPU, a factor on a CPU."""
        if not self.config.dropped(place):
            return 0
        return self.wide * (1 if self.on_gpu else size)

    def _branch_input(self) -> int:
        """Return bytes of the inputs of a branch's first layer and of its token shift."""
        kept = self.wide * self.sizes.product
        if self.config.token_shift:
            before = self.batch_size * self.config.token_shift * self.config.n_embd
            kept += (before + self.wide) * self.sizes.value
        return kept

    def _mlp(self) -> int:
        # relu's output is the next layer's input; swiglu keeps two halves, a gate and a product
        hidden = {"relu": 1, "swiglu": 4}.get(self.config.activation, 2)
        kept = self.n * self.config.hidden * hidden * self.sizes.product
        return self._branch_input() + kept + self._mask("branch", self.sizes.product)

    def _mlp_gradients(self) -> int:
        # the gradient of the activation replaces its output, where that was kept
        hidden = {"relu": 2, "relu2": 3, "swiglu": 2}.get(self.config.activation, 1)
        return self.n * self.config.hidden * hidden * self.sizes.product

    @property
    def _fused(self) -> bool:
        """Whether attention runs without storing its weights."""
        config = self.config
        if config.attention == "eager":
            return False
        if self.on_gpu:
            # FlashAttention alone supports shared heads, in half precision
            return self.sizes.product == 2 or config.kv_heads == config.n_head
        return not config.dropped("attention")

    def _attention(self) -> int:
        config, product = self.config, self.sizes.product
        keys = self.n * config.kv_heads * config.head_size  # number of values in the keys
        changes_qk = config.qk_norm or config.positions == "rotary"
        kept = self._branch_input() + self._mask("branch", product)
        kept += self.wide * product  # the output of attention
        if config.qk_norm:
            for heads in (config.n_head, config.kv_heads):
                kept += self._rms_norm(self.n * heads, config.head_size, fused=False)
            if product == self.sizes.value >= 4 and self._fused:
                kept -= (self.wide + keys) * product  # its inputs are among the tensors below
        if not self._fused:
            weights = self._weights() * (3 if config.dropped("attention") else 1)
            return kept + 3 * self.wide * self._unfused_bytes + weights
        if changes_qk:
            kept += (self.wide + keys) * product
            kept += self.wide * product * config.attn_proj  # the output, in another layout
        kept += (self.wide + 2 * keys) * product
        return kept + 4 * self.n * config.n_head

    @property
    def _unfused_bytes(self) -> int:
        """Bytes of a value in attention that isn't fused."""
        if self.config.attention == "eager":
            return self.sizes.product
        return max(4, self.sizes.product)  # PyTorch's sdpa without a kernel

    def _weights(self) -> int:
        """Return bytes of the (B, n_head, T, T) attention weights."""
        return self.n * self.config.n_head * self.config.block_size * self._unfused_bytes

    def _attention_gradients(self) -> int:
        if self._fused:
            return 3 * self.wide * self.sizes.product
        weights = 1 if self.config.dropped("attention") else 2
        return self.wide * self._unfused_bytes + weights * self._weights()
