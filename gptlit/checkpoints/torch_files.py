"""Files that `torch.save` wrote: read as plain data and tensors, and no larger than they are."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from gptlit.messages import UsageError
from gptlit.plain_data import check_depth, in_short


def load(path: Path) -> Any:
    """What `torch.save` wrote, its tensors on the CPU and mapped from the file.

    Only plain data and tensors are read, so that no code is run, and no more memory is taken than
    the file has bytes. GPT-2's own .bin files are in torch's older format, which isn't mapped.

    Raises:
        UsageError: torn, of more than plain data, or with sizes beyond the file's own.
        FileNotFoundError: there is no such file.
    """
    try:
        if is_archive := zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_sizes(archive)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except (FileNotFoundError, UsageError):
        raise
    except pickle.UnpicklingError as error:
        raise UsageError(
            "refused: torn, or not of plain data and tensors only, so that it could run code"
        ) from error
    except Exception as error:  # what isn't a pickle, or a crafted one, can raise anything
        raise UsageError(f"torn, or not written by torch.save ({type(error).__name__})") from error
    check_depth([content], "")
    return content


def check_sizes(archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose members are announced to be larger than the file that holds them.

    `torch.save` compresses nothing, and `torch.load` takes memory for what is announced.

    Raises:
        UsageError: names the member.
    """
    size = Path(str(archive.filename)).stat().st_size
    n_bytes, seen = 0, set()
    for member in archive.infolist():
        n_bytes += member.file_size
        if member.filename in seen:
            what = "comes twice"
        elif n_bytes > size:
            what = f"is larger than the file's {size:,}"
        elif member.compress_type != zipfile.ZIP_STORED:
            what = "is compressed, which torch.save doesn't do"
        else:
            seen.add(member.filename)
            continue
        raise UsageError(
            f"refused: {in_short(member.filename)} in it, of {member.file_size:,} bytes, {what}"
        )
