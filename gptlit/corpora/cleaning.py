"""Cleaning: steps that remove parts of a text before it is tokenized; none by default."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gptlit.messages import UsageError, opt
from gptlit.tokenizers.base import NUMBER

_GUTENBERG = re.compile(
    r"\A.*?^\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*\n(.*?)"
    r"^\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG.*\Z",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class CleaningOptions:
    """Steps of cleaning, in the order in which they are done; all are optional.

    Args:
        gutenberg: Strip Project Gutenberg's header and footer.
        drop_lines: Drop lines that match this regular expression from their beginning.
        collapse_blank_lines: Keep at most one blank line at a time, and none at the ends.
        paragraphs: Make each paragraph between blank lines a document, instead of each file or
            record.
        min_words: Drop documents of fewer words.
        max_words: Drop documents of more words.
        drop_duplicates: Drop documents that occurred before.
        duplicate_chars: Number of first characters by which duplicates are found; all by default.
        replace_numbers: Replace each number by <NUM>.
    """

    gutenberg: bool = False
    drop_lines: str | None = None
    collapse_blank_lines: bool = False
    paragraphs: bool = False
    min_words: int = 0
    max_words: int | None = None
    drop_duplicates: bool = False
    duplicate_chars: int | None = None
    replace_numbers: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.drop_lines or "")
        except re.error as error:
            raise self._invalid("drop_lines", f"is not a regular expression ({error})") from error
        if self.min_words < 0:
            raise self._invalid("min_words", "must be 0 or more")
        if self.max_words is not None and self.max_words < max(1, self.min_words):
            least = f"{opt('data.cleaning.min_words')} {self.min_words}"
            raise self._invalid("max_words", f"must be 1 or more, and not below {least}")
        if self.duplicate_chars is not None and self.duplicate_chars < 1:
            raise self._invalid("duplicate_chars", "must be 1 or more")

    def _invalid(self, option: str, reason: str) -> UsageError:
        return UsageError(reason, f"data.cleaning.{option}", getattr(self, option))


AS_IT_IS = CleaningOptions()


@dataclass
class _Step:
    """A step of cleaning; `apply` returns the documents that are left of one."""

    name: str
    apply: Callable[[str], Iterable[str]]
    n_in: int = 0
    n_out: int = 0
    n_fewer_chars: int = 0

    def __call__(self, documents: Iterable[str]) -> Iterator[str]:
        for document in documents:
            left = [part for part in self.apply(document) if part.strip()]
            self.n_in += 1
            self.n_out += len(left)
            self.n_fewer_chars += len(document) - sum(map(len, left))
            yield from left

    def report(self) -> str:
        change = "fewer" if self.n_fewer_chars >= 0 else "more"
        return (
            f"{self.name}: {self.n_in:,} documents to {self.n_out:,}, "
            f"{abs(self.n_fewer_chars):,} characters {change}"
        )


def _without_duplicates(n_chars: int | None) -> Callable[[str], list[str]]:
    seen: set[bytes] = set()

    def step(document: str) -> list[str]:
        beginning = document.strip()[:n_chars].encode()
        digest = hashlib.blake2b(beginning, digest_size=16).digest()
        is_new = digest not in seen
        seen.add(digest)
        return [document] if is_new else []

    return step


def _steps(options: CleaningOptions) -> Iterator[_Step]:
    if options.gutenberg:
        yield _Step("gutenberg", lambda document: [_GUTENBERG.sub(r"\1", document)])
    if options.drop_lines is not None:
        dropped = re.compile(options.drop_lines)
        yield _Step(
            "drop_lines",
            lambda document: [
                "".join(line for line in document.splitlines(True) if not dropped.match(line))
            ],
        )
    if options.collapse_blank_lines:
        yield _Step(
            "collapse_blank_lines",
            lambda document: [re.sub(r"\n([^\S\n]*\n)+", "\n\n", document).strip("\n")],
        )
    if options.paragraphs:
        yield _Step(
            "paragraphs",
            lambda document: [
                part.strip("\n") for part in re.split(r"\n(?:[^\S\n]*\n)+", document)
            ],
        )
    if options.min_words or options.max_words is not None:
        most = float("inf") if options.max_words is None else options.max_words
        yield _Step(
            "min_words and max_words",
            lambda document: [document] * (options.min_words <= len(document.split()) <= most),
        )
    if options.drop_duplicates:
        yield _Step("drop_duplicates", _without_duplicates(options.duplicate_chars))
    if options.replace_numbers:
        yield _Step(
            "replace_numbers", lambda document: [re.sub(r"\d+(?:[.,]\d+)*", NUMBER, document)]
        )


class Cleaner:
    """Cleans documents one by one, each held in memory at a time."""

    def __init__(self, options: CleaningOptions) -> None:
        self._steps = list(_steps(options))

    def __call__(self, documents: Iterable[str]) -> Iterator[str]:
        """Yield the documents that are left, without blank ones.

        Raises:
            UsageError: A step left nothing; names the step.
        """
        left: Iterator[str] = (document for document in documents if document.strip())
        for step in self._steps:
            left = step(left)
        yield from left
        for step in self._steps:
            if step.n_in and not step.n_out:
                raise UsageError(
                    f"{step.name} leaves nothing of {step.n_in:,} documents; leave it out "
                    "or loosen it",
                    "data.cleaning",
                )

    def report(self) -> list[str]:
        """Return a line for each step on what it has removed so far."""
        return [step.report() for step in self._steps]
