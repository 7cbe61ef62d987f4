"""The verbs that need Lightning: fit, validate, test, and predict on several devices."""

import contextlib
import dataclasses
import enum
import functools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.seed import isolate_rng

from gptlit import __version__, yaml_keys
from gptlit.checkpoints import checkpoint, init_from
from gptlit.cli import lr_find, preflight, saved_options, summary, trusted_options
from gptlit.cli.adapting import Adapted, adapt
from gptlit.cli.arguments import PRINT_CONFIG, CommandLine, expand, given_by_user
from gptlit.cli.lightning_warnings import lightning_command
from gptlit.cli.shorthand import ONE_OF_A_RUN, full_names, name_words, option_of_run
from gptlit.cli.user_modules import importable
from gptlit.corpora import inputs
from gptlit.data.datamodule import TextDataModule
from gptlit.files import write_atomically
from gptlit.messages import UsageError, note, print_lines
from gptlit.parser import OneLineErrors, text_of
from gptlit.runs import build, loggers, run_end, run_folder
from gptlit.runs.progress_bar import RunBar
from gptlit.runs.report import Report, Throughput
from gptlit.runs.sample_text import SampleText
from gptlit.runs.stopping import Patience, Stopping
from gptlit.streams import only_shown
from gptlit.tokenizers.state import from_state
from gptlit.training import logged_metrics, monitors, processes, resuming
from gptlit.training.divergence import Guard
from gptlit.training.module import LitGPT
from gptlit.training.options import ModelOptions
from gptlit.training.overfitting import Overfitting

TEXT_OPTIONS = tuple(
    f"--data.{name}" for name in ("path", "corpus", "jsonl_field", "column", "encoding", "cleaning")
)
TEXT_PATHS = ("path", "val_path", "test_path")
SWITCHES = ("--lr_find", "--preflight", "--trust_checkpoint")
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


