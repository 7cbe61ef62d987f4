"""Tokenizers in Hugging Face's files: tokenizer.json, and vocab.json with merges.txt.

In gptlit, a text that spells a special token is plain text. Other programs that read these files
look for special tokens in texts first, unless `split_special_tokens` is set, as `write` does for
transformers. So a special token that the vocabulary can spell gets another name in the files.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from gptlit.messages import UsageError, errors_about, note
from gptlit.plain_data import check, read_json, shown
from gptlit.tokenizers.base import END_OF_TEXT, NUMBER, UNKNOWN_WORD, Tokenizer
from gptlit.tokenizers.byte_letters import byte_of_letter, letter_of_byte, merges, spell, unspell
from gptlit.tokenizers.bytepair import BytePairTokenizer, check_byte_pairs
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.hugging_face import JsonTokenizer
from gptlit.tokenizers.words import WordTokenizer

# GPT-2's regular expression as OpenAI wrote it, and as tiktoken does
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TIKTOKEN_GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)
GPT2_PATTERNS = (GPT2_PATTERN, TIKTOKEN_GPT2_PATTERN)
# the whitespace of str.split, which is more than \s in other programs
_SPACES = "\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_EDGE = "\ufdd0"  # a code point that isn't a character
_MARKS = 0x25C7  # the first sign to append to a special token's name: a diamond


# ---------------------------------------------------------------------- writing


def special_tokens(tokenizer: Tokenizer) -> dict[str, tuple[str, int]]:
    """Return the tokens that have a role in Hugging Face's files, with their ids: bos, eos, unk."""
    if isinstance(tokenizer, JsonTokenizer):
        ids = tokenizer.special_ids
        ends = [(token, ids[token]) for token in tokenizer.ends()]
        return {"eos_token": ends[0]} if ends else {}
    names = _names(tokenizer)
    if isinstance(tokenizer, BytePairTokenizer):
        if (id_ := tokenizer.special_ids.get(END_OF_TEXT)) is None:
            return {}
        # GPT-2 has one token for all of them
        return dict.fromkeys(("bos_token", "eos_token", "unk_token"), (names[END_OF_TEXT], id_))
    named = {"eos_token": tokenizer.eos_id, "unk_token": tokenizer.unknown_id}
    tokens = {id_: token for token, id_ in tokenizer.special_ids.items()}
    return {name: (names[tokens[id_]], id_) for name, id_ in named.items() if id_ is not None}


