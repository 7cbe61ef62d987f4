"""JsonTokenizer: any tokenizer.json of subwords, run by Hugging Face's tokenizers."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlit.messages import UsageError
from gptlit.plain_data import check, check_depth, in_short, shown
from gptlit.tokenizers.base import END_OF_SEQUENCE, END_OF_TEXT, Tokenizer, Unknown
from gptlit.tokenizers.byte_letters import unspell
from gptlit.tokenizers.bytepair import Utf8Decoder

if TYPE_CHECKING:
    import tokenizers

ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", END_OF_SEQUENCE)
SPACE = "▁"  # SentencePiece's sign for a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's pieces of single bytes
_SPACES = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
_DECODERS = ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip")
INSTALL = "pip install 'gptlit[tokenizers]'"


class JsonTokenizer(Tokenizer):
    """A published tokenizer of any model that tokenizer.json can describe, such as SentencePiece's.

    Args:
        name: Name for messages.
        content: Content of a tokenizer.json.
        vocab_size: Number of ids of the model; more than the tokenizer has, if it was padded.
        eos: Close each document by the first of `ENDS` among its special tokens.

    Raises:
        UsageError: The tokenizers package is missing, or the content is not supported.
    """

    kind = "hugging_face"

    def __init__(self, name: str, content: str, vocab_size: int, eos: bool = False) -> None:
        self.name = name
        self.content = content
        self._size = vocab_size
        self._tokenizer = _parsed(content)
        stages = list(_stages(json.loads(content)["decoder"]))
        self._strips_space = any(_strips_space(stage) for stage in stages)
        self.special_ids = {
            token.content: id_
            for id_, token in sorted(self._tokenizer.get_added_tokens_decoder().items())
            if token.special
        }
        if eos and not self.ends():
            raise UsageError(f"eos is true, but its special tokens lack {' and '.join(ENDS)}")
        self.eos_id = self.special_ids[self.ends()[0]] if eos else None
        self._pieces: dict[int, bytes] = {}  # unused ids have none
        is_byte_level = any(stage["type"] == "ByteLevel" for stage in stages)
        added = self._tokenizer.get_added_tokens_decoder()
        for token, id_ in self._tokenizer.get_vocab().items():
            if id_ >= vocab_size:
                ids = f"has the id {id_}, and the model {vocab_size} ids"
                raise UsageError(f"tokenizer.json: its token {shown(token)} {ids}")
            self._pieces[id_] = _bytes_of(token, is_byte_level and id_ not in added)
        model = self._tokenizer.model
        unknown = getattr(model, "unk_token", None)
        if unknown is not None:
            self.unknown_id = self._tokenizer.token_to_id(unknown)
        elif not is_byte_level and not getattr(model, "byte_fallback", False):
            raise UsageError("tokenizer.json: has no token for unknown characters")

    def ends(self) -> list[str]:
        """Return the special tokens that can close a document."""
        return [token for token in ENDS if token in self.special_ids]

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def start_id(self) -> int:
        before = self._tokenizer.encode("").ids  # a token of the beginning, if it has one
        return before[0] if before else super().start_id

    def _encode(self, text: str, unknown: Unknown) -> np.ndarray:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int64)

    def encode_continuation(self, text: str) -> np.ndarray:
        if not self._strips_space:
            return self.encode(text)
        # a space is put before a text; a line break, which merges with nothing, takes it
        before = self.encode("\n")
        return self.encode(f"\n{text}")[len(before) :]

    def piece(self, id_: int) -> bytes:
        return self._pieces.get(id_, b"")

    def incremental_decoder(self) -> Callable[[int], str]:
        return _Decoder(Utf8Decoder(self.piece), self._strips_space)

    def _state(self) -> dict[str, Any]:
        return {"name": self.name, "content": self.content, "vocab_size": self._size}


@dataclass
class _Decoder:
    """Decodes bytes, without the space that encoding put before the text."""

    decode: Utf8Decoder
    at_start: bool

    def __call__(self, id_: int) -> str:
        text = self.decode(id_)
        if text and self.at_start:
            self.at_start = False
            return text.removeprefix(" ")
        return text

    def __copy__(self) -> "_Decoder":
        return _Decoder(Utf8Decoder(self.decode.piece, self.decode.held), self.at_start)


def _parsed(content: str) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(f"needs the tokenizers package: {INSTALL}") from error
    _check(content)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        reason = in_short(" ".join(str(error).split()))
        raise UsageError(f"tokenizer.json: not supported by tokenizers ({reason})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a text that spells one is encoded as text
    return tokenizer


def _check(content: str) -> None:
    """Refuse what isn't a tokenizer of subwords whose tokens join to a text."""
    try:
        described = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError("tokenizer.json: not JSON") from error
    check_depth([described], "tokenizer.json: ")
    check(dict[str, Any], described, "tokenizer.json")
    if described.get("decoder") is None:
        raise UsageError("tokenizer.json: has no decoder that joins tokens to a text")
    for stage in _stages(described["decoder"]):
        if (kind := stage.get("type")) not in _DECODERS:
            raise UsageError(f"tokenizer.json: its decoder {shown(kind)} isn't supported")
        # gptlit joins the bytes of tokens itself
        if kind == "Replace" and stage != _SPACES:
            raise UsageError("tokenizer.json: its tokens don't join to a text")


def _stages(decoder: Any) -> Iterator[Mapping[str, Any]]:
    check(dict[str, Any], decoder, "tokenizer.json.decoder")
    if decoder.get("type") != "Sequence":
        yield decoder
        return
    check(list[dict[str, Any]], decoder.get("decoders"), "tokenizer.json.decoder.decoders")
    yield from decoder["decoders"]


def _strips_space(stage: Mapping[str, Any]) -> bool:
    if stage["type"] == "Metaspace":
        return stage.get("prepend_scheme", "always") != "never"
    return stage["type"] == "Strip" and stage.get("start", 0) > 0


def _bytes_of(token: str, is_byte_level: bool) -> bytes:
    if is_byte_level:
        return unspell(token)
    if match := _BYTE.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE, " ").encode()