# what a class has as a default can be an Enum's member, as `interval` of Lightning's Timer
yaml.SafeDumper.add_multi_representer(
    enum.Enum, lambda dumper, each: dumper.represent_data(each.value)
)


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with errors of one line."""


yaml_keys.check_parsed_yaml()


def _trusted(options: dict[str, Any], path: Path, given: set[str]) -> dict[str, Any]:
    """What may be used of the options that a checkpoint brings."""
    groups = {"model": ModelOptions, "data": TextDataModule, "samples": SampleText, "guard": Guard}
    return trusted_options.check(options, path, given, groups)


def _own_classes(line: CommandLine) -> contextlib.AbstractContextManager[None]:
    """Let classes that the user names be imported from beside the config, or from here."""
    # the first word has the checkpoint's options, which may bring nothing from here
    words = line.words[1:] if line.start and not line.trusts else line.words
    texts = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    texts += [path.read_text(encoding="utf-8") for path in line.configs]
    return importable(texts, [*(path.parent for path in line.configs), Path.cwd()])


class NothingToTrain(UsageError):
    """The resumed run is already complete."""


class GptlitCLI(LightningCLI):
    """Lightning's CLI with gptlit's defaults, run folders and messages."""

    def __init__(
        self,
        verb: str,
        arguments: Sequence[str],
        held: contextlib.ExitStack,
        look: "Callable[[GptlitCLI], None] | None" = None,
        place: Path | None = None,
    ) -> None:
        self.verb = verb
        self.arguments = arguments
        self.held = held  # what is to be let go of when the command ends
        self.look = look  # at what a fit would be, instead of making it
        self.place = place  # the folder of a new run, where it isn't the next version_N
        self.origin: init_from.Origin | None = None
        self.precision_reason = "as given"
        self.folder: run_folder.RunFolder | None = None
        self.trial: lr_find.Trial | None = None
        self.left_out: list[str] = []  # of the options as they are written
        self.adapted = Adapted()
        super().__init__(
            LitGPT,
            TextDataModule,
            args=[verb, *arguments],
            parser_class=Parser,
            parser_kwargs={"prog": "gptlit", "allow_abbrev": False, "version": __version__},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1337,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        skipped = {"model", "datamodule", "dataloaders", "weights_only"}
        own = {"train_dataloaders", "val_dataloaders"} if self.verb == "fit" else {"verbose"}
        # a parser for each verb takes 0.1 s to make, and one is needed
        return {self.verb: skipped | own}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.block_size", "data.block_size")
        # looks at a validation before a text is written
        parser.add_lightning_class_args(Guard, "guard")
        parser.add_lightning_class_args(SampleText, "samples")
        parser.add_argument(
            "--snapshot_every",
            type=int,
            default=0,
            help="Keep a checkpoint step_N.ckpt every so many steps; 0 for none.",
        )
        parser.add_argument(
            "--keep_snapshots",
            type=int,
            default=0,
            help="Of these the newest so many are kept; 0 for all.",
        )
        parser.add_argument(
            "--early_stopping.patience",
            type=int,
            default=0,
            help="End the run after this many validations without a lower val/loss; 0: never.",
        )
        parser.add_argument(
            "--preflight",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Instead of training, check model and batches: shapes, shift, first loss, "
            "causality, gradients, checkpoint, and that the model memorises one batch.",
        )
        parser.add_argument(
            "--trust_checkpoint",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Take all options of the checkpoint's run, also those that name classes of others "
            "and folders elsewhere: they can run any code. For checkpoints of your own.",
        )
        parser.add_argument(
            "--lr_find",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Train with the learning rate at which the loss falls fastest in a trial of "
            f"{lr_find.STEPS} steps, in the place of --model.lr; muon_lr keeps its proportion.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        words = name_words(self.arguments, option_of_run, switches=SWITCHES, one_of=ONE_OF_A_RUN)
        words = full_names(words, self._parser(self.verb).option_names())
        line = expand(self.verb, words, _trusted)
        words, self.start, self.trusts = line.words, line.start, line.trusts
        self.held.enter_context(_own_classes(line))
        # whether the text is named now, or is that of the checkpoint
        self.text_given = any(word.startswith(TEXT_OPTIONS) for word in words)
        for word in words:
            # a checkpoint and a config are UTF-8, and could not name such a file
            name, _, value = word.partition("=")
            text_of(name, value or name)
        self.given = {word.removeprefix("--").split("=")[0] for word in words}
        # of a new run, what the user chose: all but shipped configs and defaults
        self.chosen = given_by_user(words) if self.start is None else set()
        super().parse_arguments(parser, [self.verb, *words])

    def _parse_ckpt_path(self) -> None:
        """Nothing: `expand` has put the checkpoint's options where flags given beside it win."""

    @property
    def options(self) -> Namespace:
        """The parsed options of the verb."""
        return self.config[self.subcommand]

    def _set_seed(self) -> None:
        seed = self.options.seed_everything
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            raise UsageError(f"--seed_everything {seed}: must be 0 or more, and below 2^32")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        options, trainer = self.options, self.options.trainer
        if options.ckpt_path != (str(self.start.path) if self.start else None):
            raise UsageError(f"ckpt_path {options.ckpt_path}: give it as a flag, --ckpt_path")
        if options.trust_checkpoint and not self.trusts and self.start is not None:
            raise UsageError("trust_checkpoint true: give it as a flag, --trust_checkpoint true")
        _check_counts(options)
        for name in build.NAMED:
            trainer[name] = build.as_class(name, trainer[name])
        if processes.are_plain(trainer):
            processes.check(trainer)  # before a text is read
        if options.preflight and self.subcommand != "fit":
            raise UsageError("--preflight true: is an option of fit only")
        if options.lr_find:
            self._take_rate()
        folder = Path(options.data.data_dir).expanduser() / inputs.PIPES_FOLDER
        for name in TEXT_PATHS:
            if path := options.data[name]:
                # whoever goes on finds the copy of a pipe, and not the pipe
                options.data[name] = inputs.path_or_copy(path, f"--data.{name}", folder)
        self._take_origin()
        if self.subcommand == "fit" and self.start is None:
            self._adapt_to_text()
        # the options as given: what is chosen below is chosen again by whoever goes on
        self.options_as_yaml = self._dump_options()
        if self.start is not None:
            before, now = self._options_of_start, yaml.safe_load(self.options_as_yaml)
            kind = self.start.described["tokenizer"]["kind"]
            resuming.check_tokenizer(before["data"], now["data"], kind, self.given)
        if options.data.seed is None:
            options.data.seed = int(options.seed_everything)
        if isinstance(trainer.val_check_interval, float):
            # a share of an epoch: Lightning wants to be told that epochs are meant
            trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch or 1
        elif (
            isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch is None
        ):
            if trainer.val_check_interval < 1:
                raise UsageError(
                    f"--trainer.val_check_interval {trainer.val_check_interval}: must be 1 or more"
                )
            # Lightning counts batches; a checkpoint between two of a step could not go on exactly
            trainer.val_check_interval *= trainer.accumulate_grad_batches

    def _take_rate(self) -> None:
        """Let a new run begin with the rate that a trial suggests, as if it had been given."""
        options, model = self.options, self.options.model
        for name, is_given in {
            "a verb other than fit": self.subcommand != "fit" or self.look is not None,
            "--ckpt_path, which goes on with a run at its own rate": self.start is not None,
            "--preflight": options.preflight,
            "--trainer.fast_dev_run": options.trainer.fast_dev_run,
        }.items():
            if is_given:
                raise UsageError(f"--lr_find true: has no part in {name}; leave it out")
        trials: list[lr_find.Trial] = []

        def try_rates(cli: GptlitCLI) -> None:
            trials.append(lr_find.find(cli.trainer, cli.model, cli.datamodule))

        note(
            f"--lr_find: {lr_find.STEPS} steps, each at a higher learning rate than the one before"
        )
        with tempfile.TemporaryDirectory() as folder, isolate_rng():
            words = [*self.arguments, *lr_find.TRIAL, f"--trainer.default_root_dir={folder}"]
            GptlitCLI("fit", words, self.held, look=try_rates)
        (self.trial,) = trials
        found = lr_find.changes(self.trial, model.optimizer, model.lr, model.muon_lr, model.min_lr)
        told = [f"--model.{name} {model[name]:g} -> {value:g}" for name, value in found.items()]
        note(f"--lr_find: the loss fell fastest at {found['lr']:g}; {', '.join(told)}")
        for name, value in found.items():
            model[name] = value

    def _take_origin(self) -> None:
        """Let a new run begin from given weights; one that goes on has its own."""
        model = self.options.model
        if self.start is None and model.init_from is not None:
            # a shipped config's block size is for weights that it names itself
            stands = "model.block_size" in self.chosen or "model.init_from" not in self.chosen
            self.origin = init_from.take(model, self.options.data, resuming.NOT_IN_WEIGHTS, stands)
            self.options.data.block_size = model.block_size
        elif self.start is not None and "model.init_from" in self.given:
            raise UsageError(
                f"--model.init_from {model.init_from}: begins a new run, and --ckpt_path goes on "
                "with one; give one of them"
            )

    def _adapt_to_text(self) -> None:
        options, origin = self.options, self.origin
        self.adapted = adapt(options, self.chosen, origin.tokenizer if origin else None)
        if origin:
            size = options.model.block_size
            state = init_from.crop_block_size(origin.state, origin.config, size)
            self.origin = dataclasses.replace(origin, state=state)

    @property
    def _options_of_start(self) -> dict[str, Any]:
        assert self.start is not None
        return saved_options.read(self.start.described["run"])

    def _dump_options(self) -> str:
        parser = self._parser(self.subcommand)
        with warnings.catch_warnings():
            # what can't be written is found out below, by reading it
            warnings.simplefilter("ignore")
            plain = functools.partial(parser.dump, skip_unset=False, format="yaml")
            dumped, left_out = saved_options.dump(self.options, plain)
        options = yaml.safe_load(dumped)
        for key in ("config", "ckpt_path", "preflight", "lr_find", "trust_checkpoint"):
            options.pop(key, None)
        for key in TEXT_PATHS:
            if path := options["data"][key]:
                # whoever goes on may do so from another folder
                options["data"][key] = str(Path(path).expanduser().absolute())
        left_out += saved_options.leave_out(options, self.options, parser.parse_object)
        self.left_out = left_out
        return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)

    def instantiate_trainer(self, **settings: Any) -> L.Trainer:
        options = self.config_init[self.subcommand]
        trainer = options.trainer
        if not processes.are_plain(self.options.trainer):
            processes.check(trainer)
        if self.start is not None:
            described = self.start.described
            size = described["config"]["vocab_size"]
            self.datamodule.use_tokenizer(from_state(described["tokenizer"], size))
            resuming.check_config(described["config"], self.model.config)
        if self.origin is not None:
            self.datamodule.use_tokenizer(self.origin.tokenizer)
            self.model.first_weights = self.origin.state
        given = processes.as_list(trainer.callbacks)
        build.check_callbacks(given)
        settings = {**trainer, **settings}
        bar = build.own_bar(given)
        if trainer.enable_progress_bar is None:
            # in a log file a bar's every update is a line
            settings["enable_progress_bar"] = bar is not None or sys.stdout.isatty()
        if trainer.precision is None and not build.has_precision(trainer.plugins):
            precision, self.precision_reason = build.choose_precision(trainer.accelerator)
            settings["precision"] = precision
        # the guard looks at a validation before a text is written
        own = [options.guard, options.samples]
        if self.subcommand != "fit":
            self._refuse_parts_of_a_split()
            settings |= {"logger": trainer.logger or False, "enable_checkpointing": False}
            bars = [RunBar()] if settings["enable_progress_bar"] and bar is None else []
            return processes.new_trainer(**settings | {"callbacks": [*given, *own, *bars]})
        if self._only_looks:
            settings |= {"logger": False, "enable_checkpointing": False, "barebones": False}
            return processes.new_trainer(**settings | {"callbacks": own})
        names = logged_metrics.logged(trainer, self.datamodule.has_validation)
        monitors.check_monitored(given, names)
        self.stopping = processes.refusing(Stopping, trainer.max_time)
        settings["max_time"] = None  # Lightning's Timer ends between two batches of a step
        if trainer.barebones:
            settings |= build.barebones(trainer)
            return processes.new_trainer(**settings | {"callbacks": [*given, self.stopping]})
        self.model.logs_every_batch = bool(given)  # of gptlit's own none asks for that
        overfitting = Overfitting()
        rows = self.adapted.rows
        report = Report(self.precision_reason, options.samples, overfitting, rows)
        callbacks = [*given, report, overfitting, Throughput()]
        if bar is not None:
            build.say_whose_bar(bar)
        elif settings["enable_progress_bar"]:
            callbacks.append(RunBar())
        if patience := options.early_stopping.patience:
            self._check_validates(patience)
            callbacks.append(Patience(patience))
        settings["callbacks"] = [*callbacks, *own]
        settings["plugins"] = build.plugins(trainer.plugins, trainer.strategy)
        if not trainer.fast_dev_run:
            self.folder = self._open_folder(Path(trainer.default_root_dir or "."))
        with self._undoing():
            if self.folder is not None:
                options.samples.folder = self.folder.path
                settings["callbacks"] += self._saving(self.folder, given)
                settings |= build.in_folder(trainer, self.folder)
                self._describe_run(self.folder.path)
            made = processes.new_trainer(**settings)
        # behind what works between two steps, before what saves
        saves = [isinstance(each, Checkpoint) for each in [*made.callbacks, Checkpoint()]]
        made.callbacks.insert(saves.index(True), self.stopping)
        made.callbacks.remove(report)
        made.callbacks.append(report)
        return made

    def _saving(self, folder: run_folder.RunFolder, given: list[Callback]) -> list[Callback]:
        """What saves the run's checkpoints, if anything does."""
        options = self.config_init[self.subcommand]
        if options.trainer.enable_checkpointing is False:
            return []
        build.keep_names_apart(given, folder.path / "checkpoints")
        monitored = "val/loss" if self.datamodule.has_validation else "train/loss"
        return folder.checkpoints(monitored, options.snapshot_every, options.keep_snapshots)

    def _describe_run(self, folder: Path) -> None:
        """Put config.yaml into the run's folder, and what chose its learning rate."""
        if not processes.on_rank_zero():
            return
        write_atomically(folder / run_folder.CONFIG, self.options_as_yaml.encode())
        for name in self.left_out:
            note(
                f"--{name}: can't be read back from {run_folder.CONFIG} and is left out there; "
                "give it again beside --ckpt_path to resume, unless it is the default"
            )
        if self.trial:
            write_atomically(folder / "lr_find.svg", self.trial.chart().encode())

    def _check_validates(self, patience: int) -> None:
        if not self.datamodule.has_validation or self.options.trainer.limit_val_batches == 0:
            raise UsageError(
                f"--early_stopping.patience {patience}: there is no validation to watch; give "
                "--data.val_fraction above 0, or leave the option out"
            )

    def _refuse_parts_of_a_split(self) -> None:
        trainer = self.options.trainer
        if trainer.barebones:
            raise UsageError(
                "--trainer.barebones true: computes no figures, and they are all that "
                f"{self.subcommand} is for; leave the option out"
            )
        for name, whole in (
            ("limit_val_batches", (None, 1.0)),
            ("limit_test_batches", (None, 1.0)),
            ("fast_dev_run", (None, False)),
        ):
            if trainer[name] not in whole:
                raise UsageError(
                    f"--trainer.{name} {trainer[name]}: the figures are those of the whole split; "
                    "leave the option out"
                )

    def _open_folder(self, root: Path) -> run_folder.RunFolder:
        """The run's folder, new or that of the checkpoint gone on from."""
        self.model.run_config = self.options_as_yaml
        if self.start is None:
            new = functools.partial(run_folder.RunFolder, root / checkpoint.RUNS, place=self.place)
            return self._held(new, root)
        path, step, max_steps = self.start.path, self.start.step, self.options.trainer.max_steps
        if "optimizer_states" not in self.start.content:
            raise UsageError(
                f"--ckpt_path {path}: holds weights but no run to resume; start a new run "
                f"from them by --model.init_from {path}"
            )
        if 0 < max_steps <= step:
            raise UsageError(
                f"--trainer.max_steps {max_steps}: {path} is already at step {step}; give a "
                "larger number to continue"
            )
        trained = self.start.described["text"]
        own = {name: sha256 for name, (_, sha256) in trained["own_texts"].items()}
        self.datamodule.expected_sha256 = {
            name: sha256 for name, sha256 in own.items() if f"data.{name}_path" not in self.given
        } | ({} if self.text_given else {"": trained["sha256"]})
        if processes.on_rank_zero():
            note(f"resuming from {path} at step {step}")
            now = yaml.safe_load(self.options_as_yaml)
            for name, old, new in resuming.changed(self._options_of_start, now):
                note(f"--{name}: {json.dumps(old)} -> {json.dumps(new)}")
        folder = self._held(lambda: run_folder.RunFolder(root / checkpoint.RUNS, path, step), root)
        folder.records = self.start.content.get(loggers.KEY)
        return folder

    def _held(
        self, open_folder: Callable[[], run_folder.RunFolder], root: Path
    ) -> run_folder.RunFolder:
        """The run's folder, which is this process's alone until the command ends."""
        try:
            folder = open_folder()
        except OSError as error:
            raise UsageError(
                f"--trainer.default_root_dir {root}: no run can be kept there "
                f"({error.strerror}); name a folder of yours"
            ) from error
        self.held.enter_context(folder.lock())
        return folder

    @contextlib.contextmanager
    def _undoing(self) -> Iterator[None]:
        """Leave the disk as it was if nothing comes to be trained, by this process or another."""
        trained_before = self.start.step if self.start else 0
        try:
            yield
        except BaseException:
            trainer = getattr(self, "trainer", None)
            if self.folder and (trainer is None or trainer.global_step <= trained_before):
                self.folder.undo()
            raise

    @property
    def _only_looks(self) -> bool:
        """Whether nothing is to be trained, and no run's folder to be made."""
        return self.look is not None or bool(self.options.preflight)

    def prepare(self) -> None:
        """Let text, model and Trainer know of each other, without a fit."""
        trainer, data = self.trainer, self.datamodule
        trainer.datamodule, data.trainer, self.model.trainer = data, trainer, trainer
        data.prepare_data()
        data.setup("fit")

    def tell_adapted(self) -> None:
        """Tell what a run would tell in its start-up block."""
        for change in self.adapted.changes:
            note(f"adapted to this text: {change}")

    def _preflight(self, model: LitGPT) -> None:
        """Make the checks ahead of a run.

        Raises:
            SystemExit: one failed.
        """
        self.tell_adapted()
        self.prepare()
        trainer, data = self.trainer, self.datamodule
        model.configure_model()
        # the checks train by AdamW, which SGD's rates are far too high for
        options = model.options
        lr = preflight.LEAST_LR if options.optimizer == "sgd" else options.lr
        training = preflight.Training(lr, options.warmup_steps, options.betas, options.weight_decay)
        model.net.to(trainer.strategy.root_device)
        batches, new = data.train_dataloader(), options.init_from is None
        if not preflight.run(model.net, data.tokenizer, batches, training, new=new):
            raise SystemExit(1)

    def fit(self, model: LitGPT, **kwargs: Any) -> None:
        if self.look is not None:
            self.look(self)
            return
        if self.options.preflight:
            self._preflight(model)
            return
        trained_before = self.start.step if self.start else 0
        folder = self.folder.path if self.folder else None
        began = time.monotonic()
        with only_shown(), self._undoing():
            run_end.fit(self.trainer, model, self.stopping, folder, trained_before, **kwargs)
            if self.trainer.global_step == trained_before:
                raise NothingToTrain(
                    f"nothing to train: step {trained_before} already reaches --trainer.max_steps "
                    "or --trainer.max_epochs; give a larger number"
                )
        build.say_where_profile(self.trainer.profiler)
        if processes.on_rank_zero():
            seconds = time.monotonic() - began
            note(run_end.summary(self.trainer, self.stopping, folder, seconds))
        processes.leave_together()
        if processes.on_rank_zero() and self.stopping.exit_code:
            raise SystemExit(self.stopping.exit_code)

    def validate(self, model: LitGPT, **kwargs: Any) -> None:
        self._evaluate("val", self.trainer.validate, model, **kwargs)

    def test(self, model: LitGPT, **kwargs: Any) -> None:
        self._evaluate("test", self.trainer.test, model, **kwargs)

    def _evaluate(self, split: str, evaluate: Any, model: LitGPT, **kwargs: Any) -> None:
        with run_end.interruptible(self.trainer):
            (figures,) = evaluate(model, verbose=False, **kwargs)
        if not self.trainer.is_global_zero:
            return
        tokens = self.datamodule.tokens
        self._warn_of_text(split)
        rows = {
            "checkpoint": self.start.path if self.start else "",
            "text": f"{tokens.provenance['name']}, {split} split",
            "tokens": tokens.size(split),
            "bytes": tokens.n_bytes(split),
            **{name: f"{value:.6f}" for name, value in figures.items()},
        }
        if reason := tokens.incomparable(split):
            rows["not comparable"] = f"bits_per_byte: {reason}"
        print_lines("\n".join(f"{name:<20}{value}" for name, value in rows.items()), sys.stdout)

    def _warn_of_text(self, split: str) -> None:
        """Tell of a split that isn't what it seems: trained on, or of a text that changed."""
        assert self.start is not None
        trained, text = self.start.described["text"], self.datamodule.describe_text()
        if trained["sha256"] != text["sha256"] and not self.text_given:
            note(f"warning: {text['name']} has changed since it was trained on")
        if resuming.was_trained_on(split, trained, text):
            note(f"warning: the {split} split overlaps the text that the model was trained on")


