"""Text to token ids and back, in four kinds. A tokenizer's state is plain data."""

import codecs
import contextlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args

import numpy as np

from gptlit.messages import UsageError, did_you_mean, several
from gptlit.plain_data import check, shown
from gptlit.tokenizers import published

Unknown = Literal["error", "skip"]
Kind = Literal["char", "word", "tiktoken", "bpe"]
END_OF_TEXT = "<|endoftext|>"
END_OF_SEQUENCE = "<EOS>"
UNKNOWN_WORD = "<UNK>"
NUMBER = "<NUM>"  # which cleaning writes for each number
LARGEST_VOCABULARY = 2**32  # ids are stored in 32 bits at most


@dataclass(frozen=True)
class TokenizerOptions:
    """Which tokenizer to make for a text.

    As a string: `char`, `word`, `word:reversible`, `tiktoken:gpt2`, `bpe:1024`.

    Args:
        kind: char, a character; word, what stands between white space; tiktoken, a published
            byte-level BPE by name; bpe, a byte-level BPE trained on the training split.
        encoding: Of tiktoken: gpt2, cl100k_base, o200k_base, ...
        vocab_size: Of bpe, <|endoftext|> included.
        reversible: Of word: keep line ends and spaces, so that a poem comes back as lines.
        min_frequency: Of word: rarer words become <UNK>.
        special_tokens: Of char, word and bpe: tokens such as <PAD> <BOS> <EOS> <UNK> <NUM>.
        eos: Close each document by a token: <EOS>, or <|endoftext|> of tiktoken and bpe.
    """

    kind: Kind = "char"
    encoding: str = "gpt2"
    vocab_size: int = 1024
    reversible: bool = False
    min_frequency: int = 1
    special_tokens: list[str] = field(default_factory=list)
    eos: bool = False

    def __post_init__(self) -> None:
        special = several(self.special_tokens, "data.tokenizer.special_tokens")
        object.__setattr__(self, "special_tokens", special)
        if "" in special:
            reason = "an empty string is no token; name one such as <PAD>"
            raise UsageError(reason, "data.tokenizer.special_tokens", special)
        if self.min_frequency < 1:
            option = "data.tokenizer.min_frequency"
            raise UsageError("must be 1 or more", option, self.min_frequency)
        if self.kind == "tiktoken" and self.special_tokens:
            reason = "tiktoken's encodings have their own; leave it out, or take bpe"
            raise UsageError(reason, "data.tokenizer.special_tokens", self.special_tokens)

    def special(self) -> list[str]:
        """The special tokens asked for, each once, <EOS> last where documents end by it."""
        return list(dict.fromkeys([*self.special_tokens, *[END_OF_SEQUENCE][: self.eos]]))


DEFAULT = TokenizerOptions()


def parse_options(given: str | TokenizerOptions) -> TokenizerOptions:
    """Options from their short form. Raises UsageError for a form that isn't one."""
    if isinstance(given, TokenizerOptions):
        return given
    kind, _, detail = given.partition(":")
    kinds: dict[str, Callable[[], TokenizerOptions]] = {
        "char": TokenizerOptions,
        "word": lambda: TokenizerOptions(kind="word", reversible=detail == "reversible"),
        "tiktoken": lambda: TokenizerOptions(kind="tiktoken", encoding=detail or "gpt2"),
        "bpe": lambda: TokenizerOptions(kind="bpe", vocab_size=int(detail or 1024)),
    }
    if kind not in kinds:
        raise UsageError(
            "unknown; choose from char, word, word:reversible, tiktoken:NAME and bpe:SIZE."
            + did_you_mean(kind, kinds),
            "data.tokenizer",
            given,
        )
    fits = {"char": "", "word": "(reversible)?", "tiktoken": ".*", "bpe": r"\d*"}[kind]
    if not re.fullmatch(fits, detail):
        raise UsageError(
            f"{detail!r} is nothing that {kind} takes; choose from char, word, word:reversible, "
            "tiktoken:NAME and bpe:SIZE",
            "data.tokenizer",
            given,
        )
    return kinds[kind]()


