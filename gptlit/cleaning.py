"""What can be taken out of a text before it is tokenized; all of it off by default."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptlit.messages import UsageError

NUMBER = "<NUM>"
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
        option = "--data.cleaning"
        try:
            re.compile(self.drop_lines or "")
        except re.error as error:
            raise UsageError(
                f"{option}.drop_lines {self.drop_lines}: no regular expression ({error})"
            ) from error
        if self.max_words is not None and self.max_words < max(1, self.min_words):
            raise UsageError(
                f"{option}.max_words {self.max_words}: must be 1 or more, and not below "
                f"{option}.min_words {self.min_words}"
            )
        if self.duplicate_chars is not None and self.duplicate_chars < 1:
            raise UsageError(f"{option}.duplicate_chars {self.duplicate_chars}: must be 1 or more")


AS_IT_IS = CleaningOptions()


def _without_duplicates(documents: Sequence[str], n_chars: int | None) -> list[str]:
    first: dict[str, str] = {}
    for document in documents:
        first.setdefault(document.strip()[:n_chars], document)
    return list(first.values())


def _steps(options: CleaningOptions) -> dict[str, Callable[[list[str]], list[str]]]:
    """The steps asked for, by name: from documents to documents."""
    steps: dict[str, Callable[[list[str]], list[str]]] = {}
    if options.gutenberg:
        steps["gutenberg"] = lambda documents: [_GUTENBERG.sub(r"\1", d) for d in documents]
    if options.drop_lines is not None:
        metadata = re.compile(options.drop_lines)

        def without_metadata(document: str) -> str:
            lines = document.splitlines(keepends=True)
            return "".join(line for line in lines if not metadata.match(line))

        steps["drop_lines"] = lambda documents: list(map(without_metadata, documents))
    if options.collapse_blank_lines:
        steps["collapse_blank_lines"] = lambda documents: [
            re.sub(r"\n([^\S\n]*\n)+", "\n\n", d).strip("\n") for d in documents
        ]
    if options.paragraphs:
        steps["paragraphs"] = lambda documents: [
            part.strip("\n") for d in documents for part in re.split(r"\n(?:[^\S\n]*\n)+", d)
        ]
    if options.min_words or options.max_words is not None:
        most = float("inf") if options.max_words is None else options.max_words
        steps["min_words and max_words"] = lambda documents: [
            d for d in documents if options.min_words <= len(d.split()) <= most
        ]
    if options.drop_duplicates:
        steps["drop_duplicates"] = lambda documents: _without_duplicates(
            documents, options.duplicate_chars
        )
    if options.replace_numbers:
        steps["replace_numbers"] = lambda documents: [
            re.sub(r"\d+(?:[.,]\d+)*", NUMBER, d) for d in documents
        ]
    return steps


def clean(documents: Sequence[str], options: CleaningOptions) -> tuple[list[str], list[str]]:
    """The documents that are left, and a line for each step of what it removed.

    Raises:
        UsageError: nothing is left; names the step that took the last of it.
    """
    left, report = [document for document in documents if document.strip()], []
    for name, step in _steps(options).items():
        before, left = left, [document for document in step(left) if document.strip()]
        if not left:
            raise UsageError(
                f"--data.cleaning: {name} leaves nothing of {len(before):,} documents; "
                "leave it out or loosen it"
            )
        n_chars = sum(map(len, before)) - sum(map(len, left))
        report.append(
            f"{name}: {len(before):,} documents to {len(left):,}, {abs(n_chars):,} characters "
            + ("fewer" if n_chars >= 0 else "more")
        )
    return left, report
