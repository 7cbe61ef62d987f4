"""The verbs that need Lightning: fit, validate, test, and predict on several devices."""

import contextlib
import importlib.resources
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
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerStatus

from gptlit import __version__, checkpoint, predict, runs
from gptlit import tokenizer as tokenizers
from gptlit.callbacks import Report, SampleText, StepBar, Throughput
from gptlit.data import TextDataModule
from gptlit.messages import UsageError, did_you_mean, note
from gptlit.options import OneLineErrors
from gptlit.training import LitGPT

DEFAULT_CONFIG = "small.yaml"
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


# ---------------------------------------------------------------- the command line, before parsing


def _values(arguments: Sequence[str], *names: str) -> list[tuple[int, int, str]]:
    """(first index, words, value) of each `--name value` or `--name=value`."""
    found = []
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name not in names:
            continue
        if equals:
            found.append((index, 1, value))
        elif index + 1 < len(arguments):
            found.append((index, 2, arguments[index + 1]))
    return found


def shipped_configs() -> dict[str, Path]:
    """The configs that are installed with the package, by file name."""
    folder = Path(str(importlib.resources.files("gptlit.configs")))
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """The config at a path, or else the shipped one of that name.

    Raises:
        UsageError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise UsageError(
        f"--config {name}: no such file, and not one of the shipped {', '.join(shipped)}."
        + did_you_mean(name, shipped)
    )


def expand(verb: str, arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """Arguments that Lightning's CLI understands, and the checkpoint they start from.

    Config names become paths. A checkpoint brings its own run's options as a config that
    comes first, so that whatever else is given wins: all of them to go on training, those of
    model and data to evaluate. `fit` with neither config nor checkpoint gets small.yaml.

    Raises:
        UsageError: no such config or checkpoint.
    """
    words = list(arguments)
    for index, length, name in _values(words, "--config", "-c"):
        words[index : index + length] = ["--config=" + str(find_config(name))] + [""] * (length - 1)
    words = [word for word in words if word]
    given = _values(words, "--ckpt_path")
    path = None
    if given:
        path = checkpoint.resolve(given[-1][2])
    elif verb != "fit":
        path = checkpoint.resolve("best")
    if path is None:
        base = [] if _values(words, "--config") else [f"--config={find_config(DEFAULT_CONFIG)}"]
        return base + words, None
    for index, length, _ in reversed(given):
        del words[index : index + length]
    options = yaml.safe_load(checkpoint.read(path)[checkpoint.KEY]["run"])
    if verb != "fit":
        options = {"model": options["model"], "data": options["data"]}
    if _values(words, "--data.corpus") and not _values(words, "--data.path"):
        # the corpus named now is meant, not the file of then, which would win
        options["data"]["path"] = None
    return [f"--config={yaml.safe_dump(options)}", *words, f"--ckpt_path={path}"], path


# ---------------------------------------------------------------- choices for this machine


def choose_precision(accelerator: str) -> tuple[str, str]:
    """The default precision on the accelerator that will be used, and why."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has bfloat16"
        return "16-mixed", "this GPU has no bfloat16"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "the safe choice on Apple's GPUs"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "32-true", "exact; bfloat16 gains little here for models this small"
    return "32-true", "this CPU has no native bfloat16"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
            # the order of windows is arithmetic: the position is all there is to restore
            r".*You're resuming from a checkpoint that ended before the epoch ended.*",
        ):
            warnings.filterwarnings("ignore", expected)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


