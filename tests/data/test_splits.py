import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.data.splits import Span, Splitting
from gptlit.messages import UsageError


def cut(text: str, *options: float, ends: list[int] | None = None, **more: object) -> list[str]:
    """Return the spans of a text, each after the first letter of its split."""
    splitting = Splitting(*options, **more)  # type: ignore[arg-type]  # any option
    spans = splitting.spans(len(text), np.array(ends or [len(text)]))
    return [split[0] + text[first:end] for split, first, end in spans]


def test_tiny_shakespeare_splits_as_published() -> None:
    assert Splitting(0.1).spans(1_115_394, np.array([1_115_394])) == [
        Span("train", 0, 1_003_854),
        Span("val", 1_003_854, 1_115_394),
    ]


@pytest.mark.parametrize(
    ("fractions", "wanted"),
    [
        ((0.1, 0.0), ["tabcdefghi", "vj"]),
        ((0.0, 0.0), ["tabcdefghij"]),
        ((0.2, 0.1), ["tabcdefg", "vhi", "tj"]),
        ((0.0, 0.3), ["tabcdefg", "thij"]),
    ],
)
def test_splits_follow_each_other(fractions: tuple[float, float], wanted: list[str]) -> None:
    assert cut("abcdefghij", *fractions) == wanted


def test_several_spans_are_spread_over_the_text() -> None:
    assert cut("abcdefghij", 0.2, val_spans=2) == ["tabcd", "ve", "tfghi", "vj"]
    assert cut("abcdefghi", 0.25, 0.25, val_spans=2) == ["tab", "vc", "td", "tef", "vg", "thi"]


def test_documents_stay_whole() -> None:
    options = {"split_by": "documents", "ends": [3, 4, 7, 10]}
    assert cut("abcdefghij", 0.2, **options) == ["tabcdefg", "vhij"]
    assert cut("abcdefghij", 0.4, val_spans=2, **options) == ["tabc", "vd", "tefg", "vhij"]


@given(
    n_chars=st.integers(1, 300),
    fractions=st.sampled_from([(0.1, 0.0), (0.0, 0.2), (0.3, 0.3), (0.0, 0.0)]),
    val_spans=st.integers(1, 5),
    by_document=st.booleans(),
    data=st.data(),
)
def test_every_character_is_in_one_split(
    n_chars: int,
    fractions: tuple[float, float],
    val_spans: int,
    by_document: bool,
    data: st.DataObject,
) -> None:
    inside = data.draw(st.sets(st.integers(1, n_chars)))
    ends = np.array(sorted(inside | {n_chars}))
    split_by = "documents" if by_document else "characters"
    try:
        spans = Splitting(*fractions, val_spans, split_by).spans(n_chars, ends)  # type: ignore[arg-type]
    except UsageError as error:
        assert "val_spans" in str(error)  # noqa: PT017  # refused or right
        return
    assert [first for _, first, _ in spans] == [0, *(end for _, _, end in spans[:-1])]
    assert spans[-1].end == n_chars
    if by_document:
        assert {end for _, _, end in spans} <= set(ends.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "^val_fraction 1.0"),
        ({"val_fraction": 0, "test_fraction": -0.1}, "^test_fraction -0.1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "nothing to train on"),
        ({"val_spans": 0}, "^val_spans 0"),
        ({"val_spans": 11}, "^val_spans 11: .*too few.*0 of train"),
        ({"split_by": "documents"}, "the text's 1 documents are too few"),
    ],
)
def test_invalid_splits(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cut("abcdefghij", **options)
