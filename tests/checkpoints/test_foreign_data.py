"""Files of unknown origin: any value in any place gives a model or a one-line error."""

import copy
import functools
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gptlit as package
from gptlit.checkpoints.llama2c import read_llama2c
from gptlit.checkpoints.nanochat import read_nanochat
from gptlit.checkpoints.nanogpt import read_nanogpt
from gptlit.checkpoints.tokenizer_files import write
from gptlit.checkpoints.weight_files import read_folder
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.exports.plain_files import write_safetensors
from gptlit.messages import UsageError
from gptlit.tokenizers.base import TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.state import from_state
from gptlit.tokenizers.words import WordTokenizer
from tests.checkpoints import test_llama2c, test_nanochat
from tests.checkpoints.reference_models import random_llama
from tests.checkpoints.test_gpt2_names import CHARACTERS, made
from tests.checkpoints.test_llama_names import LLAMA, SIZES
from tests.checkpoints.test_nanochat import OPTIONS
from tests.checkpoints.test_nanogpt import TINY as NANO
from tests.checkpoints.test_nanogpt import as_nanogpt
from tests.checkpoints.test_weight_shapes import rewritten
from tests.conftest import TINY, Result, Run
from tests.tokenizers.test_hugging_face import as_llama

Call = Callable[..., Result]
few = functools.partial(
    settings,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([-1, 2**31, 2**63, -(2**63) - 1, 10**9, 10**30, -0.0, 1e-300, 1e300]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["", "\ud800", "(", "x*", r"\K", "<EOS>", "<|endoftext|>", "a\nb", "é" * 600]),
)
VALUES = st.one_of(
    LEAVES,
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    st.just(nested(70)),
)
ABSENT = object()


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values; in a list, the first two and the last."""
    if path:
        yield path
    keys: list[Any] = list(data) if isinstance(data, dict) else []
    if isinstance(data, list | tuple):
        keys = sorted({*range(min(2, len(data))), *range(len(data))[-1:]})
    for key in keys:
        yield from places(data[key], (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value, or none, in one place."""
    if not path:
        return value
    data = copy.copy(list(data) if isinstance(data, tuple) else data)
    key, *rest = path
    if not rest and value is ABSENT:
        del data[key]
    else:
        data[key] = changed(data[key], tuple(rest), value)
    return data


def changes(data: Any) -> st.SearchStrategy[Any]:
    """Copies of data with another value in one place."""
    every = sorted(places(data), key=lambda path: (len(path), str(path)))
    values = st.one_of(VALUES, VALUES, VALUES, st.just(ABSENT))
    return st.builds(functools.partial(changed, data), st.sampled_from(every), values)


def works_or_one_line(read: Callable[[], Any]) -> None:
    line = ""
    try:
        read()
    except UsageError as error:
        line = str(error)
    assert not line or line.isprintable()
    assert len(line) < 500


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def content(run: Run) -> dict[str, Any]:
    return torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def others(content: dict[str, Any]) -> st.SearchStrategy[Any]:
    return changes(content)


@few(max_examples=100)
@given(data=st.data())
def test_a_checkpoint(others: Any, tmp_path: Path, data: st.DataObject) -> None:
    other = data.draw(others)
    torch.save(other, tmp_path / "x.ckpt")
    works_or_one_line(lambda: package.load(tmp_path / "x.ckpt"))


def deep(info: zipfile.ZipInfo, content: bytes) -> bytes:
    levels = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    return levels if info.filename.endswith("data.pkl") else content


