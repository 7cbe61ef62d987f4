"""A study file: what its runs have in common, what differs, and the runs that follow.

config: tiny.yaml                              # one or more, as --config of gptlit fit
options: {trainer.max_steps: 500}              # common to all runs
settings:                                      # sets of options by name, and ...
  - {name: small, model.n_layer: 2, model.n_embd: 64}
grid: {model.lr: [1e-4, 3e-4]}                 # ... all combinations of values, and ...
random: {runs: 20, seed: 0, over: {model.lr: {from: 1e-4, to: 1e-2, log: true}}}
seeds: [1, 2]                                  # ... each by each seed
metric: val/loss                               # what is compared, at: end or best
"""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from gptlit.corpora.text_encodings import not_utf8
from gptlit.messages import UsageError, did_you_mean
from gptlit.parser import GROUPS
from gptlit.yaml_keys import refuse_duplicates

Settings = dict[str, Any]
At = Literal["end", "best"]
KEYS = (
    "config",
    "options",
    "settings",
    "grid",
    "random",
    "seeds",
    "metric",
    "at",
    "x",
    "power_law",
)
METRICS = ("val/loss", "val/bits_per_byte", "val/perplexity", "val/gap", "train/loss_eval")
FIGURES = ("parameters", "tokens", "flops")  # of a run, beside its options
DRAWS = 1000  # for each run, of random ones that all differ
LONGEST_NAME = 150
HASH_CHARS = 8
LARGEST_SEED = 2**32 - 1  # of NumPy's generators
# options that have no part in a study, and what has
REFUSED = {
    "ckpt_path": "the same command again goes on where a study stopped",
    "preflight": "try gptlit fit --preflight",
    "lr_find": "a study varies model.lr itself",
    "trainer.default_root_dir": "its runs lie under lightning_logs/NAME; choose --name",
    "trainer.fast_dev_run": "it keeps nothing of a run; try --dry_run",
    "trainer.logger": "it reads what its runs log",
}


@dataclass(frozen=True)
class Setup:
    """A run of a study.

    Args:
        name: Its folder's.
        settings: What differs from run to run, by option; "setting" for a name out of
            `settings`, whose options are not told one by one.
        seed: None where the study names none.
        words: The arguments of `gptlit fit`.
    """

    name: str
    settings: Settings
    seed: int | None
    words: Sequence[str]


@dataclass(frozen=True)
class Range:
    """Numbers to draw from: whole ones if both ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it has whole numbers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, dice: random.Random) -> float:
        """A number of three significant digits, so that it can be typed."""
        if self.is_whole and not self.log:
            return dice.randint(int(self.low), int(self.high))
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        drawn = dice.uniform(low, high)
        return self.rounded(math.exp(drawn) if self.log else drawn)

    def rounded(self, value: float) -> float:
        """As a value of the range is written."""
        value = round(value) if self.is_whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)


Choice = Range | list[Any]


@dataclass(frozen=True)
class Search:
    """Random runs, or ones that each follow from the results before.

    Args:
        runs: How many.
        seed: Of the draws.
        over: What is drawn from, by option.
        by: random, or optuna, whose sampler learns from what was found (TPE).
    """

    runs: int
    seed: int
    over: Mapping[str, Choice]
    by: Literal["random", "optuna"] = "random"

    def drawn(self) -> list[Settings]:
        """Distinct draws; of more `runs` they are the first."""
        dice = random.Random(self.seed)
        found: dict[str, Settings] = {}
        for _ in range(DRAWS * self.runs):
            if len(found) == self.runs:
                break
            drawn = {name: _draw(choice, dice) for name, choice in self.over.items()}
            found.setdefault(repr(drawn), drawn)
        return list(found.values())


def _draw(choice: Choice, dice: random.Random) -> Any:
    return choice.draw(dice) if isinstance(choice, Range) else dice.choice(choice)


@dataclass(frozen=True)
class Study:
    """All of a study file, and what stands beside it on the command line.

    Args:
        path: Of the file.
        common: Arguments of `gptlit fit`, for all runs.
        named: Sets of options by name.
        grid: Values of each option.
        search: More sets of options, drawn; None for none.
        seeds: Of each setting's runs; [None] where none is named.
        metric: Which of METRICS is compared; of all, less is better.
        at: The last validation of a run, or the one in which the metric was best.
        x: What the plot has along its axis; None for what suits.
        power_law: Which of FIGURES a power law of the metric is in; None for none.
    """

    path: Path
    common: Sequence[str] = ()
    named: Mapping[str, Settings] | None = None
    grid: Mapping[str, list[Any]] | None = None
    search: Search | None = None
    seeds: Sequence[int | None] = (None,)
    metric: str = "val/loss"
    at: At = "end"
    x: str | None = None
    power_law: str | None = None

    def setups(self) -> list[Setup]:
        """Every run, in the order in which they are made; none of a search by optuna.

        Raises:
            UsageError: two runs that are the same.
        """
        if self.search and self.search.by == "optuna":
            return []
        drawn = self.search.drawn() if self.search else [{}]
        found: dict[str, Setup] = {}
        for setting, values, draws in itertools.product(
            self.named or [None], self._combinations(), drawn
        ):
            for each in self.of(values | draws, setting):
                if each.name in found:
                    raise UsageError(f"{self.path}: two runs are the same: {each.name}")
                found[each.name] = each
        return list(found.values())

    def _combinations(self) -> Iterator[Settings]:
        grid = self.grid or {}
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))

    def of(self, values: Settings, setting: str | None = None) -> list[Setup]:
        """The runs of one setting, one for each seed."""
        own = (self.named or {})[setting] if setting is not None else {}
        shown = ({} if setting is None else {"setting": setting}) | values
        words = [*self.common, *as_words(own | values)]
        setups = []
        for seed in self.seeds:
            named = shown if seed is None else {**shown, "seed": seed}
            seeded = [] if seed is None else [f"--seed_everything={seed}"]
            setups.append(Setup(self._folder(named), shown, seed, [*words, *seeded]))
        return setups

    def values(self, settings: Settings) -> Settings:
        """All options that a setting has of its own."""
        return (self.named or {}).get(settings.get("setting", ""), {}) | settings

    def _folder(self, shown: Settings) -> str:
        short = short_names(shown)
        parts = [
            told(value) if name == "setting" else f"{short[name]}={told(value)}"
            for name, value in shown.items()
        ]
        name = _cleaned(",".join(parts)).lstrip(".") or "run"
        # names of settings are told apart by who chose them, or refused
        values = [value for option, value in shown.items() if option != "setting"]
        if len(name) <= LONGEST_NAME and all(map(_is_told_whole, values)):
            return name
        digest = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:HASH_CHARS]
        return f"{name[: LONGEST_NAME - HASH_CHARS - 1]}-{digest}"


def _cleaned(name: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "-", name)


def _is_told_whole(value: Any) -> bool:
    """Whether a folder's name tells a value from all others."""
    shown = told(value)
    return float(shown) == value if isinstance(value, float) else _cleaned(shown) == shown


