"""The verbs that need Lightning: fit, summary, validate and test, and `build` for Python.

with build(["small.yaml", "--data.path=my.txt"]) as run:
    run.trainer.fit(run.model, run.data)
"""

import contextlib
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.seed import isolate_rng

from gptlit import __version__, yaml_keys
from gptlit.checkpoints import init_from
from gptlit.cli import lr_find, preflight, run_options, saved_options, summary, trusted_options
from gptlit.cli.adapting import Adapted, adapt, adapt_length
from gptlit.cli.arguments import expand, prints_config
from gptlit.cli.lightning_warnings import lightning_command
from gptlit.cli.user_modules import importable
from gptlit.corpora import inputs
from gptlit.data.datamodule import TextDataModule
from gptlit.messages import UsageError, note, opt, print_lines
from gptlit.model import lora
from gptlit.parser import OneLineErrors, text_of
from gptlit.runs import time_budget, user_parts
from gptlit.runs.build import Plan, Purpose, Run
from gptlit.runs.build import build as build_run
from gptlit.runs.evaluation import evaluate
from gptlit.runs.figures import FigureOptions, Figures
from gptlit.runs.run_end import train
from gptlit.runs.sample_text import SampleOptions, SampleText
from gptlit.steps.distillation import located
from gptlit.training import processes, resuming
from gptlit.training.divergence import Guard
from gptlit.training.module import LitGPT
from gptlit.training.options import ModelOptions

yaml_keys.check_parsed_yaml()

