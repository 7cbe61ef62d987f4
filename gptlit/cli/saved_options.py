"""Writes a run's options as YAML, without those that a resume could not read, and reads them."""

import contextlib
import copy
import enum
import os
import re
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from gptlit.cli.run_options import OF_EVALUATION, TEXT_PATHS

Parse = Callable[[Any], Any]
# options of one command, which a resume does not repeat
ONE_COMMAND = (
    *("config", "ckpt_path", "preflight", "lr_find", "minutes", "trust_checkpoint"),
    *(name.removeprefix("--") for name in OF_EVALUATION),
)
# the default of a class's argument can be an Enum's member, as `interval` of Lightning's Timer
yaml.SafeDumper.add_multi_representer(
    enum.Enum, lambda dumper, each: dumper.represent_data(each.value)
)

# modules of version 0.1.0 whose classes a run's options can name, and their present modules
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
    """Return the options of a run from the YAML in its checkpoint, with present class paths.

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
        dumped, left_out = _dump(options, parser)
    written = yaml.safe_load(dumped)
    for name in ONE_COMMAND:
        written.pop(name, None)
    for name in TEXT_PATHS:
        if path := written["data"][name]:
            # a resume may be run in another folder
            written["data"][name] = str(Path(path).expanduser().absolute())
    left_out += _leave_out(written, options, parser.parse_object)
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True), left_out


def _dump(options: Namespace, parser: ArgumentParser) -> tuple[str, list[str]]:
    """Return options as YAML, and the dotted names of arguments that could not be written."""
    try:
        return parser.dump(options, skip_unset=False, format="yaml"), []
    except (ValueError, TypeError):
        options, left_out = options.clone(), []
        for name, value in vars(options.trainer).items():
            for spec in _specs(value):
                for argument in _unwritable(spec.init_args):
                    del spec.init_args[argument]
                    left_out.append(f"trainer.{name}.{argument}")
        if not left_out:
            raise
        return parser.dump(options, skip_unset=False, format="yaml"), left_out


def _specs(value: Any) -> list[Namespace]:
    """Return the classes that an option names, with their arguments."""
    items = value if isinstance(value, list) else [value]
    return [each for each in items if isinstance(each, Namespace) and "init_args" in each]


def _unwritable(arguments: Namespace) -> list[str]:
    """Return the names of arguments that YAML can't write, such as a torch.device."""
    found = []
    for name, value in vars(arguments).items():
        with contextlib.suppress(Exception):
            yaml.safe_dump(value)
            continue
        if not callable(value):  # jsonargparse writes the import path of a callable
            found.append(name)
    return found


def _leave_out(written: dict[str, Any], options: Namespace, parse: Parse) -> list[str]:
    """Remove values that cannot be parsed again from a run's written options.

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
    if _can_read(written, None, lambda value: parse(copy.deepcopy(value))):
        named = [(group, name) for group, name in named if _has_class(written[group][name])]
    left_out = []
    for group, name in named:
        value, read = written[group][name], reader(group, name)
        readable, parts = _readable(value, options[group][name], read)
        left_out += [f"{group}.{name}{part}" for part in parts]
        written[group][name] = readable
        if parts and not readable:
            del written[group][name]
    return left_out


def _has_class(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, dict) and "class_path" in item for item in items)


def _can_read(value: Any, original: Any, read: Parse) -> bool:
    try:
        parsed = read(value)
    except (ValueError, TypeError):
        return False
    return not (_has_class(value) and _became_text(parsed, original))


def _became_text(parsed: Any, original: Any) -> bool:
    """Whether an object was read as a string, which only describes it."""
    if isinstance(parsed, str):
        return parsed != original and not isinstance(original, os.PathLike)
    if isinstance(parsed, list | tuple) and isinstance(original, list | tuple):
        return any(_became_text(*pair) for pair in zip(parsed, original, strict=False))
    if isinstance(parsed, Namespace) and isinstance(original, Namespace):
        parsed, original = vars(parsed), vars(original)
    if isinstance(parsed, dict) and isinstance(original, dict):
        return any(_became_text(parsed[name], original[name]) for name in parsed.keys() & original)
    return False


def _readable(value: Any, original: Any, read: Parse) -> tuple[Any, list[str]]:
    """Return the readable part of an option's value, and the names of the other parts."""
    if isinstance(value, list) and _has_class(value):
        items = [
            _readable(*each, lambda item: read([item])[0])
            for each in zip(value, original, strict=True)
        ]
        readable = [item for item, _ in items if item is not None]
        return readable, [part for _, parts in items for part in parts]
    if _can_read(value, original, read):
        return value, []
    if not _has_class(value):
        return None, [""]
    arguments = value.get("init_args") or {}
    without_texts = _without(value, _texts(value, original, read))
    for each in [without_texts, *(_without(without_texts, [name]) for name in arguments)]:
        if _can_read(each, original, read):
            return each, [f".{name}" for name in arguments if name not in each["init_args"]]
    return None, [f" {value['class_path']}"]


def _without(value: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    arguments = value.get("init_args") or {}
    kept = {name: each for name, each in arguments.items() if name not in names}
    return {**value, "init_args": kept}


def _texts(value: dict[str, Any], original: Any, read: Parse) -> list[str]:
    """Return the arguments of a class that are read as strings instead of objects."""
    try:
        parsed = vars(read(value)["init_args"])
    except (ValueError, TypeError, KeyError):
        return []
    originals = original["init_args"]
    return [name for name, each in parsed.items() if _became_text(each, originals[name])]