# ---------------------------------------------------------------- fit, validate, test


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
        return {"fit": skipped | fit, "validate": skipped | {"verbose"}, "test": skipped | {"verbose"}}

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
        if self.subcommand != "fit":
            return super().instantiate_trainer(logger=False, enable_checkpointing=False)
        options = self.config_init["fit"]
        resumed_step = self._open_run(Path(options.trainer.default_root_dir or "."))
        assert self.run is not None
        callbacks = list(options.trainer.callbacks or [])
        callbacks += [Report(self.precision_reason), Throughput()]
        if sys.stdout.isatty() and options.trainer.enable_progress_bar is not False:
            callbacks.append(StepBar())
        elif options.trainer.enable_progress_bar is None:
            kwargs["enable_progress_bar"] = False  # its lines would fill a log file
        monitored = "val/loss" if self._has_validation() else "train/loss"
        options.samples.folder = self.run
        if options.trainer.enable_checkpointing is not False and not options.trainer.fast_dev_run:
            callbacks += runs.checkpoints(self.run, monitored, options.snapshot_every)
        kwargs["callbacks"] = callbacks
        if options.trainer.logger in (None, True):
            kwargs["logger"] = runs.loggers(self.run, resumed_step)
        kwargs["plugins"] = [*_as_list(options.trainer.plugins), runs.DurableCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _has_validation(self) -> bool:
        data = self.config["fit"].data
        return bool(data.val_fraction or data.val_path)

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
        self.model.run_config = self._options_as_yaml()
        if rank_zero_only.rank == 0:
            (self.run / "config.yaml").write_text(self.model.run_config, encoding="utf-8")
        return resumed_step

    def _options_as_yaml(self) -> str:
        dumped = self._parser("fit").dump(self.config["fit"], skip_none=False, format="yaml")
        options = yaml.safe_load(dumped)
        for key in ("config", "ckpt_path"):
            options.pop(key, None)
        return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)

    def fit(self, model: LitGPT, **kwargs: Any) -> None:
        try:
            self.trainer.fit(model, **kwargs)
        except UsageError:
            # nothing has been trained: don't leave an empty run behind
            if self.run_claimed and self.run is not None and rank_zero_only.rank == 0:
                shutil.rmtree(self.run)
            raise
        except SystemExit:
            if self.trainer.state.status == TrainerStatus.INTERRUPTED:
                raise KeyboardInterrupt from None
            raise
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            last = f"{self.run}/checkpoints/last.ckpt"
            note(f"done; write with: gptlit predict --ckpt_path {self.run}/checkpoints/best.ckpt")
            note(f"go on with: gptlit fit --ckpt_path {last} --trainer.max_steps N")

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


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


# ---------------------------------------------------------------- predict through the Trainer


class _Writer(BasePredictionWriter):
    """Puts the texts of all ranks to standard output, in the order of their samples."""

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        own = [text for batch in predictions for text in batch]
        by_rank: list[list[str]] = [own]
        if trainer.world_size > 1:
            by_rank = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(by_rank, own)
        if trainer.is_global_zero:
            # rank r had samples r, r + R, r + 2R, ...
            longest = max(map(len, by_rank))
            predict.put(
                texts[index] for index in range(longest) for texts in by_rank if index < len(texts)
            )


def predict_with_trainer(arguments: Sequence[str]) -> None:
    """`gptlit predict` with --trainer.* options: the same texts, by `LitGPT.predict_step`."""
    parser = predict.parser()
    parser.add_class_arguments(L.Trainer, "trainer")
    options = parser.parse_args(list(arguments))
    settings = predict.sampling(options)
    path = checkpoint.resolve(options.ckpt_path)
    checkpoint.read(path)  # torn files are told before Lightning meets them
    model = LitGPT.load_from_checkpoint(path, map_location="cpu")
    assert model.tokenizer is not None
    if rank_zero_only.rank == 0:
        predict.tell_about_prompt(options, model.tokenizer, model.config.block_size)
    model.predict_options = {"prompt": options.prompt, "unknown": options.unknown, **settings}
    chosen = parser.instantiate_classes(options).trainer.as_dict()
    chosen["callbacks"] = [*_as_list(chosen["callbacks"]), _Writer()]
    chosen |= {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    chosen |= {"enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(**chosen)
    own = range(trainer.global_rank, options.num_samples, trainer.world_size)
    seeds = torch.tensor([options.seed + index for index in own], dtype=torch.int64)
    trainer.predict(model, [seeds], return_predictions=False)


def main(arguments: Sequence[str]) -> None:
    """Run the verb that comes first in `arguments`.

    Raises:
        UsageError: an option, a config, a text or a checkpoint that can't work.
    """
    verb, *rest = arguments
    with _quiet():
        if verb == "predict":
            predict_with_trainer(rest)
        else:
            GptlitCLI(verb, rest)
