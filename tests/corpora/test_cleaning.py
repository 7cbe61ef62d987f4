from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.corpora.cleaning import Cleaner, CleaningOptions
from gptlit.messages import UsageError
from tests.conftest import TINY, Result

PLAY = "ROMEO:\nAy me!\n\nJULIET:\nO Romeo, Romeo!\n\n\n\nNURSE:\n42.\n"


def cleaned(*documents: str, **options: object) -> list[str]:
    return list(Cleaner(CleaningOptions(**options))(documents))  # type: ignore[arg-type]  # any


def test_by_default_nothing_is_changed() -> None:
    cleaner = Cleaner(CleaningOptions())
    assert list(cleaner([PLAY])) == [PLAY]
    assert cleaner.report() == []


def test_gutenbergs_header_and_footer() -> None:
    book = (
        "Title: X\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\nthe\n*** text\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK X ***\nlicence\n"
    )
    assert cleaned(book, gutenberg=True) == ["the\n*** text\n"]
    assert cleaned("no such lines\n", gutenberg=True) == ["no such lines\n"]


def test_lines_by_pattern() -> None:
    assert cleaned("Author: A\nthe Author: B\nx\n", drop_lines="Author:") == ["the Author: B\nx\n"]


def test_blank_lines_collapse_and_names_and_short_lines_stay() -> None:
    wanted = "ROMEO:\nAy me!\n\nJULIET:\nO Romeo, Romeo!\n\nNURSE:\n42."
    assert cleaned(PLAY.replace("\n\n\n\n", "\n \n\t\n\n"), collapse_blank_lines=True) == [wanted]


def test_documents_by_length() -> None:
    documents = ("one", "one two", "one two three", "one two three four")
    assert cleaned(*documents, min_words=2, max_words=3) == list(documents[1:3])


def test_paragraphs_can_be_documents() -> None:
    parts = ["ROMEO:\nAy me!", "JULIET:\nO Romeo, Romeo!", "NURSE:\n42."]
    assert cleaned(PLAY, paragraphs=True) == parts
    assert cleaned(PLAY, paragraphs=True, min_words=3) == parts[:2]


def test_duplicates_whole_or_by_their_beginning() -> None:
    documents = ("to be or not", "to be\n", "to be", "to be or so")
    assert cleaned(*documents, drop_duplicates=True) == ["to be or not", "to be\n", "to be or so"]
    assert cleaned(*documents, drop_duplicates=True, duplicate_chars=7) == list(documents[:2])


def test_numbers() -> None:
    assert cleaned("In 1,600.5 or 1601, 3d.", replace_numbers=True) == [
        "In <NUM> or <NUM>, <NUM>d."
    ]


def test_the_report_says_what_each_step_removed() -> None:
    cleaner = Cleaner(CleaningOptions(min_words=1, drop_duplicates=True))
    assert list(cleaner(["a b", "a", "a"])) == ["a b", "a"]
    assert cleaner.report() == [
        "min_words and max_words: 3 documents to 3, 0 characters fewer",
        "drop_duplicates: 3 documents to 2, 1 characters fewer",
    ]


def test_a_run_with_cleaning_resumes_with_it(
    gptlit: Callable[..., Result], text_file: Path
) -> None:
    options = ["--data.cleaning.drop_lines=FOOL", "--trainer.max_steps=2"]
    first = gptlit("fit", *TINY, f"--data.path={text_file}", *options)
    assert first.code == 0, first.err
    assert "cleaning: drop_lines: 1 documents to 1," in first.err
    resumed = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=3")
    assert resumed.code == 0, resumed.err


def test_lengths_that_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="max_words 3.*min_words 5"):
        CleaningOptions(min_words=5, max_words=3)
