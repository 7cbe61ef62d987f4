"""Beam search against brute force, against its rule in plain code, and against numbers by hand."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.generation.beam_search import ScoredText
from gptlit.generation.generate import generate
from gptlit.generation.jobs import write_jobs
from gptlit.generation.settings import BeamSettings, SamplingSettings
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.base import TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer
from tests.generation.by_keywords import generate_many, search

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {
        "positions": "rotary",
        "norm": "rms",
        "activation": "swiglu",
        "n_kv_head": 1,
        "tie_weights": False,
    },
    "token shift": {"token_shift": 3, "positions": "sinusoidal", "qk_norm": True},
    "no attention": {"mixer": "none", "token_shift": 1, "norm_place": "post"},
    "no blocks": {"n_layer": 0, "logit_softcap": 5.0},
}
PLAIN = CharTokenizer("\n abcdefg")
CLOSED = CharTokenizer("\n abcdef", ["<EOS>"], eos=True)
FOUR = CharTokenizer("abc", ["<EOS>"], eos=True)  # <EOS> is 0, a 1, b 2, c 3
Settings = dict[str, Any]


def made(vocab_size: int = 9, **options: Any) -> GPT:
    """A model far from uniform, in double precision, so that no two texts are nearly as likely."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8}
    model = GPT(GPTConfig(vocab_size=vocab_size, **{**sizes, **options})).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def bigrams(table: Sequence[Sequence[float]]) -> GPT:
    """A model whose next token depends on the last alone, by probabilities of (V, V).

    Embeddings are one-hot, so that the head's columns are the rows of the table.
    """
    size = len(table)
    config = GPTConfig(
        vocab_size=size,
        n_layer=0,
        n_head=1,
        n_embd=size,
        block_size=3,
        positions="none",
        norm="rms",
        tie_weights=False,
    )
    model = GPT(config).double()
    with torch.no_grad():
        model.wte.weight.copy_(1e6 * torch.eye(size))
        model.ln_f.weight.fill_(size**-0.5)  # type: ignore[union-attr, operator]  # a parameter
        model.lm_head.weight.copy_(torch.tensor(table, dtype=torch.float64).log().T)
    return model


# ---------------------------------------------------------------------- references


def windowed(ids: Sequence[int], n_prompt: int, block_size: int) -> list[int]:
    """The ids that the model sees: a full window keeps its last half."""
    window = list(ids[max(0, n_prompt - block_size) : n_prompt])
    for id_ in ids[n_prompt:]:
        window.append(id_)
        if len(window) > block_size:
            window = window[-max(1, block_size // 2) :]
    return window


@torch.no_grad()
def log_probabilities(
    model: GPT,
    prompt: Sequence[int],
    written: Sequence[int],
    settings: Settings,
    eos_id: int | None,
) -> Tensor:
    """(V,) log probabilities of the next token, with the settings in plain code."""
    seen = windowed([*prompt, *written], len(prompt), model.config.block_size)
    logs = model(torch.tensor([seen]))[0, -1].double().log_softmax(-1)
    for id_ in range(len(logs)):
        n = written.count(id_)
        if id_ in settings.get("ban", ()):
            logs[id_] = -math.inf
        if id_ == eos_id and len(written) < settings.get("min_new_tokens", 0):
            logs[id_] = -math.inf
        if id_ in [*prompt, *written]:
            logs[id_] *= settings.get("repetition_penalty", 1)
        logs[id_] -= settings.get("frequency_penalty", 0) * n
        logs[id_] -= settings.get("presence_penalty", 0) * (n > 0)
    if len(written) < len(forced := settings.get("force", ())):
        logs[:] = -math.inf
        logs[forced[len(written)]] = 0
    return logs


def every_text(
    model: GPT, prompt: list[int], n_steps: int, penalty: float, settings: Settings
) -> list[tuple[float, list[int]]]:
    """Score and ids of each text that ends by <EOS>, a stop string or `n_steps`, the best first."""
    stops = [FOUR.encode(string).tolist() for string in settings.get("stop", ())]
    texts = []

    def visit(ids: list[int], total: float) -> None:
        stopped = any(stop == ids[-len(stop) :] for stop in stops)
        if ids and (ids[-1] == 0 or stopped or len(ids) == n_steps):
            texts.append((total / len(ids) ** penalty, ids))
            return
        logs = log_probabilities(model, prompt, ids, settings, 0).tolist()
        for id_, log in enumerate(logs):
            if log > -math.inf:
                visit([*ids, id_], total + log)

    visit([], 0.0)
    return sorted(texts, key=lambda text: -text[0])


def the_rule(
    model: GPT, prompt: list[int], n: int, n_steps: int, penalty: float
) -> list[tuple[float, list[int]]]:
    """Beam search with <EOS> = 0 in plain code, one text at a time, without a cache."""
    unfinished: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, n_steps + 1):
        continued = [
            (total + log, [*ids, id_])
            for total, ids in unfinished
            for id_, log in enumerate(log_probabilities(model, prompt, ids, {}, 0).tolist())
        ]
        continued.sort(key=lambda text: -text[0])
        if length == n_steps:
            ended += [(total / length**penalty, ids) for total, ids in continued[:n]]
        ended += [
            (total / length**penalty, ids)
            for total, ids in continued[:n]
            if ids[-1] == 0 and length < n_steps
        ]
        ended = sorted(ended, key=lambda text: -text[0])[:n]
        unfinished = [(total, ids) for total, ids in continued if ids[-1] != 0][:n]
        if len(ended) == n and unfinished[0][0] / length**penalty <= ended[-1][0]:
            break
    return ended


def ids_of(found: Sequence[ScoredText]) -> list[list[int]]:
    return [text.ids for text in found]


def assert_equal(found: Sequence[ScoredText], wanted: Sequence[tuple[float, list[int]]]) -> None:
    """The same texts in the same order, <EOS> left out, with the same scores."""
    assert ids_of(found) == [[id_ for id_ in ids if id_ != 0] for _, ids in wanted]
    assert [text.score for text in found] == pytest.approx([score for score, _ in wanted], abs=1e-9)


# ---------------------------------------------------------------------- identities


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["", "abc", "abcdefgabcdefg"])
def test_one_beam_equals_greedy_and_top_1(kind: str, prompt: str) -> None:
    model = made(**KINDS[kind]).float()
    one = search(model, PLAIN, prompt, num_beams=1, max_new_tokens=30)
    for settings in ({"temperature": 0}, {"top_k": 1, "temperature": 1.3}):
        wanted = generate_many(model, PLAIN, [prompt], [7], max_new_tokens=30, **settings)[0]
        assert ids_of(one) == [wanted.ids]
        assert one[0].whole == wanted.whole


