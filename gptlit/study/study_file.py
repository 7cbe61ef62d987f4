"""Reading and checking a study file. Its keys are:

config: tiny.yaml                              # one or more, as --config of gptlit fit
options: {trainer.max_steps: 500}              # common to all runs
settings:                                      # sets of options by name, and ...
  - {name: small, model.n_layer: 2, model.n_embd: 64}
grid: {model.lr: [1e-4, 3e-4]}                 # ... all combinations of values, and ...
random: {runs: 20, seed: 0, over: {model.lr: {from: 1e-4, to: 1e-2, log: true}}}
seeds: [1, 2]                                  # ... each with each seed
teachers: {seeds: [1, 2], model.n_layer: 4}    # runs made first, from which the others learn
metric: val/loss                               # the metric to compare
at: end                                        # of the last validation, or of the best
x: model.lr                                    # option along the plot's axis
power_law: parameters                          # fit loss = E + A / parameters ^ alpha
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from gptlit.cli.configs import read_yaml
from gptlit.messages import UsageError, did_you_mean, errors_about
from gptlit.parser import GROUPS
from gptlit.study.spec import (
    COSTS,
    METRICS,
    TEACHER,
    At,
    Choices,
    Range,
    Search,
    Settings,
    Study,
    as_arguments,
)
from gptlit.terminal import format_value

VARYING = ("settings", "grid", "random", "seeds", "teachers")
COMPARING = ("metric", "at", "x", "power_law")
KEYS = ("config", "options", *VARYING, *COMPARING)
LARGEST_SEED = 2**32 - 1  # of NumPy's generators
# options that do not apply to a study, and what to use instead
REFUSED = {
    "ckpt_path": "the same command resumes a stopped study",
    "preflight": "try gptlit fit --preflight",
    "lr_find": "vary model.lr in the study",
    "minutes": "give trainer.max_steps, the same for all runs",
    "trainer.default_root_dir": "runs are written to lightning_logs/NAME; choose --name",
    "trainer.fast_dev_run": "it saves nothing; try --dry_run",
    "trainer.logger": "a study reads the metrics that its runs log",
}


class _Loader(yaml.SafeLoader):
    """YAML loader that reads 1e-4 as a number, where PyYAML reads a string."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read(path: Path, words: Sequence[str], folder: Path = Path()) -> Study:
    """Read a study file.

    Args:
        path: Path of the file.
        words: Options of `gptlit fit` for all runs, which override the file's common options.
        folder: Folder of the runs.

    Raises:
        UsageError: The file is not a valid study; names the file, the key, and what would work.
    """
    with errors_about(str(path)):
        return _study(path, _content(path), words, folder)


def _content(path: Path) -> dict[str, Any]:
    content = read_yaml(path, _Loader)
    if not isinstance(content, dict):
        raise UsageError("not a study; give a grid, settings, random, seeds or teachers")
    for key in content:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS)
            if str(key).partition(".")[0] in GROUPS:
                hint = f" Options common to all runs belong under options: {{{key}: ...}}"
            raise UsageError(f"{key}: not a key of a study; choose from {', '.join(KEYS)}.{hint}")
    if not any(content.get(key) for key in VARYING):
        raise UsageError("varies nothing; give a grid, settings, random, seeds or teachers")
    return {key: value for key, value in content.items() if value is not None}


