"""Options of a run as a flat table of plain values, by their dotted names."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

Options = dict[str, Any]
# they change where and how a run is made, and not what it learns
OF_THE_MACHINE = {
    "data.data_dir", "data.on_device", "threads", "trainer.accelerator", "trainer.default_root_dir",
    "trainer.devices", "trainer.enable_model_summary", "trainer.enable_progress_bar",
}  # fmt: skip


def flat(options: Mapping[str, Any], prefix: str = "") -> Options:
    """Return nested options by their dotted names."""
    found: Options = {}
    for name, value in options.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = plain(value)
    return found


def plain(value: Any) -> Any:
    """Return a value as a parser of options reads it, and other types, such as dates, as text."""
    if isinstance(value, str):
        # YAML takes 1e-3 for text
        return float(value) if re.fullmatch(r"[-+]?\d+\.?\d*[eE][-+]?\d+", value) else value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def parsed(text: str) -> Options | None:
    """Return the options in a YAML document; None if it holds none.

    Raises:
        ValueError, yaml.YAMLError, RecursionError: It is not YAML.
    """
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
    content = yaml.load(text, loader)
    return flat(content) if isinstance(content, dict) else None


def of_learning(options: Options) -> Options:
    """Return options without those of the machine."""
    return {name: value for name, value in options.items() if name not in OF_THE_MACHINE}
