"""Copies of the training text, compared with a search for every stretch."""

import random
from pathlib import Path

import numpy as np
import pytest

from gptlit.data import decoded_text, novelty
from gptlit.data.decoded_text import DecodedText
from gptlit.data.novelty import MARKED, WINDOW, Copied, TrainingText
from gptlit.tokenizers.base import Tokenizer, parse_options
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer, count_words

LETTERS = "abcdefghij klmn opq\nrst uv wxyz.,è—𝄞"


def random_text(pick: random.Random, n: int) -> str:
    return "".join(pick.choices(LETTERS, k=n))


def tokenizer_of(kind: str, text: str) -> Tokenizer:
    options = parse_options(kind)
    if kind == "char":
        return CharTokenizer.train(text, options)
    if kind == "bpe:300":
        return BytePairTokenizer.train([text], options)
    return WordTokenizer.train(count_words(text, kind == "word:reversible"), options)


def index_of(parts: list[str], tokenizer: Tokenizer, folder: Path) -> TrainingText:
    """Index texts that lie in a token file with other tokens before the second and at the end."""
    other = tokenizer.encode(parts[0])[:11]
    ids, pieces = np.zeros(0, dtype=np.uint16), []
    for number, part in enumerate(parts):
        if number == 1:
            ids = np.concatenate([ids, other])
        encoded = tokenizer.encode(part)
        pieces.append((len(ids), len(ids) + len(encoded)))
        ids = np.concatenate([ids, encoded])
    ids = np.concatenate([ids, other]).astype(np.uint16)
    return TrainingText(DecodedText(ids, np.array(pieces), tokenizer), folder)


def by_search(text: str, parts: list[str], n_prompt: int = 0) -> Copied:
    """Look for every stretch in every part."""
    n = len(text)
    starts = range(max(0, n_prompt - WINDOW + 1), n - WINDOW + 1)
    new = [not any(text[at : at + WINDOW] in part for part in parts) for at in starts]
    longest, marked = 0, set()
    for first in range(n):
        for end in range(max(first + WINDOW, n_prompt + 1), n + 1):
            if not any(text[first:end] in part for part in parts):
                break
            longest = max(longest, end - first)
            if end - first >= MARKED:
                marked |= set(range(first, end))
    edges = [at for at in range(n + 1) if (at in marked) != (at - 1 in marked)]
    share = float(np.mean(new)) if new else float("nan")
    return Copied(share, longest, list(zip(edges[::2], edges[1::2], strict=True)))


def assert_equal(found: Copied, expected: Copied) -> None:
    assert found.novelty == pytest.approx(expected.novelty, nan_ok=True)
    assert (found.longest, found.stretches) == (expected.longest, expected.stretches)


@pytest.mark.parametrize("kind", ["char", "bpe:300", "word", "word:reversible"])
@pytest.mark.parametrize("seed", range(6))
def test_all_copies_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, seed: int
) -> None:
    """Wherever chunks, blocks and pieces end, in memory and in a file."""
    monkeypatch.setattr(decoded_text, "CHUNK", 23)
    monkeypatch.setattr(novelty, "BLOCK", 5)
    monkeypatch.setattr(novelty, "IN_MEMORY", 17)
    pick = random.Random(seed)
    parts = [random_text(pick, size) for size in (300, 40, 500, 7)]
    # a stretch that stands twice, with other letters after it
    parts[2] += parts[0][100:180] + random_text(pick, 20)
    tokenizer = tokenizer_of(kind, "\n ".join(parts))
    decoded = [tokenizer.decode(tokenizer.encode(part)) for part in parts]
    index = index_of(parts, tokenizer, tmp_path)
    whole = "".join(decoded)
    for _ in range(12):
        text = ""
        for _ in range(4):
            first = pick.randrange(len(whole))
            text += whole[first : first + pick.randrange(120)] + random_text(
                pick, pick.randrange(9)
            )
        n_prompt = pick.choice([0, 0, 20, 70])
        assert_equal(index.copied(text, n_prompt), by_search(text, decoded, n_prompt))
    assert list(tmp_path.iterdir()) == []


def test_a_piece_is_not_continued_by_the_next(tmp_path: Path) -> None:
    pick = random.Random(0)
    parts = [random_text(pick, 60), random_text(pick, 60)]
    tokenizer = tokenizer_of("char", "".join(parts))
    ids = tokenizer.encode("".join(parts)).astype(np.uint16)
    apart = TrainingText(DecodedText(ids, np.array([[0, 60], [60, 120]]), tokenizer), tmp_path)
    together = TrainingText(DecodedText(ids, np.array([[0, 120]]), tokenizer), tmp_path)
    text = "".join(parts)[20:100]
    assert together.copied(text) == Copied(0.0, 80, [(0, 80)])
    assert apart.copied(text).longest == 40
    assert apart.copied(text).stretches == []
    assert apart.copied(text).novelty == pytest.approx(31 / 49)


def test_a_copy_of_32_characters_is_found_anywhere(tmp_path: Path) -> None:
    pick = random.Random(1)
    text = "".join(pick.choices("abcdefgh", k=WINDOW + 2 * novelty.STRIDE))
    tokenizer = tokenizer_of("char", text)
    ids = tokenizer.encode(text).astype(np.uint16)
    index = TrainingText(DecodedText(ids, np.array([[0, len(ids)]]), tokenizer), tmp_path)
    for first in range(2 * novelty.STRIDE):
        assert index.copied(text[first : first + WINDOW]) == Copied(0.0, WINDOW, [])


def test_marks() -> None:
    copied = Copied(0.5, 60, [(1, 3), (5, 6)])
    assert copied.mark("abcdefg") == "a[[bc]]de[[f]]g"
    assert Copied(1.0, 0, []).mark("abc") == "abc"


def test_short_texts(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("ab")
    ids = np.zeros(100, dtype=np.uint16)
    index = TrainingText(DecodedText(ids, np.array([[0, 100]]), tokenizer), tmp_path)
    assert np.isnan(index.copied("a" * (WINDOW - 1)).novelty)
    assert index.copied("a" * WINDOW).novelty == 0
    assert index.copied("b" * 200) == Copied(1.0, 0, [])
    assert index.copied("a" * 90).longest == 90
    tiny = TrainingText(DecodedText(ids[:5], np.array([[0, 5]]), tokenizer), tmp_path)
    assert tiny.copied("a" * 50) == Copied(1.0, 0, [])
