"""Writes a run's options, leaving out those that can not be read back for a resume."""

import contextlib
import copy
import enum
import functools
import os
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from gptlit.cli.run_options import TEXT_PATHS

Parse = Callable[[Any], Any]
# options of one command, which a resume does not repeat
ONE_COMMAND = ("config", "ckpt_path", "preflight", "lr_find", "trust_checkpoint")
# the default of a class's argument can be an Enum's member, as `interval` of Lightning's Timer
yaml.SafeDumper.add_multi_representer(
    enum.Enum, lambda dumper, each: dumper.represent_data(each.value)
)

# modules of version 0.1.0 with classes that a run's options can name: their present modules
_MOVED = {
    "callbacks.SampleText": "runs.sample_text",
    "callbacks": "runs.report",
    "guard": "training.divergence",
    "overfitting": "training.overfitting",
    "progress_bar": "runs.progress_bar",
    "records": "runs.loggers",
    "saving": "runs.saving",
    "sharding": "training.fsdp2",
    "stopping": "runs.stopping",
}


def read(text: str) -> Any:
    """Return the options of a run from the YAML in its checkpoint.

    Raises:
        yaml.YAMLError: The YAML is invalid, or has tags that name classes.
    """
    return yaml.safe_load(re.sub(r"\bgptlit\.([a-z_]+)\.([A-Z]\w*)", _moved, text))


def _moved(found: re.Match[str]) -> str:
    module, name = found[1], found[2]
    return f"gptlit.{_MOVED.get(f'{module}.{name}') or _MOVED.get(module, module)}.{name}"


def write(options: Namespace, parser: ArgumentParser) -> tuple[str, list[str]]:
    """Return a run's options as YAML, and the dotted names of those that YAML can't hold.

    Args:
        options: Parsed options by group.
        parser: Parser of the options.
    """
    with warnings.catch_warnings():
        # values that can't be written are found below, by reading them
        warnings.simplefilter("ignore")
        dump_all = functools.partial(parser.dump, skip_unset=False, format="yaml")
        dumped, left_out = dump(options, dump_all)
    written = yaml.safe_load(dumped)
    for name in ONE_COMMAND:
        written.pop(name, None)
    for name in TEXT_PATHS:
        if path := written["data"][name]:
            # a resume may be run in another folder
            written["data"][name] = str(Path(path).expanduser().absolute())
    left_out += leave_out(written, options, parser.parse_object)
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True), left_out


def leave_out(written: dict[str, Any], options: Namespace, parse: Parse) -> list[str]:
    """Remove values that can not be parsed again from a run's written options.

    Args:
        written: Options by group, as loaded from YAML; changed in place.
        options: Parsed options that were written.
        parse: Parses options; raises a ValueError or a TypeError where it can't.

    Returns:
        Dotted names of the removed options, and of single arguments of classes where the rest
        of the class can be parsed.
    """

    def reader(group: str, name: str) -> Parse:
        return lambda value: parse(copy.deepcopy({group: {name: value}}))[group][name]

    groups = [group for group, values in written.items() if isinstance(values, dict)]
    named = [(group, name) for group in groups for name in written[group]]
    if _reads(written, None, lambda value: parse(copy.deepcopy(value))):
        named = [(group, name) for group, name in named if _has_class(written[group][name])]
    left_out = []
    for group, name in named:
        value, read = written[group][name], reader(group, name)
        kept, names = _readable(value, options[group][name], read)
        left_out += [f"{group}.{name}{each}" for each in names]
        written[group][name] = kept
        if names and not kept:
            del written[group][name]
    return left_out


def dump(options: Namespace, dump_all: Callable[[Namespace], str]) -> tuple[str, list[str]]:
    """Return options as YAML, and the dotted names of arguments that could not be written.

    Args:
        options: Parsed options by group.
        dump_all: Writes options; raises a ValueError or a TypeError where it can't.
    """
    try:
        return dump_all(options), []
    except (ValueError, TypeError) as error:
        specs = {name: value for name, value in vars(options.trainer).items() if _specs(value)}
        names = [
            f"trainer.{name}.{own}" for name, value in specs.items() for own in _objects(value)
        ]
        if not names:
            raise error
        options = copy.copy(options)
        options.trainer = copy.copy(options.trainer)
        for name, value in specs.items():
            options.trainer[name] = copy.deepcopy(value)
            for spec in _specs(options.trainer[name]):
                for own in _objects(spec):
                    del spec.init_args[own]
        return dump_all(options), names


def _specs(value: Any) -> list[Namespace]:
    """Return the classes that an option names, with their arguments."""
    items = value if isinstance(value, list) else [value]
    return [each for each in items if isinstance(each, Namespace) and "init_args" in each]


def _objects(value: Any) -> list[str]:
    """Return the names of class arguments that YAML can't write, such as an Enum."""
    found = []
    for spec in _specs(value):
        for name, each in vars(spec.init_args).items():
            with contextlib.suppress(Exception):
                yaml.safe_dump(each)
                continue
            if not callable(each):  # jsonargparse writes the import path of a callable
                found.append(name)
    return found


def _has_class(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, dict) and "class_path" in item for item in items)


def _reads(value: Any, original: Any, read: Parse) -> bool:
    try:
        found = read(value)
    except (ValueError, TypeError):
        return False
    return not (_has_class(value) and _differs(found, original))


def _differs(found: Any, original: Any) -> bool:
    """Whether an object was read as a string, which only describes it."""
    if isinstance(found, str):
        return found != original and not isinstance(original, os.PathLike)
    if isinstance(found, list | tuple) and isinstance(original, list | tuple):
        return any(_differs(*pair) for pair in zip(found, original, strict=False))
    if isinstance(found, Namespace) and isinstance(original, Namespace):
        found, original = vars(found), vars(original)
    if isinstance(found, dict) and isinstance(original, dict):
        return any(_differs(found[name], original[name]) for name in found.keys() & original)
    return False


def _readable(value: Any, original: Any, read: Parse) -> tuple[Any, list[str]]:
    """Return the readable part of an option's value, and the names of the other parts."""
    if isinstance(value, list) and _has_class(value):
        parts = [
            _readable(*each, lambda item: read([item])[0])
            for each in zip(value, original, strict=True)
        ]
        kept = [part for part, _ in parts if part is not None]
        return kept, [name for _, names in parts for name in names]
    if _reads(value, original, read):
        return value, []
    if not _has_class(value):
        return None, [""]
    arguments = value.get("init_args") or {}
    changed = _without(value, _lost(value, original, read))
    for each in [changed, *(_without(changed, [name]) for name in arguments)]:
        if _reads(each, original, read):
            return each, [f".{name}" for name in arguments if name not in each["init_args"]]
    return None, [f" {value['class_path']}"]


def _without(value: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    arguments = value.get("init_args") or {}
    kept = {name: each for name, each in arguments.items() if name not in names}
    return {**value, "init_args": kept}


def _lost(value: dict[str, Any], original: Any, read: Parse) -> list[str]:
    """Return the arguments of a class that are read as strings instead of objects."""
    try:
        found = vars(read(value)["init_args"])
    except (ValueError, TypeError, KeyError):
        return []
    return [name for name, each in found.items() if _differs(each, original["init_args"][name])]