# classes whose arguments are the options of a group
OPTION_CLASSES = {
    "model": ModelOptions,
    "data": TextDataModule,
    "samples": SampleOptions,
    "figures": FigureOptions,
    "guard": Guard,
}


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with errors of one line."""


class GptlitCLI(LightningCLI):
    """Lightning's CLI with gptlit's options and defaults; it builds a run and doesn't start it.

    Args:
        verb: fit, validate or test.
        arguments: Arguments of the verb.
        held: Takes what is closed when the command ends.
        trains: Whether a fit is to be trained, rather than inspected.
        place: Folder of a new run, instead of the next version_N.
    """

    built: Run

    def __init__(
        self,
        verb: str,
        arguments: Sequence[str],
        held: contextlib.ExitStack,
        trains: bool = True,
        place: Path | None = None,
    ) -> None:
        self.verb = verb
        self.arguments = arguments
        self.held = held
        self.trains = trains
        self.place = place
        self.origin: init_from.Origin | None = None
        self.trial: lr_find.Trial | None = None
        self.adapted = Adapted()
        super().__init__(
            LitGPT,
            TextDataModule,
            args=[verb, *arguments],
            parser_class=Parser,
            parser_kwargs={"prog": "gptlit", "allow_abbrev": False, "version": __version__},
            trainer_defaults=run_options.TRAINER_DEFAULTS,
            seed_everything_default=1337,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ------------------------------------------------------------------ the parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        skipped = {"model", "datamodule", "dataloaders", "weights_only"}
        skipped |= {"train_dataloaders", "val_dataloaders"} if self.verb == "fit" else {"verbose"}
        # only the parser of this verb, since each takes 0.1 s to make
        return {self.verb: skipped}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.verb_parser: Any = parser
        parser.link_arguments("model.block_size", "data.block_size")
        # first, since it checks a validation before sample text is written
        parser.add_lightning_class_args(Guard, "guard")
        parser.add_lightning_class_args(SampleText, "samples")
        parser.add_lightning_class_args(Figures, "figures")
        run_options.add_to(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check = functools.partial(trusted_options.check, groups=OPTION_CLASSES)
        line = expand(self.verb, self.arguments, self.verb_parser.option_names(), check)
        words, self.start, self.trusts = line.words, line.start, line.trusts
        folders = [*(path.parent for path in line.configs), Path.cwd()]
        self.held.enter_context(importable(line.texts(), folders))
        # whether the text is given, rather than taken from the checkpoint
        self.text_given = any(word.startswith(run_options.TEXT_OPTIONS) for word in words)
        for word in words:
            # a checkpoint and a config are UTF-8, and could not name such a file
            name, _, value = word.partition("=")
            text_of(name, value or name)
        self.flags = {word.removeprefix("--").split("=")[0] for word in words}
        self.chosen = line.chosen
        super().parse_arguments(parser, [self.verb, *words])
        run_options.check(self.options)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: `expand` has added the checkpoint's options, and flags win over them."""

    @property
    def options(self) -> Namespace:
        """The parsed options of the verb."""
        return self.config[self.verb]

    # ------------------------------------------------------------------ options to use

    def before_instantiate_classes(self) -> None:
        options, trainer = self.options, self.options.trainer
        if options.ckpt_path != (str(self.start.path) if self.start else None):
            raise UsageError(f"ckpt_path {options.ckpt_path}: give it as a flag, --ckpt_path")
        if options.trust_checkpoint and not self.trusts and self.start is not None:
            raise UsageError("trust_checkpoint true: give it as a flag, --trust_checkpoint true")
        for name in user_parts.NAMED:
            trainer[name] = user_parts.as_class(name, trainer[name])
        if processes.are_plain(trainer):
            processes.check(trainer)  # before a text is read
        if options.stride and self.verb == "fit":
            raise UsageError("is an option of validate and test only", "stride", options.stride)
        if options.preflight and self.verb != "fit":
            raise UsageError("--preflight true: is an option of fit only")
        if options.lr_find:
            self._check_used_alone("lr_find", "rate")
            self.trial = lr_find.set_rate(options.model, self._build_trial)
        folder = Path(options.data.data_dir).expanduser() / inputs.PIPES_FOLDER
        for name in run_options.TEXT_PATHS:
            if path := options.data[name]:
                # a resume reads the copy of a pipe, since the pipe is empty then
                options.data[name] = inputs.path_or_copy(path, f"--data.{name}", folder)
        self._take_origin()
        if self.verb == "fit":
            # a study plans runs whose teachers are still to be trained
            teachers = options.model.teachers
            names = [teachers] if isinstance(teachers, str) else teachers
            options.model.teachers = [located(name, must_exist=self.trains) for name in names]
        if self.verb == "fit" and self.start is None:
            self._adapt_to_text()
        if options.minutes:
            self._fit_to_minutes()
        # before the choices below, which a resume makes again
        self.options_as_yaml, self.left_out = saved_options.write(options, self.verb_parser)
        if self.start is not None:
            before, now = self._options_of_start, yaml.safe_load(self.options_as_yaml)
            kind = self.start.described["tokenizer"]["kind"]
            resuming.check_tokenizer(before["data"], now["data"], kind, self.flags)
        if options.data.seed is None:
            options.data.seed = int(options.seed_everything)
        run_options.set_validation_interval(trainer)

    def _check_used_alone(self, name: str, own: str) -> None:
        """Refuse an option that makes a trial before the run, where there is no new run."""
        options = self.options
        for other, is_given in {
            "a verb other than fit": self.verb != "fit" or not self.trains,
            f"--ckpt_path, which resumes a run with its own {own}": self.start is not None,
            "--preflight": options.preflight,
            "--trainer.fast_dev_run": options.trainer.fast_dev_run,
        }.items():
            if is_given:
                raise UsageError(f"is not used with {other}; leave it out", name, options[name])

    def _fit_to_minutes(self) -> None:
        """Choose the number of steps that fits the time, from a trial."""
        options, trainer = self.options, self.options.trainer
        self._check_used_alone("minutes", "number of steps")
        for name in ("trainer.max_steps", "trainer.max_epochs"):
            if name in self.flags:
                reason = f"chooses the number of steps; leave {opt(name)} out"
                raise UsageError(reason, "minutes", options.minutes)
        with tempfile.TemporaryDirectory() as folder, isolate_rng():
            trial = self._build_trial(*time_budget.trial(trainer.max_steps, folder))
            measured = time_budget.measure(trial, options.minutes)
        note(adapt_length(options, self.flags, self.adapted, measured))

    def _build_trial(self, *options: str) -> Run:
        return GptlitCLI("fit", [*self.arguments, *options], self.held, trains=False).built

    def _take_origin(self) -> None:
        """Read the weights that a new run begins with; a resumed run has its own."""
        model = self.options.model
        if self.start is None and model.init_from is not None:
            # a shipped config's block size is for weights that it names itself
            is_own = "model.block_size" in self.chosen or "model.init_from" not in self.chosen
            self.origin = init_from.adopt_sizes(
                model, self.options.data, (*resuming.NOT_IN_WEIGHTS, *lora.OPTIONS), is_own
            )
            self.options.data.block_size = model.block_size
        elif self.start is not None and "model.init_from" in self.flags:
            raise UsageError(
                f"--model.init_from {model.init_from}: begins a new run, and --ckpt_path resumes "
                "one; give one of them"
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

    # ------------------------------------------------------------------ the run

    def instantiate_trainer(self, **_: Any) -> L.Trainer:
        options = self.config_init[self.verb]
        if not processes.are_plain(self.options.trainer):
            processes.check(options.trainer)
        trains = self.trains and not options.preflight
        changed: list[tuple[str, Any, Any]] = []
        if self.verb == "fit" and self.start is not None:
            now = yaml.safe_load(self.options_as_yaml)
            changed = [*resuming.changed(self._options_of_start, now)]
        plan = Plan(
            purpose=cast(Purpose, self.verb if trains else "inspect"),
            options=options,
            config=self.options_as_yaml,
            start=self.start,
            origin=self.origin,
            changes=self.adapted.changes,
            rows=self.adapted.rows,
            changed=changed,
            left_out=self.left_out,
            files={"lr_find.svg": self.trial.chart().encode()} if self.trial else {},
            place=self.place,
            text_given=self.text_given,
            texts=self._texts_of_start() if self.start else {},
        )
        self.built = build_run(plan, self.model, self.datamodule, self.held)
        return self.built.trainer

    def _texts_of_start(self) -> dict[str, str]:
        """Hashes of the checkpoint's texts, without those that are replaced now."""
        assert self.start is not None
        trained = self.start.described["text"]
        hashes = {
            split: sha256
            for split, (_, sha256) in trained["own_texts"].items()
            if f"data.{split}_path" not in self.flags
        }
        return hashes if self.text_given else hashes | {"": trained["sha256"]}

    def _leave_to_caller(self, **_: Any) -> None:
        """Do nothing: the caller of `build` starts the run."""

    fit = validate = test = _leave_to_caller


# ---------------------------------------------------------------------- verbs


def build(
    arguments: Sequence[str], *, verb: str = "fit", trains: bool = True, place: Path | None = None
) -> Run:
    """Build the run that a command would make, without starting it.

    Args:
        arguments: Arguments of the verb, as on the command line.
        verb: fit, validate or test.
        trains: Whether the run is to be trained; otherwise it has no folder, loggers or
            checkpoints, and can only be inspected.
        place: Folder of a new run, instead of the next version_N.

    Returns:
        The run, a context manager that unlocks the run's folder.

    Raises:
        UsageError: An option, a config, a text or a checkpoint is invalid.
    """
    with contextlib.ExitStack() as held:
        run = GptlitCLI(verb, arguments, held, trains, place).built
        run.held = held.pop_all()
    return run


def prepare(run: Run) -> None:
    """Prepare a run that is only inspected, and print how its options were adapted to the text."""
    for change in run.plan.changes:
        note(f"adapted to this text: {change}")
    run.prepare()
    run.model.configure_model()


def main(arguments: Sequence[str]) -> None:
    """Run the verb that comes first in `arguments`.

    Raises:
        UsageError: An option, a config, a text or a checkpoint is invalid.
        SystemExit: A signal stopped the run, or a check of --preflight failed.
    """
    verb, *rest = arguments
    with lightning_command():
        if verb == "summary":
            if prints_config(rest):
                note("summary takes the options of gptlit fit, and doesn't train")
            with build(rest, trains=False) as run:
                prepare(run)
                report = summary.report(run.trainer, run.model, run.precision_reason)
                print_lines(report, sys.stdout)
        elif verb == "fit":
            with build(rest) as run:
                if not run.options.preflight:
                    train(run)
                    return
                prepare(run)
                if not preflight.check_run(run):
                    raise SystemExit(1)
        else:
            with build(rest, verb=verb) as run:
                evaluate(run)
