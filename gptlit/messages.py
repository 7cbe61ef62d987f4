"""What users are told, in one line each."""

import difflib
import sys
from collections.abc import Iterable


class UsageError(ValueError):
    """Something given can't work; the message names the option, its value and what would work.

    `gptlit.__main__.main` prints it on one line of stderr and returns exit code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the nearest of `known`, or '' when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def note(message: str) -> None:
    """One line on stderr, so that standard output holds nothing but the result."""
    print(f"gptlit: {message}", file=sys.stderr, flush=True)
