"""The training objective, and the exact loss over a whole split with the metrics from it."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchmetrics import Metric

from gptlit.data.loaders import IGNORED
from gptlit.devices.accelerators import mps_is_available
from gptlit.model.ensemble import Ensemble
from gptlit.model.gpt import GPT
from gptlit.steps import chunked_loss
from gptlit.steps.chunked_loss import Terms
from gptlit.steps.distillation import Teachers

# Apple's GPUs have no float64, in which a sum over a split is exact to about 1e-12
SUM_DTYPE = torch.float32 if mps_is_available() else torch.float64


def of_batch(
    net: GPT,
    inputs: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    teachers: Teachers | None = None,
) -> tuple[Tensor, Tensor]:
    """The training objective and the plain cross-entropy of a batch, as by `objective`.

    Where the logits are large, they are computed in chunks, unless teachers predict as many
    probabilities.

    Args:
        net: Net in training mode.
        inputs: (B, T) token ids.
        targets: (B, T) token ids, or IGNORED.
        label_smoothing: As in `objective`.
        z_loss: As in `objective`.
        teachers: Nets to learn from, if any.
    """
    if teachers is not None:
        logits = net(inputs)
        distilled = teachers.divergence(logits, inputs, targets)
        return objective(logits, targets, label_smoothing, z_loss, distilled, teachers.weight)
    if (rows := rows_at_once(net, inputs.numel(), inputs.device)) is None:
        return objective(net(inputs), targets, label_smoothing, z_loss)
    terms = Terms(label_smoothing, z_loss, net.config.logit_softcap)
    targets = targets.flatten()
    sums = chunked_loss.sums(net.hidden(inputs).flatten(0, 1), net.lm_head, targets, terms, rows)
    n_scored = (targets != IGNORED).sum()
    loss = sums[1] / n_scored
    return sums[0] / n_scored if terms.adds else loss, loss


def rows_at_once(net: GPT, n_rows: int, device: torch.device) -> int | None:
    """Return the rows of logits in a chunk, or None if all are computed at once.

    Args:
        net: Net; only the forward pass of a sharded net gathers the head, and an ensemble has
            several.
        n_rows: B T of a forward pass.
        device: Device of the net.
    """
    if isinstance(net, FSDPModule | Ensemble):
        return None
    return chunked_loss.rows_at_once(n_rows, net.config.vocab_size, device.type)


def objective(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    distilled: Tensor | None = None,
    distill_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The training objective and the plain cross-entropy, in nats per token.

    Both are means over the targets that are not IGNORED. Label smoothing is a part of the
    cross-entropy that distillation replaces by its weight; the z-loss is added to both.

    Args:
        logits: (B, T, V).
        targets: (B, T) token ids, or IGNORED.
        label_smoothing: Fraction of the target that is spread evenly over the vocabulary
            (Szegedy et al. 2016).
        z_loss: Weight of log(Z)^2, where Z is the sum of the logits' exponentials (Chowdhery et
            al. 2022, PaLM: 1e-4); keeps logits from drifting.
        distilled: Divergence from the teachers' probabilities, a scalar (`distillation`).
        distill_weight: Weight of `distilled`; the cross-entropy has the rest of 1.

    Returns:
        Two scalars; the same tensor if nothing is added, otherwise the second has no gradient.
    """
    logits, targets = logits.flatten(0, 1), targets.flatten()  # (B T, V), (B T)
    if not label_smoothing and not z_loss and distilled is None:
        loss = F.cross_entropy(logits, targets)
        return loss, loss
    minimised = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if distilled is not None:
        minimised = (1 - distill_weight) * minimised + distill_weight * distilled
    if z_loss:
        scored = targets != IGNORED
        squares = _in_float32_at_least(logits).logsumexp(dim=-1).square() * scored  # (B T)
        minimised = minimised + z_loss * squares.sum() / scored.sum()
    with torch.no_grad():
        return minimised, F.cross_entropy(logits, targets)


