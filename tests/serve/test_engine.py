"""The engine and the parts of replies without HTTP: tokenizers, ends of sequence, failures."""

import queue
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gptlit.generation.generate import generate_many
from gptlit.generation.running_batch import RunningBatch
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.serve import protocol
from gptlit.serve.engine import Engine
from gptlit.serve.protocol import ApiError, Limits
from gptlit.serve.replies import Choice, Part, choices_of
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.words import WordTokenizer

TEXT = "nò, è così! nò è più che così: perché, né à ü, 日本語 日本 語 " * 30


def small_model(tokenizer: Tokenizer) -> GPT:
    """A model far from uniform, so that texts differ."""
    torch.manual_seed(1)
    size = tokenizer.vocab_size
    model = GPT(GPTConfig(vocab_size=size, n_layer=1, n_head=2, n_embd=16, block_size=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@pytest.fixture(scope="module")
def bytes_of_pairs() -> tuple[GPT, Tokenizer]:
    """A BPE whose tokens are often parts of characters."""
    options = TokenizerOptions("bpe", vocab_size=262)
    tokenizer = BytePairTokenizer.train(iter([TEXT]), options)
    return small_model(tokenizer), tokenizer


@pytest.fixture(scope="module")
def words() -> tuple[GPT, Tokenizer]:
    """Words, and an end of sequence that is likely."""
    tokenizer = WordTokenizer(["the", "king", "shall", "go"], ["<EOS>"], eos=True)
    return small_model(tokenizer), tokenizer


def written(
    parts: tuple[GPT, Tokenizer], body: dict[str, Any], most_rows: int = 64
) -> list[tuple[Choice, Part, dict[str, Any]]]:
    """The choices of a request, their parts joined, and these as JSON."""
    model, tokenizer = parts
    asked = protocol.parse(body, model, tokenizer, Limits(500, 500))
    events: queue.Queue[Any] = queue.Queue()
    choices = choices_of(asked, model, tokenizer)
    engine = Engine([model], most_rows=most_rows)
    whole = {choice: choice.begin() for choice in choices}
    engine.submit([choice.job(lambda *event: events.put(event)) for choice in choices])
    engine.start()
    try:
        while any(part.finish is None for part in whole.values()):
            choice, event = events.get(timeout=30)
            whole[choice] += choice.add(event)
    finally:
        engine.close()
    return [(choice, part, choice.as_json(part)) for choice, part in whole.items()]


def test_parts_of_characters_are_named_by_their_bytes(
    bytes_of_pairs: tuple[GPT, Tokenizer],
) -> None:
    model, tokenizer = bytes_of_pairs
    about = {"max_tokens": 60, "logprobs": 5, "return_token_ids": True, "seed": 2, "n": 4}
    found = written(bytes_of_pairs, {"prompt": "è così", **about, "temperature": 1, "echo": True})
    alone = generate_many(
        model, tokenizer, ["è così"] * 4, [2, 3, 4, 5],
        protocol.SamplingSettings(temperature=1.0, max_new_tokens=60),
    )  # fmt: skip
    named = 0
    for (choice, part, shown), text in zip(found, alone, strict=True):
        assert part.text == text.whole
        assert shown["token_ids"] == [*choice.prompt, *text.ids]
        assert "".join(shown["pieces"]) == text.whole[: len("".join(shown["pieces"]))]
        scores = shown["logprobs"]
        for name, id_, piece in zip(
            scores["tokens"], shown["token_ids"], shown["pieces"], strict=True
        ):
            data = tokenizer.piece(id_)
            if name.startswith("bytes:"):
                named += 1
                assert bytes.fromhex(name[6:].replace("\\x", "")) == data
            else:
                assert name == piece
                assert name.encode() == data
        ends = [
            offset + len(p)
            for offset, p in zip(scores["text_offset"], shown["pieces"], strict=True)
        ]
        assert scores["text_offset"] == [0, *ends[:-1]]
    assert named > 20


@pytest.mark.parametrize("stop", ["\u00e8", "ü", " n"])
def test_a_stop_string_of_several_tokens(bytes_of_pairs: tuple[GPT, Tokenizer], stop: str) -> None:
    body = {"prompt": "così", "max_tokens": 200, "logprobs": 0, "seed": 5, "n": 6, "stop": stop}
    model, tokenizer = bytes_of_pairs
    settings = protocol.SamplingSettings(temperature=1.0, max_new_tokens=200, stop=[stop])
    alone = generate_many(model, tokenizer, ["così"] * 6, range(5, 11), settings)
    for (_, part, shown), text in zip(written(bytes_of_pairs, body), alone, strict=True):
        assert part.text == text.text
        assert len(shown["logprobs"]["tokens"]) <= len(text.ids)
        offsets = shown["logprobs"]["text_offset"]
        assert part.finish == "length" or all(each < 4 + len(part.text) for each in offsets)


def test_an_end_of_sequence_ends_a_text(words: tuple[GPT, Tokenizer]) -> None:
    model, tokenizer = words
    body = {"prompt": "the king", "max_tokens": 30, "logprobs": 1, "seed": 1, "n": 8}
    settings = protocol.SamplingSettings(temperature=1.0, max_new_tokens=30)
    alone = generate_many(model, tokenizer, ["the king"] * 8, range(1, 9), settings, scored=True)
    found = written(words, body)
    for (choice, part, shown), text in zip(found, alone, strict=True):
        assert part.text == text.text
        assert choice.n_written == len(text.ids)
        assert part.finish == ("stop" if len(text.ids) < 30 else "length")
        assert shown["logprobs"]["token_logprobs"] == pytest.approx(text.logprobs, abs=1e-5)
    assert any(part.finish == "stop" for _, part, _ in found)
    least = written(words, body | {"min_tokens": 25})
    assert all(choice.n_written >= 25 for choice, _, _ in least)


def test_texts_wait_for_their_turn(bytes_of_pairs: tuple[GPT, Tokenizer]) -> None:
    body = {"prompt": ["è", "così"], "max_tokens": 9, "seed": 3, "n": 4}
    wanted = [part.text for _, part, _ in written(bytes_of_pairs, body)]
    assert [part.text for _, part, _ in written(bytes_of_pairs, body, most_rows=2)] == wanted


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The third step fails, and no other."""
    steps, step = [], RunningBatch.step

    def fails(batch: RunningBatch) -> Any:
        steps.append(batch)
        if len(steps) == 3:
            raise RuntimeError("out of memory")
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", fails)
    yield
    assert len(steps) > 3


def test_a_step_that_fails_ends_its_texts_alone(
    bytes_of_pairs: tuple[GPT, Tokenizer], failing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"prompt": "è", "max_tokens": 9, "seed": 3}
    with pytest.raises(ApiError, match="can't be written: out of memory") as error:
        written(bytes_of_pairs, body)
    assert error.value.status == 500
    assert written(bytes_of_pairs, body)[0][1].finish == "length"
    assert "a step failed: out of memory" in capsys.readouterr().err
