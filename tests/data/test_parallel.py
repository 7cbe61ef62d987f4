from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gptlit.corpora import catalog
from gptlit.data import clean_text, parallel, tasks
from gptlit.data.clean_text import CleanText
from gptlit.data.parallel import Encoder, WordCounter, in_order
from gptlit.data.tasks import cut_into_tasks, last_cut
from gptlit.devices import cpus
from gptlit.tokenizers.base import Tokenizer, UnknownPieces, parse_options
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer, count_words
from tests.conftest import made_up_text

CORPUS = "to be or not to be that is the question\n\n  whether 'tis nobler.\nin the 1600 mind\n" * 9


def bpe(pattern: str | None = None) -> BytePairTokenizer:
    trained = BytePairTokenizer.train(CORPUS.splitlines(True), parse_options("bpe:300"))
    pieces, special = trained.pieces, trained.special_tokens
    return BytePairTokenizer("bpe", "x", pattern or trained.pattern, pieces, special)


BPE = {"rustbpe's": bpe(), "gpt2's": bpe(r50k_pat_str)}
TEXTS = st.text(st.sampled_from("ab1.' \n\té\u3000stve"), max_size=40)


@pytest.mark.parametrize("kind", ["rustbpe's", "gpt2's", "word", "word:reversible"])
@given(before=TEXTS, after=TEXTS, between=st.sampled_from(["a\nb", ".\n'", "a b", "'\u3000 s b"]))
def test_no_tokenizer_joins_both_sides_of_a_cut(
    kind: str, before: str, after: str, between: str
) -> None:
    text = before + between + after
    if kind.startswith("word"):
        options = parse_options(kind)
        counts = count_words(text, options.reversible)
        tokenizer: Tokenizer = WordTokenizer.train(counts, options)
    else:
        tokenizer = BPE[kind]
    raw = text.encode()
    place = next(filter(None, (last_cut(raw, cut) for cut in tasks._CUTS)))
    first, second = raw[:place].decode(), raw[place:].decode()
    assert first
    assert second
    ids = [*tokenizer.encode(first), *tokenizer.encode_continuation(second)]
    assert ids == tokenizer.encode(text).tolist()
    if kind == "word:reversible":
        again = count_words(first, True) + count_words(second, True, is_continuation=True)
        assert again == count_words(text, True)


def test_the_last_place_to_cut() -> None:
    line, space = tasks._CUTS
    assert last_cut(b"ab cd\nef gh\n\nij", line) == 6
    assert last_cut(b"ab cd ef", line) is None
    assert last_cut(b"ab cd ef", space) == 5
    assert last_cut("è€ a\nbè".encode()[1:-1], line) == 7  # characters cut off at both ends


def written_text(folder: Path) -> CleanText:
    text = catalog.load(catalog.TextOptions(path=str(folder)), folder)
    return clean_text.write(text, folder / "clean", joined=True)


PIECES = st.sampled_from(["é b\n€", "€", "é b", "a"])


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8), data=st.data())
def test_tasks_cover_a_span_document_by_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tasks")
    for index, length in enumerate(lengths):
        (folder / f"{index}.txt").write_text(data.draw(PIECES) * length, encoding="utf-8")
    text = written_text(folder)
    end = text.byte_at(data.draw(st.integers(1, text.n_chars)))
    first = text.byte_at(data.draw(st.integers(0, text.n_chars - 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "LOOK_BACK_BYTES", (8, 16))
        each = list(cut_into_tasks(text, first, end, span=3, max_bytes=32))
    if first >= end:
        assert not each
        return
    stretches = [stretch for task in each for stretch in task.stretches]
    assert [stretch.first for stretch in stretches] == [first, *(s.end for s in stretches[:-1])]
    assert stretches[-1].end == end
    whole = text.path.read_bytes()[first:end].decode()
    assert "".join(part for task in each for part, _ in task.texts()) == whole
    ends = set(text.ends[:, 1].tolist())
    assert {s.end for s in stretches if s.ends_document} == {n for n in ends if first < n <= end}
    # a cut document continues
    assert all(s.is_continuation != (s.first in ends or s.first == first) for s in stretches)
    assert all(task.n_bytes <= 32 for task in each)
    assert {task.span for task in each} == {3}


@pytest.mark.parametrize("alone", [True, False])
def test_several_processes_give_the_results_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    monkeypatch.setattr(parallel, "ONE_WORKER_BELOW_BYTES", 10**9 if alone else 0)
    monkeypatch.setattr(cpus, "usable", lambda: 2)
    content = made_up_text(800)
    (tmp_path / "text.txt").write_text(content, encoding="utf-8")
    text = written_text(tmp_path)
    tokenizer = CharTokenizer.train(content)
    encoder = Encoder(tokenizer, np.dtype(np.uint16))
    results = list(
        in_order(
            encoder, cut_into_tasks(text, 0, text.n_bytes, max_bytes=700), text.n_bytes, "text"
        )
    )
    assert len(results) > 4
    assert tokenizer.decode(np.concatenate([result.ids for result in results])) == content
    assert sum(result.n_bytes for result in results) == text.n_bytes
    counted = list(
        in_order(
            WordCounter(False),
            cut_into_tasks(text, 0, text.n_bytes, max_bytes=700),
            text.n_bytes,
            "words",
        )
    )
    assert sum(counted, Counter()) == Counter(content.split())


def test_errors_of_worker_processes_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "ONE_WORKER_BELOW_BYTES", 0)
    monkeypatch.setattr(cpus, "usable", lambda: 2)
    (tmp_path / "text.txt").write_text("abz", encoding="utf-8")
    text = written_text(tmp_path)
    encoder = Encoder(CharTokenizer("ab"), np.dtype(np.uint16))
    with pytest.raises(UnknownPieces, match="'z' not in the vocabulary of 2 characters: ab"):
        list(in_order(encoder, cut_into_tasks(text, 0, 3), 3, "text"))
