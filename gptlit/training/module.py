"""LitGPT: a GPT with its loss, its optimizer and its figures, as a LightningModule."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from gptlit.checkpoints import checkpoint as checkpoints
from gptlit.checkpoints import weight_shapes
from gptlit.data.datamodule import TextDataModule
from gptlit.data.loaders import IGNORED, Batch
from gptlit.data.window_order import hashed
from gptlit.generation.jobs import write_jobs
from gptlit.generation.text_stream import Written
from gptlit.messages import UsageError, note, opt
from gptlit.model import cost
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim import optimizers, schedules
from gptlit.optim.ema import Average
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import from_state
from gptlit.training import compiling, fsdp2, losses, monitors, resuming, saved_state
from gptlit.training.compiling import Choice
from gptlit.training.loop_state import ends_epoch, validation_follows
from gptlit.training.metrics import TextLoss, text_figures
from gptlit.training.user_batches import OwnBatches, as_batch

VOCABULARY_COMES_LATER = 0
AVERAGED = "averaged"  # under which a checkpoint has what its weights are the average of
TELL_AFTER_SECONDS = 1.0
SHARDING = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
# options that a checkpoint's weights don't depend on, so that a resumed run may change them
NOT_IN_WEIGHTS = ("vocab_size", "dropout", "dropout_at", "attention", "init", "zero_init")


class LitGPT(L.LightningModule):
    """Trains a GPT on the windows of a `TextDataModule`.

    The net itself is built in `configure_model`, when the text and so the vocabulary is known.
    Loaders of one's own are trained on after `use_tokenizer`; `own_batches.as_batch` says what
    batches they may give. Their figures are without bits per byte.

    Args:
        lr: Peak learning rate; of sgd 0.1 and more is usual.
        min_lr: Where the schedule ends, and what is held afterwards.
        warmup_steps: Optimizer steps of linear rise from 0 to lr.
        decay_steps: The step at which min_lr is reached. When left out it is the run's last, also
            of a run that goes on with more steps: it takes the rate of one planned for as many.
        weight_decay: Of adamw and sgd, on all matrices; of muon, on its own; adam has none.
        betas: Of adamw and adam, and of muon's AdamW.
        optimizer: adamw; adam, without weight decay; sgd, with Nesterov's momentum; muon, which
            makes the directions of a matrix's update equally large (Jordan et al. 2024), for the
            blocks' matrices, and AdamW at `lr` for embeddings, head, norms and biases.
        muon_lr: Peak learning rate of muon's matrices; its schedule is that of lr.
        muon_beta2: Decay of moving means by which muon evens out the rows of a matrix's update
            (NorMuon, Li et al. 2025); none for Muon as it was published.
        momentum: Of sgd, 0.9 when left out, and of muon, 0.95.
        schedule: After the warmup: cosine, half a wave down to min_lr; linear, straight down;
            wsd (warmup, stable, decay), held, then straight down; constant, held.
        decay_fraction: Of wsd, the share of the steps to decay_steps in which lr decays.
        ema: Decay of a moving average of the weights, which is validated, sampled from and saved
            in their place, such as 0.999, the last 1,000 steps or so; 0 for none.
        label_smoothing: Of the training target, the share spread evenly over the vocabulary.
        z_loss: Weight of the squared logarithm of the softmax's denominator, in training only;
            1e-4 is usual (PaLM). Logged losses are without it, and without smoothing.
        init_from: Weights to begin from, with their sizes and tokenizer: gpt2, gpt2-medium,
            gpt2-large, gpt2-xl, a folder in Hugging Face's format, or a checkpoint of gptlit.
        compile: Let torch.compile fuse the operations of training steps; checkpoints are the same.
            On a CPU it needs a C++ compiler. auto: where it pays, by device, size and steps.
    """

    net: GPT

    def __init__(
        self,
        lr: float = 1e-3,
        min_lr: float = 1e-4,
        warmup_steps: int = 100,
        decay_steps: int | None = None,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        optimizer: optimizers.Optimizer = "adamw",
        muon_lr: float = 0.012,
        muon_beta2: float | None = 0.95,
        momentum: float | None = None,
        schedule: optimizers.Schedule = "cosine",
        decay_fraction: float = 0.5,
        ema: float = 0.0,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        init_from: str | None = None,
        compile: bool | Literal["auto"] = False,
        **gpt: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.weight_decay = weight_decay
        self.betas = betas
        self.optimizer = optimizer
        self.muon_lr = muon_lr
        self.muon_beta2 = muon_beta2
        self.momentum = momentum
        self.schedule = schedule
        self.decay_fraction = decay_fraction
        _ = self.recipe  # which checks the options
        self.ema = ema
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        _check_additions(ema, label_smoothing, z_loss)
        self.average: Average | None = None  # of the weights, while training
        self.average_before: tuple[dict[str, Tensor], int] | None = None  # of the checkpoint
        self.init_from = init_from
        self.compile_option = compile
        self.compiling = Choice(False, "as asked")
        self._compiled: compiling.Forward | None = None  # of the net, for training steps
        self.first_weights: dict[str, Tensor] | None = None  # of init_from, set by who read them
        self.has_begun = init_from is None
        self.config = GPTConfig(vocab_size=VOCABULARY_COMES_LATER, **gpt)
        self.tokenizer: Tokenizer | None = None
        self.run_config = ""  # the run's options as YAML, for whoever resumes from the checkpoint
        self.predict_jobs: list[tuple[str, int]] = []  # the prompt and seed of each text
        self.predict_options: dict[str, Any] = {}
        self.seed = 0
        self.evaluated: dict[str, float] = {}  # the last validation's figures, and its step
        self.tells_every_batch = True  # whether callbacks may look at train/loss after each
        self._told_at = -math.inf  # when train/loss was told last
        self._gradient_norm: Tensor | None = None  # of the step at hand, before it is clipped
        self.train_loss = TextLoss()
        self.val_loss = TextLoss()
        self.slice_loss = TextLoss()

    # ------------------------------------------------------------------ the net

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Build the net for a tokenizer's vocabulary, to train on loaders of one's own."""
        self._build(tokenizer)

    def configure_model(self) -> None:
        if self._trainer is not None and self._datamodule is None:
            self._prepare_for_own_batches()
        elif self.tokenizer is None and self._trainer is not None and self._datamodule is not None:
            self._build(self._datamodule.tokenizer)
            if self.first_weights is not None:
                self.net.load_state_dict(self.first_weights)
                self.first_weights, self.has_begun = None, True
            fsdp2.check(self.trainer.strategy)
            self._choose_compiling()
            if self.device_mesh is not None:
                fsdp2.shard(self.net, self.device_mesh["data_parallel"])

    def _prepare_for_own_batches(self) -> None:
        if self.trainer.state.fn == "predict":
            return
        if self.tokenizer is None:
            raise UsageError(
                "LitGPT has no vocabulary yet; give a TextDataModule, or call "
                "use_tokenizer(tokenizer) before training on loaders of your own"
            )
        if isinstance(self.trainer.strategy, SHARDING):
            raise UsageError(
                "shards the weights, which needs a TextDataModule; loaders of your own train under "
                f"{opt('trainer.strategy')} ddp",
                "trainer.strategy",
                type(self.trainer.strategy).__name__,
            )
        self._choose_compiling()

    def _build(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.config = dataclasses.replace(self.config, vocab_size=tokenizer.vocab_size)
        self.net = GPT(self.config)

    def _choose_compiling(self, before: bool | None = None) -> None:
        """Decide by the option, and by what a run that goes on did before; only fit compiles."""
        if self.trainer.state.fn != "fit":
            return
        if self.compile_option == "auto":
            windows = self.batches.batch_size * self.trainer.accumulate_grad_batches
            per_window = cost.training_flops_per_token(self.net) * self.config.block_size
            self.compiling = compiling.choose(
                self.trainer.strategy.root_device.type,
                self.run_length(),
                windows * per_window,
                compiler=compiling.has_compiler(),
                before=before,
            )
        else:
            self.compiling = Choice(self.compile_option, "as asked")
            compiling.check(self.compile_option, self.trainer.strategy.root_device.type)
        self._compiled = None
        if self.compiling.compiles:
            self.compile_steps()

    def compile_steps(self, mode: str | None = None) -> None:
        """Compile the net for training steps, when the first is made, by a mode of torch.compile.

        Validations and samples, whose batches have many shapes, are computed as they are.
        """
        net = self.net  # not the compiled module, which would give weights other names
        self._compiled = torch.compile(lambda idx: net(idx), mode=mode)
        if self.compile_option == "auto":
            self._compiled = compiling.or_eager(self._compiled, net, self._give_up_compiling)

    def _give_up_compiling(self) -> None:
        self.compiling = Choice(False, "it failed")

    @property
    def _datamodule(self) -> TextDataModule | None:
        module = self.trainer.datamodule
        return module if isinstance(module, TextDataModule) else None

    @property
    def text(self) -> TextDataModule:
        """The data module being trained or evaluated on."""
        if self._datamodule is None:
            raise UsageError(
                "this part of gptlit needs a TextDataModule; call trainer.fit(model, datamodule)"
            )
        return self._datamodule

    @property
    def batches(self) -> TextDataModule | OwnBatches:
        """Where batches come from: the data module, or loaders of the user's own."""
        return self._datamodule or OwnBatches(self.trainer)

    def forward(self, idx: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, V) logits."""
        if self._compiled is not None and self.training:
            return self._compiled(idx)
        return self.net(idx)

    # ------------------------------------------------------------------ steps

    def setup(self, stage: str) -> None:
        # a run shorter than its interval between validations is validated at its end
        trainer = self.trainer
        by_batches = self._datamodule and trainer.check_val_every_n_epoch is None
        if stage == "fit" and by_batches and isinstance(trainer.val_check_interval, int):
            batches = (self.run_length() or sys.maxsize) * trainer.accumulate_grad_batches
            trainer.val_check_interval = min(trainer.val_check_interval, batches)

    def on_fit_start(self) -> None:
        if not self.has_begun:
            raise UsageError(
                "`gptlit fit` reads it; in Python, set first_weights and the data module's "
                "tokenizer to those of origins.start_from",
                "model.init_from",
                self.init_from,
            )
        monitors.check_in_time(self.trainer, self._steps_per_epoch(), self.run_length())
        self.seed = self.seed or torch.initial_seed() % 2**63

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # what figures are logged under; a validation interval that was changed shifts it
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        if self.config.dropout:
            # a function of (seed, step, batch, rank): there is no random state to save or lose
            place = (self.seed, self.global_step, batch_idx, self.global_rank)
            torch.manual_seed(hashed(*place) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = as_batch(batch)  # (B, T), (B, T)
        logits = self(inputs)  # (B, T, V)
        minimised, loss = losses.objective(logits, targets, self.label_smoothing, self.z_loss)
        # a step that is skipped, its loss being no number, is none of the epoch's
        counts = loss.detach().isfinite()
        n_tokens = (targets != IGNORED).sum() * counts
        self.train_loss.update(torch.where(counts, loss.detach(), 0) * n_tokens, n_tokens)
        several = self.trainer.world_size > 1
        # of several processes all have to tell it, or none, and their clocks differ
        if several or self._is_told():
            # a bar waits for what it shows
            with_bar = self.trainer.progress_bar_callback is not None
            self.log("train/loss", loss, prog_bar=with_bar, sync_dist=several)
        return minimised

    def _is_told(self) -> bool:
        """Whether anybody looks at this batch's loss: telling it costs more than computing it.

        Loggers do, who tells an epoch's end, who has no other figure at a validation, and now and
        then the bar.
        """
        every, now = self.trainer.log_every_n_steps, time.perf_counter()
        is_told = (
            self.tells_every_batch
            or (every and not (self.global_step + 1) % every)
            or now - self._told_at > TELL_AFTER_SECONDS
            or ends_epoch(self.trainer)
            or (not self.batches.has_validation and validation_follows(self.trainer))
        )
        if is_told:
            self._told_at = now
        return bool(is_told)

    def on_train_epoch_end(self) -> None:
        if ends_epoch(self.trainer):  # rather than the run, which may be gone on with
            self.log("train/loss_epoch", self.train_loss.compute())
            self.train_loss.reset()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        every = self.trainer.log_every_n_steps
        if not every or (self.global_step + 1) % every:
            return
        self.log("optim/grad_norm", self.gradient_norm(optimizer))
        # that of --model.lr; with muon the first group has one of its own
        self.log("optim/lr", optimizer.param_groups[-1]["lr"])

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The norm of all gradients of the step at hand before they are clipped, computed once.

        Callbacks of one's own that change gradients are to do so in `on_after_backward`.
        """
        if self._gradient_norm is None:
            params = optimizers.parameters(optimizer)
            grads = [parameter.grad for parameter in params if parameter.grad is not None]
            self._gradient_norm = optimizers.total_norm(grads)
        return self._gradient_norm

    def drop_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the step at hand change nothing: an optimizer passes by what has no gradient."""
        optimizer.zero_grad(set_to_none=True)
        self._gradient_norm = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        norm, self._gradient_norm = self._gradient_norm, None
        by_norm = gradient_clip_algorithm in (None, "norm")
        if norm is None or not by_norm or isinstance(self.trainer.strategy, SHARDING):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val and gradient_clip_val > 0:
            # what Lightning does, but for computing the norm again
            clip_grads_with_norm_(optimizers.parameters(optimizer), gradient_clip_val, norm)

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """The net with the moving average of its weights, if there is one."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def on_validation_start(self) -> None:
        if self.average is not None:
            self.average.begin()

    def on_validation_end(self) -> None:
        # after all callbacks, so that they sample from the average as well
        if self.average is not None:
            self.average.end()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        # the slice of the training split is the data module's alone
        on_validation_split = self.batches.has_validation and (
            dataloader_idx == 0 or self._datamodule is None
        )
        self._score(batch, self.val_loss if on_validation_split else self.slice_loss)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score(batch, self.val_loss)

    def _score(self, batch: Batch, metric: TextLoss) -> None:
        inputs, targets = as_batch(batch)  # (B, T), (B, T)
        logits = self(inputs)  # (B, T, V)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        metric.update(losses.sum(dtype=metric.nats.dtype), (targets != IGNORED).sum())

    def on_validation_epoch_end(self) -> None:
        figures: dict[str, Tensor] = {}
        if self.slice_loss.update_called:
            figures["train/loss_eval"] = self.slice_loss.compute()
        if self.val_loss.update_called:
            figures |= self._split_figures("val")
        if "train/loss_eval" in figures and "val/loss" in figures:
            figures["val/gap"] = figures["val/loss"] - figures["train/loss_eval"]
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            values = {name: value.item() for name, value in figures.items()}
            self.evaluated = {"step": self.global_step, **values}
        self._log_figures(figures)

    def on_test_epoch_end(self) -> None:
        self._log_figures(self._split_figures("test"))

    def _split_figures(self, split: str) -> dict[str, Tensor]:
        per_token = self._datamodule.tokens.bytes_per_token(split) if self._datamodule else None
        figures = text_figures(self.val_loss.compute(), per_token)
        return {f"{split}/{name}": value for name, value in figures.items()}

    def _log_figures(self, figures: dict[str, Tensor]) -> None:
        # already summed over all ranks
        self.log_dict({name: value.float() for name, value in figures.items()})
        self.val_loss.reset()
        self.slice_loss.reset()

    def predict_step(self, batch: Tensor, batch_idx: int) -> list[list[Written]]:
        """The texts of a batch of jobs, (B,) indices into `predict_jobs`."""
        if self.tokenizer is None:
            raise RuntimeError("predict with a model from LitGPT.load_from_checkpoint")
        if not len(batch):
            return []  # with more devices than texts some have none
        jobs = [self.predict_jobs[job] for job in batch.tolist()]
        return write_jobs(self.net, self.tokenizer, jobs, **self.predict_options)

    # ------------------------------------------------------------------ optimizer

    @property
    def recipe(self) -> optimizers.Recipe:
        """Optimizer and schedule, by the options as they are now."""
        names = [field.name for field in dataclasses.fields(optimizers.Recipe)]
        return optimizers.Recipe(**{name: getattr(self, name) for name in names})

    def configure_optimizers(self) -> Any:
        self._refuse_parts_of_matrices()
        optimizer = self._new_optimizer()
        if self.ema:
            self.average = Average(self.net, self.ema)
            if self.average_before is not None:
                self.average.load(*self.average_before)
                self.average_before = None
            # as part of the step, ahead of all who look at what it gave
            optimizer.register_step_post_hook(self.average.update)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _new_optimizer(self) -> torch.optim.Optimizer:
        # a fused step refuses gradient clipping under Lightning's mixed precision
        return optimizers.build(self, self.recipe, fused=self.trainer.precision == "32-true")

    def _refuse_parts_of_matrices(self) -> None:
        options = {"optimizer": self.optimizer == "muon", "ema": bool(self.ema)}
        for name, is_given in options.items():
            if is_given and isinstance(self.trainer.strategy, SHARDING):
                raise UsageError(
                    f"needs each process to have all weights; use {opt('trainer.strategy')} ddp",
                    f"model.{name}",
                    getattr(self, name),
                )

    def _schedule(self) -> Callable[[int], float]:
        if self.schedule == "constant":
            return schedules.lr_factor(self.recipe, sys.maxsize)
        return schedules.lr_factor(self.recipe, self._decay_end())

    def _decay_end(self) -> int:
        end = self.run_length() if self.decay_steps is None else self.decay_steps
        if end is None:
            raise UsageError(
                "the run has no length to spread the schedule over; give "
                f"{opt('trainer.max_steps')}, {opt('trainer.max_epochs')} or "
                f"{opt('model.decay_steps')}",
                "model.decay_steps",
            )
        if not self.min_lr and end < (self.run_length() or sys.maxsize):
            raise UsageError(
                f"the run is longer, and would continue at learning rate {opt('model.min_lr')} 0 "
                "without learning anything; give a min_lr above 0, or leave decay_steps out",
                "model.decay_steps",
                end,
            )
        return end

    def run_length(self) -> int | None:
        """Optimizer steps of the whole run; None if only time or the user ends it."""
        # trainer.estimated_stepping_batches would make the loaders before a resume restores
        # them, which loses their position
        if self._datamodule is None:
            steps = self.trainer.estimated_stepping_batches
            return None if math.isinf(steps) else int(steps)
        ends = []
        if self.trainer.max_steps >= 0:
            ends.append(self.trainer.max_steps)
        if self.trainer.max_epochs is not None and self.trainer.max_epochs >= 0:
            ends.append(self.trainer.max_epochs * self._steps_per_epoch())
        return min(ends, default=None)

    def _steps_per_epoch(self) -> int:
        """Of the text's, those that limit_train_batches and overfit_batches leave."""
        accumulated = self.trainer.accumulate_grad_batches
        if self._datamodule is None:
            n_batches = self.trainer.num_training_batches  # infinite for a loader without a length
            return sys.maxsize if math.isinf(n_batches) else math.ceil(n_batches / accumulated)
        whole, limit = self.text.steps_per_epoch, self.trainer.limit_train_batches
        batches = limit if isinstance(limit, int) else int(limit * whole * accumulated)
        return min(whole, math.ceil(batches / accumulated))  # Lightning steps on a rest, too

    # ------------------------------------------------------------------ checkpoints

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> "LitGPT":
        """As Lightning's own, of a file that has been checked as `gptlit.load` checks it.

        Raises:
            UsageError: missing, damaged, not a checkpoint of gptlit, or one that could run code.
        """
        checkpoints.read(checkpoint_path)
        options["_instantiator"] = None  # which Lightning would import and call
        return super().load_from_checkpoint(checkpoint_path, *args, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.tokenizer is None:
            raise RuntimeError("there is no net to save yet")
        text = self.batches.describe_text()
        checkpoint[checkpoints.KEY] = checkpoints.describe(
            self.config, self.tokenizer, text, self.run_config, self.seed, self.evaluated
        )
        checkpoint[checkpoints.KEY]["compiled"] = self.compiling.compiles
        # the sums of all ranks, so that a resumed epoch's mean is that of the whole epoch
        epoch = {"nats": self.train_loss.nats, "tokens": self.train_loss.tokens}
        checkpoint[checkpoints.KEY]["epoch_loss"] = {
            name: self.trainer.strategy.reduce(part.clone(), reduce_op="sum")
            for name, part in epoch.items()
        }
        if self.average is not None:
            # whoever writes or evaluates takes the averages; whoever goes on needs both
            averaged = self.average.averaged().items()
            prefixed = {checkpoints.NET_PREFIX + name: value for name, value in averaged}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **prefixed}
            checkpoint[AVERAGED] = self.average.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # sharded weights have been loaded already
            checkpoints.check(checkpoint)
        described = checkpoint[checkpoints.KEY]
        self.seed = described["seed"]
        self.evaluated = described.get("evaluated", {})
        self.has_begun = True
        self.check_fits(described)
        if self.tokenizer is None:
            size = described["config"]["vocab_size"]
            self._build(from_state(described["tokenizer"], size))
            return
        if self.tokenizer.state() != described["tokenizer"]:
            raise UsageError(
                "the checkpoint's tokenizer is not that of the text: "
                f"{described['tokenizer']['kind']} of {described['config']['vocab_size']} tokens "
                f"against {self.tokenizer.kind} of {self.tokenizer.vocab_size}"
            )
        self.average = None
        if self.trainer.state.fn == "fit":
            resuming.check_optimizer(checkpoint, self.optimizer)
        try:
            self._check_states(checkpoint)
        except UsageError as error:
            raise UsageError(str(error), "ckpt_path", self.trainer.ckpt_path) from error
        if self.trainer.state.fn == "fit":
            self._choose_compiling(described.get("compiled"))
            self._take_raw_weights(checkpoint)
            if self.trainer.is_global_zero and (sums := described.get("epoch_loss")):
                for name in ("nats", "tokens"):
                    getattr(self.train_loss, name).copy_(sums[name])
            self._apply_own_options(checkpoint)
            if self._datamodule is None:
                return
            accumulated = self.trainer.accumulate_grad_batches
            per_step, per_epoch = self.text.windows_per_step, self.text.steps_per_epoch
            resuming.recount(checkpoint, per_step, accumulated, per_epoch)
            resuming.complete_batch(checkpoint)
            self._check_validation(checkpoint, described["text"])

    def _check_states(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what Lightning would fail to restore, now or later."""
        assert self.trainer.state.fn is not None
        fn, has_place = self.trainer.state.fn.value, bool(checkpoint["global_step"])
        # without the place of a loader that was in use before, as in Lightning's tuner
        loop = {**getattr(self.trainer, f"{fn}_loop").state_dict(), "state_dict": {}}
        own_place = self._datamodule is not None  # which a user's loaders need not have
        saved_state.check_loop(
            checkpoint, f"{fn}_loop", loop, has_place and fn == "fit" and own_place
        )
        # of a user's own class nobody but its author knows what its state can become
        known = [each for each in self.trainer.callbacks if _is_known(type(each))]
        callbacks = [(each.state_key, each.state_dict()) for each in known]
        saved_state.check_callbacks(checkpoint, callbacks)
        for each in self.trainer.callbacks:
            if isinstance(each, ModelCheckpoint) and (
                state := checkpoint.get("callbacks", {}).get(each.state_key)
            ):
                name = f"callbacks.{type(each).__name__}"
                saved_state.check_saved_paths(state, str(each.dirpath or "."), name)
        if fn == "fit" and "state_dict" in checkpoint:
            saved_state.check_training(checkpoint, self._new_optimizer())
            if (kept := checkpoint.get(AVERAGED)) is not None:
                saved_state.check_average(kept)
                weight_shapes.checked(kept["weights"], self.config, f"{AVERAGED}.weights.")

    def _check_validation(self, checkpoint: dict[str, Any], trained: dict[str, Any]) -> None:
        """Compare figures only with those of the same text."""
        text = self.text.describe_text()
        if resuming.same_split("val", trained, text):
            return
        resuming.forget_scores(checkpoint, "val/loss")
        if self.trainer.is_global_zero:
            note(
                "warning: the validation text has changed; the best val/loss and the count of "
                "early stopping start anew"
            )
            if resuming.was_trained_on("val", trained, text):
                note("warning: the val split overlaps the text that the model was trained on")

    def check_fits(self, described: dict[str, Any]) -> None:
        """Refuse a checkpoint whose weights are of another model than this one's options.

        Raises:
            UsageError: names the first option that differs, and both values.
        """
        for name, value in described["config"].items():
            if name in NOT_IN_WEIGHTS:
                continue
            if (now := getattr(self.config, name, None)) != value:
                raise UsageError(
                    f"the checkpoint's model has {value}, which its weights can't do without; "
                    "leave the option out, or begin a new run",
                    f"model.{name}",
                    str(now),
                )

    def _take_raw_weights(self, checkpoint: dict[str, Any]) -> None:
        """Of a checkpoint with averaged weights, train those that they are the average of."""
        if (kept := checkpoint.get(AVERAGED)) is None:
            return
        prefix, state = checkpoints.NET_PREFIX, checkpoint["state_dict"]
        averaged = {name: state[prefix + name] for name in kept["weights"]}
        self.average_before = (averaged, kept["updates"])
        raw = {prefix + name: value for name, value in kept["weights"].items()}
        checkpoint["state_dict"] = {**state, **raw}

    def _apply_own_options(self, checkpoint: dict[str, Any]) -> None:
        """Let this model's options win over those in a checkpoint's optimizer and schedule."""
        before, now = resuming.take_recipe(checkpoint, self.recipe, self._schedule())
        if before != now and self.trainer.is_global_zero:
            step = checkpoint["global_step"]
            note(f"the learning rate changes at step {step}: {before:.4g} -> {now:.4g}")


def _is_known(made: type) -> bool:
    return made.__module__.partition(".")[0] in ("lightning", "gptlit")


def _check_additions(ema: float, label_smoothing: float, z_loss: float) -> None:
    if not 0 <= ema < 1:
        raise UsageError("must be below 1, such as 0.999, or 0 for none", "model.ema", ema)
    if not 0 <= label_smoothing < 1:
        reason = "must be at least 0 and below 1; 0.1 is usual"
        raise UsageError(reason, "model.label_smoothing", label_smoothing)
    if not 0 <= z_loss < math.inf:
        raise UsageError("must be 0 or more; 1e-4 is usual", "model.z_loss", z_loss)
