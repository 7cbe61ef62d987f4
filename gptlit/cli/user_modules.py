"""Imports the user's own classes from the folder of the config that names them.

`python -m gptlit` imports from the current folder, the `gptlit` command doesn't.
"""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_DOTTED = re.compile(r"\b([A-Za-z_]\w*)(?:\.[A-Za-z_]\w*)+")


@contextlib.contextmanager
def importable(texts: Sequence[str], folders: Sequence[Path]) -> Iterator[None]:
    """Make modules in the folders importable where the user's options name their classes.

    A folder is searched last, and only if it holds a named module that is found nowhere else:
    its other files must not replace packages that are not installed.

    Args:
        texts: Configs and flags as the user gave them.
        folders: Folders of the configs, and the current one.
    """
    named = {match[1] for text in texts for match in _DOTTED.finditer(text)}
    missing = {name for name in named if not _is_found(name)}
    added = [
        str(folder)
        for folder in dict.fromkeys(each.absolute() for each in folders)
        if any(_holds(folder, name) for name in missing)
    ]
    sys.path += added
    try:
        yield
    finally:
        for folder in added:
            with contextlib.suppress(ValueError):  # an imported module may change sys.path too
                sys.path.remove(folder)


def _holds(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or any((folder / name).glob("*.py"))


def _is_found(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a partly initialised module
        return False