def test_the_first_of_equal_tokens_is_taken() -> None:
    torch.manual_seed(0)
    level = GPT(GPTConfig(9, n_layer=1, n_head=1, n_embd=8, tie_weights=False, zero_init=True))
    assert search(level, PLAIN, "a", max_new_tokens=3)[0].ids == [0, 0, 0]
    three = search(level, PLAIN, "a", num_beams=3, num_samples=3, max_new_tokens=2)
    assert ids_of(three) == [[0, 0], [0, 1], [0, 2]]
    assert [text.score for text in three] == pytest.approx([-math.log(9)] * 3)


# ---------------------------------------------------------------------- brute force


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_new_tokens": 3},
        {"stop": ["ab", "c"]},
        {"stop": ["bb"], "min_new_tokens": 2, "ban": ["c"]},
        {"force": "ba"},
        {"force": "c", "repetition_penalty": 1.3, "min_new_tokens": 2},
        {"repetition_penalty": 1.7, "frequency_penalty": 0.5, "presence_penalty": 0.25},
    ],
    ids=str,
)
def test_enough_beams_find_the_best_of_all_texts(length_penalty: float, settings: Settings) -> None:
    model = made(4)
    by_id = {
        name: FOUR.encode("".join(settings[name])).tolist() if name in ("ban", "force") else value
        for name, value in settings.items()
    }
    wanted = every_text(model, [1, 2], 4, length_penalty, by_id)
    found = search(
        model,
        FOUR,
        "ab",
        num_beams=4**4,
        num_samples=4**4,
        length_penalty=length_penalty,
        early_stopping="never",
        max_new_tokens=4,
        **settings,
    )
    assert_equal(found, wanted)
    assert len({(text.text, text.score) for text in found}) == len(found)


# without attention some texts are exactly as likely as others
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"no attention"}))
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("num_beams", [2, 5])
def test_the_search_follows_its_rule_far_beyond_block_size(
    kind: str, use_cache: bool, num_beams: int
) -> None:
    """The window of 8 is refilled several times while rows change places."""
    model = made(**KINDS[kind])
    for prompt, length_penalty in (("ab", 1.0), ("abcdefabcdef", 0.5)):
        found = search(
            model,
            CLOSED,
            prompt,
            num_beams=num_beams,
            num_samples=num_beams,
            length_penalty=length_penalty,
            max_new_tokens=24,
            use_cache=use_cache,
        )
        ids = CLOSED.encode(prompt).tolist()
        assert_equal(found, the_rule(model, ids, num_beams, 24, length_penalty))