def _in_float32_at_least(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def summed(net: GPT, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the cross-entropies of all targets that are not IGNORED, and their number.

    Args:
        net: Net in evaluation mode.
        inputs: (B, T) token ids.
        targets: (B, T) token ids, or IGNORED.

    Returns:
        Nats in SUM_DTYPE, and tokens; scalars.
    """
    targets = targets.flatten()
    if (rows := rows_at_once(net, inputs.numel(), inputs.device)) is None:
        logits = _in_float32_at_least(net(inputs).flatten(0, 1))  # (B T, V)
        losses = F.cross_entropy(logits, targets, reduction="none")  # (B T)
    else:
        terms = Terms(softcap=net.config.logit_softcap)
        hidden = net.hidden(inputs).flatten(0, 1)  # (B T, C)
        losses = chunked_loss.losses(hidden, net.lm_head, targets, terms, rows)
    return losses.sum(dtype=SUM_DTYPE), (targets != IGNORED).sum()


class RunningLoss:
    """The sums of which the mean loss of an epoch's training steps is the quotient, on one process.

    A captured step adds its loss at once and in place. Losses of eager steps stay on the device
    until `fetch`, so that a step neither launches anything for them nor waits. A loss that is not
    finite, whose step is skipped, does not count.
    """

    AT_ONCE = 500  # losses that are fetched at the latest

    def __init__(self) -> None:
        self.nats = torch.zeros((), dtype=SUM_DTYPE)
        self.tokens = torch.zeros((), dtype=torch.int64)
        self._losses: list[Tensor] = []
        self._counts: list[Tensor | int] = []

    def to(self, device: torch.device) -> None:
        self.nats, self.tokens = self.nats.to(device), self.tokens.to(device)

    @torch.no_grad()
    def add(self, loss: Tensor, targets: Tensor) -> None:
        """Add the mean loss of a batch to the sums."""
        counts = loss.isfinite()
        n_tokens = (targets != IGNORED).sum() * counts
        self.nats += (torch.where(counts, loss, 0) * n_tokens).to(SUM_DTYPE)
        self.tokens += n_tokens

    def add_later(self, loss: Tensor, n_tokens: Tensor | int) -> None:
        """Add the mean loss of a batch at the next `fetch`.

        Args:
            loss: Scalar that is not changed in place until then.
            n_tokens: Number of the batch's tokens.
        """
        self._losses.append(loss)
        self._counts.append(n_tokens)
        if len(self._losses) >= self.AT_ONCE:
            self.fetch()

    def fetch(self) -> None:
        """Add the losses since the last call to the sums, in order: the sums don't depend on when
        this is called."""
        if not self._losses:
            return
        losses = torch.stack(self._losses).cpu()  # (n,)
        counts = torch.tensor([int(each) for each in self._counts])  # (n,)
        self._losses, self._counts = [], []
        are_finite = losses.isfinite()
        nats = (torch.where(are_finite, losses, 0) * counts).to(SUM_DTYPE)  # (n,)
        # one by one, unlike sum()
        sums = np.add.accumulate(torch.cat([self.nats.cpu()[None], nats]).numpy())
        self.nats.fill_(float(sums[-1]))
        self.tokens += int((counts * are_finite).sum())

    def reset(self) -> None:
        self.nats.zero_()
        self.tokens.zero_()


class TextLoss(Metric):
    """The mean loss in nats per token, over all tokens seen on all ranks."""

    nats: Tensor
    tokens: Tensor
    full_state_update = False
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, tokens: Tensor | int) -> None:
        """Add a batch: the sum of its losses in nats, and its tokens."""
        # Module.to has converted the sum of a run in bf16-true
        self.nats = self.nats.to(SUM_DTYPE) + nats.to(SUM_DTYPE)
        self.tokens += tokens

    def compute(self) -> Tensor:
        return self.nats / self.tokens


def text_metrics(
    split: str, loss: Tensor, bytes_per_token: float | None = None
) -> dict[str, Tensor]:
    """The metrics that follow from a mean loss: val/loss, val/perplexity, val/bits_per_byte.

    Args:
        split: Name of the split, the metrics' prefix.
        loss: Nats per token.
        bytes_per_token: UTF-8 bytes of the text per token, for bits per byte, which compare models
            across tokenizers; None leaves it out.
    """
    metrics = {f"{split}/loss": loss, f"{split}/perplexity": loss.exp()}
    if bytes_per_token is not None:
        metrics[f"{split}/bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return metrics
