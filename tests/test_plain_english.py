"""Docstrings, comments, messages and documentation keep to plain technical English."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "configs", "docs", "examples", "gptlit", "tests")
SUFFIXES = (".py", ".yaml", ".md")
FORBIDDEN = re.compile(
    r"(?<![.\w])(told|tells?|telling|go\s+on|goes\s+on|going\s+on|gone\s+on|what\s+is\s+no"
    r"|at\s+hand|handed|whoever|nobody|ha(s|ve)\s+no\s+part|lies\s+beside|heed(s|ed|ing)?"
    r"|let\s+go\s+of|as\s+asked|brings)\b",  # but names such as callbacks.Guard.told are allowed
    re.IGNORECASE,
)


def checked_files() -> list[Path]:
    paths = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*"))]
    return sorted(p for p in paths if p.suffix in SUFFIXES and p != Path(__file__))


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each comment and string of words in Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value  # others are names


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each part of a file that people read."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from strings(source)
    else:
        lines = enumerate(source.splitlines(), 1)
        yield from (each for each in lines if path.suffix == ".md" or "#" in each[1])


def badly_begun(source: str) -> Iterator[tuple[int, str]]:
    """Yield docstrings that begin with "What", and entries for arguments that begin with "Of"."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            for found in re.finditer(r"\AWhat\b.*|^ +\w+: Of .*", text, re.MULTILINE):
                yield node.body[0].lineno, found[0]


@pytest.mark.parametrize("path", checked_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_written_in_plain_english(path: Path) -> None:
    found = [
        f"{line}: {match[0]!r} in {' '.join(text.split())[:200]}"
        for line, text in prose(path)
        if (match := FORBIDDEN.search(text))
    ]
    if path.suffix == ".py":
        source = path.read_text(encoding="utf-8")
        found += [f"{line}: {text.strip()}" for line, text in badly_begun(source)]
    assert not found, "\n".join([str(path.relative_to(ROOT)), *found])


def test_identifiers_do_not_count() -> None:
    source = "position = file.tell()  # the byte\ntold = f'at {told} bytes of', 'told'\n"
    assert [text for _, text in strings(source)] == ["# the byte", "at ", " bytes of"]


def test_phrases_are_found_across_lines() -> None:
    assert FORBIDDEN.search("a run that goes\n    on")
    assert not FORBIDDEN.search("intellectual, ongoing")


def test_the_beginnings_of_docstrings_are_checked() -> None:
    source = 'def f(dtype):\n    """What it is.\n\n    Args:\n        dtype: Of the ids.\n    """\n'
    assert [text.strip() for _, text in badly_begun(source)] == [
        "What it is.",
        "dtype: Of the ids.",
    ]