def test_a_checkpoint_that_is_nested_deeply(content: Any, gptlit: Call, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    rewritten(tmp_path / "x.ckpt", deep)
    result = gptlit("predict", "--ckpt_path=x.ckpt")
    assert "x.ckpt: nested more than 50 levels deep" in result.err


# ---------------------------------------------------------------------- tokenizers

TEXT = "to be, or not to be: é 12 it's\n\n<EOS> <|endoftext|>"


@functools.cache
def tokenizers() -> list[Any]:
    pair = BytePairTokenizer.train([TEXT * 9], TokenizerOptions(kind="bpe", vocab_size=262))
    return [
        CharTokenizer("\n abe", ["<EOS>", "<UNK>"], eos=True),
        WordTokenizer(["be", "to"], ["<UNK>"], True),
        WordTokenizer(["be", "to"], ["<EOS>", "<NUM>"], eos=True),
        pair,
        BytePairTokenizer("tiktoken", "x", pair.pattern, pair.pieces, pair.special_tokens, True),
    ]


@few(max_examples=200)
@given(data=st.data())
def test_a_tokenizer(data: st.DataObject) -> None:
    state = data.draw(st.sampled_from(tokenizers()).flatmap(lambda each: changes(each.state())))

    def read() -> None:
        tokenizer = from_state(state)
        ids = tokenizer.encode(TEXT, "skip")
        assert (ids < tokenizer.vocab_size).all()
        tokenizer.decode(ids)
        assert from_state(tokenizer.state()).state() == tokenizer.state()
        if isinstance(tokenizer, BytePairTokenizer):
            assert tokenizer.decode(ids) == TEXT  # whatever the pattern

    works_or_one_line(read)


def pair_state(**changes: Any) -> dict[str, Any]:
    return {**tokenizers()[3].state(), **changes}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"kind": "char", "characters": "aab"}, "characters aren't sorted and distinct"),
        ({"kind": "char", "characters": "ba"}, "characters aren't sorted and distinct"),
        ({"kind": "char", "characters": "ab", "special_tokens": ["x", "x"]}, "hold 'x' twice"),
        ({"kind": "char", "characters": "ab", "eos": True}, "eos is true, but its special"),
        ({"kind": "char", "characters": "a\ud800"}, "characters .*must be text"),
        ({"kind": "word", "words": ["a", "a"], "reversible": False}, "words hold 'a' twice"),
        ({"kind": "word", "words": ["a", 5], "reversible": False}, r"words\[1\] 5: must be text"),
        ({"kind": "word", "words": ["a"]}, "has no reversible"),
        ({"kind": "runes"}, "kind 'runes' is unknown"),
        ({}, "has no kind"),
        ([], "must be a table"),
        (pair_state(pattern="(["), r"its pattern '\(\['"),
        (pair_state(pattern=r"a\K"), r"its pattern has \\K"),
        (pair_state(pieces=["a"]), "pieces lack the byte"),
        (pair_state(pieces=[*map(chr, range(256)), "ab", "ab"]), "pieces hold b'ab' twice"),
        (pair_state(pieces=[*map(chr, range(256)), ""]), "a piece is empty"),
        (pair_state(pieces=[*map(chr, range(256)), "€"]), "aren't spelled byte by byte"),
        (pair_state(special_tokens={"": 300}), "special token '' has the id 300"),
        (pair_state(special_tokens={"x": -1}), "special token 'x' has the id -1"),
        (pair_state(special_tokens={"x": 2**32}), "special token 'x' has the id 4294967296"),
        (pair_state(special_tokens={"x": 5}), "special token 'x' has a piece's id, 5"),
        (pair_state(special_tokens={"x": 300, "y": 300}), "special_tokens hold 300 twice"),
    ],
    ids=range(22),
)
def test_an_invalid_tokenizer_is_refused_with_its_fault(state: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_state(state)


@pytest.mark.parametrize("pattern", ["", "x*", "(?=t)", "$", "o|", r"\w+", "(?i)TO"])
def test_no_pattern_loses_text_or_ends_the_process(pattern: str) -> None:
    tokenizer = from_state(pair_state(pattern=pattern))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.state()["pattern"] == pattern


def test_a_pattern_that_fails_on_a_text() -> None:
    tokenizer = from_state(pair_state(pattern=r"(x+x+)+y(?!z)\1|."))
    with pytest.raises(UsageError, match="pattern .* can't split this text"):
        tokenizer.encode("x" * 60)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows() -> None:
    state = pair_state(special_tokens={"x": 10**9})
    with pytest.raises(UsageError, match="a vocabulary of 262, its tokenizer of 1000000001"):
        from_state(state, 262)


# ---------------------------------------------------------------------- folders and nanoGPT


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face's format with a byte-level BPE, and one in gptlit's."""
    folder = tmp_path_factory.mktemp("folders")
    pair = tokenizers()[3]
    config = made().config.__class__(262, n_layer=1, n_head=2, n_embd=4, block_size=5)
    write_hugging_face(made(config), pair, folder / "pair")
    (folder / "pair" / "gptlit.json").unlink()
    write_hugging_face(made(config), tokenizers()[4], folder / "gpt2")
    write(BytePairTokenizer("bpe", "x", r"\S+|\s+", pair.pieces, {}), folder / "gpt2", 5)
    write_safetensors(made(), CHARACTERS, folder / "ours")
    content = as_llama()
    llama = folder / "llama"
    llama.mkdir()
    (llama / "tokenizer.json").write_text(content)
    (llama / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 300}))
    sizes = (*SIZES[:-1], 300)
    safetensors.torch.save_file(random_llama(*sizes), llama / "model.safetensors")
    return folder


FILES = [
    "pair/config.json",
    "pair/tokenizer.json",
    "ours/gptlit.json",
    "llama/config.json",
    "llama/tokenizer.json",
]


@few(max_examples=120)
@given(data=st.data(), name=st.sampled_from(FILES))
def test_a_folder(theirs: Path, data: st.DataObject, name: str) -> None:
    path = theirs / name
    before = path.read_bytes()
    content = data.draw(changes(json.loads(before)))
    if name.endswith("config.json") and "vocab_size" not in content:
        content["vocab_size"] = 262
    path.write_text(json.dumps(content))
    try:
        works_or_one_line(lambda: read_folder(path.parent))
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", [b"[" * 10**5, b'{"a":' * 10**5, b'{"n": ' + b"9" * 5000 + b"}", b"\xff", b"null"]
)
def test_invalid_json_is_refused(theirs: Path, name: str, content: bytes) -> None:
    path = theirs / name
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(UsageError) as raised:
            read_folder(path.parent)
        assert str(raised.value).isprintable()
    finally:
        path.write_bytes(before)


@few(max_examples=50)
@given(data=st.data())
def test_nanogpts_files(tmp_path: Path, data: st.DataObject) -> None:
    whole = as_nanogpt(made(NANO))
    stoi = {letter: id_ for id_, letter in enumerate("\n abcde")}
    parts = {"model_args": whole["model_args"], "model": dict(whole["model"]), "stoi": stoi}
    other = data.draw(changes(parts))
    meta = {"stoi": other.pop("stoi")} if "stoi" in other else {}
    torch.save({"iter_num": 1, **other}, tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    works_or_one_line(lambda: read_nanogpt(tmp_path / "ckpt.pt", tmp_path / "meta.pkl", tmp_path))


@few(max_examples=50)
@given(data=st.data())
def test_nanochats_files(tmp_path: Path, data: st.DataObject) -> None:
    other = data.draw(changes({"weights": test_nanochat.random_weights(), "options": OPTIONS}))
    path = test_nanochat.write(tmp_path, other.get("weights"))
    meta = {"model_config": other.get("options")}
    path.with_name("meta_000012.json").write_text(json.dumps(meta))
    works_or_one_line(lambda: read_nanochat(path, None, tmp_path))


@few(max_examples=50)
@given(data=st.data())
def test_llama2cs_files(tmp_path: Path, data: st.DataObject) -> None:
    weights, tokenizer = tmp_path / "model.bin", tmp_path / "tokenizer.bin"
    test_llama2c.write_weights(weights, random_llama(*test_llama2c.SIZES), 1)
    test_llama2c.write_tokenizer(tokenizer)
    path, end = data.draw(st.sampled_from([(weights, 300), (tokenizer, 60)]))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, end))
    content[at : at + 4] = data.draw(st.binary(max_size=8))
    path.write_bytes(content)
    works_or_one_line(lambda: read_llama2c(weights, None, tmp_path))


class Code:
    """Pickled, a call of `Path.touch`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("ckpt_path", "predict --ckpt_path BAD"),
        ("ensemble", "predict --ensemble GOOD BAD"),
        ("ensemble", "validate --ensemble GOOD BAD"),
        ("ensemble", "validate --ensemble BAD GOOD"),
        ("model.teachers", "fit --model.teachers=[GOOD,BAD] TINY"),
        ("model.init_from", "fit --model.init_from=BAD TINY"),
    ],
)
def test_every_option_that_names_a_checkpoint_checks_it(
    gptlit: Call, run: Run, tmp_path: Path, option: str, command: str
) -> None:
    good = run.folder / "checkpoints" / "last.ckpt"
    cases = {"/dev/zero": "is a device", str(tmp_path / "pipe"): "is a pipe"}
    os.mkfifo(tmp_path / "pipe")
    changes_of: dict[str, Callable[[Any], Any]] = {
        "is not finite": lambda content: content["state_dict"]["net.wte.weight"].fill_(torch.nan),
        "n_layer is": lambda content: content["gptlit"]["config"].update(n_layer=10**9),
        "could run code": lambda content: content.update(x=Code(tmp_path / "touched")),
    }
    for number, (message, change) in enumerate(changes_of.items()):
        content = torch.load(good, weights_only=True)
        change(content)
        cases[str(path := tmp_path / f"{number}.ckpt")] = message
        torch.save(content, path)
    texts = [f"--data.path={run.text}", *TINY, "--trainer.max_steps=1"]
    for path, message in cases.items():
        words = command.replace("GOOD", str(good)).replace("BAD", path).split()
        result = gptlit(*words[:-1], *texts) if words[-1] == "TINY" else gptlit(*words)
        assert result.code == 2
        assert re.search(f"error: --{option} {re.escape(path)}: .*{message}", result.err)
    assert not (tmp_path / "touched").exists()
    assert not Path("lightning_logs").exists()
