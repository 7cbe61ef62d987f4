"""What users are told, in one line each."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

from gptlit.terminal import columns_of, folded

if TYPE_CHECKING:
    from tqdm import tqdm


class UsageError(ValueError):
    """Something given can't work; the message names the option, its value and what would work.

    `gptlit.__main__.main` prints it on one line of stderr and returns exit code 2.
    """


MEMORY_ADVICE = (
    "out of memory: lower --data.batch_size, then --model.block_size, then --model.n_embd"
)


class RunError(Exception):
    """A run can't go on; the message says why, and what to try.

    `gptlit.__main__.main` prints it on one line of stderr and returns exit code 1.
    """


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
    """One line on stderr, so that standard output holds nothing but the result."""
    if sys.stderr is None:
        return  # print would write to standard output instead
    with contextlib.suppress(OSError, ValueError):  # there is no other place to report it
        tell(f"gptlit: {message}", sys.stderr)


def tell(text: str, file: IO[str]) -> None:
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
