"""Makes tokenizers from their states, which are plain data from files that are not trusted."""

from typing import Any, NotRequired, TypedDict

from gptlit.messages import UsageError, errors_about
from gptlit.plain_data import check, shown
from gptlit.tokenizers.base import END_OF_SEQUENCE, END_OF_TEXT, LARGEST_VOCABULARY, Tokenizer
from gptlit.tokenizers.bytepair import BytePairTokenizer, check_byte_pairs
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.hugging_face import JsonTokenizer
from gptlit.tokenizers.words import WordTokenizer


class _AnyState(TypedDict):
    kind: str
    eos: NotRequired[bool]


class _ListState(_AnyState):
    special_tokens: NotRequired[list[str]]


class _CharState(_ListState):
    characters: str


class _WordState(_ListState):
    words: list[str]
    reversible: bool


class _BytePairState(_AnyState):
    name: str
    pattern: str
    pieces: list[str | None]
    special_tokens: dict[str, int]


class _JsonState(_AnyState):
    name: str
    content: str
    vocab_size: int


_STATES: dict[str, Any] = {
    "char": _CharState,
    "word": _WordState,
    "tiktoken": _BytePairState,
    "bpe": _BytePairState,
    "hugging_face": _JsonState,
}


def from_state(state: Any, vocab_size: int | None = None) -> Tokenizer:
    """Return the tokenizer that has a state; the inverse of `Tokenizer.state`.

    Args:
        state: State of a tokenizer, not trusted.
        vocab_size: Vocabulary size of its model, which the tokenizer must match; None for any.

    Raises:
        UsageError: The state is invalid, or does not match the model.
    """
    with errors_about("the state of a tokenizer is corrupt, or of another version of gptlit"):
        check(_AnyState, state, "")
        tokenizer = _from_state(state) if state["kind"] in _STATES else None
    if tokenizer is None:
        raise UsageError(
            f"a tokenizer of kind {shown(state['kind'])} is unknown to this version of gptlit, "
            f"which has {', '.join(_STATES)}"
        )
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UsageError(
            f"the model has a vocabulary of {vocab_size}, its tokenizer of {tokenizer.vocab_size}"
        )
    return tokenizer


def _from_state(state: Any) -> Tokenizer:
    kind = state["kind"]
    check(_STATES[kind], state, "")
    special, eos = state.get("special_tokens", []), state.get("eos", False)
    if kind == "hugging_face":
        if not 0 < state["vocab_size"] <= LARGEST_VOCABULARY:
            raise UsageError(f"its vocab_size is {state['vocab_size']}")
        return JsonTokenizer(state["name"], state["content"], state["vocab_size"], eos)
    eos_token = END_OF_TEXT if kind in ("tiktoken", "bpe") else END_OF_SEQUENCE
    if eos and eos_token not in special:
        raise UsageError(f"eos is true, but its special tokens lack {eos_token}")
    if kind == "char":
        return CharTokenizer(state["characters"], special, eos)
    if kind == "word":
        return WordTokenizer(state["words"], special, state["reversible"], eos)
    try:
        pieces = [piece if piece is None else piece.encode("latin-1") for piece in state["pieces"]]
    except UnicodeEncodeError as error:
        raise UsageError("its pieces aren't spelled byte by byte") from error
    check_byte_pairs(state["pattern"], pieces, special)
    return BytePairTokenizer(kind, state["name"], state["pattern"], pieces, special, eos)


def difference(theirs: Tokenizer, ours: Tokenizer, owner: str) -> str:
    """Describe how another tokenizer differs from ours; "" for the same tokens.

    Args:
        theirs: The other tokenizer.
        ours: Our tokenizer.
        owner: Subject of sentences about ours, such as "the student".
    """
    one, other = ({**each.state(), "eos": None} for each in (theirs, ours))
    if one == other:
        return ""
    sizes = [f"{each.kind} of {each.vocab_size:,} tokens" for each in (theirs, ours)]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]}, and {owner}'s {sizes[1]}"
    for id_ in range(ours.vocab_size):
        pieces = [each.piece(id_).decode(errors="replace") for each in (theirs, ours)]
        if pieces[0] != pieces[1]:
            return f"its token {id_} is {shown(pieces[0])}, and {owner}'s {shown(pieces[1])}"
    names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return f"they differ in {', '.join(sorted(names))}"