def test_rows_change_places() -> None:
    """The tests of the cache need it: the best texts differ early and late."""
    found = search(made(), PLAIN, "ab", num_beams=5, num_samples=5, max_new_tokens=24)
    greedy = search(made(), PLAIN, "ab", max_new_tokens=24)[0].ids
    parts = {
        next(at for at in range(25) if at == 24 or text.ids[at] != greedy[at]) for text in found
    }
    assert min(parts) < 20
    assert found[0].score > search(made(), PLAIN, "ab", max_new_tokens=24)[0].score


@pytest.mark.parametrize("num_beams", [1, 2, 3, 4, 8])
def test_scores_are_sorted_and_those_of_their_texts(num_beams: int) -> None:
    model = made()
    found = search(
        model,
        PLAIN,
        "ba",
        num_beams=num_beams,
        num_samples=num_beams,
        max_new_tokens=6,
        scored=True,
    )
    scores = [text.score for text in found]
    assert scores == sorted(scores, reverse=True)
    assert len({text.text for text in found}) == num_beams
    for text in found:
        logs = [
            log_probabilities(model, [3, 2], text.ids[:at], {}, None)[id_].item()
            for at, id_ in enumerate(text.ids)
        ]
        assert text.logprobs == pytest.approx(logs)
        assert text.score == pytest.approx(sum(logs) / 6)


# ---------------------------------------------------------------------- by hand

#            <EOS>  a     b     c    after
GARDEN = [
    [0.25, 0.25, 0.25, 0.25],  # <EOS>, which nothing follows
    [0.40, 0.30, 0.20, 0.10],  # a
    [0.90, 0.05, 0.03, 0.02],  # b
    [0.02, 0.55, 0.42, 0.01],  # c
]


def test_two_beams_find_what_greedy_misses() -> None:
    model = bigrams(GARDEN)
    common: Settings = {"max_new_tokens": 2, "length_penalty": 0}
    (greedy,) = search(model, FOUR, "c", **common)
    assert (greedy.text, greedy.score) == ("a", pytest.approx(math.log(0.55 * 0.4)))
    two = search(model, FOUR, "c", num_beams=2, num_samples=2, **common)
    assert [text.text for text in two] == ["b", "a"]
    wanted = [math.log(0.42 * 0.9), math.log(0.55 * 0.4)]
    assert [text.score for text in two] == pytest.approx(wanted)
    three = search(model, FOUR, "c", num_beams=3, num_samples=3, **common)
    assert [text.text for text in three] == ["b", "a", "aa"]
    assert three[2].score == pytest.approx(math.log(0.55 * 0.3))
    # the end at once is third of the first step, and longer texts get the better scores
    squared = search(model, FOUR, "c", num_beams=3, max_new_tokens=2, length_penalty=2)
    assert squared[0].score == pytest.approx(math.log(0.42 * 0.9) / 4)


@pytest.mark.parametrize(
    ("length_penalty", "wanted"),
    [
        (0.0, [("", 0.3, 1), ("aaaa", 0.7**4, 4), ("a", 0.7 * 0.3, 2)]),
        (1.0, [("aaaa", 0.7**4, 4), ("aaa", 0.7**3 * 0.3, 4), ("aa", 0.7**2 * 0.3, 3)]),
        (-1.0, [("", 0.3, 1), ("a", 0.7 * 0.3, 2), ("aaaa", 0.7**4, 4)]),
    ],
)
def test_the_end_competes_by_the_length_penalty(
    length_penalty: float, wanted: list[tuple[str, float, int]]
) -> None:
    """After each a the text ends with 0.3; the end of sequence counts in the length."""
    model, tokenizer = bigrams([[0.5, 0.5], [0.3, 0.7]]), CharTokenizer("a", ["<EOS>"], eos=True)
    found = search(
        model,
        tokenizer,
        "a",
        num_beams=3,
        num_samples=3,
        length_penalty=length_penalty,
        early_stopping="never",
        max_new_tokens=4,
    )
    assert [text.text for text in found] == [text for text, _, _ in wanted]
    scores = [math.log(p) / length**length_penalty for _, p, length in wanted]
    assert [text.score for text in found] == pytest.approx(scores)


