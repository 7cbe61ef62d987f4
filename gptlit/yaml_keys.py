"""Keys that stand twice in YAML: PyYAML keeps the last of them and drops the others silently."""

from collections.abc import Iterator

import jsonargparse
import yaml

from gptlit.messages import UsageError


def refuse_duplicates(text: str) -> None:
    """Check that each key of a YAML text stands there once, also as `group.name` at its top.

    Text that is not YAML passes: whoever loads it reports that.

    Raises:
        UsageError: names the first duplicate and its two lines.
    """
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return
    lines: dict[str, int] = {}
    for name, line in _keys(root, "", set()):
        if name in lines:
            raise UsageError(
                f"{name}: stands twice, in lines {lines[name]} and {line}, and only one could "
                "count; join the two, or remove one"
            )
        lines[name] = line


def _keys(node: yaml.Node | None, prefix: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """The dotted name and the line of each key."""
    if node is None or id(node) in seen:  # an alias, which is what its anchor was
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


def check_what_is_parsed() -> None:
    """Let jsonargparse refuse duplicates in whatever it reads: configs, their files, and flags."""
    load = jsonargparse.get_loader("yaml")

    def load_checked(text: str) -> object:
        if text.count(":") > 1:
            refuse_duplicates(text)
        return load(text)

    jsonargparse.set_loader("yaml", load_checked, exceptions=(yaml.YAMLError,))
