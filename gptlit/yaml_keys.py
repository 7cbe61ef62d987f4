"""Refuses duplicate keys in YAML; PyYAML silently uses the last."""

from collections.abc import Iterator

import jsonargparse
import yaml

from gptlit.messages import UsageError


def refuse_duplicates(text: str) -> None:
    """Raise UsageError if a key of a YAML text occurs twice; `a: {b: 1}` has the key `a.b`."""
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return  # the text's loader reports it
    lines: dict[str, int] = {}
    for name, line in _keys(root, "", set()):
        if name in lines:
            raise UsageError(
                f"{name}: occurs twice, in lines {lines[name]} and {line}; join the two, or remove "
                "one"
            )
        lines[name] = line


def _keys(node: yaml.Node | None, prefix: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of each key."""
    if node is None or id(node) in seen:  # an alias of a node that was visited
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _keys(item, f"{prefix}{index}.", seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                name = prefix + key.value
                yield name, key.start_mark.line + 1
                yield from _keys(value, f"{name}.", seen)


def check_parsed_yaml() -> None:
    """Make jsonargparse refuse duplicate keys in configs, in files and in values of options."""
    load = jsonargparse.get_loader("yaml")

    def load_checked(text: str) -> object:
        if text.count(":") > 1:
            refuse_duplicates(text)
        return load(text)

    jsonargparse.set_loader("yaml", load_checked, exceptions=(yaml.YAMLError,))