def _check_counts(options: Namespace) -> None:
    """Refuse numbers that would fail, or be taken for something else, once the run has begun."""
    least = {
        "snapshot_every": 0,
        "keep_snapshots": 0,
        "early_stopping.patience": 0,
        "trainer.accumulate_grad_batches": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.log_every_n_steps": 0,
        "trainer.gradient_clip_val": 0,
    }
    for name, limit in least.items():
        if (value := options.get(name)) is not None and value < limit:
            raise UsageError(f"--{name} {value}: must be {limit} or more")
    if options.trainer.get("limit_train_batches") == 0:
        raise UsageError("--trainer.limit_train_batches 0: leaves nothing to train on")


def _summarize(cli: GptlitCLI) -> None:
    cli.tell_adapted()
    cli.prepare()
    cli.model.configure_model()
    print(summary.report(cli.trainer, cli.model, cli.precision_reason))


def main(arguments: Sequence[str]) -> None:
    """Run the verb that comes first in `arguments`.

    Raises:
        UsageError: an option, a config, a text or a checkpoint that can't work.
    """
    verb, *rest = arguments
    with lightning_command(), contextlib.ExitStack() as held:
        if verb == "summary":
            if PRINT_CONFIG in rest:
                print("gptlit summary takes the options of gptlit fit, and doesn't train\n")
            GptlitCLI("fit", rest, held, look=_summarize)
        else:
            GptlitCLI(verb, rest, held)
