"""Checks plain data from untrusted files, numbers, strings and containers, against type hints.

The hints are `int`, `str | None`, `list[str]`, `dict[str, float]`, Literals and TypedDicts.
"""

import dataclasses
import functools
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from gptlit.messages import UsageError, opt
from gptlit.plain_values import alternatives
from gptlit.terminal import printable

LARGEST_JSON = 256 * 2**20  # bytes; the largest tokenizer.json in use has a tenth of that
DEEPEST = 50  # levels of nesting; a checkpoint has 8
CONTAINERS = (dict, list, tuple, set, frozenset)
SHOWN = 40  # characters of a value in a message

NAMES: dict[Any, str] = {
    int: "a whole number of at most 64 bits",
    float: "a number",
    bool: "true or false",
    str: "text",
    bytes: "bytes",
    type(None): "null",
    dict: "a table of values by name",
    list: "a list",
    tuple: "a list",
}


def check(kind: Any, value: Any, name: str) -> None:
    """Refuse a value that doesn't have a type.

    Whole numbers are accepted as `float` and lists as tuples; booleans are not numbers. Keys that
    a TypedDict doesn't declare are ignored. Numbers may be infinite or NaN.

    Args:
        kind: Type hint.
        value: Value of any type, which is checked as deeply as `kind` describes.
        name: Name of the value in messages; with "", parts have their own names only.

    Raises:
        UsageError: A part doesn't have its type; the message names both.
    """
    if kind is Any:
        return
    fitting = [each for each in alternatives(kind) if _is_a(each, value)]
    if not fitting:
        raise UsageError(f"{name} {shown(value)}: must be {_described(kind)}")
    kind = fitting[0]
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if is_typeddict(kind):
        for key, part in _hints(kind).items():
            if key in value:
                check(part, value[key], f"{name}.{key}".lstrip("."))
            elif key in kind.__required_keys__:
                raise UsageError(f"{name} has no {key}".strip())
    elif origin is dict and parts:
        if _all_are(parts[0], value.keys()) and _all_are(parts[1], value.values()):
            return
        for key, item in value.items():
            check(parts[0], key, f"{name}: a key")
            check(parts[1], item, f"{name}.{in_short(str(key))}".lstrip("."))
    elif origin in (list, tuple) and parts:
        is_uniform = origin is list or parts[-1] is ...
        if is_uniform and _all_are(parts[0], value):
            return
        of_items = [parts[0]] * len(value) if is_uniform else parts
        if len(of_items) != len(value):
            raise UsageError(f"{name}: must have {len(of_items)} values, and has {len(value)}")
        for index, (part, item) in enumerate(zip(of_items, value, strict=True)):
            check(part, item, f"{name}[{index}]")


def check_fields(data: Any, group: str) -> None:
    """Refuse a dataclass of a group's options if one doesn't have its type."""
    options: Any = type(data)
    for name, kind in _hints(options).items():
        check(kind, getattr(data, name), opt(f"{group}.{name}"))


def make(kind: type, options: Any, prefix: str) -> Any:
    """Make a dataclass from a dict of its fields.

    Args:
        kind: Dataclass.
        options: Values of the fields by name.
        prefix: Beginning of the fields' names in messages.

    Raises:
        UsageError: `options` is not a dict, lacks a field or has an unknown one.
    """
    check(dict[str, Any], options, prefix.rstrip("."))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := ", ".join(map(in_short, sorted(options.keys() - fields.keys())[:3])):
        raise UsageError(
            f"made by another version of gptlit; this version doesn't have the options {unknown}"
        )
    for name, field in fields.items():
        is_required = field.default is dataclasses.MISSING is field.default_factory
        if is_required and name not in options:
            raise UsageError(f"{prefix}{name} is missing")
    return kind(**options)


