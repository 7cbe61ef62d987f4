"""The batches that `LitGPT` trains on: from a `TextDataModule`, or from the user's own loaders."""

from typing import Any

import lightning as L
import torch

from gptlit.data.datamodule import TextDataModule
from gptlit.data.loaders import Batch
from gptlit.messages import UsageError

EXPECTED = (
    "a batch must be a tensor of (B, T + 1) token ids, or a pair of inputs and targets of (B, T) "
    "token ids each, where target t is the token after input t"
)


def text_of(trainer: L.Trainer) -> TextDataModule | None:
    """Return the Trainer's data module; None if it trains on the user's own loaders."""
    module = trainer.datamodule
    return module if isinstance(module, TextDataModule) else None


def batches_of(trainer: L.Trainer) -> "TextDataModule | UserBatches":
    """Return the Trainer's data module, or an object in its place for the user's own loaders."""
    return text_of(trainer) or UserBatches(trainer)


def as_batch(batch: Any) -> Batch:
    """Return the inputs and targets, (B, T) token ids each, of a batch from any loader.

    Args:
        batch: (B, T + 1) token ids, or a list of only these; or a pair of inputs and targets,
            (B, T) each.

    Raises:
        UsageError: The batch is anything else.
    """
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    are_ids = all(torch.is_tensor(part) and part.dim() == 2 for part in parts)
    if are_ids and len(parts) == 1 and parts[0].size(1) > 1:
        inputs, targets = parts[0][:, :-1], parts[0][:, 1:]
    elif are_ids and len(parts) == 2 and parts[0].shape == parts[1].shape:
        inputs, targets = parts
    else:
        raise UsageError(f"{EXPECTED}; the loader gave {', '.join(map(_about, parts))}")
    if targets.is_floating_point():
        raise UsageError(f"{EXPECTED}; the loader gave targets of {targets.dtype}")
    return inputs, targets.long()


def _about(part: Any) -> str:
    return f"a tensor of {tuple(part.shape)}" if torch.is_tensor(part) else type(part).__name__


class UserBatches:
    """Replaces the data module where batches come from the user's own loaders."""

    scores_all_targets = False  # not known
    batch_size = 1  # not known; model.compile auto then assumes short steps

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer

    @property
    def has_validation(self) -> bool:
        return self._trainer.state.fn != "fit" or self._trainer.enable_validation

    def describe_text(self) -> dict[str, Any]:
        """Return the provenance for the checkpoint, of which nothing is known."""
        text: dict[str, Any] = {"name": "loaders of one's own", "sha256": "", "own_texts": {}}
        return {**text, "distinct": 0, "sizes": {}, "report": [], "spans": {"train": []}}
