"""LitGPT: a GPT as a LightningModule; its net, its training step, its checkpoints.

The optimizer is in `optimizing`, validation in `evaluating`.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptlit.checkpoints import checkpoint as checkpoints
from gptlit.checkpoints import init_from
from gptlit.checkpoints.weight_shapes import MASK
from gptlit.data.datamodule import WITHOUT_INSTANTIATOR, TextDataModule
from gptlit.data.loaders import IGNORED, Batch
from gptlit.data.token_file import DATA_DIR
from gptlit.data.window_order import hashed
from gptlit.devices.accelerators import seed_generators
from gptlit.generation.jobs import write_jobs
from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import UsageError, note, opt
from gptlit.model import lora
from gptlit.model.gpt import GPT
from gptlit.steps import distillation, losses
from gptlit.steps.distillation import Teachers
from gptlit.steps.losses import RunningLoss
from gptlit.steps.preferences import Preferences
from gptlit.steps.user_batches import as_batch, batches_of, text_of
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import from_state
from gptlit.training import fsdp2, loop_state, monitors, resuming, run_length, saved_state
from gptlit.training.compiled_steps import CompiledSteps
from gptlit.training.evaluating import Evaluating
from gptlit.training.optimizing import Optimizing
from gptlit.training.options import ModelOptions

VOCABULARY_COMES_LATER = 0
LOG_AFTER_SECONDS = 1.0


class LitGPT(Optimizing, Evaluating):
    """Trains a GPT on the windows of a `TextDataModule`.

    Takes the options of `ModelOptions` as keyword arguments, and has them as `options`.

    The net is built in `configure_model`, when the text and so the vocabulary is known. To train
    on loaders of your own, call `use_tokenizer` first; `user_batches.as_batch` describes the
    batches that they may give. Their metrics don't include bits per byte.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = ModelOptions(vocab_size=VOCABULARY_COMES_LATER, **options)
        self.save_hyperparameters(self.options.training_options())  # defaults as well
        self.save_hyperparameters()
        self.config = self.options.config(VOCABULARY_COMES_LATER)
        self.tokenizer: Tokenizer | None = None
        self.first_weights: dict[str, Tensor] | None = None  # of the option init_from
        self.has_begun = self.options.init_from is None  # whether the weights are set
        self.compiled = CompiledSteps(
            self.options.compile, self.options.label_smoothing, self.options.z_loss
        )
        self.teachers: Teachers | None = None  # in a fit with the option teachers
        self.preferences: Preferences | None = None  # with the option dpo_beta
        self.run_config = ""  # the run's options as YAML, saved in its checkpoints
        self.predict_jobs: list[tuple[str, int]] = []  # prompt and seed of each text
        self.predict_options: dict[str, Any] = {}
        self.seed = 0
        self.logs_every_batch = True  # whether callbacks may read train/loss after each batch
        self.logs_to_bar = True  # whether a progress bar shows train/loss only if logged for it
        self._logged_at = -math.inf  # when train/loss was logged last
        self.train_loss = RunningLoss()  # of the epoch

    # ------------------------------------------------------------------ the net

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Build the net for a tokenizer's vocabulary."""
        self.tokenizer = tokenizer
        self.config = self.options.config(tokenizer.vocab_size)
        self.net = GPT(self.config)

    def configure_model(self) -> None:
        if not loop_state.has_trainer(self):
            return
        if (text := text_of(self.trainer)) is None:
            if self.trainer.state.fn != "predict":
                if self.tokenizer is None:
                    raise UsageError(
                        "LitGPT has no vocabulary yet; give a TextDataModule, or call "
                        "use_tokenizer(tokenizer) before training on loaders of your own"
                    )
                if self.options.dpo_beta is not None:
                    reason = "needs a TextDataModule with format pairs, not loaders of your own"
                    raise UsageError(reason, "model.dpo_beta", self.options.dpo_beta)
                fsdp2.check_user_loaders(self.trainer.strategy)
                self._read_teachers(Path(DATA_DIR))
                self.compiled.choose(self)
        elif self.tokenizer is None:
            self.use_tokenizer(text.tokenizer)
            if self.first_weights is not None:
                # which have no mask and no LoRA, since the model that they are from could write
                state = self.net.state_dict().items()
                own = {name: w for name, w in state if name == MASK or lora.is_change(name)}
                self.net.load_state_dict(own | self.first_weights)
                self.first_weights, self.has_begun = None, True
            fsdp2.check(self.trainer.strategy)
            self._read_teachers(text.folder)
            self._read_preferences(text)
            self.compiled.choose(self)
            if self.device_mesh is not None:
                fsdp2.shard(self.net, self.device_mesh["data_parallel"])

    def _read_teachers(self, folder: Path) -> None:
        """Read the teachers of a fit, or of one that is only inspected."""
        assert self.tokenizer is not None
        options = self.options
        if options.teachers and self.trainer.state.fn in ("fit", None):
            self.teachers = Teachers.read(options.teachers, self.tokenizer, folder)
            self.teachers.weight = options.distill_weight
            self.teachers.temperature = options.distill_temperature
            self.compiled.learn_from(self.teachers)

    def _read_preferences(self, text: TextDataModule) -> None:
        """Read the reference of a run with the option dpo_beta; not needed to predict."""
        beta, fn = self.options.dpo_beta, self.trainer.state.fn
        if fn == "predict":
            return
        if (beta is not None) != text.has_pairs:
            reason = f"go together: {opt('data.format')} pairs and {opt('model.dpo_beta')} 0.1"
            raise UsageError(reason, "data.format", text.options.format)
        if beta is None:
            return
        reference = None
        if not self.config.lora_r:
            assert self.options.init_from is not None
            with torch.random.fork_rng(devices=[]):  # a run begins as without it
                origin = init_from.start_from(self.options.init_from, text.folder)
                reference = GPT(dataclasses.replace(origin.config, **self._context))
            state = init_from.crop_block_size(origin.state, origin.config, self.config.block_size)
            reference.load_state_dict(state)
        self.preferences = Preferences(beta, reference)
        convert = self.trainer.precision_plugin.convert_module
        self.preferences.place(self.trainer.strategy.root_device, convert)
        self.compiled.prefer(self.preferences)

    @property
    def _context(self) -> dict[str, Any]:
        """The options of the net's context, which a run chooses for the weights it begins from."""
        return {name: getattr(self.config, name) for name in ("block_size", "n_positions")}

    @property
    def text(self) -> TextDataModule:
        """The data module that the model is trained or evaluated on."""
        if (text := text_of(self.trainer)) is None:
            raise UsageError(
                "this part of gptlit needs a TextDataModule; call trainer.fit(model, datamodule)"
            )
        return text

    @property
    def logits_at_once(self) -> int | None:
        """Number of tokens whose logits a training step computes at once; None for a batch."""
        if self.teachers is not None:
            return None
        n_tokens = self.text.batch_size * self.text.block_size
        return losses.rows_at_once(self.net, n_tokens, self.trainer.strategy.root_device)

    def forward(self, idx: Tensor) -> Tensor:
        """Compute the logits, (B, T, V), of (B, T) token ids."""
        return self.net(idx)

    # ------------------------------------------------------------------ training

    def setup(self, stage: str) -> None:
        if stage == "fit":
            run_length.make_whole(self.trainer)

    def on_fit_start(self) -> None:
        if not self.has_begun:
            raise UsageError(
                "`gptlit fit` reads it; in Python, set first_weights and the data module's "
                "tokenizer to those of init_from.start_from",
                "model.init_from",
                self.options.init_from,
            )
        steps_of_epoch = run_length.steps_of_epoch(self.trainer)
        n_steps = run_length.steps_of_run(self.trainer)
        monitors.check_in_time(self.trainer, steps_of_epoch, n_steps)
        self.seed = self.seed or torch.initial_seed() % 2**63
        self.train_loss.to(self.device)
        if self.teachers is not None:
            convert = self.trainer.precision_plugin.convert_module
            self.teachers.place(self.trainer.strategy.root_device, convert)
        for owner in (self, *self.trainer.callbacks):
            # a user's code could call the hooks of the user's callbacks
            if owner is self or monitors.is_from(owner, "gptlit", "lightning"):
                loop_state.leave_out_idle_hooks(owner)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in loop_state.SET_AT_EACH_HOOK:
            self.__dict__[name] = value  # without the search for parameters and modules
        else:
            super().__setattr__(name, value)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        loop_state.log_under_global_step(self.trainer)
        if self.config.is_stochastic:
            # a function of (seed, step, batch, rank): there is no random state to save or lose
            place = (self.seed, self.global_step, batch_idx, self.global_rank)
            seed_generators(hashed(*place) % 2**63, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = as_batch(batch)  # (B, T), (B, T)
        if self.captured is None:
            minimised, loss = self.compiled.objective(self.net, inputs, targets)
            scores_all = batches_of(self.trainer).scores_all_targets
            n_tokens = targets.numel() if scores_all else (targets != IGNORED).sum()
            if self.preferences is not None:
                n_tokens = len(targets) // 2  # pairs, of which the loss is a mean
            # a copy, since a CUDA graph of torch.compile overwrites its results
            self.train_loss.add_later(loss.detach().clone(), n_tokens)
        else:
            n, is_last = self.trainer.accumulate_grad_batches, loop_state.has_stepped(self.trainer)
            is_first = batch_idx % n == 0
            minimised, loss = self.captured.accumulate(
                inputs, targets, n, is_first=is_first, is_last=is_last
            )
            if is_last:  # a copy, since the next step overwrites it
                self.gradients.give_norm(self.captured.norm.clone())
        several = self.trainer.world_size > 1
        # either all processes log it or none, and their clocks differ
        if several or self._is_loss_read():
            # Lightning reads such a value at each later step as well, and waits for the device
            with_bar = self.logs_to_bar and self.trainer.progress_bar_callback is not None
            self.log("train/loss", loss, prog_bar=with_bar, sync_dist=several)
            if self.teachers is not None:
                self.log("train/distill_loss", self.teachers.loss.clone(), sync_dist=several)
            if self.preferences is not None:
                self.log("train/reward_margin", self.preferences.margin, sync_dist=several)
                self.log("train/reward_accuracy", self.preferences.accuracy, sync_dist=several)
        return minimised

    def _is_loss_read(self) -> bool:
        """Whether this batch's loss is read; logging it costs more than computing it.

        It is read by loggers, at an epoch's end, at a validation that has no other metric, and
        once in LOG_AFTER_SECONDS by the progress bar.
        """
        every, now = self.trainer.log_every_n_steps, time.perf_counter()
        is_read = (
            self.logs_every_batch
            or (every and not (self.global_step + 1) % every)
            or now - self._logged_at > LOG_AFTER_SECONDS
            or loop_state.ends_epoch(self.trainer)
            or (
                not batches_of(self.trainer).has_validation
                and loop_state.validation_follows(self.trainer)
            )
        )
        if is_read:
            self._logged_at = now
        return bool(is_read)

    def on_train_epoch_end(self) -> None:
        if loop_state.ends_epoch(self.trainer):  # not where a run ends within an epoch
            loop_state.log_under_global_step(self.trainer)
            sums = self._epoch_sums()
            self.log("train/loss_epoch", sums["nats"] / sums["tokens"])
            self.train_loss.reset()

    def _epoch_sums(self) -> dict[str, Tensor]:
        """Return the epoch's loss in nats and its tokens, so far and of all ranks."""
        self.train_loss.fetch()
        parts = {"nats": self.train_loss.nats, "tokens": self.train_loss.tokens}
        reduce = self.trainer.strategy.reduce
        return {name: reduce(part.clone(), reduce_op="sum") for name, part in parts.items()}

    # ------------------------------------------------------------------ prediction, checkpoints

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[list[GeneratedText]]:
        """Write the texts of a batch of jobs: (B,) indices into `predict_jobs`."""
        if self.tokenizer is None:
            raise RuntimeError("predict with a model from LitGPT.load_from_checkpoint")
        if not len(batch):
            return []  # there are more devices than texts
        jobs = [self.predict_jobs[job] for job in batch.tolist()]
        return write_jobs(self.net, self.tokenizer, jobs, **self.predict_options)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> "LitGPT":
        """Load a model as Lightning does, from a file that is checked as by `gptlit.load`.

        Raises:
            UsageError: The file is missing, damaged, not a checkpoint of gptlit, or one that
                could run code.
        """
        checkpoints.read(checkpoint_path)
        options |= WITHOUT_INSTANTIATOR
        return super().load_from_checkpoint(checkpoint_path, *args, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.tokenizer is None:
            raise RuntimeError("there is no net to save yet")
        text = batches_of(self.trainer).describe_text()
        described = checkpoints.describe(
            self.config, self.tokenizer, text, self.run_config, self.seed, self.evaluated
        )
        described["compiled"] = self.compiled.choice.compiles
        if self.teachers is not None:
            described["teachers"] = self.teachers.hashes
        # so that a resumed epoch's mean is that of the whole epoch
        described["epoch_loss"] = self._epoch_sums()
        checkpoint[checkpoints.KEY] = described
        if self.average is not None:
            resuming.add_average(checkpoint, self.average)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # sharded weights have been loaded already
            checkpoints.check(checkpoint)
        saved = checkpoint[checkpoints.KEY]
        self.seed = saved["seed"]
        self.evaluated = saved.get("evaluated", {})
        self.has_begun = True
        resuming.check_config(saved["config"], self.config)
        if self.tokenizer is None:
            size = saved["config"]["vocab_size"]
            self.use_tokenizer(from_state(saved["tokenizer"], size))
            return
        resuming.check_same_tokenizer(saved, self.tokenizer)
        self.average = None
        is_fit = self.trainer.state.fn == "fit"
        if is_fit:
            resuming.check_optimizer(checkpoint, self.options)
        saved_state.check(checkpoint, self.trainer, self.config, self._new_optimizer)
        if is_fit:
            self._resume(checkpoint)

    def _resume(self, checkpoint: dict[str, Any]) -> None:
        """Restore a run's state, and adapt the rest of it in the checkpoint to changed options."""
        saved, trainer = checkpoint[checkpoints.KEY], self.trainer
        if self.teachers is not None:
            distillation.check_same(saved.get("teachers", []), self.teachers.hashes)
        self.compiled.choose(self, saved.get("compiled"))
        self.saved_average = resuming.take_raw_weights(checkpoint)
        if trainer.is_global_zero and (sums := saved.get("epoch_loss")):
            self.train_loss.nats.copy_(sums["nats"])
            self.train_loss.tokens.copy_(sums["tokens"])
        factor = run_length.schedule(self.options, trainer)
        before, now = resuming.take_recipe(checkpoint, self.options, factor)
        if before != now and trainer.is_global_zero:
            step = checkpoint["global_step"]
            note(f"the learning rate changes at step {step}: {before:.4g} -> {now:.4g}")
        if (text := text_of(trainer)) is not None:
            resuming.restore_position(checkpoint, trainer, text)
