"""What can be taken out of a text before it is tokenized; all of it off by default."""

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
    """Steps of cleaning, in the order in which they are done (S5's, and all optional).

    Args:
        gutenberg: Strip Project Gutenberg's header and footer.
        drop_lines: Drop lines that match this regular expression from their beginning.
        collapse_blank_lines: At most one blank line at a time, none at the ends.
        paragraphs: Documents are what stands between blank lines, instead of files or the
            rows of .jsonl.
        min_words: Drop documents of fewer words.
        max_words: Drop documents of more words.
        drop_duplicates: Drop documents that came before.
        duplicate_chars: How many first characters make a duplicate; all when left out.
        replace_numbers: Write <NUM> for each number.
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
        option = "data.cleaning"
        try:
            re.compile(self.drop_lines or "")
        except re.error as error:
            reason = f"no regular expression ({error})"
            raise UsageError(reason, f"{option}.drop_lines", self.drop_lines) from error
        if self.min_words < 0:
            raise UsageError("must be 0 or more", f"{option}.min_words", self.min_words)
        if self.max_words is not None and self.max_words < max(1, self.min_words):
            least = f"{opt(f'{option}.min_words')} {self.min_words}"
            reason = f"must be 1 or more, and not below {least}"
            raise UsageError(reason, f"{option}.max_words", self.max_words)
        if self.duplicate_chars is not None and self.duplicate_chars < 1:
            value = self.duplicate_chars
            raise UsageError("must be 1 or more", f"{option}.duplicate_chars", value)


AS_IT_IS = CleaningOptions()


@dataclass
class _Step:
    """A step of cleaning, from a document to what becomes of it, and what it has seen so far."""

    name: str
    apply: Callable[[str], Iterable[str]]
    documents_in: int = 0
    documents_out: int = 0
    fewer_chars: int = 0

    def __call__(self, documents: Iterable[str]) -> Iterator[str]:
        for document in documents:
            left = [part for part in self.apply(document) if part.strip()]
            self.documents_in += 1
            self.documents_out += len(left)
            self.fewer_chars += len(document) - sum(map(len, left))
            yield from left

    def report(self) -> str:
        return (
            f"{self.name}: {self.documents_in:,} documents to {self.documents_out:,}, "
            f"{abs(self.fewer_chars):,} characters {'fewer' if self.fewer_chars >= 0 else 'more'}"
        )


def _without_duplicates(n_chars: int | None) -> Callable[[str], list[str]]:
    seen: set[bytes] = set()

    def step(document: str) -> list[str]:
        begins = document.strip()[:n_chars]
        digest = hashlib.blake2b(begins.encode(), digest_size=16).digest()
        new = digest not in seen
        seen.add(digest)
        return [document] if new else []

    return step


def _steps(options: CleaningOptions) -> Iterator[_Step]:
    """The steps asked for, in order."""
    if options.gutenberg:
        yield _Step("gutenberg", lambda document: [_GUTENBERG.sub(r"\1", document)])
    if options.drop_lines is not None:
        metadata = re.compile(options.drop_lines)

        def without_metadata(document: str) -> list[str]:
            lines = document.splitlines(keepends=True)
            return ["".join(line for line in lines if not metadata.match(line))]

        yield _Step("drop_lines", without_metadata)
    if options.collapse_blank_lines:
        yield _Step(
            "collapse_blank_lines",
            lambda document: [re.sub(r"\n([^\S\n]*\n)+", "\n\n", document).strip("\n")],
        )
    if options.paragraphs:
        yield _Step(
            "paragraphs",
            lambda document: (
                part.strip("\n") for part in re.split(r"\n(?:[^\S\n]*\n)+", document)
            ),
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
    """Cleans documents one by one; a document is held in memory while it is.

    `report` tells what each step has removed so far, a line each.
    """

    def __init__(self, options: CleaningOptions) -> None:
        self._steps = list(_steps(options))

    def __call__(self, documents: Iterable[str]) -> Iterator[str]:
        """The documents that are left, without blank ones.

        Raises:
            UsageError: nothing is left; names the step that took the last of it.
        """
        left: Iterator[str] = (document for document in documents if document.strip())
        for step in self._steps:
            left = step(left)
        yield from left
        for step in self._steps:
            if step.documents_in and not step.documents_out:
                raise UsageError(
                    f"{step.name} leaves nothing of {step.documents_in:,} documents; leave it out "
                    "or loosen it",
                    "data.cleaning",
                )

    def report(self) -> list[str]:
        return [step.report() for step in self._steps]
