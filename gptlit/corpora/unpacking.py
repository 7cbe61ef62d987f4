"""Reads files, packed or not, in blocks of limited size."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gptlit.messages import UsageError

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 10
# read of a .zst file at a time: the decompressor returns all that they expand to, up to 128 KiB
# for four bytes, so that a block has at most 8 MiB
ZSTD_BYTES = 1 << 8


def packing_of(name: str) -> str:
    """Return the extension of a packed file, or ""."""
    return next((end for end in _UNPACK if name.lower().endswith(end)), "")


def unpacked(path: Path) -> Iterator[bytes]:
    """Yield the blocks of a file.

    Raises:
        UsageError: A packed file is corrupt, or of another format.
        OSError: It can't be read.
    """
    packed = packing_of(path.name)
    try:
        yield from _UNPACK.get(packed, _plain)(path)
    except (EOFError, zlib.error, gzip.BadGzipFile, _CorruptError) as error:
        raise UsageError(f"not a whole {packed} file ({error})") from error


def head(path: Path) -> bytes:
    """Return the first HEAD_BYTES of a file, unpacked, or fewer if it is shorter.

    Raises:
        UsageError: See `unpacked`.
        OSError: It can't be read.
    """
    first = b""
    for block in unpacked(path):
        first += block
        if len(first) >= HEAD_BYTES:
            break
    return first[:HEAD_BYTES]


class _CorruptError(Exception):
    """A .zst file is corrupt."""


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
                    raise _CorruptError(error) from error
                packed = frame.unused_data
    if frame is not None and not frame.eof:
        raise _CorruptError("it ends too early")


_UNPACK: dict[str, Callable[[Path], Iterator[bytes]]] = {".gz": _gunzipped, ".zst": _unzstd}
PACKINGS = tuple(_UNPACK)
