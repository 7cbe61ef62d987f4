import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.terminal import in_colour, padded, printable, shortened, visible, width, wrapped

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


def test_white_space_and_control_characters_become_visible() -> None:
    assert visible(" a\n\tb") == "␣a⏎⇥b"
    assert visible("") == "·"
    assert visible("\x1b[31m") == "\\x1b[31m"
    assert printable("a\r\n\x07") == "a\\r\n\\x07"


def test_lines_break_at_blanks_where_they_can() -> None:
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
def test_colours_are_for_terminals_that_want_them(
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
