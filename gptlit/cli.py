"""The verbs that need Lightning: fit, validate, test, and predict on several devices."""

import contextlib
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus

from gptlit import __version__, checkpoint, runs
from gptlit import tokenizer as tokenizers
from gptlit.arguments import expand
from gptlit.callbacks import Report, SampleText, StepBar, Throughput
from gptlit.data import TextDataModule
from gptlit.messages import UsageError, note
from gptlit.options import OneLineErrors
from gptlit.training import LitGPT

TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "max_steps": 1000,
    # by steps, across epochs: a small text's epoch can be shorter than any useful interval
    "check_val_every_n_epoch": None,
    "val_check_interval": 250,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    # the loaders cut the order into ranks themselves
    "use_distributed_sampler": False,
    # the start-up block tells what matters
    "enable_model_summary": False,
}


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with errors of one line."""


def choose_precision(accelerator: str) -> tuple[str, str]:
    """The default precision on the accelerator that will be used, and why."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has bfloat16"
        return "16-mixed", "this GPU has no bfloat16"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "the safe choice on Apple's GPUs"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "32-true", "exact; for a larger model try bf16-mixed, this CPU has bfloat16"
    return "32-true", "this CPU has no native bfloat16"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning's tips and announcements off: the start-up block tells what matters."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        for expected in (
            # a run that goes on finds its folder filled, as it should
            r".*Checkpoint directory .* exists and is not empty",
            r".*Experiment logs directory .* exists and is not empty",
            # the metrics are summed over ranks before they are logged
            r".*sync_dist=True.*",
            # batches of a model this small need no workers, and the loaders have none
            r".*does not have many workers.*",
            # evaluating needs none of the callbacks that watched the training
            r".*callbacks used to create the checkpoint need to be provided.*",
            # `main(argv)` gives its arguments, whatever the process's own are
            r".*LightningCLI's args parameter is intended to run from within Python.*",
            # samples are told apart by their rank
            r".*Couldn't infer the batch indices.*",
            # the loader freezes its order itself
            r".*requested to overfit but enabled train dataloader shuffling.*",
            # how Lightning uses its own libraries
            r"(?s).*(JSONARGPARSE_DEPRECATION_WARNINGS|instantiate_classes).*",
            r".*isinstance\(treespec, LeafSpec\). is deprecated.*",
            # the order of windows is arithmetic: the position is all there is to restore
            r".*You're resuming from a checkpoint that ended before the epoch ended.*",
        ):
            warnings.filterwarnings("ignore", expected)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class GptlitCLI(LightningCLI):
    """Lightning's CLI with gptlit's defaults, run folders and messages."""

    def __init__(self, verb: str, arguments: Sequence[str]) -> None:
        expanded, self.checkpoint_path = expand(verb, arguments)
        self.precision_reason = "as asked"
        self.run: Path | None = None
        self.run_claimed = False
        super().__init__(
            LitGPT,
            TextDataModule,
            args=[verb, *expanded],
            parser_class=Parser,
            parser_kwargs={
                "prog": "gptlit",
                "allow_abbrev": False,
                "default_env": True,
                "env_prefix": "GPTLIT",
                "version": __version__,
            },
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1337,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "datamodule", "dataloaders", "weights_only"}
        fit = {"train_dataloaders", "val_dataloaders"}
        return {
            "fit": skipped | fit,
            "validate": skipped | {"verbose"},
            "test": skipped | {"verbose"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.block_size", "data.block_size")
        parser.add_lightning_class_args(SampleText, "samples")
        parser.add_argument(
            "--snapshot_every",
            type=int,
            default=0,
            help="Keep a checkpoint step_N.ckpt every so many steps; 0 for none.",
        )

    def _parse_ckpt_path(self) -> None:
        """Nothing: `expand` has put the checkpoint's options where flags given beside it win."""

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        # the options as given: what is chosen below is chosen again by whoever goes on
        self.options_as_yaml = self._dump_options()
        trainer = options.trainer
        if options.data.seed is None:
            options.data.seed = int(options.seed_everything)
        if options.snapshot_every < 0:
            raise UsageError(f"--snapshot_every {options.snapshot_every}: must be 0 or more")
        if trainer.precision is None:
            trainer.precision, self.precision_reason = choose_precision(trainer.accelerator)
        if isinstance(trainer.val_check_interval, float):
            # a share of an epoch: Lightning wants to be told that epochs are meant
            trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch or 1
        elif isinstance(trainer.val_check_interval, int) and trainer.max_steps > 0:
            batches = trainer.max_steps * trainer.accumulate_grad_batches
            trainer.val_check_interval = min(trainer.val_check_interval, batches)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.checkpoint_path is not None:
            content = checkpoint.read(self.checkpoint_path)
            tokenizer = tokenizers.from_state(content[checkpoint.KEY]["tokenizer"])
            self.datamodule.use_tokenizer(tokenizer)
        options = self.config_init[self.subcommand]
        with_bar = options.trainer.enable_progress_bar
        if with_bar is None:
            # in a log file a bar's every update is a line
            with_bar = kwargs["enable_progress_bar"] = sys.stdout.isatty()
        if self.subcommand != "fit":
            kwargs |= {"logger": False, "enable_checkpointing": False}
            return super().instantiate_trainer(**kwargs)
        resumed_step = self._open_run(Path(options.trainer.default_root_dir or "."))
        assert self.run is not None
        callbacks = list(options.trainer.callbacks or [])
        callbacks += [Report(self.precision_reason), Throughput()]
        if with_bar:
            callbacks.append(StepBar())
        monitored = "val/loss" if self.datamodule.has_validation else "train/loss"
        options.samples.folder = self.run
        if options.trainer.enable_checkpointing is not False and not options.trainer.fast_dev_run:
            callbacks += runs.checkpoints(self.run, monitored, options.snapshot_every)
        kwargs["callbacks"] = callbacks
        if options.trainer.logger in (None, True):
            kwargs["logger"] = runs.loggers(self.run, resumed_step)
        kwargs["plugins"] = [*runs.as_list(options.trainer.plugins), runs.DurableCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _open_run(self, root: Path) -> int | None:
        """Set `run` and claim it, unless a run goes on; returns the step it goes on from."""
        resumed_step = None
        if self.checkpoint_path is not None:
            resumed_step = int(checkpoint.read(self.checkpoint_path)["global_step"])
            max_steps = self.config["fit"].trainer.max_steps
            if 0 < max_steps <= resumed_step:
                raise UsageError(
                    f"--trainer.max_steps {max_steps}: {self.checkpoint_path} is at step "
                    f"{resumed_step} already; give a larger one to go on"
                )
            note(f"going on from {self.checkpoint_path} at step {resumed_step}")
            self.run = runs.of_checkpoint(self.checkpoint_path)
        if self.run is None:
            self.run, self.run_claimed = runs.claim(root / checkpoint.RUNS), True
            resumed_step = None
        self.model.run_config = self.options_as_yaml
        if runs.on_rank_zero():
            (self.run / "config.yaml").write_text(self.options_as_yaml, encoding="utf-8")
        return resumed_step

    def _dump_options(self) -> str:
        options = self.config[self.subcommand]
        dumped = self._parser(self.subcommand).dump(options, skip_unset=False, format="yaml")
        options = yaml.safe_load(dumped)
        for key in ("config", "ckpt_path"):
            options.pop(key, None)
        return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)

    def fit(self, model: LitGPT, **kwargs: Any) -> None:
        try:
            self.trainer.fit(model, **kwargs)
        except UsageError:
            # nothing has been trained: don't leave an empty run behind
            if self.run_claimed and not self.trainer.global_step and runs.on_rank_zero():
                shutil.rmtree(self.run or "")
            raise
        except SystemExit:
            if self.trainer.state.status != TrainerStatus.INTERRUPTED:
                raise
            last = f"{self.run}/checkpoints/last.ckpt"
            hint = f"; go on with: gptlit fit --ckpt_path {last}" if Path(last).exists() else ""
            raise KeyboardInterrupt(f"stopped at step {self.trainer.global_step}{hint}") from None
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            saved = f"{self.run}/checkpoints"
            note(f"done; write with: gptlit predict --ckpt_path {saved}/best.ckpt")
            note(f"go on with: gptlit fit --ckpt_path {saved}/last.ckpt --trainer.max_steps N")

    def validate(self, model: LitGPT, **kwargs: Any) -> None:
        self._evaluate("val", self.trainer.validate, model, **kwargs)

    def test(self, model: LitGPT, **kwargs: Any) -> None:
        self._evaluate("test", self.trainer.test, model, **kwargs)

    def _evaluate(self, split: str, evaluate: Any, model: LitGPT, **kwargs: Any) -> None:
        (figures,) = evaluate(model, verbose=False, **kwargs)
        if not self.trainer.is_global_zero:
            return
        tokens = self.datamodule.tokens
        self._warn_of_overlap(split)
        print(f"{'checkpoint':<20}{self.checkpoint_path}")
        print(f"{'text':<20}{tokens.provenance['name']}, {split} split")
        print(f"{'tokens':<20}{tokens.size(split)}")
        print(f"{'bytes':<20}{tokens.provenance['sizes'][split]['bytes']}")
        for name, value in figures.items():
            print(f"{name:<20}{value:.6f}")

    def _warn_of_overlap(self, split: str) -> None:
        """A figure on text that the model was trained on means something else."""
        trained = checkpoint.read(self.checkpoint_path or "")[checkpoint.KEY]["text"]
        tokens = self.datamodule.tokens
        same_text = trained["sha256"] == tokens.provenance["sha256"]
        if (
            same_text
            and split not in tokens.provenance["own_texts"]
            and tokens.spans[split][0] < trained["spans"]["train"][1]
        ):
            note(f"warning: the {split} split overlaps the text that the model was trained on")


def main(arguments: Sequence[str]) -> None:
    """Run the verb that comes first in `arguments`.

    Raises:
        UsageError: an option, a config, a text or a checkpoint that can't work.
    """
    verb, *rest = arguments
    with quiet():
        if verb == "predict":
            from gptlit import predict_devices

            predict_devices.main(rest)
        else:
            GptlitCLI(verb, rest)
