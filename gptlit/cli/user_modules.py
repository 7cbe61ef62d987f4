"""Classes of the user's own, imported from beside the config that names them.

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
    """Import what dotted names in the user's options mean from the folders, where it lies there.

    A folder is looked in last, and only if it holds a named module that is found nowhere else:
    its other files must not stand in for packages that are not installed.

    Args:
        texts: Configs and flags as the user gave them.
        folders: Those of the configs, and the current one.
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
            with contextlib.suppress(ValueError):  # what is imported may change the list as well
                sys.path.remove(folder)


def _holds(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or any((folder / name).glob("*.py"))


def _is_found(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of a module that is half there
        return False
