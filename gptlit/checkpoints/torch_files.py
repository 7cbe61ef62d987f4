"""Files of torch.save and pickles, read as plain data and tensors, so that no code can run."""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from gptlit.corpora.inputs import refuse_endless
from gptlit.files import replacing
from gptlit.messages import UsageError, errors_about
from gptlit.plain_data import check_depth, in_short

LARGEST_PICKLE = 16 * 2**20  # bytes; a vocabulary of 100,000 characters takes a tenth


def load(path: Path) -> Any:
    """Return the content of a file of `torch.save`, with tensors mapped from the file to the CPU.

    No more memory is taken than the file has bytes. GPT-2's own .bin files are in torch's older
    format, which isn't mapped.

    Raises:
        UsageError: Torn, holds more than plain data and tensors, or announces sizes beyond its own.
        FileNotFoundError: There is no such file.
    """
    try:
        if is_archive := zipfile.is_zipfile(path):
            check_sizes(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except (FileNotFoundError, UsageError):
        raise
    except pickle.UnpicklingError as error:
        raise UsageError(
            "refused: torn, or not of plain data and tensors only, so that it could run code"
        ) from error
    except Exception as error:  # anything but a valid pickle can raise any error
        raise UsageError(f"torn, or not written by torch.save ({type(error).__name__})") from error
    check_depth([content], "")
    return content


def load_named(path: Path) -> Any:
    """Do the same as `load`, with the file's name in messages; a missing file is a UsageError."""
    refuse_endless(path, "weights")
    with errors_about(path.name):
        try:
            return load(path)
        except FileNotFoundError as error:
            raise UsageError("no such file") from error


def is_damaged(path: Path) -> bool:
    """Whether a file isn't a whole archive of `torch.save`, by the CRC-32 of each of its members.

    Reading mapped tensors doesn't check them.

    Raises:
        UsageError: Announces sizes beyond its own.
        FileNotFoundError: There is no such file.
    """
    try:
        check_sizes(path)  # before time is spent on unpacking
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except (FileNotFoundError, UsageError):
        raise
    except Exception:  # wrong bytes in the archive's tables, and bad disks, raise any error
        return True


def check_sizes(path: Path) -> None:
    """Refuse an archive whose members announce more bytes than the file has.

    `torch.save` compresses nothing, and `torch.load` allocates the announced memory.

    Raises:
        UsageError: Names the member.
    """
    size = path.stat().st_size
    n_bytes, seen = 0, set()
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for member in members:
        n_bytes += member.file_size
        problem = ""
        if member.filename in seen:
            problem = "comes twice"
        elif n_bytes > size:
            problem = f"is larger than the file's {size:,}"
        elif member.compress_type != zipfile.ZIP_STORED:
            problem = "is compressed, which torch.save doesn't do"
        if problem:
            subject = f"{in_short(member.filename)} in it, of {member.file_size:,} bytes"
            raise UsageError(f"refused: {subject}, {problem}")
        seen.add(member.filename)


def save(content: dict[str, Any], path: Path) -> None:
    """Write a file by `torch.save`, whole and synced to disk, or leave the earlier file in place.

    Raises:
        OSError: The disk is full, or the place isn't writable.
    """
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch raises it where fewer bytes were written than it passed to the file
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


# ---------------------------------------------------------------------- pickles


class _State:
    """Stands for an object of another class, and keeps its state as plain data."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, their containers and the states of one class; runs no code.

    Args:
        file: The pickle.
        state_of: Module and name of the class; None for no class.
    """

    def __init__(self, file: io.BytesIO, state_of: tuple[str, str] | None) -> None:
        super().__init__(file)
        self.state_of = state_of

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) == self.state_of:
            return _State
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def load_pickle(path: Path, state_of: tuple[str, str] | None = None) -> Any:
    """Return the numbers, strings and containers of a pickle.

    Args:
        path: Path of the pickle.
        state_of: Module and name of the class of a pickled object, whose state is returned.

    Raises:
        UsageError: Missing, torn, or holds more than plain data.
    """
    try:
        with path.open("rb") as file:
            pickled = file.read(LARGEST_PICKLE + 1)
        _check_pickle_size(pickled)
        content = _PlainUnpickler(io.BytesIO(pickled), state_of).load()
        return content.state if isinstance(content, _State) else content
    except FileNotFoundError as error:
        raise UsageError(f"{path.name}: no such file") from error
    except pickle.UnpicklingError as error:
        reason = f"refused: torn, or not of plain data only ({error})"
        raise UsageError(f"{path.name}: {reason}") from error
    except Exception as error:  # a torn pickle can raise any error
        raise UsageError(f"{path.name}: torn or not a pickle ({type(error).__name__})") from error


def _check_pickle_size(pickled: bytes) -> None:
    """Refuse a pickle that would take more memory than in proportion to its size.

    Unpickling allocates the numbered places of a pickle's parts, and byte arrays of an announced
    length: 9 bytes can take 4 GB.
    """
    if len(pickled) > LARGEST_PICKLE:
        raise pickle.UnpicklingError(f"more than {LARGEST_PICKLE:,} bytes")
    for opcode, argument, _ in pickletools.genops(pickled):
        is_number = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_number and int(argument or 0) not in range(len(pickled)):
            raise pickle.UnpicklingError(f"a part is numbered {argument}")
        if opcode.name == "BYTEARRAY8":
            raise pickle.UnpicklingError("an array of bytes")
