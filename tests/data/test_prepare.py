"""Token files: their content and their preparation."""

import errno
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlit.corpora import catalog
from gptlit.corpora.cleaning import CleaningOptions
from gptlit.data import encode_log, parallel, prepare, tasks
from gptlit.data.splits import Splitting
from gptlit.data.token_file import TokenFile
from gptlit.messages import UsageError
from gptlit.steps.losses import text_metrics
from gptlit.tokenizers.base import TokenizerOptions, parse_options
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from tests.conftest import made_up_text


def load(folder: Path, content: str, name: str = "made up.txt", **options: Any) -> catalog.Text:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    return catalog.load(catalog.TextOptions(path=str(folder / name), **options), folder)


def prepared(
    folder: Path, content: str = "abcdefghij", val_fraction: float = 0.1, **options: Any
) -> TokenFile:
    texts, reading = folder / "texts", options.pop("reading", {})
    splitting = Splitting(
        val_fraction, *(options.pop(name) for name in ("test_fraction",) if name in options)
    )
    own = {name: load(texts, own, name) for name, own in options.pop("own_texts", {}).items()}
    return prepare.prepare(
        load(texts, content, **reading),
        folder / "tokens",
        **{"tokenizer": TokenizerOptions(), "splitting": splitting, "own_texts": own, **options},
    )


def test_the_file_holds_the_text_in_16_bits(tmp_path: Path) -> None:
    tokens = prepared(tmp_path, "hello world", val_fraction=0.3)
    assert isinstance(tokens.ids, np.memmap)
    assert tokens.ids.dtype == np.uint16
    assert tokens.tokenizer.decode(tokens.split("train")) == "hello w"
    assert tokens.tokenizer.decode(tokens.split("val")) == "orld"
    assert tokens.tokenizer.vocab_size == len(set("hello world"))
    assert tokens.provenance["sizes"]["val"] == {"characters": 4, "bytes": 4, "unknown": 0}


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    content = "".join(map(chr, range(0x10000, 0x10000 + 2**16 + 1)))
    tokens = prepared(tmp_path, content, val_fraction=0.0)
    assert tokens.ids.dtype == np.uint32
    assert tokens.tokenizer.decode(tokens.ids) == content


def test_prepared_once_and_again_when_anything_changes(tmp_path: Path) -> None:
    prepared(tmp_path)
    (made,) = tmp_path.glob("tokens/*.bin")
    before = made.stat().st_mtime_ns
    prepared(tmp_path)
    assert made.stat().st_mtime_ns == before
    changes: list[dict[str, Any]] = [
        {"content": "abcdefghik"},
        {"val_fraction": 0.2},
        {"test_fraction": 0.1},
        {"tokenizer": CharTokenizer("abcdefghijk")},
        {"tokenizer": TokenizerOptions(eos=True)},
        {"own_texts": {"val": "abc"}},
        {"reading": {"cleaning": CleaningOptions(replace_numbers=True)}},
        {"reading": {"jsonl_field": "body"}},
        {"reading": {"column": "body"}},
        {"reading": {"encoding": "utf-8"}},
    ]
    for count, change in enumerate(changes, start=2):
        prepared(tmp_path, **change)
        assert len(list(tmp_path.glob("tokens/*.bin"))) == count, change
    assert not list(tmp_path.glob("tokens/*.part"))


