import pytest

from gptlit.messages import UsageError
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.state import from_state


def test_state_of_characters() -> None:
    assert CharTokenizer("ab").state() == {"kind": "char", "characters": "ab"}
    with pytest.raises(UsageError, match="'words'"):
        from_state({"kind": "words"})
    with pytest.raises(ValueError, match="sorted"):
        CharTokenizer("ba")