def told(value: Any) -> str:
    """A value as tables and names have it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def short_names(names: Sequence[str] | Settings) -> dict[str, str]:
    """The last part of each dotted name, or all of it where another ends alike."""
    leaves = [name.rpartition(".")[2] for name in names]
    return {
        name: leaf if leaves.count(leaf) == 1 else name
        for name, leaf in zip(names, leaves, strict=True)
    }


def as_words(options: Settings) -> list[str]:
    """Options as arguments of `gptlit fit`."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in options.items()
    ]


# ---------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML with 1e-4 as a number, which PyYAML takes for a string."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read(path: Path, words: Sequence[str]) -> Study:
    """The study of a file.

    Args:
        path: Of the file.
        words: Options of `gptlit fit` for all of its runs, which win over the file's common ones.

    Raises:
        UsageError: not a study; names the file, the key, and what would work.
    """
    try:
        return _study(path, _content(path), words)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _content(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)
    except UnicodeDecodeError as error:
        raise UsageError(not_utf8(error)) from error
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {' '.join(str(error).split())}") from error
    refuse_duplicates(text)
    if not isinstance(content, dict):
        raise UsageError("no study; it needs a grid, settings, random or seeds")
    for key in content:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            if str(key).partition(".")[0] in GROUPS:
                hint = f" What all runs have in common stands under options: {{{key}: ...}}"
            raise UsageError(f"{key}: no part of a study; choose from {', '.join(KEYS)}.{hint}")
    if not any(content.get(key) for key in ("settings", "grid", "random", "seeds")):
        raise UsageError("varies nothing; give a grid, settings, random or seeds")
    return {key: value for key, value in content.items() if value is not None}


