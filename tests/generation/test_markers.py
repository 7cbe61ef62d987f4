"""A text that spells a special token is plain text on every path."""

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.checkpoints.tokenizer_files import GPT2_PATTERN, write
from gptlit.generation.generate import generate
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.state import from_state
from gptlit.tokenizers.words import WordTokenizer, count_words
from tests.conftest import TINY, made_up_text

MARKERS = ["<UNK>", "<EOS>", "<PAD>", "<BOS>", "<NUM>", "<|endoftext|>"]
SPECIAL = ["<PAD>", "<BOS>", "<UNK>"]
TEXTS = st.lists(
    st.sampled_from([*MARKERS, "the", "king", "(<EOS>)", "<UNK>,", " ", "\n", "\t"]), min_size=1
).map("".join)
PIECES = [bytes([byte]) for byte in range(256)]


def words(text: str, **options: Any) -> WordTokenizer:
    counts = count_words(text, options.get("reversible", False))
    return WordTokenizer.train(counts, TokenizerOptions(kind="word", **options))


def gpt2_like(text: str) -> BytePairTokenizer:
    special = {"<|endoftext|>": 256, "<PAD>": 257}
    return BytePairTokenizer("tiktoken", "x", GPT2_PATTERN, PIECES, special, True)


def bpe(text: str) -> BytePairTokenizer:
    options = TokenizerOptions(kind="bpe", vocab_size=262, special_tokens=SPECIAL, eos=True)
    return BytePairTokenizer.train([text + "abab"], options)


KINDS: dict[str, Callable[[str], Tokenizer]] = {
    "char": lambda text: CharTokenizer.train(text, TokenizerOptions()),
    "char, special": lambda text: CharTokenizer.train(
        text, TokenizerOptions(special_tokens=SPECIAL, eos=True)
    ),
    "word": words,
    "word, special": lambda text: words(text, special_tokens=SPECIAL, eos=True),
    "word:reversible": lambda text: words(text, reversible=True),
    "word:reversible, special": lambda text: words(
        text, reversible=True, special_tokens=SPECIAL, eos=True
    ),
    "bpe": bpe,
    "tiktoken": gpt2_like,
}


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_a_text_of_markers_round_trips_without_special_tokens(kind: str, text: str) -> None:
    tokenizer = KINDS[kind](text)
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == (text if tokenizer.is_lossless else " ".join(text.split()))
    assert not {*ids} & {*tokenizer.special_ids.values()}
    again = from_state(tokenizer.state())
    assert again.encode(text).tolist() == ids
    assert (again.eos_id, again.unknown_id) == (tokenizer.eos_id, tokenizer.unknown_id)


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_of_an_exported_vocabulary_spells_a_special_token(
    tmp_path: Path, kind: str
) -> None:
    text = f"the king {' '.join(MARKERS)} (<EOS>)\n"
    tokenizer = KINDS[kind](text)
    write(tokenizer, tmp_path, 8)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, special = content["model"]["vocab"], {t["content"] for t in content["added_tokens"]}
    assert sorted(vocab.values()) == list(range(tokenizer.vocab_size))
    assert {vocab[token] for token in special} == {*tokenizer.special_ids.values()}
    # transformers then takes them for text in a text
    options = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert options["split_special_tokens"] is True
    if not isinstance(tokenizer, BytePairTokenizer):  # whose bytes spell anything
        assert not [token for token in special if token in text]
        pieces = text.split() if tokenizer.kind == "word" else list(text)
        if not (isinstance(tokenizer, WordTokenizer) and tokenizer.reversible):
            assert [vocab[piece] for piece in pieces] == tokenizer.encode(text).tolist()


def test_a_word_outside_the_vocabulary_is_not_a_special_token(tmp_path: Path) -> None:
    write(WordTokenizer(["a", "b"], ["<UNK>", "<EOS>"], eos=True), tmp_path, 8)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model["vocab"].get("<EOS>", model["vocab"][model["unk_token"]]) == 0


