"""A study: what its runs have in common, what differs, and the runs that follow from it."""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gptlit.checkpoints import run_paths
from gptlit.messages import UsageError
from gptlit.terminal import format_value
from gptlit.training.logged_metrics import COMPARED_METRICS, VALIDATION_METRICS

Settings = dict[str, Any]
At = Literal["end", "best"]
METRICS = (*VALIDATION_METRICS, "train/loss_eval", *COMPARED_METRICS)
COSTS = ("parameters", "tokens", "flops")  # of a run
MAX_DRAWS = 1000  # for each random run, until it differs from all others
LONGEST_NAME = 150
HASH_CHARS = 8
TEACHER, STUDENT = "teacher", "student"  # settings of a study with teachers


@dataclass(frozen=True)
class Setup:
    """A run of a study.

    Args:
        name: Name of its folder.
        settings: Options that differ from run to run; "setting" holds the name of an entry of
            `settings`, whose options are not repeated.
        seed: Seed of the run; None where the study names none.
        arguments: Arguments of `gptlit fit`.
    """

    name: str
    settings: Settings
    seed: int | None
    arguments: Sequence[str]


@dataclass(frozen=True)
class Range:
    """A range of numbers to draw from; of whole numbers if both ends are whole."""

    low: float
    high: float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the range contains whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, generator: random.Random) -> float:
        """Draw a number, of three significant digits, so that it is easy to type."""
        if self.is_whole and not self.log:
            return generator.randint(int(self.low), int(self.high))
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        drawn = generator.uniform(low, high)
        return self.rounded(math.exp(drawn) if self.log else drawn)

    def rounded(self, value: float) -> float:
        """Round a value as `draw` does, and limit it to the range."""
        value = round(value) if self.is_whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)


Choices = Range | list[Any]


@dataclass(frozen=True)
class Search:
    """Settings that are drawn at random, or proposed by optuna from earlier results.

    Args:
        runs: Number of settings.
        seed: Seed of the draws.
        over: Values to choose from, by option.
        by: random, or optuna, whose sampler (TPE) learns from earlier results.
    """

    runs: int
    seed: int
    over: Mapping[str, Choices]
    by: Literal["random", "optuna"] = "random"

    def drawn(self) -> list[Settings]:
        """Draw distinct settings. With a larger `runs` the first ones stay the same."""
        generator = random.Random(self.seed)
        distinct: dict[str, Settings] = {}
        for _ in range(MAX_DRAWS * self.runs):
            if len(distinct) == self.runs:
                break
            drawn = {
                name: values.draw(generator)
                if isinstance(values, Range)
                else generator.choice(values)
                for name, values in self.over.items()
            }
            distinct.setdefault(repr(drawn), drawn)
        return list(distinct.values())