class UnknownPieces(UsageError):
    """A text holds characters or words outside the vocabulary; `.pieces` lists them, sorted."""

    def __init__(self, pieces: Sequence[str], vocabulary: Sequence[str], what: str) -> None:
        self.pieces = list(pieces)
        named = ", ".join(map(repr, self.pieces[:10]))
        named += f" and {len(self.pieces) - 10} more" if len(self.pieces) > 10 else ""
        shown = ("" if what == "characters" else " ").join(filter(str.isprintable, vocabulary))
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
        super().__init__(f"{named} not in the vocabulary of {len(vocabulary)} {what}: {shown}")
        self._made_of = (self.pieces, vocabulary, what)

    def __reduce__(self) -> tuple[Any, ...]:
        # raised in one process, told by another
        return type(self), self._made_of


class Tokenizer(ABC):
    """Ids 0 to vocab_size - 1 for the pieces of a text."""

    kind: Kind
    special_ids: dict[str, int]  # of tokens that no text is encoded to, but for <NUM>, by name
    is_lossless = True  # whether every byte of a text is predicted, and comes back
    unknown_id: int | None = None  # what unknown pieces become, where there is such a token
    eos_id: int | None = None  # what closes each document, where something does

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of distinct ids."""

    @property
    def start_id(self) -> int:
        """The id that a text starts from: what closes the document before it, else the
        newline's, or 0 where there is none."""
        if self.eos_id is not None:
            return self.eos_id
        ids = self.encode("\n", "skip")
        return int(ids[0]) if len(ids) and int(ids[0]) != self.unknown_id else 0

    def encode(self, text: str, unknown: Unknown = "error") -> np.ndarray:
        """The ids of a text. What spells a special token in it is text like any other, except
        <NUM>, which cleaning writes into texts.

        Args:
            text: One text.
            unknown: Unknown pieces are an "error", or "skip" leaves them out. A tokenizer that
                has <UNK> encodes them to that.

        Returns:
            (n,) int64 ids.

        Raises:
            UnknownPieces: pieces outside the vocabulary.
            TypeError: the text is not a string.
        """
        return self._encode(checked_text(text), unknown)

    def encode_on(self, text: str) -> np.ndarray:
        """The ids of a text that goes on where another one was cut (see `passes`)."""
        return self.encode(text)

    @abstractmethod
    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        """`encode` for a string."""

    @abstractmethod
    def piece(self, id_: int) -> bytes:
        """What a token spells by itself, in UTF-8; part of a character where it is no more."""

    @abstractmethod
    def speller(self) -> Callable[[int], str]:
        """A function that spells a text id by id; what it gives for each, joined, is the text.

        It keeps what it needs to know of the ids before, and never gives half a character. Its
        `copy.copy` goes on from the same place, on its own.
        """

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids."""
        spell = self.speller()
        return "".join(spell(int(id_)) for id_ in ids)

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All there is to know, as plain data; `from_state` is its inverse."""