def _study(path: Path, content: dict[str, Any], words: Sequence[str]) -> Study:
    configs = content.get("config", [])
    configs = [configs] if isinstance(configs, str) else configs
    options = _flat("options", content.get("options", {}))
    named = _named(content["settings"]) if "settings" in content else None
    grid = _grid(content["grid"]) if "grid" in content else None
    search = _search(content["random"]) if "random" in content else None
    seeds = content.get("seeds", [None])
    if "seeds" in content and not (isinstance(seeds, list) and seeds and all(map(_is_seed, seeds))):
        raise UsageError(
            f"seeds: {seeds}: must be a list of whole numbers from 0 to {LARGEST_SEED}, such as "
            "[1, 2]"
        )
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: {seeds}: one is given twice; name it once")
    varied = {*(grid or {}), *(search.over if search else {})}
    for name in itertools.chain(options, varied, *(named or {}).values()):
        _check_name(name)
    _check_words(words, varied | ({"seed_everything"} if seeds != [None] else set()))
    for name, of in {"metric": METRICS, "at": get_args(At), "power_law": FIGURES}.items():
        if name in content and content[name] not in of:
            hint = did_you_mean(str(content[name]), of)
            raise UsageError(f"{name}: {content[name]}: choose from {', '.join(of)}.{hint}")
    own = itertools.chain(*(named or {}).values())
    x, along = content.get("x"), [*varied, *(["setting"] if named else []), *own, *FIGURES]
    if x is not None and x not in along:
        raise UsageError(f"x: {x}: choose from {', '.join(dict.fromkeys(along))}")
    if search and search.by == "optuna" and (named or grid):
        raise UsageError("random: by: optuna: has no part beside settings or grid; leave them out")
    common = [f"--config={each}" for each in configs]
    # on a machine of several GPUs as well: the runs are made one after the other, in one process
    common += ["--trainer.devices=1", *as_words(options), *words]
    rest = {key: content[key] for key in ("metric", "at", "x", "power_law") if key in content}
    return Study(path, common, named, grid, search, seeds, **rest)


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SEED


def _flat(where: str, options: Any) -> Settings:
    """Options by their dotted names, groups of them opened."""
    if not isinstance(options, dict):
        raise UsageError(f"{where}: {options}: must be options by name, {{model.n_layer: 2}}")
    flat: Settings = {}
    for name, value in options.items():
        if name in GROUPS and isinstance(value, dict):
            flat |= {f"{name}.{leaf}": each for leaf, each in value.items()}
        else:
            flat[str(name)] = value
    return flat


def _named(entries: Any) -> dict[str, Settings]:
    if not isinstance(entries, list) or not all(
        isinstance(each, dict) and "name" in each for each in entries
    ):
        raise UsageError(
            "settings: must be a list of options with a name, - {name: wide, model.n_embd: 256}"
        )
    named: dict[str, Settings] = {}
    for each in entries:
        if (name := str(each["name"])) in named:
            raise UsageError(f"settings: {name}: is given twice")
        own = {option: value for option, value in each.items() if option != "name"}
        named[name] = _flat(f"settings: {name}", own)
    return named


def _grid(grid: Any) -> dict[str, list[Any]]:
    flat = _flat("grid", grid)
    for name, values in flat.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"grid: {name}: {told(values)}: must be a list of values, [1, 2]")
    return flat


def _search(content: Any) -> Search:
    keys = {"runs", "seed", "over", "by"}
    if not isinstance(content, dict) or not {"runs", "over"} <= set(content) <= keys:
        raise UsageError(
            "random: needs runs and over, and may have seed and by: "
            "{runs: 20, over: {model.lr: {from: 1e-4, to: 1e-2, log: true}}}"
        )
    runs, seed, by = content["runs"], content.get("seed", 0), content.get("by", "random")
    if type(runs) is not int or runs < 1:
        raise UsageError(f"random: runs: {runs}: must be 1 or more")
    if not _is_seed(seed):
        raise UsageError(f"random: seed: {seed}: must be a whole number from 0 to {LARGEST_SEED}")
    if by not in ("random", "optuna"):
        raise UsageError(f"random: by: {by}: choose from random, optuna")
    over = {
        name: _choice(name, each) for name, each in _flat("random: over", content["over"]).items()
    }
    search = Search(runs, seed, over, by)
    if by == "random" and len(search.drawn()) < runs:
        raise UsageError(f"random: runs: {runs}: there are not so many distinct settings")
    return search


def _choice(name: str, given: Any) -> Choice:
    if isinstance(given, list) and given:
        return given
    where = f"random: over: {name}: {told(given)}"
    if not isinstance(given, dict) or not {"from", "to"} <= set(given) <= {"from", "to", "log"}:
        raise UsageError(f"{where}: must be a list, or {{from: 1e-4, to: 1e-2, log: true}}")
    low, high, log = given["from"], given["to"], given.get("log", False)
    if not all(type(end) in (int, float) for end in (low, high)) or not low < high:
        raise UsageError(f"{where}: from must be a number below to")
    if log and low <= 0:
        raise UsageError(f"{where}: on a logarithmic scale from must be above 0")
    return Range(low, high, bool(log))


def _check_name(name: str) -> None:
    if name in REFUSED:
        raise UsageError(f"{name}: has no part in a study; {REFUSED[name]}")


def _check_words(words: Sequence[str], varied: set[str]) -> None:
    """Refuse options beside the file that it varies, or that have no part in a study."""
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        _check_name(name)
        if name in varied:
            raise UsageError(f"--{name}: is what the study varies; change it in the file")
