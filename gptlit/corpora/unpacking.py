"""Reads files, packed by gzip or zstd or not, in blocks of limited size."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from gptlit.messages import UsageError

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 10
# a .zst file is read in small parts, since four of its bytes can expand to 128 KiB
ZSTD_BYTES = 1 << 8


PACKINGS = (".gz", ".zst")


def packing_of(name: str) -> str:
    """Return the extension of a packed file, or ""."""
    return next((end for end in PACKINGS if name.lower().endswith(end)), "")


def unpacked(path: Path) -> Iterator[bytes]:
    """Yield the blocks of a file.

    Raises:
        UsageError: A packed file is corrupt, or of another format.
        OSError: The file can't be read.
    """
    packed = packing_of(path.name)
    try:
        if packed == ".zst":
            yield from _unzstd(path)
        else:
            with gzip.open(path) if packed == ".gz" else path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _corrupt(packed, error) from error


def head(path: Path) -> bytes:
    """Return the first HEAD_BYTES of an unpacked file, or all of a shorter one.

    Raises:
        UsageError, OSError: See `unpacked`.
    """
    first = b""
    for block in unpacked(path):
        first += block
        if len(first) >= HEAD_BYTES:
            break
    return first[:HEAD_BYTES]


def _corrupt(packed: str, error: Exception) -> UsageError:
    return UsageError(f"incomplete or corrupt {packed} file ({error}); look for a complete copy")


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
                    raise _corrupt(".zst", error) from error
                packed = frame.unused_data
    if frame is not None and not frame.eof:
        raise EOFError("it ends too early")
