"""Options of runs as flat tables: how they differ from a config, and from each other."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gptlit.checkpoints import run_paths
from gptlit.cli import help_pages
from gptlit.cli.configs import find_config, shipped_configs
from gptlit.flat_options import Options, of_learning, parsed, plain
from gptlit.messages import UsageError
from gptlit.study.spec import short_names
from gptlit.terminal import format_value, printable, shortened

LONGEST_VALUE = 24  # characters of a value in a label


def read(path: Path) -> Options:
    """Return the options in a YAML file by their dotted names.

    Raises:
        UsageError: The file can't be read, or holds no options.
    """
    try:
        if (options := parsed(path.read_text(encoding="utf-8"))) is not None:
            return options
    except OSError as error:
        raise UsageError(f"{path.name}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path.name}: not YAML") from error
    raise UsageError(f"{path.name}: holds no options")


def of_run(run: Path) -> Options:
    """Return the options of a run, without those of the machine.

    Raises:
        UsageError: Its config.yaml can't be read.
    """
    return of_learning(read(run / run_paths.CONFIG))


@functools.cache
def _candidates(extra: tuple[str, ...]) -> dict[str, Options]:
    """Return the options that each config stands for, with the defaults of the others."""
    defaults = {each["name"]: plain(each["default"]) for each in help_pages.options_of("fit")}
    own = {Path(name).stem: find_config(name) for name in extra}
    shipped = {path.stem: path for path in shipped_configs().values()}
    return {name: defaults | read(path) for name, path in (own | shipped).items()}


def nearest_config(options: Options, extra: tuple[str, ...] = ()) -> tuple[str, Options]:
    """Return the config from which options differ least, and the options that differ.

    Args:
        options: Options of a run, which don't name the config that it was started with.
        extra: Names of further configs to compare with; they win over the shipped ones.
    """
    different = {name: _different(options, each) for name, each in _candidates(extra).items()}
    name = min(different, key=lambda name: len(different[name]))
    return name, different[name]


def _different(options: Options, config: Options) -> Options:
    # an option that another version of gptlit had differs only if it has a value
    return {
        name: v for name, v in options.items() if v != config.get(name) and (v or name in config)
    }


def label(options: Options, equals: str = "=", separator: str = ", ") -> str:
    """Format options in one line, by the last parts of their names."""
    short = short_names(options)
    return separator.join(
        f"{short[name]}{equals}{shortened(shown(value), LONGEST_VALUE)}"
        for name, value in options.items()
    )


def shown(value: Any) -> str:
    """Format a value in one line; a path by its last part."""
    if isinstance(value, str) and "/" in value:
        value = Path(value).name
    return printable(format_value(value), one_line=True)


def labels(runs: Sequence[tuple[str, Options]]) -> list[str]:
    """Return a label for each run: the options that differ between them, or else its name.

    Args:
        runs: Name and options of each run; options are empty where they are unknown.
    """
    if len(runs) < 2 or not all(options for _, options in runs):
        return [name for name, _ in runs]
    names = dict.fromkeys(name for _, options in runs for name in options)
    values = {name: {repr(options.get(name)) for _, options in runs} for name in names}
    varied = [name for name in names if len(values[name]) > 1]
    found = [label({name: options.get(name) for name in varied}) for _, options in runs]
    return [
        text if found.count(text) == 1 else ", ".join(filter(None, (name, text)))
        for (name, _), text in zip(runs, found, strict=True)
    ]
