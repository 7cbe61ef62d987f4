"""Tokenizers as byte-level BPE of llama.cpp: its tokens, merges, and one of its known splits."""

from dataclasses import dataclass, field
from itertools import pairwise

from gptlit.checkpoints.tokenizer_files import GPT2_PATTERNS
from gptlit.messages import UsageError, opt
from gptlit.tokenizers.base import END_OF_TEXT, NUMBER, Tokenizer
from gptlit.tokenizers.byte_letters import merges, spell
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer

# llama.cpp's types of tokens
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# parts of regular expressions that only the encodings of one of llama.cpp's splits have
_SPLITS = {r"[^\r\n\p{L}\p{N}]?": "llama-bpe", r"\p{Lu}\p{Lt}": "gpt-4o"}


@dataclass
class Vocabulary:
    """A vocabulary of llama.cpp.

    Args:
        split: Name of the regular expression that splits a text, such as gpt-2.
        tokens: Texts of the tokens, in the letters of byte-level BPE.
        types: Their types.
        merges: Pairs that are merged, best first.
        end: Id of the end of a text.
    """

    split: str
    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]] = field(default_factory=list)
    end: int | None = None


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return a tokenizer as llama.cpp's byte-level BPE.

    Raises:
        UsageError: llama.cpp has no tokenizer that gives the same ids.
    """
    if isinstance(tokenizer, BytePairTokenizer):
        return _of_byte_pairs(tokenizer)
    if isinstance(tokenizer, CharTokenizer):
        return _of_characters(tokenizer)
    raise UsageError(
        f"llama.cpp has no tokenizer like the model's {tokenizer.kind}; it can have char, bpe and "
        f"tiktoken; {opt('format')} hf has a tokenizer for transformers",
        "format",
        "gguf",
    )


def _type(token: str) -> int:
    # <NUM> is found in any text
    return USER_DEFINED if token == NUMBER else CONTROL


def _of_byte_pairs(tokenizer: BytePairTokenizer) -> Vocabulary:
    pieces = [piece for piece in tokenizer.pieces if piece is not None]
    tokens = {id_: (f"<|unused_{id_}|>", UNUSED) for id_ in range(tokenizer.vocab_size)}
    tokens |= {
        id_: (spell(piece), NORMAL)
        for id_, piece in enumerate(tokenizer.pieces)
        if piece is not None
    }
    tokens |= {id_: (token, _type(token)) for token, id_ in tokenizer.special_ids.items()}
    texts, types = zip(*(tokens[id_] for id_ in range(tokenizer.vocab_size)), strict=True)
    return Vocabulary(
        _split(tokenizer.pattern),
        list(texts),
        list(types),
        [(spell(left), spell(right)) for left, right in merges(pieces)],
        tokenizer.special_ids.get(END_OF_TEXT, tokenizer.eos_id),
    )


def _split(pattern: str) -> str:
    if pattern in GPT2_PATTERNS:
        return "gpt-2"
    # o200k's has both parts
    for part, name in reversed(_SPLITS.items()):
        if part in pattern:
            return name
    raise UsageError(
        f"llama.cpp doesn't have the tokenizer's regular expression {pattern}; it has those of "
        f"GPT-2, cl100k and o200k; {opt('format')} hf has it",
        "format",
        "gguf",
    )


def _of_characters(tokenizer: CharTokenizer) -> Vocabulary:
    """Return characters as BPE whose merges join the bytes of one character, from its first on.

    So a merge never joins two characters, and the split doesn't matter. Parts of characters have
    no ids: llama.cpp leaves out a character that the vocabulary lacks.
    """
    special = [(token, _type(token)) for token in tokenizer.special_tokens]
    tokens = special + [(spell(each.encode()), NORMAL) for each in tokenizer.characters]
    pairs: dict[tuple[str, str], None] = {}
    for character in tokenizer.characters:
        letters = spell(character.encode())
        starts = [letters[:n] for n in range(1, len(letters) + 1)]
        for start, longer in pairwise(starts):
            pairs[start, longer[-1]] = None
    # llama.cpp needs one merge at least; these two bytes are in no text
    pairs = pairs or {(spell(b"\xff"), spell(b"\xff")): None}
    texts, types = zip(*tokens, strict=True)
    return Vocabulary("gpt-2", list(texts), list(types), list(pairs), tokenizer.eos_id)
