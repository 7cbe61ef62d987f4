"""The splits of a text: which characters are for training, validation and testing."""

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from gptlit.messages import UsageError, opt

SPLITS = ("train", "val", "test")
SplitBy = Literal["characters", "documents"]


class Span(NamedTuple):
    """Characters `first` to `end` of a text, and the split they belong to."""

    split: str
    first: int
    end: int


@dataclass(frozen=True)
class Splitting:
    """How a text is split.

    Args:
        val_fraction: Share of the characters, at the end of the text, held out for validation;
            with 0 there is no validation and train/loss is watched.
        test_fraction: Share of the characters for `gptlit test`, after the validation split.
        val_spans: Spans over which the held-out characters are spread: the text is cut into as
            many equal parts, and the end of each is held out.
        split_by: characters cuts splits anywhere, documents at the nearest end of a document.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.0
    val_spans: int = 1
    split_by: SplitBy = "characters"

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UsageError("must be at least 0 and below 1", f"data.{name}", value)
        if self.val_fraction + self.test_fraction >= 1:
            raise UsageError(
                f"{opt('data.val_fraction')} {self.val_fraction} and {opt('data.test_fraction')} "
                f"{self.test_fraction} leave nothing to train on; their sum must be below 1"
            )
        if self.val_spans < 1:
            raise UsageError("must be 1 or more", "data.val_spans", self.val_spans)

    def spans(self, n_chars: int, document_ends: np.ndarray) -> list[Span]:
        """Return the spans of a text in order, without empty ones.

        The first int((1 - val_fraction - test_fraction) * length) characters of each of the equal
        parts are for training.

        Args:
            n_chars: Number of characters of the text.
            document_ends: Characters up to the end of each document; the last is n_chars.

        Raises:
            UsageError: The text is too short, or has too few documents.
        """
        bounds = [index * n_chars // self.val_spans for index in range(self.val_spans + 1)]
        cuts = [0]
        for first, end in itertools.pairwise(bounds):
            n = end - first
            train_end = int((1 - self.val_fraction - self.test_fraction) * n)
            val_end = int((1 - self.test_fraction) * n) if self.test_fraction else n
            cuts += [first + train_end, first + val_end, end]
        if self.split_by == "documents":
            ends = np.concatenate([[0], document_ends])
            # the nearest end, by the midpoints between ends
            cuts = ends[np.searchsorted((ends[1:] + ends[:-1]) / 2, cuts)].tolist()
        names = SPLITS * self.val_spans
        spans = [
            Span(name, first, end)
            for name, first, end in zip(names, cuts, cuts[1:], strict=False)
            if end > first
        ]
        self._check(spans, len(document_ends))
        return spans

    def _check(self, spans: list[Span], n_documents: int) -> None:
        wanted = {"train": 1.0, "val": self.val_fraction, "test": self.test_fraction}
        for name, fraction in wanted.items():
            # a text may be too short for one held-out character, but not for several spans
            is_required = fraction and (self.split_by == "documents" or self.val_spans > 1)
            n_spans = sum(span.split == name for span in spans)
            if not is_required or n_spans == self.val_spans:
                continue
            has = f"{n_documents:,} documents" if self.split_by == "documents" else "characters"
            raise UsageError(
                f"the text's {has} are too few for as many spans of every split (there are "
                f"{n_spans} of {name}); lower val_spans, raise the fractions or take split_by "
                "characters",
                "data.val_spans",
                self.val_spans,
            )
