"""The loss of the head's logits in chunks of rows, so that not all logits exist at once.

For GPT-2 124M with 16 windows of 1,024 tokens, the logits, their float32 copies and gradients take
more than 10 GB; those of a chunk less than 1 GB. Gradients are computed in the forward pass, chunk
by chunk, since the logits are gone in the backward pass. `F.linear_cross_entropy` of newer versions
of torch works alike, but has no label smoothing, softcap or z-loss.

Shapes: N rows, one for each position, V vocabulary, C channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gptlit.data.loaders import IGNORED

# Measured on a CPU, one thread, torch 2.13: from about 8 MB of logits and 1,000 tokens on, forward
# and backward pass of head and loss take 0.5 to 0.8 times as long in chunks of 256 rows as at once
# (medians in turn; widths 128 to 256, vocabularies of 1,024 to 50,257). With 65 tokens they take
# longer. The sizes for other devices were NOT measured: large chunks, for memory alone.
CPU_ROWS, CPU_BYTES, CPU_VOCABULARY = 256, 2**23, 512
CHUNK_BYTES = 2**29  # float32 logits of a chunk
HALF_SCALE = 2.0**16  # of a gradient scaler at first


@dataclass(frozen=True)
class Terms:
    """Additions to the cross-entropy, as in `losses.objective`, and the softcap of the logits."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None

    @property
    def adds(self) -> bool:
        return bool(self.label_smoothing or self.z_loss)


