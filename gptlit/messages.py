"""What users are told, in one line each."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Self

from gptlit.terminal import columns_of, folded

if TYPE_CHECKING:
    from tqdm import tqdm


# whether messages name options as flags of the command line, or as arguments in Python
_as_flags = ContextVar("_as_flags", default=False)
# around an option's name in a message: code points that no text has
_OPEN, _CLOSE = "\ufdd2", "\ufdd3"


def opt(name: str) -> str:
    """An option's name for the reason of a `UsageError`, which shows it as a flag or an argument.

    Args:
        name: With the groups that it is in, as in a config: model.n_embd.
    """
    return f"{_OPEN}{name}{_CLOSE}"


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
    """Let messages name options as flags: the command line's --model.n_embd is n_embd in Python."""
    token = _as_flags.set(True)
    try:
        yield
    finally:
        _as_flags.reset(token)


def shown(message: str) -> str:
    """A message as it is shown, with each option as a flag or an argument."""
    return re.sub(f"{_OPEN}(.*?){_CLOSE}", _shown_option, message)


def _shown_option(match: re.Match[str]) -> str:
    return f"--{match[1]}" if _as_flags.get() else match[1].rpartition(".")[2]


def _shown_value(value: object) -> str:
    if _as_flags.get() and (value is None or isinstance(value, bool)):
        return "null" if value is None else str(value).lower()  # as they are typed
    return str(value)


class UsageError(ValueError):
    """Something given can't work; the message names the option, its value and what would work.

    `gptlit.__main__.main` prints it on one line of stderr and returns exit code 2; there options
    are flags, and elsewhere they are named as the arguments of Python that they are.

    Args:
        reason: What is wrong, and what would work. Other options are named by `opt`.
        option: The option's name with the groups that it is in: model.n_embd. Without one, the
            reason is the whole message.
        value: The option's value, where the message shows it.
    """

    def __init__(self, reason: str, option: str = "", value: object = ...) -> None:
        super().__init__(reason, option, value)
        self.reason = reason
        self.option = option
        self.value = value

    def __str__(self) -> str:
        given = opt(self.option) if self.option else ""
        given += "" if self.value is ... else f" {_shown_value(self.value)}"
        return shown(f"{given}: {self.reason}" if given else self.reason)

    def renamed(self, name: str, other: str) -> Self:
        """The same error of an option that has another name here."""
        reason = self.reason.replace(opt(name), opt(other))
        return type(self)(reason, other if self.option == name else self.option, self.value)

    def within(self, group: str) -> Self:
        """The same error where the options are in a group."""
        reason = self.reason.replace(_OPEN, f"{_OPEN}{group}.")
        return type(self)(reason, f"{group}.{self.option}", self.value)


MEMORY_ADVICE = (
    "out of memory: lower --data.batch_size, then --model.block_size, then --model.n_embd"
)


class RunError(Exception):
    """A run can't go on; the message says why, and what to try.

    `gptlit.__main__.main` prints it on one line of stderr and returns exit code 1. Options in the
    message are named by `opt`, as those of a `UsageError` are.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


def as_strings(given: str | Iterable[str], option: str) -> list[str]:
    """Strings as they may be given in Python: one, or several of them.

    Raises:
        UsageError: anything else.
    """
    if isinstance(given, str):
        return [given]  # which as a sequence would be its letters
    strings = list(given) if isinstance(given, Iterable) else [given]
    if isinstance(given, bytes) or not all(isinstance(each, str) for each in strings):
        raise UsageError("must be a string, or a list of strings", option, repr(given))
    return strings


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of whichever device, is used up."""
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory")
    )


def is_first_process() -> bool:
    """Whether this process is the one of several that speaks, by what launchers tell it."""
    known = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in known if rank is not None), "0") == "0"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the nearest of `known`, or '' when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def note(message: str) -> None:
    """One line on stderr, so that standard output holds nothing but the result; options in it are
    named by `opt`."""
    if sys.stderr is None:
        return  # print would write to standard output instead
    with contextlib.suppress(OSError, ValueError):  # there is no other place to report it
        print_lines(f"gptlit: {shown(message)}", sys.stderr)


def print_lines(text: str, file: IO[str]) -> None:
    """Print lines above a progress bar if there is one, broken at blanks in a terminal."""
    columns = columns_of(file)
    # some terminals break a line that fills their last column
    shown = text if columns is None else folded(text, columns - 1)
    # only who has imported it can have drawn a bar
    bars = sys.modules.get("tqdm")
    with bars.tqdm.external_write_mode(file) if bars else contextlib.nullcontext():
        print(shown, file=file, flush=True)


def progress(n_bytes: int | None, label: str) -> "tqdm":
    """A bar over bytes, or a count where None says that their number isn't known.

    It appears on a terminal after a second.
    """
    from tqdm import tqdm

    return tqdm(
        total=n_bytes, unit="B", unit_scale=True, desc=label, delay=1, leave=False, disable=None
    )
