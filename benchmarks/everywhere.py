"""Shared by kill_everywhere.py and stop_everywhere.py: options, the folder of a run, the report."""

import argparse
import collections
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests, which are not installed

from tests.conftest import made_up_text


def parser(about: str) -> argparse.ArgumentParser:
    """Make a parser with the options --first and --every, which choose the file operations."""
    options = argparse.ArgumentParser(description=about)
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--every", type=int, default=1)
    return options


def fresh(folder: Path) -> Path:
    """Empty a folder, except for a text t.txt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "t.txt").write_text(made_up_text())
    return folder


def report(outcomes: "collections.Counter[str]") -> None:
    """Print how often each outcome occurred; exit with 1 if one is BAD."""
    for outcome, count in outcomes.most_common():
        print(f"{count:5}  {outcome}")
    sys.exit(bool(outcomes["BAD"]))
