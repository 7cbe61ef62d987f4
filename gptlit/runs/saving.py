"""Callbacks that save a run's checkpoints, and the plugin that writes them to disk."""

import functools
import shutil
from pathlib import Path
from typing import Any, TypedDict

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, strided

from gptlit import plain_data
from gptlit.checkpoints.torch_files import check_sizes, save
from gptlit.files import replacing
from gptlit.messages import UsageError
from gptlit.training import loop_state
from gptlit.training.loop_state import ends_epoch, has_stepped, is_over


class _BestState(TypedDict):
    best_model_score: Tensor | float | None
    best_model_path: str
    current_score: Tensor | float | None
    dirpath: str
    best_k_models: dict[str, Tensor | float]
    kth_best_model_path: str
    kth_value: Tensor | float | None
    last_model_path: str


class BestCheckpoint(ModelCheckpoint):
    """Saves best.ckpt after each validation with a new lowest value of `monitor`."""

    def __init__(self, folder: Path, monitor: str) -> None:
        super().__init__(
            folder,
            filename="best",
            monitor=monitor,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    @functools.cached_property  # Lightning reads it at every hook of every step
    def state_key(self) -> str:
        return loop_state.state_key(self, monitor=self.monitor)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the state that older versions saved under the key of Lightning's ModelCheckpoint.

        A user's ModelCheckpoint would otherwise restore it, and then remove best.ckpt.
        """
        states = checkpoint["callbacks"]
        if self.state_key not in states:
            key = super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)
            if key in states:
                states[self.state_key] = states.pop(key)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the lowest value so far, also after the run's folder was moved."""
        plain_data.check(_BestState, state_dict, "callbacks.BestCheckpoint")
        scores = [state_dict["best_model_score"], state_dict["kth_value"]]
        for score in (*scores, state_dict["current_score"], *state_dict["best_k_models"].values()):
            if isinstance(score, Tensor) and (score.shape or score.layout != strided):
                raise UsageError("callbacks.BestCheckpoint: a score is not a number")
        best = Path(self.dirpath or "") / "best.ckpt"
        if best.exists():
            score = state_dict["best_model_score"]
            paths = {} if score is None else {str(best): score}
            path = "" if score is None else str(best)
            state_dict = {**state_dict, "dirpath": self.dirpath, "best_k_models": paths}
            state_dict |= {"best_model_path": path, "kth_best_model_path": path}
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]  # Lightning doesn't restore it


class RunCheckpoint(Checkpoint):
    """Saves last.ckpt and step_N.ckpt at points from which a resume is exact.

    | after                                | last.ckpt | step_N.ckpt, if N is due         |
    | ------------------------------------ | --------- | -------------------------------- |
    | a validation                         | saved     | saved                            |
    | a step without a validation          |           | saved                            |
    | the last step before the run ends    | saved     | saved                            |
    | a validation that was interrupted    | saved     | saved after its repetition       |

    A step with a validation is saved after it, so that a checkpoint holds all metrics of its steps.
    A run that ends without a validation gets a copy of last.ckpt as best.ckpt, so that `best`
    always exists.

    Args:
        folder: Folder of the checkpoints.
        snapshot_every: Number of steps between two snapshots step_N.ckpt; 0 for none.
        keep_snapshots: Number of newest snapshots to keep; 0 for all.
    """

    def __init__(self, folder: Path, snapshot_every: int = 0, keep_snapshots: int = 0) -> None:
        self.last = folder / "last.ckpt"
        self.snapshot_every = snapshot_every
        self.keep_snapshots = keep_snapshots
        self._saved_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        # not at the end of training, where Lightning counts the epoch as finished: a longer run
        # would skip the rest of it
        if has_stepped(trainer) and not loop_state.validation_follows(trainer):
            ends = trainer.should_stop or trainer.received_sigterm or is_over(trainer)
            self._save(trainer, last=ends)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        in_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if in_fit and has_stepped(trainer):  # validations by the time can fall within a step
            self._save(trainer, last=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, SIGTERMException) or trainer.fast_dev_run:
            return
        # a resume from the end of an epoch isn't exact
        is_exact = has_stepped(trainer) and (trainer.validating or not ends_epoch(trainer))
        if is_exact and self._saved_step != trainer.global_step:
            if trainer.validating:
                loop_state.mark_validation_as_begun(trainer)
            self._save(trainer, last=True, snapshot=False)
        self._ensure_best(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run or not trainer.global_step:
            return
        if self._saved_step != trainer.global_step:
            self._save(trainer, last=True)
        self._ensure_best(trainer)

    def _save(self, trainer: L.Trainer, last: bool, snapshot: bool = True) -> None:
        step = trainer.global_step
        if trainer.fast_dev_run:
            return
        if snapshot and self.snapshot_every and step % self.snapshot_every == 0:
            trainer.save_checkpoint(self.last.with_name(f"step_{step}.ckpt"))
            if trainer.is_global_zero and self.keep_snapshots:
                self._prune(step)
        if last:
            trainer.save_checkpoint(self.last)
            self._saved_step = step

    def _prune(self, newest: int) -> None:
        """Remove all but the newest snapshots; later ones, of a run resumed from here, stay."""
        names = [path.stem.removeprefix("step_") for path in self.last.parent.glob("step_*.ckpt")]
        steps = sorted(int(name) for name in names if name.isdecimal())
        for step in [step for step in steps if step <= newest][: -self.keep_snapshots]:
            self.last.with_name(f"step_{step}.ckpt").unlink()

    def _ensure_best(self, trainer: L.Trainer) -> None:
        best = self.last.with_name("best.ckpt")
        trainer.strategy.checkpoint_io.teardown()  # waits for AsyncCheckpointIO
        if trainer.is_global_zero and self.last.exists() and not best.exists():
            with self.last.open("rb") as file, replacing(best) as copy:
                shutil.copyfileobj(file, copy)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, syncs them to disk, and raises every error.

    Lightning's own plugin writes to $TMPDIR first, which can be on another file system, doesn't
    call fsync, and ignores a PermissionError.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint with weights_only=True, whatever the argument, so that no code runs.

        Raises:
            UsageError: It declares sizes larger than the file.
        """
        check_sizes(Path(path))
        return super().load_checkpoint(path, map_location, weights_only=True)