def _names(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the names of the special tokens and <UNK> in the files, which no text can spell."""
    tokens = [*tokenizer.special_ids, UNKNOWN_WORD]
    return {token: _name_in_files(token, tokenizer) for token in tokens if token != NUMBER}


def _name_in_files(token: str, tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, BytePairTokenizer):
        # bytes can spell any name; at least no piece may have the same one
        spelled, letters = token.encode() in tokenizer.pieces, set(letter_of_byte().values())
    elif isinstance(tokenizer, CharTokenizer):
        letters = set(tokenizer.characters)
        spelled = letters.issuperset(token)
    else:
        assert isinstance(tokenizer, WordTokenizer)
        # words and special tokens are in one list; <UNK> replaces unknown words anyway
        spelled = token != UNKNOWN_WORD or any(token in word for word in tokenizer.words)
        letters = set().union(*tokenizer.words)
    if not spelled:
        return token
    # a character outside the vocabulary, which no text of its tokens has
    return token + next(mark for mark in map(chr, range(_MARKS, 0x110000)) if mark not in letters)


def write(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write the files from which AutoTokenizer makes an equal tokenizer.

    Args:
        tokenizer: Tokenizer of any kind.
        folder: Existing folder to write to.
        block_size: Context length of the model.
    """
    named = {name: token for name, (token, _) in special_tokens(tokenizer).items()}
    names = {} if isinstance(tokenizer, JsonTokenizer) else _names(tokenizer)
    special = {token: names[token] for token in tokenizer.special_ids if token in names}
    if renamed := [f"{token} is {name}" for token, name in special.items() if token != name]:
        note(f"the vocabulary can spell special tokens; in the files {', '.join(renamed)}")
    is_gpt2 = isinstance(tokenizer, BytePairTokenizer) and tokenizer.pattern in GPT2_PATTERNS
    options = {
        "tokenizer_class": "GPT2Tokenizer" if is_gpt2 else "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        **named,
    }
    content: dict[str, Any]
    if isinstance(tokenizer, JsonTokenizer):
        content = json.loads(tokenizer.content)
    elif isinstance(tokenizer, BytePairTokenizer):
        content = _byte_level(tokenizer)
        if is_gpt2:
            _put(folder / "vocab.json", content["model"]["vocab"])
            lines = ["#version: 0.2", *content["model"]["merges"]]
            (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif isinstance(tokenizer, CharTokenizer):
        content = _by_words(names, tokenizer.special_ids, list(tokenizer.characters))
        if NUMBER in tokenizer.special_ids:
            content["added_tokens"] += _added({NUMBER: tokenizer.special_ids[NUMBER]}, False)
        content["pre_tokenizer"] = _split(r"[\s\S]", "Isolated")
        content["decoder"] = {"type": "Fuse"}
    else:
        assert isinstance(tokenizer, WordTokenizer)
        content = _by_words(names, tokenizer.special_ids, tokenizer.words)
        plain = {"pre_tokenizer": _split(f"[{_SPACES}]+", "Removed")}
        content |= _reversible() if tokenizer.reversible else plain
    _put(folder / "tokenizer.json", content)
    _put(folder / "tokenizer_config.json", options)
    _put(folder / "special_tokens_map.json", named)


def _put(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _pipeline(special: Mapping[str, int], model: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json without its stages."""
    stages = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    head = {"version": "1.0", "truncation": None, "padding": None}
    return {**head, "added_tokens": _added(special, True), **stages, "model": model}


def _added(tokens: Mapping[str, int], special: bool) -> list[dict[str, Any]]:
    """Return entries of added_tokens; those that aren't special are found in any text."""
    how = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": id_, "content": token, **how, "special": special} for token, id_ in tokens.items()
    ]


def _split(pattern: str, behaviour: str, invert: bool = False) -> dict[str, Any]:
    how = {"behavior": behaviour, "invert": invert}
    return {"type": "Split", "pattern": {"Regex": pattern}, **how}


def _byte_level(tokenizer: BytePairTokenizer) -> dict[str, Any]:
    names = _names(tokenizer)
    by_id = sorted(tokenizer.special_ids.items(), key=lambda pair: pair[1])
    special = {names[token]: id_ for token, id_ in by_id if token != NUMBER}
    numbers = {token: id_ for token, id_ in by_id if token == NUMBER}
    pieces = {piece: id_ for id_, piece in enumerate(tokenizer.pieces) if piece is not None}
    vocab = {spell(piece): id_ for piece, id_ in pieces.items()} | special | numbers
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token")),
        **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), ""),
        **dict.fromkeys(("fuse_unk", "byte_fallback"), False),
        # as in tiktoken: a whole stretch that is a piece needs no merges
        "ignore_merges": True,
        "vocab": vocab,
        "merges": [f"{spell(a)} {spell(b)}" for a, b in merges(list(pieces))],
    }
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    content = _pipeline(special, model)
    content["added_tokens"] += _added(numbers, False)
    if tokenizer.pattern in GPT2_PATTERNS:
        content["pre_tokenizer"] = {**bytes_only, "use_regex": True}
    else:
        split = _split(for_oniguruma(tokenizer.pattern), "Isolated")
        stages = [split, {**bytes_only, "use_regex": False}]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": stages}
    content["decoder"] = {**bytes_only, "use_regex": True}
    return content


def for_oniguruma(pattern: str) -> str:
    """Return a pattern of tiktoken in the syntax of Oniguruma, which Hugging Face's files have.

    They read {1,3}+ as a repetition of a repetition, where tiktoken never gives characters back; at
    the end of an alternative that makes no difference. They join characters that no alternative
    matches, which tiktoken skips and `BytePairTokenizer` takes one by one.
    """
    pattern = re.sub(r"(\{\d+,\d*\})\+(?=\||\)|$)", r"\1", pattern)
    everything = (r"\p{N}", r"[^\s\p{L}\p{N}]")
    matches_all = all(part in pattern for part in everything) and re.search(r"\|\\s\+?$", pattern)
    return pattern if matches_all else rf"(?:{pattern})|[\s\S]"


def _by_words(
    names: Mapping[str, str], special: Mapping[str, int], words: Sequence[str]
) -> dict[str, Any]:
    vocab = {names.get(token, token): id_ for token, id_ in special.items()}
    model = {
        "type": "WordLevel",
        "vocab": vocab | {word: id_ for id_, word in enumerate(words, len(special))},
        "unk_token": names[UNKNOWN_WORD],
    }
    return _pipeline({names[token]: id_ for token, id_ in special.items() if token in names}, model)