def test_when_a_search_stops() -> None:
    """With as many ended texts as beams: at once, when the next are no better, or none can be."""
    tokenizer = CharTokenizer("ab", ["<EOS>"], eos=True)
    options: Settings = {"num_beams": 2, "num_samples": 2, "max_new_tokens": 4}
    # after two steps "" and "a" have ended, and "aa" is worse than "a", but "aaa" isn't
    model = bigrams([[0.3, 0.3, 0.4], [0.5, 0.49, 0.01], [0.6, 0.39, 0.01]])
    two = [("", math.log(0.6)), ("a", math.log(0.39 * 0.5) / 2)]
    three = [("", math.log(0.6)), ("aaa", math.log(0.39 * 0.49**2 * 0.5) / 4)]
    assert math.log(0.39 * 0.49) / 2 < two[1][1] < three[1][1]
    for early_stopping, wanted in ((True, two), (False, two), ("never", three)):
        found = search(model, tokenizer, "b", early_stopping=early_stopping, **options)
        assert [(text.text, pytest.approx(text.score)) for text in found] == wanted
    # one beam is greedy with any early_stopping, though "aaaa" would be better
    model = bigrams([[0.3, 0.3, 0.4], [0.02, 0.97, 0.01], [0.6, 0.39, 0.01]])
    assert math.log(0.39 * 0.97**3) / 4 > math.log(0.6)
    (one,) = search(model, tokenizer, "b", early_stopping="never", max_new_tokens=4)
    assert one.text == ""
    # after two steps "" and "a" have ended, and "aa" is better than ""
    model = bigrams([[0.3, 0.3, 0.4], [0.3, 0.69, 0.01], [0.3, 0.69, 0.01]])
    for early_stopping, texts in ((True, ["a", ""]), (False, ["aaaa", "aaa"])):
        found = search(model, tokenizer, "b", early_stopping=early_stopping, **options)
        assert [text.text for text in found] == texts


def test_below_a_length_penalty_of_0_the_next_end_is_the_best_to_come() -> None:
    after_c = [0.6, 0.39, 0.005, 0.005]
    model = bigrams([[0.25] * 4, [0.02, 0.005, 0.97, 0.005], [0.97, 0.01, 0.01, 0.01], after_c])
    found = search(
        model,
        FOUR,
        "c",
        num_beams=2,
        num_samples=2,
        length_penalty=-1,
        early_stopping="never",
        max_new_tokens=20,
    )
    assert [text.text for text in found] == ["", "ab"]  # and not "a", which ended before it
    assert found[1].score == pytest.approx(math.log(0.39 * 0.97 * 0.97) * 3)


def test_the_search_continues_however_many_of_the_likeliest_end() -> None:
    """By stop strings: five of six tokens end a text, the four likeliest among them."""
    tokenizer, after_f = CharTokenizer("abcdef"), [0.01] * 5 + [0.95]
    model = bigrams([[1 / 6] * 6] * 4 + [[0.3, 0.25, 0.2, 0.15, 0.06, 0.04], after_f])
    options: Settings = {"num_beams": 2, "length_penalty": 2, "early_stopping": "never"}
    (found,) = search(model, tokenizer, "e", stop=list("abcde"), max_new_tokens=6, **options)
    assert found.text == "ffffff"
    assert found.score == pytest.approx(math.log(0.04 * 0.95**5) / 6**2)


def test_there_can_be_fewer_texts_than_num_samples() -> None:
    tokenizer = CharTokenizer("ab")
    found = search(made(2), tokenizer, num_beams=9, num_samples=9, max_new_tokens=2)
    assert {text.text for text in found} == set(map("".join, itertools.product("ab", repeat=2)))


# ---------------------------------------------------------------------- texts


def test_a_stop_string_over_token_borders_ends_a_text_of_bytes() -> None:
    corpus = "né à côté, né à l’été. " * 9
    bpe = BytePairTokenizer.train([corpus], TokenizerOptions(kind="bpe", vocab_size=262))
    model = made(bpe.vocab_size)
    options: Settings = {"num_beams": 12, "num_samples": 12, "length_penalty": 0}
    free = search(model, bpe, "né", max_new_tokens=9, **options)
    stop = next(text.text[1:3] for text in free if len(text.text) > 4)
    stopped = search(model, bpe, "né", max_new_tokens=9, stop=[stop], **options)
    assert any(bpe.decode(text.ids) != text.text for text in stopped)
    for text in stopped:
        before, found, _ = bpe.decode(text.ids).partition(stop)
        assert text.text == before
        if found:  # with the last token, and not sooner
            assert stop not in bpe.decode(text.ids[:-1])
        else:
            assert len(text.ids) == 9