def like(example: Any, value: Any, name: str) -> Any:
    """Return a value, without keys that an example lacks, if it has the example's types.

    Where the example has None or an empty container, everything is accepted. Lists may have any
    length: each item is compared with the example's first one.

    Raises:
        UsageError: A part differs; the message names it.
    """
    kind = type(example)
    if example is None or (kind in (dict, list, tuple) and not example):
        return value
    if kind not in NAMES:
        shape = tuple(getattr(example, "shape", ()))
        if type(value) is not kind or tuple(getattr(value, "shape", ())) != shape:
            of_shape = f" of shape {shape}" if hasattr(example, "shape") else ""
            raise UsageError(f"{name} {shown(value)}: must be {_described(kind)}{of_shape}")
        return value
    check(kind, value, name)
    if kind is dict:
        if missing := [key for key in example if key not in value]:
            raise UsageError(f"{name} has no {missing[0]}")
        return {key: like(item, value[key], f"{name}.{key}") for key, item in example.items()}
    if kind in (list, tuple):
        return [like(example[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    return value


def check_depth(value: Any, name: str) -> None:
    """Refuse data nested more than DEEPEST levels deep, at which recursive functions would fail.

    Raises:
        UsageError: The data is nested too deeply, or contains itself.
    """
    level = [value]
    for _ in range(DEEPEST):
        inner: dict[int, Any] = {}  # each part once, since parts can be shared
        for container in level:
            values = container.values() if isinstance(container, dict) else container
            inner |= {id(part): part for part in values if isinstance(part, CONTAINERS)}
        level = list(inner.values())
        if not level:
            return
    raise UsageError(f"{name}nested more than {DEEPEST} levels deep")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; messages name the file without its folder.

    Raises:
        UsageError: The file is too large, not JSON, or nested too deeply.
        FileNotFoundError: The file doesn't exist.
    """
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise UsageError(
            f"{path.name}: {size:,} bytes, and options or a tokenizer have at most {LARGEST_JSON:,}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path.name}: not JSON ({error})") from error
    except RecursionError as error:
        raise UsageError(f"{path.name}: nested more than {DEEPEST} levels deep") from error
    check_depth([content], f"{path.name}: ")
    return content


def shown(value: Any) -> str:
    """Describe a value for a message, in a few characters of one line."""
    if isinstance(value, int) and not isinstance(value, bool) and not _has_64_bits(value):
        return "of more than 64 bits"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return in_short(repr(value[:SHOWN] if isinstance(value, str | bytes) else value))
    return f"of type {type(value).__name__}"


def in_short(text: str) -> str:
    """Return the first characters of a text, on one line."""
    plain = printable(text[: SHOWN + 1], one_line=True)
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}..."


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value has a type, regardless of its parts."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if is_typeddict(origin):
        return isinstance(value, dict)
    if origin in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and _has_64_bits(value)
        return whole or (origin is float and isinstance(value, float))
    if origin is str:
        return isinstance(value, str) and _is_whole_text(value)
    if origin is tuple:
        return isinstance(value, list | tuple)
    return isinstance(value, origin)


def _all_are(kind: Any, values: Collection[Any]) -> bool:
    """Whether all values have a type for sure, by a quick check; if not, each has to be checked."""
    if kind is Any:
        return True
    if not {*map(type, values)} <= {*alternatives(kind)} & {str, int, bool, type(None)}:
        return False
    whole = [value for value in values if type(value) is int]
    text = "".join(value for value in values if type(value) is str)
    return (
        _has_64_bits(min(whole, default=0))
        and _has_64_bits(max(whole, default=0))
        and _is_whole_text(text)
    )


def _has_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _is_whole_text(text: str) -> bool:
    """Whether a text can be encoded, which lone surrogates can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _described(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if len(members := alternatives(kind)) > 1:
        return " or ".join(map(_described, members))
    if origin is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if is_typeddict(origin):
        return NAMES[dict]
    return NAMES.get(origin, f"a {origin.__name__.lower()}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