def _study(path: Path, content: dict[str, Any], words: Sequence[str], folder: Path) -> Study:
    configs = content.get("config", [])
    configs = [configs] if isinstance(configs, str) else configs
    options = _flat("options", content.get("options", {}))
    named = _named(content.get("settings", []))
    grid = _grid(content.get("grid", {}))
    search = _search(content["random"]) if "random" in content else None
    seeds = _seeds(content["seeds"]) if "seeds" in content else [None]
    teachers, teacher_seeds = _teachers(content.get("teachers"))
    varied = {*grid, *(search.over if search else {})}
    setting_options = list(itertools.chain(*named.values()))
    command_line_options = [word.removeprefix("--").partition("=")[0] for word in words]
    for name in (*options, *varied, *setting_options, *(teachers or ()), *command_line_options):
        if name in REFUSED:
            raise UsageError(f"{name}: does not apply to a study; {REFUSED[name]}")
    if teachers is not None:
        _check_teachers([*options, *teachers, *command_line_options], named, search)
    has_seeds = [*seeds, *teacher_seeds] != [None, None]
    for name in command_line_options:
        if name in varied or (name == "seed_everything" and has_seeds):
            raise UsageError(f"--{name}: is varied by the study; change it in the file")
    for name, choices in {"metric": METRICS, "at": get_args(At), "power_law": COSTS}.items():
        if name in content and content[name] not in choices:
            hint = did_you_mean(str(content[name]), choices)
            raise UsageError(f"{name}: {content[name]}: choose from {', '.join(choices)}.{hint}")
    x, axes = (
        content.get("x"),
        [
            *varied,
            *(["setting"] if named or teachers is not None else []),
            *setting_options,
            *COSTS,
        ],
    )
    if x is not None and x not in axes:
        raise UsageError(f"x: {x}: choose from {', '.join(dict.fromkeys(axes))}")
    if search and search.by == "optuna" and (named or grid):
        raise UsageError("random: by: optuna: excludes settings and grid; leave them out")
    common = [f"--config={config}" for config in configs]
    # also on a machine with several GPUs: runs are made one after another, in one process
    common += ["--trainer.devices=1", *as_arguments(options), *words]
    comparison = {key: content[key] for key in COMPARING if key in content}
    chain = (teachers, teacher_seeds, folder)
    return Study(path, common, named, grid, search, seeds, *chain, **comparison)


def _teachers(content: Any) -> tuple[Settings | None, Sequence[int | None]]:
    """Return the options and seeds of the runs that the others learn from."""
    if content is None:
        return None, [None]
    options = _flat("teachers", content)
    return options, _seeds(options.pop("seeds")) if "seeds" in options else [None]


def _check_teachers(
    options: Sequence[str], named: Mapping[str, Settings], search: Search | None
) -> None:
    if "model.teachers" in options:
        raise UsageError(
            "model.teachers: the study's teachers set it; leave one of both out, or give "
            "model.teachers: [] in a setting that is to learn without them"
        )
    if TEACHER in named:
        raise UsageError(f"settings: {TEACHER}: is the name of the teachers; choose another")
    if search and search.by == "optuna":
        raise UsageError(
            "random: by: optuna: excludes teachers; make them by a study of their own, and give "
            "their checkpoints as options: {model.teachers: [...]}"
        )


def _seeds(seeds: Any) -> list[int]:
    if not (isinstance(seeds, list) and seeds and all(map(_is_seed, seeds))):
        raise UsageError(
            f"seeds: {seeds}: must be a list of whole numbers from 0 to {LARGEST_SEED}, such as "
            "[1, 2]"
        )
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: {seeds}: a seed is given twice; name it once")
    return seeds


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SEED


def _flat(where: str, options: Any) -> Settings:
    """Return options by dotted name; {model: {lr: 1}} becomes {model.lr: 1}."""
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
    named: dict[str, Settings] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or "name" not in entry:
            raise UsageError(
                "settings: must be a list of options with a name, - {name: wide, model.n_embd: 256}"
            )
        if (name := str(entry["name"])) in named:
            raise UsageError(f"settings: {name}: is given twice; each needs a name of its own")
        options = {option: value for option, value in entry.items() if option != "name"}
        named[name] = _flat(f"settings: {name}", options)
    return named


def _grid(grid: Any) -> dict[str, list[Any]]:
    flat = _flat("grid", grid)
    for name, values in flat.items():
        if not isinstance(values, list) or not values:
            raise UsageError(
                f"grid: {name}: {format_value(values)}: must be a list of values, [1, 2]"
            )
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
    flat = _flat("random: over", content["over"])
    over = {name: _choices(name, choices) for name, choices in flat.items()}
    search = Search(runs, seed, over, by)
    if by == "random" and len(search.drawn()) < runs:
        raise UsageError(f"random: runs: {runs}: there are fewer distinct settings; lower runs")
    return search


def _choices(name: str, content: Any) -> Choices:
    if isinstance(content, list) and content:
        return content
    where = f"random: over: {name}: {format_value(content)}"
    keys = {"from", "to", "log"}
    if not isinstance(content, dict) or not keys - {"log"} <= set(content) <= keys:
        raise UsageError(f"{where}: must be a list, or {{from: 1e-4, to: 1e-2, log: true}}")
    low, high, log = content["from"], content["to"], content.get("log", False)
    if not all(type(end) in (int, float) for end in (low, high)) or not low < high:
        raise UsageError(f"{where}: from must be a number below to")
    if log and low <= 0:
        raise UsageError(f"{where}: on a logarithmic scale from must be above 0")
    return Range(low, high, bool(log))