def rows_at_once(n_rows: int, vocab_size: int, device: str) -> int | None:
    """Return the rows of a chunk, or None where computing all logits at once is better.

    Args:
        n_rows: N, of one forward pass.
        vocab_size: V
        device: Type of the device.
    """
    row = 4 * vocab_size  # bytes of float32 logits
    if device == "cpu":
        pays = vocab_size >= CPU_VOCABULARY and n_rows * row >= CPU_BYTES
        return CPU_ROWS if pays else None
    # matrix products are fast if their sizes are multiples of 64
    rows = max(64, CHUNK_BYTES // row // 64 * 64)
    return rows if n_rows >= 2 * rows else None


@torch.compiler.disable  # compiled, the chunks could be computed in another order or all at once
def sums(
    hidden: Tensor, head: nn.Linear, targets: Tensor, terms: Terms, rows: int
) -> tuple[Tensor, Tensor]:
    """Return the sums over all scored rows of the objective's and the plain loss, in nats.

    Args:
        hidden: (N, C) inputs of the head.
        head: Layer that computes the logits.
        targets: (N,) token ids, or IGNORED.
        terms: Additions to the cross-entropy.
        rows: Number of rows of a chunk.

    Returns:
        Two scalars in float32 at least; the second has no gradient where the terms add something.
    """
    dtype = _dtype_of_products(hidden)
    minimised, plain = _Sums.apply(hidden, head.weight, head.bias, targets, terms, dtype, rows)
    return (minimised, plain) if terms.adds else (minimised, minimised)


@torch.no_grad()
def losses(hidden: Tensor, head: nn.Linear, targets: Tensor, terms: Terms, rows: int) -> Tensor:
    """Return the cross-entropies of all rows, without gradients: (N,), 0 for ignored ones."""
    dtype = _dtype_of_products(hidden)
    walk = _Walk(hidden, head.weight, head.bias, targets, terms, dtype, (False, False, False))
    return torch.cat([walk.chunk(start, rows)[1] for start in range(0, len(hidden), rows)])


def _dtype_of_products(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _Walk:
    """Computes chunks of rows: their losses, and the sums' gradients, which it collects.

    Gradients in float16 are those of the sums times `scale`, as a gradient scaler has them.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        terms: Terms,
        dtype: torch.dtype,
        needs: tuple[bool, bool, bool],
    ) -> None:
        self.hidden = hidden
        self.terms = terms
        self.dtype = dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        self.scored = targets != IGNORED
        self.targets = torch.where(self.scored, targets, 0)
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.scale = max(1.0, HALF_SCALE / len(hidden)) if dtype == torch.float16 else 1.0
        self.grad_hidden = torch.empty_like(hidden) if needs[0] else None
        self.grad_weight = torch.zeros_like(weight, dtype=self.wide) if needs[1] else None
        self.grad_bias = (
            torch.zeros_like(bias, dtype=self.wide) if bias is not None and needs[2] else None
        )
        self.has_gradients = any(needs)

    def chunk(self, start: int, rows: int) -> tuple[Tensor, Tensor]:
        """Compute rows from `start` on; return their minimised and plain losses."""
        terms, at = self.terms, slice(start, start + rows)
        inputs = self.hidden[at].to(self.dtype)  # (rows, C)
        targets, scored = self.targets[at, None], self.scored[at]
        logits = F.linear(inputs, self.weight, self.bias)  # (rows, V)
        if terms.softcap:
            logits = logits.div_(terms.softcap).tanh_().mul_(terms.softcap)
        log_p = F.log_softmax(logits, dim=-1, dtype=self.wide)
        plain = -log_p.gather(1, targets)[:, 0]
        minimised, log_z = plain, None
        if terms.label_smoothing:
            minimised = torch.lerp(plain, -log_p.mean(dim=-1), terms.label_smoothing)
        if terms.z_loss:
            log_z = logits.gather(1, targets)[:, 0] + plain
            minimised = minimised + terms.z_loss * log_z.square()
        cap = (logits, terms.softcap) if terms.softcap else None
        del logits  # or its memory would be in use with that of the gradient
        if self.has_gradients:
            self._add_gradients(at, inputs, self._gradient(log_p, targets, log_z, cap))
        return torch.where(scored, minimised, 0), torch.where(scored, plain, 0)

    def _gradient(
        self,
        log_p: Tensor,
        targets: Tensor,
        log_z: Tensor | None,
        cap: tuple[Tensor, float] | None,
    ) -> Tensor:
        """Return the gradient at the uncapped logits; overwrites `log_p` and the capped logits."""
        terms = self.terms
        gradient = log_p.exp_()
        if log_z is not None:
            gradient *= 1 + 2 * terms.z_loss * log_z[:, None]
        if terms.label_smoothing:
            gradient -= terms.label_smoothing / gradient.size(1)
        row = torch.arange(len(targets), device=targets.device)
        gradient[row, targets[:, 0]] -= 1 - terms.label_smoothing
        if cap is not None:
            capped, most = cap
            gradient *= capped.div_(most).square_().neg_().add_(1)
        if self.scale != 1:
            gradient *= self.scale
        return gradient.to(self.dtype)

    def _add_gradients(self, at: slice, inputs: Tensor, gradient: Tensor) -> None:
        scored = self.scored[at, None]
        if self.grad_hidden is not None:
            self.grad_hidden[at] = torch.where(scored, gradient @ self.weight, 0)
        if self.grad_weight is not None:
            inputs = torch.where(scored, inputs, 0)
            if self.dtype == self.wide:
                self.grad_weight.addmm_(gradient.T, inputs)
            else:
                self.grad_weight += gradient.T @ inputs
        if self.grad_bias is not None:
            self.grad_bias += scored[:, 0].to(self.dtype) @ gradient


class _Sums(torch.autograd.Function):
    """`sums`, whose forward pass computes the gradients too."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        terms: Terms,
        dtype: torch.dtype,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        walk = _Walk(hidden, weight, bias, targets, terms, dtype, ctx.needs_input_grad[:3])
        minimised = plain = torch.zeros((), dtype=walk.wide, device=hidden.device)
        for start in range(0, len(hidden), rows):
            of_chunk = walk.chunk(start, rows)
            minimised, plain = minimised + of_chunk[0].sum(), plain + of_chunk[1].sum()
        ctx.save_for_backward(walk.grad_hidden, walk.grad_weight, walk.grad_bias)
        ctx.scale = walk.scale
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(plain)
        return minimised, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        above = above / ctx.scale
        of_hidden, of_weight = ctx.dtypes
        hidden, weight, bias = (
            None if each is None else (each * above).to(dtype)
            for each, dtype in zip(
                ctx.saved_tensors, (of_hidden, of_weight, of_weight), strict=True
            )
        )
        return hidden, weight, bias, None, None, None, None
