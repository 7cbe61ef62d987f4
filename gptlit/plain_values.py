"""Finds values in untrusted options from which a command-line parser could make objects.

A parser imports classes and reads files that strings name. So a string is plain only where the
declared types are text, numbers or paths, or where it can name neither a class nor a file.
"""

import collections.abc
import dataclasses
import datetime
import inspect
import os
import re
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_PLAIN = {str, int, float, bool, types.NoneType, datetime.timedelta, Path}
_LISTS = {list, tuple, set, collections.abc.Sequence, collections.abc.Iterable}
_DICTS = {dict, collections.abc.Mapping}
_NAME = re.compile(r"\w+(:\w+)*|#\w+|")  # ddp, bpe:1024, cuda:0, #ff0000
_OF_CLASSES = {"class_path", "init_args", "dict_kwargs", "__path__"}


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the declared type of each named argument; Any if none is declared."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: Any if argument.annotation is argument.empty else argument.annotation
        for name, argument in inspect.signature(function).parameters.items()
        if argument.kind in named and name != "self"
    }


def not_plain(value: Any, hint: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each part that isn't plain data of the declared type.

    Args:
        value: Value from YAML, JSON or a checkpoint.
        hint: Declared type; None if it is unknown, so that only numbers are plain.
        name: Dotted name of the value.
    """
    yield from _not_plain(value, [] if hint is None else alternatives(hint), name)


def _not_plain(value: Any, members: Sequence[Any], name: str) -> Iterator[tuple[str, Any]]:
    if value is None or isinstance(value, bool | int | float):
        return
    if isinstance(value, str):
        if not _is_plain_string(value, members):
            yield name, value
    elif isinstance(value, list | tuple):
        within = [hint for member in members for hint in _items(member, _LISTS)]
        if not within:
            yield name, value
        for index, item in enumerate(value):
            yield from _not_plain(item, within, f"{name}[{index}]")
    elif isinstance(value, dict):
        within = [hint for member in members for hint in _items(member, _DICTS)]
        options = filter(dataclasses.is_dataclass, members)
        hints_of_fields = {f.name: f.type for each in options for f in dataclasses.fields(each)}
        for key, item in value.items():
            hints = alternatives(hints_of_fields[key]) if key in hints_of_fields else within
            if key in _OF_CLASSES or not hints:
                yield f"{name}.{key}", item
            else:
                yield from _not_plain(item, hints, f"{name}.{key}")
    else:
        yield name, value


def alternatives(kind: Any) -> list[Any]:
    """Return the types of a union; of another type, only itself."""
    if get_origin(kind) in (Union, types.UnionType):
        return [each for part in get_args(kind) for each in alternatives(part)]
    return alternatives(get_args(kind)[0]) if get_origin(kind) is Annotated else [kind]


def _items(member: Any, containers: Any) -> list[Any]:
    """Return the types of a container's items; of other types, an empty list."""
    if member is Any:
        return [Any]
    if (get_origin(member) or member) not in containers:
        return []
    arguments = [each for each in get_args(member) if each is not Ellipsis]
    if get_origin(member) in _DICTS:
        arguments = arguments[1:]
    return [hint for part in arguments or [Any] for hint in alternatives(part)]


def _is_plain_string(value: str, members: Sequence[Any]) -> bool:
    if any(value in get_args(each) for each in members if get_origin(each) is Literal):
        return True
    takes_strings = any(each in (str, Path, datetime.timedelta, Any) for each in members)
    is_free = not any(map(_may_become_an_object, members))
    if is_free and takes_strings:
        return True
    # for other types the parser may read the file of that name
    if os.path.exists(value) and not os.path.isdir(value):
        return False
    if is_free:
        return any(each in (int, float) for each in members) and _is_number(value)
    # one of several names, or the name of a setting
    return takes_strings and bool(_NAME.fullmatch(value))


def _is_number(value: str) -> bool:
    """Whether text is a number; YAML 1.1 reads 1e-4 as text."""
    try:
        float(value)
    except ValueError:
        return False
    return True


def _may_become_an_object(member: Any) -> bool:
    origin = get_origin(member)
    if member in _PLAIN or origin is Literal:
        return False
    if origin in _LISTS | _DICTS:
        hints = [hint for part in get_args(member) for hint in alternatives(part)]
        return any(_may_become_an_object(hint) for hint in hints if hint is not Ellipsis)
    return True
