import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.terminal import (
    align_columns,
    folded,
    format_value,
    in_colour,
    padded,
    printable,
    shortened,
    visible,
    width,
    wrap_words,
    wrapped,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def test_widths_are_those_of_a_terminal() -> None:
    assert width("abc") == 3
    assert width("é") == width("é") == 1
    assert width("漢字") == 4
    assert padded("漢", 4) == "漢  "
    assert padded("漢", 4, right=True) == "  漢"
    assert padded("too long", 3) == "too long"
    assert shortened("漢字漢字", 5) == "漢字…"
    assert shortened("漢字", 4) == "漢字"


def test_whitespace_and_control_characters_become_visible() -> None:
    assert visible(" a\n\tb") == "␣a⏎⇥b"
    assert visible("") == "·"
    assert visible("\x1b[31m") == "\\x1b[31m"
    assert printable("a\r\n\x07") == "a\\r\n\\x07"


def test_lines_break_at_whitespace_where_possible() -> None:
    assert wrapped("to be or not\n\n  to be", 6) == ["to be", "or not", "", "  to", "be"]
    assert wrapped("abcdefgh", 3) == ["abc", "def", "gh"]
    assert wrapped("漢字漢字", 5) == ["漢字", "漢字"]
    assert wrapped("", 5) == [""]


@given(TEXTS, st.integers(2, 30))
def test_wrapping_loses_nothing_and_fits(text: str, columns: int) -> None:
    lines = wrapped(text, columns)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(printable(text.expandtabs(4)).split())
    assert width(shortened(printable(text).replace("\n", ""), columns)) <= columns


@pytest.mark.parametrize(
    ("is_terminal", "variables", "colour"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_depend_on_the_terminal_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, variables: dict[str, str], colour: bool
) -> None:
    class File:
        def isatty(self) -> bool:
            return is_terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert in_colour(File()) is colour  # type: ignore[arg-type]


def test_a_value_is_continued_below_itself() -> None:
    assert folded("  text   to be or not to be", 20) == "  text   to be or\n         not to be"
    assert folded("gptlit: to be or not", 14) == "gptlit: to be\n  or not"
    assert folded("a  b\n  c  d", 80) == "a  b\n  c  d"
    # below its name if it is too wide to be next to it, and whole if it is wider than a line
    assert folded("  name    abcdefghijklm", 18) == "  name\n    abcdefghijklm"
    assert folded("abcdefgh ij", 4) == "abcdefgh\n  ij"
    # a backslash continues a shell's command
    assert folded("  do  gptlit fit --a b", 18) == "  do  gptlit fit \\\n      --a b"
    # which has its place beside the widest word
    below = "  do\n    gptlit \\\n    abcdefghijk \\\n    l"
    assert folded("  do  gptlit abcdefghijk l", 17) == below


@given(TEXTS, st.integers(10, 60))
def test_folding_changes_whitespace_only(text: str, columns: int) -> None:
    found = folded(text, columns)
    assert found.replace(" \\\n", " ").split() == text.replace(" \\\n", " ").split()
    for line in found.split("\n"):
        assert width(line) <= columns or len(line.split()) <= 1 or not line.isascii()


@given(st.text("ab \n", max_size=200), st.integers(4, 20))
def test_words_do_not_cross_the_edge(text: str, columns: int) -> None:
    found = wrap_words(text, columns)
    assert found.split() == text.split()
    for line in found.split("\n"):
        for word in re.finditer(r"\S+", line):  # the terminal breaks lines at its edge
            if len(word[0]) < columns and line[: word.start()].strip():
                assert word.start() // columns == (word.end() - 1) // columns
    if all(len(line) <= columns for line in text.split("\n")):
        assert [line.rstrip() for line in found.split("\n")] == [
            line.rstrip() for line in text.split("\n")
        ]


def test_columns_are_aligned() -> None:
    rows = [["name", "n", ""], ["漢", "10", "a"], ["abcdef", "1", "bc"]]
    assert align_columns(rows, left=(0, 2)) == ["name     n", "漢      10  a", "abcdef   1  bc"]


def test_values_are_formatted_as_they_are_typed() -> None:
    values = [None, True, 3, 3e-5, "text", ["a", 1]]
    assert list(map(format_value, values)) == ["null", "true", "3", "3e-05", "text", '["a", 1]']
    assert format_value(None, "none") == "none"
