"""Shortens jsonargparse's reports on values that fit none of an option's types to one line.

A report has an entry for each type. An entry that names the cause, such as a missing module, is
shown rather than the entries that only expect another type. The parts are found by regular
expressions, because jsonargparse 4.53 formats key, value and causes into one string: its TypeError
and ValueError have no attributes, and `__cause__` is the entry of the first type only.
"""

import ast
import re
import sys
from typing import Any

from gptlit.messages import did_you_mean

MARK = "Does not validate against any of the Union"
# beginnings of entries that only expect another type
OTHER_TYPES = ("Expected a", "Not a valid subclass", "Import path")


def one_line(key: str, report: str) -> str:
    """Return `--key 7: expected one of a, b, int`, or the cause if an entry names it.

    Args:
        key: Full name of the option.
        report: Report of jsonargparse.
    """
    value = "".join(re.findall(r"Given value: (.*)", report)[:1])
    if _lacks_init_args(value):
        return (
            f"--{key} {value}: the options of a class belong under init_args, as in "
            "{class_path: NAME, init_args: {OPTION: VALUE}}"
        )
    entries = _entries(report)
    for entry in entries:
        if cause := _fault_of_option(key, entry) or _fault_of_class(key, entry):
            return cause
    name = next(iter(class_paths(value)), value)
    for entry in entries:
        abstract = re.match(r"Expected an instantiatable class, but (\S+) is abstract", entry)
        if abstract and abstract[1].rpartition(".")[2] == name.rpartition(".")[2]:
            return f"--{key} {name}: is an abstract class; give one that is derived from it"
        if not entry.startswith((*OTHER_TYPES, MARK)):
            return f"--{key} {name}: {' '.join(entry.split())}"
    foreign = "\n".join(entry for entry in entries if entry.startswith("Import path"))
    if bases := dict.fromkeys(re.findall(r"subclass of (\w+)", foreign)):
        return f"--{key} {name}: is not a class derived from {' or '.join(bases)}"
    choices = _literals(report)
    nearest = "" if name in choices else did_you_mean(name, choices)
    advice = f".{nearest}" if nearest else _nearest_class(name, report)
    return f"--{key} {name}: {_expected(report)}{advice}"


def class_paths(report: str) -> list[str]:
    """Return the class paths in a report's value."""
    return re.findall(r"class_path[=:'\s,]+(?:val=)?'([\w.]+)'", report)


def _entries(report: str) -> list[str]:
    """Return the entries of a report, and those of the reports that are entries for lists."""
    body = report.partition("Errors:")[2]
    dash = re.match(r"\n *- ", body)
    if not dash:
        return []
    end = re.search(rf"\n {{{len(dash[0]) - 5}}}Given value type:", body)
    entries = []
    for entry in body[: end.start() if end else None].split(dash[0])[1:]:
        entries += _entries(entry) if entry.startswith(MARK) else [entry.strip()]
    return entries


def _lacks_init_args(text: str) -> bool:
    """Whether a class, or one in a list, has options next to its name."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False  # a Namespace, made by flags for parts of the value
    own_keys = {"class_path", "init_args", "dict_kwargs"}
    return any(
        isinstance(each, dict) and "class_path" in each and bool(each.keys() - own_keys)
        for each in (value if isinstance(value, list) else [value])
    )


def _fault_of_option(key: str, entry: str) -> str:
    """Return the error in an option of a class, or "" if the entry has none."""
    first = entry.partition("\n")[0]
    if first.startswith(f"--{key}."):
        return first
    if first.startswith("--"):
        return f"--{key}.{first.removeprefix('--')}"
    if option := re.match(r"Option '(.*)' is not accepted", first):
        return f"--{key}.{option[1]}: unknown option"
    if needed := re.match(r"the following arguments are required: (.*)", first):
        return f"--{key}: needs {needed[1]}"
    return ""


def _fault_of_class(key: str, entry: str) -> str:
    """Return why a class can't be imported or created, or "" if the entry doesn't say."""
    found = re.match(r"Problem with given class_path '(.*)':\s+(.*)", entry, re.DOTALL)
    if not found:
        return ""
    class_path, cause = found[1], " ".join(found[2].removeprefix("- ").split())
    nearest = ""
    if "has no attribute" in cause:
        module, _, name = class_path.rpartition(".")
        nearest = "." + did_you_mean(name, dir(sys.modules.get(module)))
    return f"--{key} {class_path}: {cause.rstrip('.') if nearest else cause}{nearest}"


def _literals(report: str) -> list[str]:
    """Return the values that a report's Literals allow."""
    return ", ".join(re.findall(r"Literal\[([^\]]*)\]", report)).replace("'", "").split(", ")


def _expected(report: str) -> str:
    named = re.findall(r"Expected a (?:<class '(?:\w+\.)*(\w+)'>|(dot) import)", report)
    types = ["a class's path" if dot else name for name, dot in named]
    names = dict.fromkeys(_literals(report) + types)
    expected = [name for name in names if name not in ("", "NoneType")]
    one_of = "one of " if len(expected) > 1 else ""
    or_null = " or null" if "NoneType" in types else ""
    return f"expected {one_of}{', '.join(expected)}{or_null}"


def _nearest_class(name: str, report: str) -> str:
    """Return ' Did you mean X?' for the most similar class that the option accepts."""
    known: dict[str, type[Any]] = {}
    for path in re.findall(r"(?:\w+\.)+\w+", report.partition("Errors:")[0]):
        module, _, base = path.rpartition(".")
        waiting = [getattr(sys.modules.get(module), base, None)]
        while waiting:
            each = waiting.pop()
            if isinstance(each, type):
                known[each.__name__] = each
                waiting += each.__subclasses__() if each.__module__ != "builtins" else []
    if name in known:
        return f"; its path is {known[name].__module__}.{name}"
    return (nearest := did_you_mean(name, known)) and f".{nearest}"