def _reversible() -> dict[str, Any]:
    """Return stages of a reversible `WordTokenizer`, which omits a single space between words."""
    word, space = f"[^{_SPACES}]", f"[{_SPACES}]"
    tokens = rf"{word}+|(?! ){space}|(?<!{word}) | (?!{word})"

    def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": pattern, "content": content}

    # a mark at each end of a word; two marks next to each other become a space
    decoders = [
        replaced({"Regex": rf"\A(?={word})"}, _EDGE),
        replaced({"Regex": rf"(?<={word})\z"}, _EDGE),
        {"type": "Fuse"},
        replaced({"String": _EDGE * 2}, " "),
        replaced({"String": _EDGE}, ""),
    ]
    return {
        # everything between tokens is removed
        "pre_tokenizer": _split(tokens, "Removed", invert=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


# ---------------------------------------------------------------------- reading


def read(folder: Path, vocab_size: int) -> BytePairTokenizer | JsonTokenizer | None:
    """Read the tokenizer of a folder; None if it has none.

    Args:
        folder: Folder in Hugging Face's format.
        vocab_size: Number of ids of the model, which may be more than the tokenizer has.

    Returns:
        A byte-level BPE that tiktoken runs, or else what the tokenizers package runs.

    Raises:
        UsageError: Neither can represent the tokenizer, or it is corrupt.
    """
    single = folder / "tokenizer.json"
    with errors_about("its tokenizer"):
        try:
            if all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
                return _read_pair(folder)
            return _read_single(folder) if single.is_file() else None
        except UsageError as error:
            if not single.is_file() or not isinstance(read_json(single), dict):
                raise
            try:
                content = single.read_text(encoding="utf-8")
                return JsonTokenizer(folder.resolve().name, content, vocab_size)
            except UsageError as other:
                raise UsageError(f"{error}; and by the tokenizers package: {other}") from other


class _Stage(TypedDict):
    type: str
    behavior: NotRequired[str]
    use_regex: NotRequired[bool]
    add_prefix_space: NotRequired[bool]
    pattern: NotRequired[dict[str, str]]
    pretokenizers: NotRequired[list["_Stage"]]


class _Model(TypedDict):
    vocab: dict[str, int]
    merges: list[str | list[str]]


class _Added(TypedDict):
    content: str
    id: int


class _File(TypedDict):
    """The parts of a tokenizer.json that are read."""

    model: dict[str, Any]
    pre_tokenizer: _Stage | None
    normalizer: NotRequired[dict[str, Any] | None]
    added_tokens: list[_Added]


def _read_pair(folder: Path) -> BytePairTokenizer:
    vocab = read_json(folder / "vocab.json")
    check(dict[str, int], vocab, "vocab.json")
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError("merges.txt: not UTF-8 text") from error
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    merged = {"".join(pair) for pair in pairs} | set(letter_of_byte().values())
    special = {word: id_ for word, id_ in vocab.items() if word not in merged}
    return _checked(folder, "vocab.json", GPT2_PATTERN, vocab, pairs, special)


def _read_single(folder: Path) -> BytePairTokenizer:
    content = read_json(folder / "tokenizer.json")
    check(_File, content, "tokenizer.json")
    model, first = content["model"], content["pre_tokenizer"] or {"type": ""}
    stages = first.get("pretokenizers") or [first]
    if model.get("type") != "BPE" or stages[-1]["type"] != "ByteLevel":
        raise UsageError("tokenizer.json: not a byte-level BPE, the only kind that is read")
    pattern, last = GPT2_PATTERN, stages[-1]
    if (
        len(stages) == 2
        and stages[0].get("behavior") == "Isolated"
        and not last.get("use_regex", True)
        and "Regex" in stages[0].get("pattern", {})
    ):
        pattern = stages[0]["pattern"]["Regex"]
    elif len(stages) > 1 or last.get("add_prefix_space", True) or content.get("normalizer"):
        raise UsageError("tokenizer.json: prepares texts in a way that isn't supported")
    check(_Model, model, "tokenizer.json.model")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    return _checked(folder, "tokenizer.json", pattern, model["vocab"], pairs, special)


def _checked(
    folder: Path,
    filename: str,
    pattern: str,
    vocab: Mapping[str, int],
    pairs: Iterable[Sequence[str]],
    special: Mapping[str, int],
) -> BytePairTokenizer:
    words = sorted(vocab.keys() - special.keys(), key=vocab.__getitem__)
    if [vocab[word] for word in words] != list(range(len(words))):
        raise UsageError(
            f"{filename}: the ids of its pieces aren't 0, 1, 2, ...; special tokens before or "
            "among them aren't supported"
        )
    if wrong := [pair for pair in pairs if "".join(pair) not in vocab]:
        raise UsageError(f"{filename}: has no piece for the merge {shown(' '.join(wrong[0]))}")
    ids = [vocab["".join(pair)] for pair in pairs]
    if any(later < earlier for earlier, later in pairwise(ids)):
        raise UsageError(
            f"{filename}: the ids of its pieces aren't in the order of their merges, which isn't "
            "supported"
        )
    if wrong := [word for word in words if not byte_of_letter().keys() >= set(word)]:
        raise UsageError(f"{filename}: its piece {shown(wrong[0])} isn't spelled byte by byte")
    pieces = list(map(unspell, words))
    check_byte_pairs(pattern, pieces, special)
    return BytePairTokenizer("tiktoken", folder.resolve().name, pattern, pieces, dict(special))
