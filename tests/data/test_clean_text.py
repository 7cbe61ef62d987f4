from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.corpora import catalog
from gptlit.corpora.cleaning import CleaningOptions
from gptlit.data import clean_text
from gptlit.data.clean_text import CleanText
from gptlit.messages import UsageError


def write(folder: Path, *contents: str, joined: bool = True, **cleaning: object) -> CleanText:
    """Write files with these contents and clean them."""
    texts = folder / "texts"
    texts.mkdir()
    for index, content in enumerate(contents):
        (texts / f"{index}.txt").write_text(content, encoding="utf-8", newline="")
    options = CleaningOptions(**cleaning)  # type: ignore[arg-type]  # any option
    text = catalog.load(catalog.TextOptions(path=str(texts), cleaning=options), folder)
    return clean_text.write(text, folder / "clean", joined)


def content(written: CleanText) -> str:
    return written.path.read_text(encoding="utf-8")


def test_one_file_is_unchanged(tmp_path: Path) -> None:
    written = write(tmp_path, "\n\n a\r\nè\n\n")
    assert content(written) == "\n\n a\nè\n\n"
    assert (written.n_chars, written.n_bytes, written.characters) == (8, 9, "\n aè")
    assert written.ends.tolist() == [[8, 9]]
    assert "CRLF" in written.report[0]


def test_a_blank_line_between_documents(tmp_path: Path) -> None:
    written = write(tmp_path, "\none\n\n", "  \n", "twò\nthree", "\nfour")
    assert content(written) == "one\n\ntwò\nthree\n\nfour\n"
    assert written.ends.tolist() == [[5, 5], [16, 17], [21, 22]]


def test_no_blank_line_between_documents_that_a_token_separates(tmp_path: Path) -> None:
    written = write(tmp_path, "one\n", "two\n\nthree\n", joined=False, paragraphs=True)
    assert content(written) == "onetwothree"
    assert written.ends[:, 0].tolist() == [3, 6, 11]
    assert written.report == ("cleaning: paragraphs: 2 documents to 3, 4 characters fewer",)


@pytest.mark.parametrize("contents", [[""], [" \n"], ["", "\n"]])
def test_blank_files(tmp_path: Path, contents: list[str]) -> None:
    with pytest.raises(UsageError, match="^path .*texts: the file is empty"):
        write(tmp_path, *contents)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_the_byte_at_which_a_character_begins(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    text = text.replace("\0", "").replace("\r", "").removeprefix("\ufeff") + "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean_text, "FLUSH_CHARS", 3)
        patch.setattr("gptlit.corpora.unpacking.BLOCK_BYTES", 2)
        written = write(tmp_path_factory.mktemp("clean"), text)
    assert content(written) == text
    assert [written.byte_at(n) for n in range(len(text) + 1)] == [
        len(text[:n].encode()) for n in range(len(text) + 1)
    ]
    assert written.characters == "".join(sorted(set(text)))


def test_places_are_marked_from_the_beginning(tmp_path: Path) -> None:
    assert write(tmp_path, "abc").marks.tolist() == [[0, 0], [3, 3]]
