import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptlit.generation.generate import (
    generate,
    generate_step,
)
from gptlit.generation.settings import SamplingSettings
from gptlit.generation.text_stream import Stopper
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer
from tests.generation.by_keywords import generate_many, generate_samples, search, stream_generate

TOKENIZER = CharTokenizer("\n abcdefg")


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)
    config = GPTConfig(vocab_size=9, n_layer=2, n_head=2, n_embd=16, block_size=8)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # far from uniform, so that texts differ
    return model


def test_a_full_window_keeps_its_last_half(model: GPT) -> None:
    """Compares greedy texts with the rule of the window in plain code."""
    ids = window = [2, 3, 4]
    for _ in range(40):
        if len(window) > 8:
            window = window[-4:]
        with torch.no_grad():
            token = int(model(torch.tensor([window]))[0, -1].argmax())
        ids, window = [*ids, token], [*window, token]
    for use_cache in (True, False):
        text = generate(
            model, TOKENIZER, "abc", max_new_tokens=40, temperature=0, use_cache=use_cache
        )
        assert text == TOKENIZER.decode(ids)


@pytest.mark.parametrize("prompt", ["", "a", "abcdefga", "abcdefgabcdefgabcdefg"])
@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"temperature": 0}])
def test_the_text_is_the_same_with_and_without_a_cache(
    model: GPT, prompt: str, settings: dict[str, float]
) -> None:
    texts = [
        generate(model, TOKENIZER, prompt, max_new_tokens=50, use_cache=cache, **settings)
        for cache in (True, False)
    ]
    assert texts[0] == texts[1]
    assert texts[0].startswith(prompt)
    assert len(texts[0]) == len(prompt) + 50


def test_a_sample_is_the_same_alone_and_in_any_batch(model: GPT) -> None:
    alone = [generate(model, TOKENIZER, "ab", seed=seed, max_new_tokens=60) for seed in range(6)]
    assert generate_samples(model, TOKENIZER, "ab", seeds=range(6), max_new_tokens=60) == alone
    assert generate_samples(model, TOKENIZER, "ab", seeds=[4, 1], max_new_tokens=60) == [
        alone[4],
        alone[1],
    ]
    assert len(set(alone)) == 6


def test_prompts_of_any_lengths_share_a_batch(model: GPT) -> None:
    """Each text is the one that its prompt and seed give alone, past block_size and with counts."""
    prompts = ["", "abcdefgabc", "a", "bcd", "abcdefg", "bcd"]
    for settings in ({}, {"repetition_penalty": 1.3, "top_p": 0.9}):
        for use_cache in (True, False):
            options: Any = {"max_new_tokens": 40, "use_cache": use_cache, **settings}
            alone = [
                generate(model, TOKENIZER, prompt, seed=seed, **options)
                for seed, prompt in enumerate(prompts)
            ]
            written = generate_many(model, TOKENIZER, prompts, range(6), **options)
            assert [text.whole for text in written] == alone
            assert alone[3] != alone[5]


def test_longer_is_a_continuation_of_shorter(model: GPT) -> None:
    long = generate(model, TOKENIZER, "a", max_new_tokens=30)
    assert long.startswith(generate(model, TOKENIZER, "a", max_new_tokens=10))


def test_streaming_gives_the_whole_piece_by_piece(model: GPT) -> None:
    pieces = list(stream_generate(model, TOKENIZER, "ab", max_new_tokens=12))
    assert len(pieces) == 13
    assert "".join(pieces) == generate(model, TOKENIZER, "ab", max_new_tokens=12)


def test_an_empty_prompt_starts_from_a_newline_that_is_not_part_of_the_text(model: GPT) -> None:
    text = generate(model, TOKENIZER, "", max_new_tokens=20)
    assert "\n" + text == generate(model, TOKENIZER, "\n", max_new_tokens=20)


CLOSED = CharTokenizer("\n abcdef", ["<EOS>"], eos=True)


def test_a_text_ends_where_the_end_of_sequence_is_drawn(model: GPT) -> None:
    """The end of sequence stops a text and isn't part of it, alone and in a batch."""
    options = {"max_new_tokens": 60, "temperature": 1.5}
    # with a tokenizer without an end of sequence the model continues and writes the token
    spelled = CharTokenizer("\n abcdef", ["<EOS>"])
    longer = [generate(model, spelled, "ab", seed=seed, **options) for seed in range(8)]
    alone = [generate(model, CLOSED, "ab", seed=seed, **options) for seed in range(8)]
    assert alone == [text.split("<EOS>")[0] for text in longer]
    assert len({len(text) for text in alone}) > 2
    assert generate_samples(model, CLOSED, "ab", seeds=range(8), **options) == alone
    pieces = list(stream_generate(model, CLOSED, "ab", seed=1, **options))
    assert "".join(pieces) == alone[1]