def test_a_special_token_that_no_text_spells_keeps_its_name(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abc", ["<UNK>", "<EOS>"], eos=True)
    write(tokenizer, tmp_path, 8)
    names = json.loads((tmp_path / "special_tokens_map.json").read_text(encoding="utf-8"))
    assert names == {"eos_token": "<EOS>", "unk_token": "<UNK>"}


def test_a_special_token_may_be_spelled_as_a_piece_of_a_bpe(tmp_path: Path) -> None:
    pieces = [*PIECES, b"ki", b"kin", b"king"]
    tokenizer = BytePairTokenizer("bpe", "x", r"\w+|\W", pieces, {"king": 259})
    assert tokenizer.encode("king").tolist() == [258]
    write(tokenizer, tmp_path, 8)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert vocab["king"] == 258
    assert sorted(vocab.values()) == list(range(260))


def test_the_number_is_a_piece_of_the_text(tmp_path: Path) -> None:
    """Cleaning writes <NUM> into texts, the only special token that a text spells."""
    for tokenizer in (
        CharTokenizer("ab", ["<NUM>"]),
        WordTokenizer(["a", "b"], ["<NUM>"]),
        BytePairTokenizer("bpe", "x", r"\w+|\W", PIECES, {"<NUM>": 256}),
    ):
        number = tokenizer.special_ids["<NUM>"]
        assert number in tokenizer.encode("a <NUM> b", "skip")
        write(tokenizer, tmp_path, 8)
        content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        assert content["model"]["vocab"]["<NUM>"] == number
        assert not [token for token in content["added_tokens"] if token["special"]]


def test_a_text_continues_after_a_word_spelled_like_the_end() -> None:
    tokenizer = words("the <EOS> king", eos=True)
    model = GPT(GPTConfig(vocab_size=4, n_layer=0, n_head=1, n_embd=4, block_size=8))
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3}
    written = generate(model, tokenizer, "the", force="<EOS> king <EOS>", **options)
    assert written == "the <EOS> king <EOS>"
    only_the_word = {"ban": ["the", "king"], "stop": ["<EOS>"], **options}
    assert generate(model, tokenizer, "the", **only_the_word) == "the "
    # banning the word leaves the end of sequence, and banning a special token's name means that
    written = generate(model, tokenizer, "the", ban=["<EOS>", "king"], **options)
    assert written == "the the the the"
    plain = words("the king day", eos=True)
    written = generate(model, plain, "the", ban=["<EOS>", "king", "day"], max_new_tokens=2)
    assert written == "the the the"


def test_earlier_tokenizer_states_keep_their_ids() -> None:
    """A word spelled like a special token had that token's id before."""
    state = {"kind": "word", "words": ["king", "the"], "special_tokens": ["<UNK>", "<EOS>"]}
    tokenizer = from_state({**state, "reversible": False, "eos": True})
    assert tokenizer.encode("the king <EOS> day").tolist() == [3, 2, 0, 0]
    assert (tokenizer.unknown_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 4)


def test_a_run_on_a_text_of_markers(gptlit: Callable[..., Any], tmp_path: Path) -> None:
    text = made_up_text(1200).replace("night", "<EOS>").replace("love", "<UNK>")
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    fit = [*TINY, "--data.path=t.txt", "--data.tokenizer.kind=word", "--data.eos=true"]
    fit += ["--data.tokenizer.special_tokens=[<UNK>]", "--trainer.max_steps=2"]
    assert gptlit("fit", *fit).code == 0
    options = ["--max_new_tokens=2", "--min_new_tokens=2"]
    done = gptlit("predict", "--prompt=the", "--force=<EOS> <UNK>", *options)
    assert done.out == "the <EOS> <UNK>\n"
    assert "warning" not in done.err  # nothing was read as unknown
    done = gptlit("export", "best", "out", "--format=safetensors")
    assert done.code == 0
    done = gptlit("predict", "--prompt=the <EOS> of", "--stop=<EOS>", *options)
    assert done.out.startswith("the <EOS> of")
    assert gptlit("validate", "--ckpt_path=last").code == 0


def test_all_letters_may_be_special(tmp_path: Path) -> None:
    """An exported special token always has a name outside the vocabulary."""
    tokenizer = CharTokenizer("".join(sorted(f"{string.printable}◇◈")), ["<UNK>", "a"])
    write(tokenizer, tmp_path, 8)
    vocab = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert list(vocab)[:2] == ["<UNK>◉", "a◉"]
    assert vocab["a"] == tokenizer.encode("a")[0]
