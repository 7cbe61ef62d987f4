"""Batches from a user's own loaders: what `LitGPT` takes for one, and has to know of them all."""

from typing import Any

import lightning as L
import torch

from gptlit.data.loaders import Batch
from gptlit.messages import UsageError

EXPECTED = (
    "a batch must be a tensor of (B, T + 1) token ids, or a pair of inputs and targets of (B, T) "
    "token ids each, where target t is the token behind input t"
)


def as_batch(batch: Any) -> Batch:
    """Inputs and targets, (B, T) each, of a batch that a loader gave.

    Args:
        batch: (B, T + 1) ids, or a list of just these; or inputs and targets, (B, T) each.

    Raises:
        UsageError: anything else.
    """
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    if not all(torch.is_tensor(part) and part.dim() == 2 for part in parts):
        found = ", ".join(_about(part) for part in parts)
        raise UsageError(f"{EXPECTED}; the loader gave {found}")
    if len(parts) == 1 and parts[0].size(1) > 1:
        inputs, targets = parts[0][:, :-1], parts[0][:, 1:]
    elif len(parts) == 2 and parts[0].shape == parts[1].shape:
        inputs, targets = parts
    else:
        raise UsageError(f"{EXPECTED}; the loader gave {', '.join(map(_about, parts))}")
    if targets.is_floating_point():
        raise UsageError(f"{EXPECTED}; the loader gave targets of {targets.dtype}")
    return inputs, targets.long()


def _about(part: Any) -> str:
    return f"a tensor of {tuple(part.shape)}" if torch.is_tensor(part) else type(part).__name__


class OwnBatches:
    """What `LitGPT` asks of a text, where the batches come from loaders that are not gptlit's.

    Args:
        trainer: Whose loaders they are.
    """

    batch_size = 1  # unknown: `compile auto` takes steps for short ones

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer

    @property
    def has_validation(self) -> bool:
        """Whether there are batches for validation."""
        return self._trainer.state.fn != "fit" or self._trainer.enable_validation

    def describe_text(self) -> dict[str, Any]:
        """Where the text came from, as plain data for the checkpoint: nothing is known of it."""
        text: dict[str, Any] = {"name": "loaders of one's own", "sha256": "", "own_texts": {}}
        return {**text, "distinct": 0, "sizes": {}, "report": [], "spans": {"train": []}}
