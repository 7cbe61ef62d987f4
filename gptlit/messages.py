"""Errors, notes and progress bars; options are named as flags or as Python's arguments."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Self

from gptlit.terminal import columns_of, folded, format_value

if TYPE_CHECKING:
    from tqdm import tqdm


_as_flag: ContextVar[Callable[[str], str] | None] = ContextVar("_as_flag", default=None)
# noncharacters of Unicode that mark an option's name in a message
_OPEN, _CLOSE = "\ufdd2", "\ufdd3"


def opt(name: str) -> str:
    """Mark an option's full name, such as model.n_embd, in a message.

    The command line shows it as a flag, --model.n_embd, and Python as an argument, n_embd.
    """
    return f"{_OPEN}{name}{_CLOSE}"


@contextlib.contextmanager
def naming_flags(as_flag: Callable[[str], str] = "--{}".format) -> Iterator[None]:
    """Show options in messages as flags while the block runs.

    Args:
        as_flag: Function that returns the flag of an option, given its full name.
    """
    token = _as_flag.set(as_flag)
    try:
        yield
    finally:
        _as_flag.reset(token)


def with_option_names(message: str) -> str:
    """Return a message with its marked options as flags, or as names of arguments."""
    shown = _as_flag.get() or (lambda name: name.rpartition(".")[2])
    return re.sub(f"{_OPEN}(.*?){_CLOSE}", lambda option: shown(option[1]), message)


class UsageError(ValueError):
    """Invalid input; the message names the option, its value and what would work.

    `gptlit.__main__.main` prints it as one line on stderr and returns exit code 2.

    Args:
        reason: Problem and remedy. Other options in it are marked by `opt`.
        option: Full name of the option, such as model.n_embd; if empty, the message is the reason.
        value: Value of the option; by default it is not shown.
    """

    def __init__(self, reason: str, option: str = "", value: object = ...) -> None:
        super().__init__(reason, option, value)
        self.reason = reason
        self.option = option
        self.value = value

    def __str__(self) -> str:
        subject = opt(self.option) if self.option else ""
        if self.value is not ...:
            is_typed = _as_flag.get() and (self.value is None or isinstance(self.value, bool))
            subject += f" {format_value(self.value) if is_typed else self.value}"
        return with_option_names(f"{subject}: {self.reason}" if subject else self.reason)

    def renamed(self, name: str, other: str) -> Self:
        """Return the same error with an option under another name."""
        reason = self.reason.replace(opt(name), opt(other))
        return type(self)(reason, other if self.option == name else self.option, self.value)

    def without_remedy(self) -> Self:
        """Return the same error without what would work, which follows "; " in the reason."""
        subject, colon, rest = "", "", self.reason
        if not self.option:  # the subject, such as a path, is a part of the reason
            subject, colon, rest = self.reason.rpartition(": ")
        return type(self)(subject + colon + rest.split("; ")[0], self.option, self.value)

    def within(self, group: str) -> Self:
        """Return the same error with its options in a group."""
        reason = self.reason.replace(_OPEN, f"{_OPEN}{group}.")
        return type(self)(reason, f"{group}.{self.option}", self.value)


@contextlib.contextmanager
def errors_naming(as_flag: Callable[[str], str]) -> Iterator[None]:
    """Show options in messages and errors of the block as the flags that a function returns."""
    with naming_flags(as_flag):
        try:
            yield
        except UsageError as error:
            raise UsageError(str(error)) from error


@contextlib.contextmanager
def errors_about(subject: str) -> Iterator[None]:
    """Put a subject, such as a file's name, before the message of a UsageError of the block."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{subject}: {error}") from error


MEMORY_ADVICE = (
    f"out of memory: lower {opt('data.batch_size')}, then {opt('model.block_size')}, then "
    f"{opt('model.n_embd')}"
)


class RunError(Exception):
    """A run can't continue; the message gives the reason and what to try.

    `gptlit.__main__.main` prints it as one line on stderr and returns exit code 1. Options in the
    message are marked by `opt`.
    """

    def __str__(self) -> str:
        return with_option_names(super().__str__())


def as_strings(value: str | Iterable[str], option: str) -> list[str]:
    """Return a list of strings, given one string or several.

    Raises:
        UsageError: The value is anything else.
    """
    if isinstance(value, str):
        return [value]  # as a sequence it would be its letters
    strings = list(value) if isinstance(value, Iterable) else [value]
    if isinstance(value, bytes) or not all(isinstance(each, str) for each in strings):
        raise UsageError("must be a string, or a list of strings", option, repr(value))
    return strings


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that a device, or the host, is out of memory."""
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory")
    )


def is_first_process() -> bool:
    """Whether this is the only process, or the first by the variables that launchers set."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def closest(word: str, known: Iterable[str]) -> str:
    """Return the most similar of the known words, or "" if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the most similar of the known words, or '' for none."""
    similar = closest(word, known)
    return f" Did you mean {similar}?" if similar else ""


def note(message: str) -> None:
    """Print one line on stderr; options in it are marked by `opt`."""
    if sys.stderr is None:
        return  # print would write to standard output instead
    with contextlib.suppress(OSError, ValueError):  # there is no other place to report it
        print_lines(f"gptlit: {with_option_names(message)}", sys.stderr)


def print_lines(text: str, file: IO[str]) -> None:
    """Print lines above a progress bar if there is one, wrapped at whitespace in a terminal."""
    columns = columns_of(file)
    # some terminals wrap a line that fills the last column
    lines = text if columns is None else folded(text, columns - 1)
    bars = sys.modules.get("tqdm")  # without the module there is no bar
    with bars.tqdm.external_write_mode(file) if bars else contextlib.nullcontext():
        print(lines, file=file, flush=True)


def progress(n_bytes: int | None, label: str) -> "tqdm":
    """Return a progress bar over a number of bytes, if known, shown in a terminal after 1 s."""
    from tqdm import tqdm

    return tqdm(
        total=n_bytes, unit="B", unit_scale=True, desc=label, delay=1, leave=False, disable=None
    )