@pytest.mark.parametrize("suffix", [".bin", ".json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "altered"])
def test_a_damaged_file_is_made_again(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = prepared(tmp_path).ids.tolist()
    (path,) = tmp_path.glob(f"tokens/*{suffix}")
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(raw[:-3])
    else:
        path.write_bytes(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
    assert prepared(tmp_path).ids.tolist() == whole
    assert path.read_bytes() == raw


def test_inputs_before_a_split(tmp_path: Path) -> None:
    tokens = prepared(tmp_path, "ab\ncdefghij", val_fraction=0.2)
    start = tokens.tokenizer.start_id
    assert tokens.tokenizer.decode([start]) == "\n"
    first_of_val = tokens.spans["val"][0][0]
    before = tokens.inputs_before(np.array([0, first_of_val]))
    assert before.tolist() == [start, int(tokens.split("train")[-1])]
    own = prepared(tmp_path, "ab\ncd", val_fraction=0.0, own_texts={"val": "xy"})
    assert own.inputs_before(np.array(own.spans["val"])[0]).tolist()[0] == own.tokenizer.start_id
    # the vocabulary is that of all texts
    assert own.tokenizer.decode(own.split("val")) == "xy"


def test_a_text_with_unknown_characters(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="made up.txt: 'c' not in the vocabulary"):
        prepared(tmp_path, "abcd", tokenizer=CharTokenizer("ab"))


@pytest.mark.parametrize("short", ["char", "word", "word:reversible", "bpe:260", "tiktoken"])
def test_bits_per_byte_of_a_uniform_guess_is_the_closed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    """nats per token ln(V), over the bytes of the span: tokens * log2(V) / bytes."""
    content = "a rose is a rose is a rosé\n" * 8
    options: Any = parse_options(short)
    if short == "tiktoken":
        options = BytePairTokenizer.train(content.splitlines(True), parse_options("bpe:264"))
    tokens = prepared(tmp_path, content, tokenizer=options, val_fraction=0.25)
    vocab_size, n_bytes = (
        tokens.tokenizer.vocab_size,
        len(content[int(0.75 * len(content)) :].encode()),
    )
    metrics = text_metrics("val", torch.tensor(math.log(vocab_size)), tokens.bytes_per_token("val"))
    wanted = tokens.size("val") * math.log2(vocab_size) / n_bytes
    assert metrics["val/bits_per_byte"].item() == pytest.approx(wanted, rel=1e-6)
    assert tokens.provenance["sizes"]["val"]["bytes"] == n_bytes


def test_the_share_of_unknown_words(tmp_path: Path) -> None:
    options = TokenizerOptions(kind="word", min_frequency=2)
    sizes = prepared(tmp_path, "a a a a a a b c d", tokenizer=options, val_fraction=0.3).provenance
    assert sizes["sizes"]["train"]["unknown"] == 0
    assert sizes["sizes"]["val"]["unknown"] == 3


def test_a_bpe_is_trained_on_the_training_split_only(tmp_path: Path) -> None:
    options = {"tokenizer": parse_options("bpe:280"), "content": made_up_text(300)}
    one, other = (
        prepared(tmp_path, own_texts={"val": own}, val_fraction=0, **options)
        for own in ("zzzz" * 100, "the king")
    )
    assert one.tokenizer.state() == other.tokenizer.state()


def test_a_file_read_in_another_way_is_another_text(tmp_path: Path) -> None:
    content = '{"text": "the king"}\n'
    as_it_stands = prepared(tmp_path, content, reading={"name": "x.txt"}, val_fraction=0)
    as_rows = prepared(tmp_path, content, reading={"name": "x.jsonl"}, val_fraction=0)
    assert as_it_stands.tokenizer.decode(as_it_stands.ids) == content
    assert as_rows.tokenizer.decode(as_rows.ids) == "the king\n"


def many_tasks(patch: pytest.MonkeyPatch) -> None:
    def small_tasks(*arguments: Any) -> Any:
        return tasks.cut_into_tasks(*arguments[:4], max_bytes=500)

    patch.setattr(prepare, "cut_into_tasks", small_tasks)
    patch.setattr(tasks, "LOOK_BACK_BYTES", (100, 400))


@pytest.mark.parametrize("short", ["char", "word:reversible", "bpe:300"])
@pytest.mark.parametrize("n_done", [0, 1, 5])
def test_an_interrupted_preparation_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str, n_done: int
) -> None:
    many_tasks(monkeypatch)
    options = {"content": made_up_text(800), "tokenizer": parse_options(short)}
    whole = prepared(tmp_path / "whole", **options)
    add = encode_log.EncodeLog.add

    def interrupted(self: encode_log.EncodeLog, encoded: parallel.Encoded) -> None:
        if len(self.tasks) == n_done:
            raise KeyboardInterrupt
        add(self, encoded)

    with monkeypatch.context() as patch:
        patch.setattr(encode_log.EncodeLog, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, **options)
    assert not list(tmp_path.glob("tokens/*.bin"))
    (part,) = tmp_path.glob("tokens/*.part")
    assert len((part / "log").read_bytes().splitlines()) == n_done
    with (part / "ids").open("ab") as file:
        file.write(b"half of a task")
    done = []
    encode = parallel.Encoder.__call__
    monkeypatch.setattr(
        parallel.Encoder, "__call__", lambda self, task: done.append(task) or encode(self, task)
    )
    again = prepared(tmp_path, **options)
    assert again.ids.tolist() == whole.ids.tolist()
    assert again.document_ends.tolist() == whole.document_ends.tolist() == [len(whole.ids)]
    assert again.provenance["sizes"] == whole.provenance["sizes"]
    monkeypatch.undo()
    assert sum(task.n_bytes for task in done) < len(options["content"].encode()) or not n_done
    assert not part.exists()


def encoded(span: int, ids: np.ndarray, ends: list[int]) -> parallel.Encoded:
    return parallel.Encoded(span, 7, ids, ends, 0, zlib.crc32(ids))


@pytest.mark.parametrize("damage", ["log", "ids", "ends"])
def test_corrupt_tasks_of_an_interrupted_preparation_are_repeated(
    tmp_path: Path, damage: str
) -> None:
    ids = np.arange(5, dtype=np.uint16)
    with encode_log.EncodeLog(tmp_path, ids.dtype) as first:
        for n in range(3):
            first.add(encoded(0, ids + n, [2, 5]))
    raw = (tmp_path / damage).read_bytes()
    (tmp_path / damage).write_bytes(raw[: len(raw) // 2] + b"\xff" + raw[len(raw) // 2 + 1 :])
    with encode_log.EncodeLog(tmp_path, ids.dtype) as second:
        assert len(second.tasks) == 1
        second.add(encoded(1, ids, [5]))
        second.finish()
    assert [task.span for task in second.tasks] == [0, 1]
    written = (tmp_path / "ids").read_bytes()
    assert np.frombuffer(written[:20], dtype=np.uint16).tolist() == [*range(5), *range(5)]
    assert np.frombuffer(written[24:], dtype=np.int64).tolist() == [2, 5, 10]


def test_two_processes_at_once_make_one_file(tmp_path: Path) -> None:
    """The second waits for the first, and then finds the file."""
    path = tmp_path / "text.txt"
    path.write_text(made_up_text(), encoding="utf-8")
    code = f"""
import os, sys
from pathlib import Path
from gptlit.corpora import catalog
from gptlit.data import clean_text, prepare
from gptlit.data.splits import Splitting
from gptlit.tokenizers.base import parse_options
write, folder = clean_text.write, Path({str(tmp_path)!r})
def once(*given, **more):
    print("preparing", flush=True)
    sys.stdin.readline()
    return write(*given, **more)
clean_text.write = once
text = catalog.load(catalog.TextOptions(path={str(path)!r}), folder)
made = prepare.prepare(text, folder / "tokens", tokenizer=parse_options("char"),
                         splitting=Splitting(), own_texts={{}})
print(len(made.ids), flush=True)
"""
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
    ]
    assert processes[0].stdout is not None
    assert processes[0].stdout.readline() == "preparing\n"
    processes.append(
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
    )
    assert processes[1].stderr is not None
    assert "waiting for another process" in processes[1].stderr.readline()
    (first, _), (second, _) = (process.communicate("\n") for process in processes)
    n_tokens = f"{len(made_up_text())}\n"
    assert (first, second) == (n_tokens, n_tokens)
    assert len(list(tmp_path.glob("tokens/*.bin"))) == 1


@pytest.mark.parametrize("where", ["clean", "ids", "facts"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before = prepared(tmp_path).ids.tolist()
    there = {path.name: path.read_bytes() for path in tmp_path.glob("tokens/*.*")}

    def full(*given: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    targets = {
        "clean": (prepare.clean_text, "write"),
        "ids": (encode_log.EncodeLog, "add"),
        "facts": (prepare.token_file, "write"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*targets[where], full)
        with pytest.raises(UsageError, match="^data_dir .*: No space left.*made up.txt"):
            prepared(tmp_path, "something else")
    left = {path.name: path.read_bytes() for path in tmp_path.glob("tokens/*.*")}
    assert {name: left[name] for name in there} == there
    assert not list(tmp_path.glob("tokens/*.part"))
    assert prepared(tmp_path).ids.tolist() == before
    assert prepared(tmp_path, "something else").size("train") == 12


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "broken"), MemoryError(), ValueError("a mistake")]
)
def test_a_failed_preparation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(encode_log.EncodeLog, "add", fails)
    with pytest.raises(type(error)):
        prepared(tmp_path)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [".lock"]
    monkeypatch.undo()
    prepared(tmp_path)


def test_a_vocabulary_of_more_than_32_bits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^tokenizer bpe:4294967297: .*at most 4294967296"):
        prepared(tmp_path, tokenizer=parse_options("bpe:4294967297"))


def documents(folder: Path, *contents: str, **options: Any) -> TokenFile:
    texts = folder / "documents"
    texts.mkdir()
    for index, content in enumerate(contents):
        (texts / f"{index}.txt").write_text(content, encoding="utf-8")
    text = catalog.load(catalog.TextOptions(path=str(texts)), folder)
    splitting = Splitting(options.pop("val_fraction", 0.0), **options.pop("splitting", {}))
    return prepare.prepare(text, folder, splitting=splitting, own_texts={}, **options)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_token_closes_each_document(tmp_path: Path, kind: Any) -> None:
    options = TokenizerOptions(kind=kind, vocab_size=257, eos=True)
    file = documents(tmp_path, "the king\n", "", "\nlove", tokenizer=options)
    eos = file.tokenizer.eos_id
    assert eos is not None
    assert (file.ids == eos).sum() == 2
    assert (file.ids[file.document_ends - 1] == eos).all()
    assert file.tokenizer.start_id == eos
    closed = {"char": "the king<EOS>love<EOS>", "word": "the king <EOS> love <EOS>"}
    wanted = closed.get(kind, "the king<|endoftext|>love<|endoftext|>")
    assert file.tokenizer.decode(file.ids) == wanted
    # the token has no bytes of its own: bits per byte stay those of the text
    assert file.n_bytes("train") == len("the kinglove")
    assert file.document_lengths().tolist() == np.diff([0, *file.document_ends]).tolist()


def test_a_split_may_keep_documents_whole(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": TokenizerOptions(eos=True), "val_fraction": 0.3}
    splitting = {"split_by": "documents"}
    file = documents(tmp_path, "aaaa", "bbbb", "cc", splitting=splitting, **options)
    assert file.tokenizer.decode(file.split("train")) == "aaaa<EOS>bbbb<EOS>"
    assert file.tokenizer.decode(file.split("val")) == "cc<EOS>"
    assert file.pieces("train", by_document=True).tolist() == [[0, 5], [5, 10]]
    assert file.pieces("train").tolist() == [[0, 10]]


def test_several_spans_lie_in_the_texts_order(tmp_path: Path) -> None:
    content = "abcdefghij"
    splitting = Splitting(0.2, val_spans=2)
    file = prepared(tmp_path, content, splitting=splitting)
    assert file.tokenizer.decode(file.ids) == content
    assert file.spans == {"train": [[0, 4], [5, 9]], "val": [[4, 5], [9, 10]], "test": []}
    assert file.tokenizer.decode(file.split("val")) == "ej"
    # each span is scored as what follows the text before it
    assert file.tokenizer.decode(file.inputs_before(np.array([4, 9]))) == "di"
    assert file.provenance["sizes"]["val"] == {"characters": 2, "bytes": 2, "unknown": 0}


def test_pieces_end_where_splits_and_documents_do(tmp_path: Path) -> None:
    file = documents(tmp_path, "aaaa", "bbbb", tokenizer=TokenizerOptions(), val_fraction=0.55)
    assert file.tokenizer.decode(file.ids) == "aaaa\n\nbbbb\n"
    assert file.pieces("train", by_document=True).tolist() == [[0, 4]]
    assert file.pieces("val", by_document=True).tolist() == [[4, 6], [6, 11]]
    start = file.tokenizer.start_id
    before = file.inputs_before(np.array([0, 4, 6]), by_document=True)
    assert before.tolist() == [start, file.ids[3], start]