def checked_text(text: str, name: str = "text") -> str:
    """The text itself, if it is one string.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name}: must be one string, not a {type(text).__name__}")
    return text


class CharTokenizer(Tokenizer):
    """Special tokens, then one id per character, in the order of their code points."""

    kind = "char"

    def __init__(
        self, characters: str, special_tokens: Sequence[str] = (), eos: bool = False
    ) -> None:
        if list(characters) != sorted(set(characters)):
            raise ValueError("characters must be sorted and distinct")
        self.characters = characters
        self.special_tokens = list(special_tokens)
        self.special_ids = _numbered(self.special_tokens)
        self._spelled = self.special_tokens + list(characters)
        self.unknown_id = self.special_ids.get(UNKNOWN_WORD)
        self.eos_id = self.special_ids[END_OF_SEQUENCE] if eos else None
        # ids by code point, -1 for strangers; all beyond the last share the last entry
        codes = _code_points(characters)
        self._ids = np.full(max(128, int(codes.max(initial=0)) + 2), -1, dtype=np.int64)
        self._ids[codes] = np.arange(len(codes)) + len(self.special_tokens)

    @classmethod
    def train(cls, text: str, options: TokenizerOptions = DEFAULT) -> "CharTokenizer":
        """The vocabulary of all characters in `text`."""
        characters = "".join(map(chr, np.unique(_code_points(text))))
        return cls(characters, options.special(), options.eos)

    @property
    def vocab_size(self) -> int:
        return len(self._spelled)

    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        if NUMBER in self.special_ids and NUMBER in text:
            first, *rest = (self._encode_characters(part, unknown) for part in text.split(NUMBER))
            number = np.array([self.special_ids[NUMBER]])
            return np.concatenate([first, *(ids for part in rest for ids in (number, part))])
        return self._encode_characters(text, unknown)

    def _encode_characters(self, text: str, unknown: Unknown) -> np.ndarray:
        codes = _code_points(text)
        ids = self._ids.take(codes, mode="clip")
        strange = ids < 0
        if not strange.any():
            return ids
        if self.unknown_id is not None:
            ids[strange] = self.unknown_id
        elif unknown == "error":
            strangers = list(map(chr, np.unique(codes[strange])))
            raise UnknownPieces(strangers, self.characters, "characters")
        return ids[ids >= 0]

    def piece(self, id_: int) -> bytes:
        return self._spelled[id_].encode()

    def speller(self) -> Callable[[int], str]:
        return self._spelled.__getitem__

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"kind": self.kind, "characters": self.characters}
        if self.special_tokens:
            state["special_tokens"] = self.special_tokens
        return state | _eos_state(self)


def _numbered(special_tokens: Sequence[str]) -> dict[str, int]:
    """The ids of special tokens that come before all others."""
    ids = {token: id_ for id_, token in enumerate(special_tokens)}
    if len(ids) != len(special_tokens):
        raise ValueError("special tokens must be distinct")
    return ids


def _eos_state(tokenizer: Tokenizer) -> dict[str, bool]:
    return {} if tokenizer.eos_id is None else {"eos": True}


def _code_points(text: str) -> np.ndarray:
    if text.isascii():
        return np.frombuffer(text.encode(), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class WordTokenizer(Tokenizer):
    """Special tokens, then one id per word, sorted; words stand between white space (S4).

    Plain, it forgets what kind of white space there was, and spells one space between words.
    Reversible, each character of white space is a token, except a single space between two
    words, which is understood.
    """

    kind = "word"

    def __init__(
        self,
        words: Sequence[str],
        special_tokens: Sequence[str] = (),
        reversible: bool = False,
        eos: bool = False,
    ) -> None:
        self.words = list(words)
        self.special_tokens = list(special_tokens)
        self.reversible = reversible
        self.is_lossless = reversible
        self.special_ids = _numbered(self.special_tokens)
        self._spelled = self.special_tokens + self.words
        # of words alone: a word may be spelled as a special token is, and is only a word
        self._ids = {word: id_ for id_, word in enumerate(self.words, len(self.special_tokens))}
        if len(self._ids) != len(self.words):
            raise ValueError("words must be distinct")
        if NUMBER in self.special_ids:
            self._ids[NUMBER] = self.special_ids[NUMBER]
        self.unknown_id = self.special_ids.get(UNKNOWN_WORD)
        self.eos_id = self.special_ids[END_OF_SEQUENCE] if eos else None

    @classmethod
    def train(cls, counts: Mapping[str, int], options: TokenizerOptions) -> "WordTokenizer":
        """The vocabulary of all words that are frequent enough, given how often each occurs."""
        special = options.special()
        if options.min_frequency > 1 and UNKNOWN_WORD not in special:
            special.append(UNKNOWN_WORD)
        kept = sorted(word for word, n in counts.items() if n >= options.min_frequency)
        words = [word for word in kept if word != NUMBER or NUMBER not in special]
        return cls(words, special, options.reversible, options.eos)

    @property
    def vocab_size(self) -> int:
        return len(self._spelled)

    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        return self._encode_words(_words(text, self.reversible), unknown)

    def encode_on(self, text: str) -> np.ndarray:
        return self._encode_words(_words(text, self.reversible, goes_on=True), "error")

    def _encode_words(self, words: list[str], unknown: Unknown) -> np.ndarray:
        with contextlib.suppress(KeyError):
            known = map(self._ids.__getitem__, words)
            return np.fromiter(known, dtype=np.int64, count=len(words))
        ids = [self._ids.get(word, self.unknown_id) for word in words]
        if unknown == "error" and None in ids:
            strangers = sorted({word for word in words if word not in self._ids})
            raise UnknownPieces(strangers, self._spelled, "words")
        return np.array([id_ for id_ in ids if id_ is not None], dtype=np.int64)

    def piece(self, id_: int) -> bytes:
        return self._spelled[id_].encode()

    def speller(self) -> Callable[[int], str]:
        return _WordSpeller(self._spelled)

    def state(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "words": self.words,
            "special_tokens": self.special_tokens,
            "reversible": self.reversible,
            **_eos_state(self),
        }


@dataclass
class _WordSpeller:
    """Puts a space between two words."""

    spelled: Sequence[str]
    after_word: bool = False

    def __call__(self, id_: int) -> str:
        word = self.spelled[id_]
        space = " " if self.after_word and not word.isspace() else ""
        self.after_word = not word.isspace()
        return space + word


# words, and white space but for a space with a word on both sides
_WORDS_AND_SPACES = re.compile(r"\S+|[^\S ]|(?<!\S) | (?!\S)")


def _words(text: str, reversible: bool, goes_on: bool = False) -> list[str]:
    if not reversible:
        return text.split()
    # where a text goes on from a word, the space between them is understood
    understood = goes_on and re.match(r" \S", text)
    return _WORDS_AND_SPACES.findall(text, 1 if understood else 0)


def count_words(text: str, reversible: bool, goes_on: bool = False) -> Counter[str]:
    """How often each word occurs, as a `WordTokenizer` cuts a text.

    Args:
        text: Any.
        reversible: White space counts as words too.
        goes_on: The text goes on where another one was cut.
    """
    return Counter(_words(text, reversible, goes_on))


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE, served by tiktoken: published (tiktoken) or trained on the text (bpe).

    Args:
        kind: tiktoken or bpe.
        name: What it is called.
        pattern: The regular expression that cuts a text into the stretches that merge.
        pieces: The bytes of each rank, in order; None where a rank is not used.
        special_tokens: Ids of special tokens; their text is only text when it is encoded.
        eos: <|endoftext|> closes each document.
    """

    def __init__(
        self,
        kind: Kind,
        name: str,
        pattern: str,
        pieces: Sequence[bytes | None],
        special_tokens: dict[str, int],
        eos: bool = False,
    ) -> None:
        import tiktoken

        self.kind = kind
        self.name = name
        self.pattern = pattern
        self.pieces = list(pieces)
        self.special_tokens = dict(special_tokens)
        self.special_ids = self.special_tokens
        self.eos_id = self.special_tokens[END_OF_TEXT] if eos else None
        ranks = {piece: rank for rank, piece in enumerate(self.pieces) if piece is not None}
        # whatever the pattern is, no stretch is empty, and what it passes by stands alone
        stretches = rf"\G(?:{pattern})(?!\G)|\G[\s\S]"
        self._encoding = tiktoken.Encoding(
            name, pat_str=stretches, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def train(cls, texts: Iterable[str], options: TokenizerOptions) -> "BytePairTokenizer":
        """As many merges as fill `vocab_size`, learned from the parts of a text.

        Raises:
            UsageError: there can't be so many tokens, or so few.
        """
        special = dict.fromkeys([END_OF_TEXT, *options.special_tokens])
        size, given = options.vocab_size - len(special), f"bpe:{options.vocab_size}"
        if size < 256:
            least = f"{256 + len(special)}: 256 bytes and {len(special)} special tokens"
            raise UsageError(f"must be at least {least}", "data.tokenizer", given)
        if options.vocab_size > LARGEST_VOCABULARY:
            most = f"at most {LARGEST_VOCABULARY}; a few thousand suit a small model"
            raise UsageError(f"ids have 32 bits, so {most}", "data.tokenizer", given)
        import rustbpe

        trainer = rustbpe.Tokenizer()
        # few at once: each may be a quarter of a megabyte
        trainer.train_from_iterator(iter(texts), size, buffer_size=64)
        ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
        if len(ranks) < size:
            raise UsageError(
                f"the training text gives only {len(ranks) + len(special)} tokens; give that many "
                "or fewer, or a longer text",
                "data.tokenizer",
                given,
            )
        pieces = [bytes(piece) for piece, _ in ranks]
        ids = {token: size + index for index, token in enumerate(special)}
        name = f"bpe:{options.vocab_size}"
        return cls("bpe", name, trainer.get_pattern(), pieces, ids, options.eos)

    @classmethod
    def published(cls, name: str, folder: Path, eos: bool = False) -> "BytePairTokenizer":
        """One of tiktoken's encodings by name. Raises UsageError if its files can't be had."""
        encoding = published.published(name, folder)
        ranks = encoding._mergeable_ranks
        pieces: list[bytes | None] = [None] * (max(ranks.values()) + 1)
        for piece, rank in ranks.items():
            pieces[rank] = piece
        special = encoding._special_tokens
        return cls("tiktoken", name, encoding._pat_str, pieces, special, eos)

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        numbers = {NUMBER} & set(self.special_tokens)
        try:
            ids = self._encoding.encode_to_numpy(
                text, allowed_special=numbers, disallowed_special=()
            )
        except ValueError as error:
            raise UsageError(
                f"the tokenizer's pattern {shown(self.pattern)} can't cut this text: "
                f"{' '.join(str(error).split())}"
            ) from error
        return ids.astype(np.int64)

    def piece(self, id_: int) -> bytes:
        with contextlib.suppress(KeyError):  # an id that nothing uses spells nothing
            return self._encoding.decode_single_token_bytes(id_)
        return b""

    def speller(self) -> Callable[[int], str]:
        return _ByteSpeller(self.piece)

    def state(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "pattern": self.pattern,
            "pieces": [piece and piece.decode("latin-1") for piece in self.pieces],
            "special_tokens": self.special_tokens,
            **_eos_state(self),
        }


@dataclass
class _ByteSpeller:
    """Holds the bytes of half a character back until the rest of it comes."""

    piece: Callable[[int], bytes]
    held: bytes = b""

    def __call__(self, id_: int) -> str:
        held = self.held + self.piece(id_)
        text, n_used = codecs.utf_8_decode(held, "replace", False)
        self.held = held[n_used:]
        return text


# ---------------------------------------------------------------------- from plain data


class _Kinded(TypedDict):
    kind: str


class _CharState(TypedDict):
    characters: str
    special_tokens: NotRequired[list[str]]
    eos: NotRequired[bool]


class _WordState(TypedDict):
    words: list[str]
    special_tokens: NotRequired[list[str]]
    reversible: bool
    eos: NotRequired[bool]


class _BytePairState(TypedDict):
    name: str
    pattern: str
    pieces: list[str | None]
    special_tokens: dict[str, int]
    eos: NotRequired[bool]


_STATES: dict[str, Any] = {
    "char": _CharState,
    "word": _WordState,
    "tiktoken": _BytePairState,
    "bpe": _BytePairState,
}


def from_state(state: Any, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that gave this `state()`.

    Args:
        state: Of any origin.
        vocab_size: Of the model that it belongs to, if it does.

    Raises:
        UsageError: no tokenizer of this version gave it, or it is not the model's.
    """
    try:
        tokenizer = _from_state(state)
    except UnknownKind:
        raise
    except UsageError as error:
        raise UsageError(
            f"a tokenizer's state is torn, or of another version of gptlit: {error}"
        ) from error
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UsageError(
            f"the model has a vocabulary of {vocab_size}, its tokenizer of {tokenizer.vocab_size}"
        )
    return tokenizer


class UnknownKind(UsageError):
    """A tokenizer is of a kind that this version doesn't have."""


def _from_state(state: Any) -> Tokenizer:
    check(_Kinded, state, "")
    if (kind := state["kind"]) not in _STATES:
        raise UnknownKind(
            f"a tokenizer of kind {shown(kind)} is unknown to this version of gptlit, which has "
            f"{', '.join(get_args(Kind))}"
        )
    check(_STATES[kind], state, "")
    special, eos = state.get("special_tokens", []), state.get("eos", False)
    if eos and (END_OF_TEXT if kind in ("tiktoken", "bpe") else END_OF_SEQUENCE) not in special:
        raise UsageError("eos is true, and its special tokens have none for that")
    if kind in ("char", "word"):
        _refuse_twice(special, "special_tokens")
    if kind == "char":
        if list(state["characters"]) != sorted(set(state["characters"])):
            raise UsageError("its characters aren't sorted and distinct")
        return CharTokenizer(state["characters"], special, eos)
    if kind == "word":
        _refuse_twice(state["words"], "words")
        return WordTokenizer(state["words"], special, state["reversible"], eos)
    pieces = _pieces(state["pieces"])
    check_byte_pairs(state["pattern"], pieces, special)
    return BytePairTokenizer(kind, state["name"], state["pattern"], pieces, special, eos)


def _refuse_twice(values: Sequence[Any], name: str) -> None:
    if len(set(values)) < len(values):
        (value, _), *_ = Counter(values).most_common(1)
        raise UsageError(f"{name} hold {shown(value)} twice")


def _pieces(spelled: Sequence[str | None]) -> list[bytes | None]:
    try:
        return [None if piece is None else piece.encode("latin-1") for piece in spelled]
    except UnicodeEncodeError as error:
        raise UsageError("its pieces aren't spelled byte by byte") from error


def check_byte_pairs(
    pattern: str, pieces: Sequence[bytes | None], special_tokens: Mapping[str, int]
) -> None:
    """Refuse parts of a `BytePairTokenizer` that tiktoken would fail by, now or at some text.

    Raises:
        UsageError: names the part.
    """
    import tiktoken

    used = [piece for piece in pieces if piece is not None]
    _refuse_twice(used, "pieces")
    lacking = {bytes([byte]) for byte in range(256)} - set(used)
    if lacking or b"" in used:
        raise UsageError(
            f"its pieces lack the byte {shown(min(lacking))}" if lacking else "a piece is empty"
        )
    _refuse_twice(list(special_tokens.values()), "special_tokens")
    for token, id_ in special_tokens.items():
        if not token or not 0 <= id_ < LARGEST_VOCABULARY:
            raise UsageError(f"its special token {shown(token)} has the id {shown(id_)}")
        if id_ < len(pieces) and pieces[id_] is not None:
            raise UsageError(f"its special token {shown(token)} has a piece's id, {id_}")
    if re.search(r"(?<!\\)(\\\\)*\\K", pattern):
        raise UsageError(r"its pattern has \K, by which a stretch of text may be empty")
    try:
        tiktoken.Encoding("", pat_str=pattern, mergeable_ranks={b" ": 0}, special_tokens={})
    except ValueError as error:
        raise UsageError(f"its pattern {shown(pattern)}: {' '.join(str(error).split())}") from error