@given(
    pieces=st.lists(st.text("ab\n", max_size=3), max_size=12),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_string_is_found_wherever_pieces_end(pieces: list[str], stop: list[str]) -> None:
    stopper, pieces_out = Stopper(stop), []
    for piece in pieces:
        pieces_out.append(stopper.add(piece))
        if stopper.stopped:
            break
    else:
        pieces_out.append(stopper.end())
    whole = "".join(pieces)
    # the string that ends first stops the text
    ends = [at + len(s) for s in stop if (at := whole.find(s)) >= 0]
    if not ends:
        assert "".join(pieces_out) == whole
        return
    assert stopper.stopped
    text = "".join(pieces_out)
    assert whole.startswith(text)
    assert not any(string in text for string in stop)
    assert any(whole[len(text) :].startswith(string) for string in stop)


def test_stop_strings_end_a_text(model: GPT) -> None:
    free = [generate(model, TOKENIZER, "ab", seed=seed, max_new_tokens=50) for seed in range(5)]
    stop = free[0][7:10]
    options = {"max_new_tokens": 50, "stop": [stop]}
    stopped = [generate(model, TOKENIZER, "ab", seed=seed, **options) for seed in range(5)]
    assert stopped == ["ab" + text[2:].split(stop)[0] for text in free]
    assert generate_samples(model, TOKENIZER, "ab", seeds=range(5), **options) == stopped


def test_min_new_tokens(model: GPT) -> None:
    options = {"max_new_tokens": 60, "temperature": 1.5, "min_new_tokens": 20}
    lengths = {len(generate(model, CLOSED, "ab", seed=seed, **options)) - 2 for seed in range(12)}
    assert 20 <= min(lengths) < 60


def test_banned_tokens_are_never_written(model: GPT) -> None:
    text = generate(model, TOKENIZER, "c", max_new_tokens=200, ban=["a", "\n"], temperature=2.0)
    assert not set("a\n") & set(text)
    assert len(set(text)) > 4
    with pytest.raises(UsageError, match="^ban 'ab': is 2 tokens"):
        generate(model, TOKENIZER, "c", ban=["ab"])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 1, "typical_p": 0.5}])
def test_a_text_begins_with_the_forced_text(model: GPT, settings: dict[str, Any]) -> None:
    """Also beyond block_size, in a batch and alone, with and without a cache."""
    force = "gfedcbagfedc"
    options = {"force": force, "max_new_tokens": 20, **settings}
    alone = [generate(model, TOKENIZER, "ab", seed=seed, **options) for seed in range(4)]
    for text in alone:
        assert text.startswith("ab" + force)
        assert len(text) == 2 + 20
    assert generate_samples(model, TOKENIZER, "ab", seeds=range(4), **options) == alone
    assert generate(model, TOKENIZER, "ab", seed=3, use_cache=False, **options) == alone[3]
    (found,) = search(model, TOKENIZER, "ab", num_beams=3, force=force, max_new_tokens=20)
    assert found.text.startswith(force)


def test_a_forced_text_conditions_like_a_prompt(model: GPT) -> None:
    forced = generate(model, TOKENIZER, "ab", force="cde", max_new_tokens=30, temperature=0)
    assert forced == generate(model, TOKENIZER, "abcde", max_new_tokens=27, temperature=0)
    options = {"max_new_tokens": 9, "temperature": 0, "repetition_penalty": 1.5}
    penalised = generate(model, TOKENIZER, "ab", force="cde", **options)
    options["max_new_tokens"] = 6
    assert penalised == generate(model, TOKENIZER, "abcde", **options)