@pytest.mark.parametrize("prompt", ["", "the", "the king"])
def test_words_are_spelled_as_in_a_text_of_one_beam(prompt: str) -> None:
    words = WordTokenizer(sorted(["the", "king", "and", "love", "\n"]), reversible=True)
    found = search(made(5), words, prompt, num_beams=4, num_samples=4, max_new_tokens=12)
    for text in found:
        ids = [*words.encode(prompt).tolist(), *text.ids]
        assert text.whole == words.decode(ids)


def test_jobs_are_searched_or_drawn() -> None:
    model, jobs = made(), [("ab", 5), ("", 6), ("ab", 7)]
    settings: Settings = {"num_beams": 3, "num_samples": 2, "max_new_tokens": 9}
    found = write_jobs(model, PLAIN, jobs, BeamSettings(**settings))
    assert found == [search(model, PLAIN, prompt, **settings) for prompt, _ in jobs]
    assert [len(texts) for texts in found] == [2, 2, 2]
    drawn = write_jobs(model, PLAIN, jobs, SamplingSettings(max_new_tokens=9))
    assert write_jobs(model, PLAIN, jobs, BeamSettings(max_new_tokens=9)) == drawn
    alone = generate_many(model, PLAIN, ["ab", "", "ab"], [5, 6, 7], max_new_tokens=9)
    assert drawn == [[text] for text in alone]


def test_mode_and_random_state_are_kept() -> None:
    model, before = made(dropout=0.5).train(), torch.get_rng_state()
    one, other = (search(model, PLAIN, "a", num_beams=3, max_new_tokens=9) for _ in range(2))
    assert one == other
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------- invalid settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "^num_beams 0: must be 1"),
        ({"num_beams": 2, "num_samples": 3}, "^num_samples 3: .*num_beams 2"),
        ({"num_beams": 2, "num_samples": 0}, "^num_samples 0"),
        ({"num_beams": 2, "length_penalty": math.nan}, "^length_penalty nan: .*1 is usual"),
        ({"num_beams": 2, "length_penalty": 200.0}, "^length_penalty 200"),
        ({"num_beams": 2, "early_stopping": "soon"}, "^early_stopping soon: .*never"),
        ({"length_penalty": 2.0}, "^length_penalty 2.0: .*give num_beams"),
        ({"early_stopping": True}, "^early_stopping True: .*give num_beams"),
        ({"num_beams": 2, "max_new_tokens": None}, "^max_new_tokens None: .*a number"),
        ({"num_beams": 2, "max_new_tokens": 0}, "^max_new_tokens 0: .*1 or more"),
        ({"num_beams": 2, "temperature": 0.7}, "^temperature 0.7: .*draws nothing"),
        ({"num_beams": 2, "top_k": 5}, "^top_k 5: .*leave out top_k, or num_beams"),
        ({"num_beams": 2, "top_p": 0.9}, "^top_p 0.9"),
        ({"num_beams": 2, "min_p": 0.1}, "^min_p 0.1"),
        ({"num_beams": 2, "typical_p": 0.1}, "^typical_p 0.1"),
    ],
)
def test_invalid_settings_are_refused(settings: Settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BeamSettings(**settings)


def test_settings_that_mean_the_default_are_accepted() -> None:
    assert BeamSettings(num_beams=2, temperature=0).num_beams == 2
    assert BeamSettings(top_k=5, length_penalty=1.0).num_beams is None


def test_a_search_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match="every token is banned"):
        search(made(4), FOUR, "a", num_beams=2, ban=["a", "b", "c"], min_new_tokens=9)
    broken = made()
    with torch.no_grad():
        broken.wte.weight.fill_(math.nan)
    with pytest.raises(UsageError, match="logits aren't finite"):
        search(broken, PLAIN, "a", num_beams=2)


def test_one_beam_is_greedy_under_every_rule() -> None:
    """Its repetition penalty changes logits; on log probabilities it would choose otherwise."""
    settings: Settings = {"repetition_penalty": 1.4, "ban": ["b"], "frequency_penalty": 0.3}
    for seed in range(5):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=7, n_layer=1, n_head=1, n_embd=8, block_size=8)).eval()
        torch.nn.init.normal_(model.wte.weight)
        tokenizer = CharTokenizer("\nabcdef")
        greedy = generate(model, tokenizer, "ab", temperature=0, max_new_tokens=30, **settings)
        (found,) = search(model, tokenizer, "ab", num_beams=1, max_new_tokens=30, **settings)
        assert found.whole == greedy
