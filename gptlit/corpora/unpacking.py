"""The bytes of files, packed or not, in blocks that are small however well they are packed."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gptlit.messages import UsageError

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 10
# of a .zst file at a time: the decompressor returns at once all that they unpack to, and four of
# them can stand for 128 KiB, so that a block has 8 MiB at most
ZSTD_BYTES = 1 << 8


def packing_of(name: str) -> str:
    """The end of a file's name that says how it is packed, or ""."""
    return next((end for end in _UNPACK if name.lower().endswith(end)), "")


def unpacked(path: Path) -> Iterator[bytes]:
    """The file's blocks.

    Raises:
        UsageError: a packed file that is torn, or something else.
        OSError: it can't be read.
    """
    packed = packing_of(path.name)
    try:
        yield from _UNPACK.get(packed, _plain)(path)
    except (EOFError, zlib.error, gzip.BadGzipFile, _TornError) as error:
        raise UsageError(f"not a whole {packed} file ({error})") from error


def head(path: Path) -> bytes:
    """The file's first HEAD_BYTES, unpacked, or fewer where it ends.

    Raises:
        As `unpacked`.
    """
    begun = b""
    for block in unpacked(path):
        begun += block
        if len(begun) >= HEAD_BYTES:
            break
    return begun[:HEAD_BYTES]


class _TornError(Exception):
    """A .zst file that isn't whole."""


def _plain(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _gunzipped(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _unzstd(path: Path) -> Iterator[bytes]:
    import zstandard

    frame = None
    with path.open("rb") as file:
        while packed := file.read(ZSTD_BYTES):
            while packed:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                try:
                    if block := frame.decompress(packed):
                        yield block
                except zstandard.ZstdError as error:
                    raise _TornError(error) from error
                packed = frame.unused_data
    if frame is not None and not frame.eof:
        raise _TornError("it ends too early")


_UNPACK: dict[str, Callable[[Path], Iterator[bytes]]] = {".gz": _gunzipped, ".zst": _unzstd}
PACKINGS = tuple(_UNPACK)