@dataclass(frozen=True)
class Study:
    """The content of a study file, with the options given on the command line.

    Args:
        path: Path of the file.
        common: Arguments of `gptlit fit` for all runs.
        named: Sets of options by name.
        grid: Values of each option; all combinations are made.
        search: Random or proposed settings; None for none.
        seeds: Seeds of each setting's runs; [None] where the file has none.
        teachers: Options of the runs that are made first, from whose checkpoints the others learn;
            None where there are none.
        teacher_seeds: Seeds of these runs.
        folder: Folder of the runs.
        metric: The metric to compare, one of METRICS; for all of them less is better.
        at: Compare the last validation of each run (end), or the one with the best metric.
        x: Option or cost along the plot's axis; None to choose one.
        power_law: The cost, one of COSTS, of which a power law is fitted; None for no power law.
    """

    path: Path
    common: Sequence[str] = ()
    named: Mapping[str, Settings] = field(default_factory=dict)
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    search: Search | None = None
    seeds: Sequence[int | None] = (None,)
    teachers: Settings | None = None
    teacher_seeds: Sequence[int | None] = (None,)
    folder: Path = Path()
    metric: str = "val/loss"
    at: At = "end"
    x: str | None = None
    power_law: str | None = None

    def setups(self) -> list[Setup]:
        """List all runs in the order in which they are made; none if optuna proposes them.

        Raises:
            UsageError: Two runs are the same.
        """
        if self.search and self.search.by == "optuna":
            return []
        drawn = self.search.drawn() if self.search else [{}]
        setups = {setup.name: setup for setup in self.teacher_setups()}
        default = None if self.teachers is None else STUDENT
        for setting, values, draws in itertools.product(
            self.named or [default], itertools.product(*self.grid.values()), drawn
        ):
            combination = dict(zip(self.grid, values, strict=True))
            for setup in self.setups_of(combination | draws, setting):
                if setup.name in setups:
                    raise UsageError(f"{self.path}: two runs are the same: {setup.name}")
                setups[setup.name] = setup
        return list(setups.values())

    def teacher_setups(self) -> list[Setup]:
        """List the runs that the others learn from."""
        if self.teachers is None:
            return []
        return self._setups({"setting": TEACHER}, self.teachers, self.teacher_seeds)

    def setups_of(self, values: Settings, setting: str | None = None) -> list[Setup]:
        """List the runs of one setting, one for each seed."""
        settings = ({} if setting is None else {"setting": setting}) | values
        options = {name: v for name, v in self.values(settings).items() if name != "setting"}
        if self.teachers is not None:
            # the checkpoints of which the study compares the metric
            name = "best" if self.at == "best" else "last"
            paths = [
                str(self.folder / setup.name / run_paths.CHECKPOINTS / f"{name}.ckpt")
                for setup in self.teacher_setups()
            ]
            options = {"model.teachers": paths, **options}
        return self._setups(settings, options, self.seeds)

    def _setups(
        self, settings: Settings, options: Settings, seeds: Sequence[int | None]
    ) -> list[Setup]:
        arguments = [*self.common, *as_arguments(options)]
        setups = []
        for seed in seeds:
            name_parts = settings if seed is None else {**settings, "seed": seed}
            seed_argument = [] if seed is None else [f"--seed_everything={seed}"]
            setups.append(
                Setup(_folder_name(name_parts), settings, seed, [*arguments, *seed_argument])
            )
        return setups

    def values(self, settings: Settings) -> Settings:
        """Return all options of a setting, with those of the entry of `settings` that it names."""
        named = self.named if self.teachers is None else {**self.named, TEACHER: self.teachers}
        return {**named.get(settings.get("setting", ""), {}), **settings}


def _folder_name(shown: Settings) -> str:
    """Name a run's folder by its settings, with a hash where the name would be ambiguous."""
    name = _cleaned(setting_label(shown, "=", ",")).lstrip(".") or "run"
    # the user chose the names of settings; if two become the same folder, they are refused
    values = [value for option, value in shown.items() if option != "setting"]
    if len(name) <= LONGEST_NAME and all(map(_is_exact, values)):
        return name
    digest = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:HASH_CHARS]
    return f"{name[: LONGEST_NAME - HASH_CHARS - 1]}-{digest}"


def _cleaned(name: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "-", name)


def _is_exact(value: Any) -> bool:
    """Whether a folder's name identifies the value, neither rounded nor cleaned."""
    shown = format_value(value)
    return float(shown) == value if isinstance(value, float) else _cleaned(shown) == shown


def setting_label(settings: Settings, equals: str = " ", separator: str = ", ") -> str:
    """Format settings as `name value, name value`; a named setting is shown by its name."""
    short = short_names(settings)
    return separator.join(
        format_value(value) if name == "setting" else f"{short[name]}{equals}{format_value(value)}"
        for name, value in settings.items()
    )


def short_names(names: Collection[str]) -> dict[str, str]:
    """Map dotted names to their last parts; a name keeps its group where two would be equal."""
    leaves = [name.rpartition(".")[2] for name in names]
    return {
        name: leaf if leaves.count(leaf) == 1 else name
        for name, leaf in zip(names, leaves, strict=True)
    }


def as_arguments(options: Settings) -> list[str]:
    """Format options as arguments of `gptlit fit`."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in options.items()
    ]
