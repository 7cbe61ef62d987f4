"""Options of runs as flat tables: how they differ from a config, and from each other."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gptlit.checkpoints import run_paths
from gptlit.cli import help_pages
from gptlit.cli.configs import find_config, shipped_configs
from gptlit.messages import UsageError
from gptlit.study.spec import short_names
from gptlit.terminal import format_value, printable, shortened

Options = dict[str, Any]
# they change where and how a run is made, and not what it learns
OF_THE_MACHINE = {
    "data.data_dir", "data.on_device", "threads", "trainer.accelerator", "trainer.default_root_dir",
    "trainer.devices", "trainer.enable_model_summary", "trainer.enable_progress_bar",
}  # fmt: skip
LONGEST_VALUE = 24  # characters of a value in a label


def flat(options: Mapping[str, Any], prefix: str = "") -> Options:
    """Return nested options by their dotted names."""
    found: Options = {}
    for name, value in options.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """Return a value as a parser of options reads it, and other types, such as dates, as text."""
    if isinstance(value, str):
        # YAML takes 1e-3 for text
        return float(value) if re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", value) else value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def read(path: Path) -> Options:
    """Return the options in a YAML file by their dotted names.

    Raises:
        UsageError: The file can't be read, or holds no options.
    """
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), loader)
        if isinstance(content, dict):
            return flat(content)
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
    options = read(run / run_paths.CONFIG)
    return {name: value for name, value in options.items() if name not in OF_THE_MACHINE}


@functools.cache
def _candidates(extra: tuple[str, ...]) -> dict[str, Options]:
    """Return the options that each config stands for, with the defaults of the others."""
    defaults = {each["name"]: _plain(each["default"]) for each in help_pages.options_of("fit")}
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
        f"{short[name]}{equals}{shortened(_shown(value), LONGEST_VALUE)}"
        for name, value in options.items()
    )


def _shown(value: Any) -> str:
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