def test_forced_tokens_have_the_models_own_probability(model: GPT) -> None:
    (text,) = generate_many(
        model, TOKENIZER, ["ab"], [1], force="cd", max_new_tokens=2, scored=True
    )
    with torch.no_grad():
        logs = model(torch.tensor([[2, 3, 4]]))[0].log_softmax(-1)
    assert text.ids == [4, 5]
    assert text.logprobs == pytest.approx([logs[1, 4].item(), logs[2, 5].item()], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"force": "az"}, "^force: 'z' not in the vocabulary"),
        ({"force": "abc", "ban": ["g", "b"]}, "^force 'abc': contains ban 'b'"),
        ({"force": "abc", "stop": ["x", "bc"]}, "^force 'abc': contains stop 'bc'"),
        ({"force": "abc", "max_new_tokens": 2}, "^force 'abc': is 3 tokens.*max_new_tokens 2"),
    ],
)
def test_invalid_forced_texts_are_refused(
    model: GPT, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        next(stream_generate(model, TOKENIZER, "a", **settings))  # before the prompt is yielded


def test_texts_outside_the_vocabulary_can_not_be_forced_or_banned() -> None:
    model = GPT(GPTConfig(vocab_size=3, n_layer=0, n_head=1, n_embd=4, block_size=4))
    words = WordTokenizer(["the"], ["<UNK>", "<EOS>"], eos=True)
    for text in ("the king", "the <EOS>"):  # a special token's name in a text is text
        with pytest.raises(UsageError, match=f"^force '{text}': .*no token for"):
            generate(model, words, "the", force=text)
    with pytest.raises(UsageError, match="^ban 'king': .*no token for"):
        generate(model, words, "the", ban=["king"])


def test_penalties_count_prompt_and_text(model: GPT) -> None:
    """Compares with the penalties in plain code."""
    settings = {"repetition_penalty": 1.7, "frequency_penalty": 0.9, "presence_penalty": 0.4}
    ids, written = [2, 2, 3], []
    for _ in range(12):
        with torch.no_grad():
            logits = model(torch.tensor([(ids + written)[-8:]]))[0, -1]
        for token in range(9):
            if token in ids + written:
                logits[token] *= 1.7 if logits[token] <= 0 else 1 / 1.7
            n = written.count(token)
            logits[token] -= 0.9 * n + 0.4 * (n > 0)
        written.append(int(logits.argmax()))
        if len(ids + written) > 7:
            break
    n_new = len(written)
    text = generate(model, TOKENIZER, "aab", max_new_tokens=n_new, temperature=0, **settings)
    assert text == TOKENIZER.decode(ids + written)


def test_without_a_limit_a_text_has_no_end(model: GPT) -> None:
    stream = stream_generate(model, TOKENIZER, "a", max_new_tokens=None)
    assert len("".join(itertools.islice(stream, 700))) == 700
    stream.close()


def test_an_empty_prompt_starts_after_the_end_of_a_text(model: GPT) -> None:
    text = generate(model, CLOSED, "", max_new_tokens=5, temperature=0)
    logits = model(torch.tensor([[0]]))[0, -1]
    assert text[:1] == CLOSED.decode([int(logits.argmax())])


def test_unknown_characters(model: GPT) -> None:
    with pytest.raises(UsageError, match="^prompt: 'z' .*unknown skip"):
        generate(model, TOKENIZER, "az")
    assert generate(model, TOKENIZER, "az", unknown="skip", max_new_tokens=0) == "a"


def test_a_distribution_of_first_tokens(model: GPT) -> None:
    """Over many seeds the first token has the model's own frequencies."""
    n = 4000
    texts = generate_samples(
        model, TOKENIZER, "a", seeds=range(n), max_new_tokens=1, temperature=2.0
    )
    counts = torch.bincount(torch.tensor([int(TOKENIZER.encode(t[-1])[0]) for t in texts]))
    with torch.no_grad():
        wanted = (model(torch.tensor([[2]]))[0, -1] / 2).softmax(-1)
    torch.testing.assert_close(counts / n, wanted[: len(counts)], atol=0.03, rtol=0)


def test_mode_and_random_state_are_kept(model: GPT) -> None:
    before = torch.get_rng_state()
    model.train()
    generate(model, TOKENIZER, "a", max_new_tokens=3)
    assert model.training
    stream = generate_step(model, torch.tensor([[1]]), SamplingSettings(), [1])
    next(stream)
    stream.close()
    assert model.training
    model.eval()
    assert torch.equal(before, torch.get_rng_state())


def test_a_context_of_one_token(model: GPT) -> None:
    torch.manual_seed(0)
    one = GPT(GPTConfig(vocab_size=9, n_layer=1, n_head=1, n_embd=8, block_size=1)).eval()
    texts = {
        generate(one, TOKENIZER, "ab", max_new_tokens=9, use_cache=cache) for cache in (True, False)
    }
    assert len(texts) == 1
    assert len(texts.pop()) == 11


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"max_new_tokens": -1},
        {"min_new_tokens": -1},
        {"min_new_tokens": 501},
        {"stop": [""]},
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, float]) -> None:
    (name, value), *_ = settings.items()
    with pytest.raises(UsageError, match=f"^{name} ({value}|'')"):
        SamplingSettings(**settings)  # type: ignore[arg-type]  # any option


def test_a_misspelled_setting_is_an_error(model: GPT) -> None:
    with pytest.raises(TypeError, match="'temprature'"):
        generate(model, TOKENIZER, "a", temprature=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'temprature'"):
        SamplingSettings(temprature=0.5)  # type: ignore[call-arg]
