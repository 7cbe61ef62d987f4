"""Captured steps write the texts of the plain step; captures on the CPU are recorded."""

import gc
import weakref
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.generation import captured
from gptlit.generation.decoding import Windows
from gptlit.generation.generate import generate_chunks, generate_step
from gptlit.generation.sampling import scores
from gptlit.generation.settings import SamplingSettings
from gptlit.model.gpt import GPT
from gptlit.tokenizers.characters import CharTokenizer
from tests.generation.by_keywords import generate_many, stream_generate
from tests.generation.test_decoding import PROMPTS, far_from_its_start
from tests.model.test_gpt import KINDS
from tests.recorded_graphs import RecordedGraphs, recorded_graphs

__all__ = ["recorded_graphs"]  # a fixture

Graphs = list[RecordedGraphs]


MODERN = "modern"  # with rotary positions, norms of queries and keys, token shift and softcap


def plain(
    model: GPT, prompts: Sequence[Tensor], settings: SamplingSettings, **rules: Any
) -> tuple[Tensor, Tensor]:
    """(n, B) ids and (n, B, 2) scores of the plain step."""
    steps = [*generate_step(model, prompts, settings, range(len(prompts)), **rules)]
    ids = torch.stack([each for each, _ in steps])
    return ids, torch.stack([scores(logits, each) for each, logits in steps])


def in_chunks(
    model: GPT, prompts: Sequence[Tensor], settings: SamplingSettings, **how: Any
) -> tuple[Tensor, Tensor]:
    """The same of captured steps."""
    seeds = range(len(prompts))
    chunks = [*generate_chunks(model, prompts, settings, seeds, scored=True, **how)]
    by_chunk = [each.scores for each in chunks if each.scores is not None]
    return torch.cat([each.ids for each in chunks]), torch.cat(by_chunk)


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_every_kind(
    kind: str, prompts: list[list[int]], recorded_graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also past block_size, and with graphs for several numbers of keys."""
    monkeypatch.setattr(captured, "FEWEST_KEYS", 2)
    model = far_from_its_start(kind)
    ids = [torch.tensor(each) for each in prompts]
    settings = SamplingSettings(max_new_tokens=47)
    wanted, wanted_scores = plain(model, ids, settings)
    for most in (16, 5, 1):
        found, found_scores = in_chunks(model, ids, settings, most=most)
        assert torch.equal(found, wanted)
        torch.testing.assert_close(found_scores, wanted_scores, atol=1e-5, rtol=1e-5)
    assert sum(each.replays for each in recorded_graphs) > 60


@pytest.mark.parametrize("kind", KINDS)
def test_texts_in_mixed_precision(kind: str, recorded_graphs: Graphs) -> None:
    """As by `gptlit predict --trainer.precision=bf16-mixed`, of prompts of several lengths."""
    model = far_from_its_start(kind)
    prompts = [torch.tensor(each) for each in ([1], [2, 3, 4], [5, 6])]
    settings = SamplingSettings(max_new_tokens=30)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, _ = plain(model, prompts, settings)
        found, _ = in_chunks(model, prompts, settings)
    # where bfloat16 has rounded keys and values otherwise, a text may differ from there on
    assert (found == wanted).float().mean() > 0.9
    assert sum(each.replays for each in recorded_graphs) > 10


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "top_k": 3},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"typical_p": 0.7},
    {"repetition_penalty": 1.7, "frequency_penalty": 0.9, "presence_penalty": 0.4},
    {"min_new_tokens": 21, "temperature": 2.0},
]


@pytest.mark.parametrize("values", SETTINGS, ids=lambda values: "-".join(values))
@pytest.mark.parametrize("rules", [{}, {"banned": [2, 5], "forced": [3, 4, 4], "eos_id": 1}])
def test_texts_of_every_setting(
    values: dict[str, Any], rules: dict[str, Any], recorded_graphs: Graphs
) -> None:
    model = far_from_its_start(MODERN)
    prompts = [torch.tensor(each) for each in ([1], [2, 3, 4, 5, 6, 7, 8], [9, 9])]
    settings = SamplingSettings(max_new_tokens=40, **values)
    wanted, wanted_scores = plain(model, prompts, settings, **rules)
    found, found_scores = in_chunks(model, prompts, settings, **rules)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(found_scores, wanted_scores, atol=1e-5, rtol=1e-5)
    assert sum(each.replays for each in recorded_graphs) > 20


TOKENIZER = CharTokenizer("abcdefghij", ["<EOS>"], eos=True)
WRITTEN: list[dict[str, Any]] = [
    {"temperature": 1.5},  # ends of sequence within chunks
    {"stop": ["ab", "c"], "temperature": 1.5},
    {"max_new_tokens": 0},
    {"max_new_tokens": 17, "force": "abcd"},
    {"scored": True, "temperature": 1.5},
    {"use_cache": False},
]


@pytest.mark.parametrize("values", WRITTEN, ids=lambda values: "-".join(values))
def test_whole_and_streamed_texts(values: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Texts end where they end without chunks, each as if it were alone; pieces are the same."""
    model = far_from_its_start(MODERN)
    prompts = ["", "abc", "jihgfedcba", "d"]
    values = {"max_new_tokens": 60, **values}
    texts, streamed = [], []
    for graphs_are_used in (False, True):
        if graphs_are_used:
            made = request.getfixturevalue("recorded_graphs")
        texts.append(generate_many(model, TOKENIZER, prompts, range(4), **values))
        if "scored" not in values:
            streams = [
                stream_generate(model, TOKENIZER, prompt, seed=seed, **values)
                for seed, prompt in enumerate(prompts)
            ]
            streamed.append([*zip_longest(*streams)])  # in turns
    for one, other in zip(*texts, strict=True):
        assert one.ids == other.ids
        assert one.whole == other.whole
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.entropies == pytest.approx(other.entropies, abs=1e-5)
    if streamed:
        assert streamed[0] == streamed[1]
    assert bool(made) == values.get("use_cache", True)


def test_graphs_serve_the_next_texts(recorded_graphs: Graphs) -> None:
    """Unless weights have moved, or the number of texts, settings or autocast have changed."""
    model = far_from_its_start(MODERN)

    def write(n_texts: int = 1, **settings: Any) -> int:
        """Write the plain step's texts; returns the number of captures."""
        values = SamplingSettings(max_new_tokens=20, **settings)
        prompts = [torch.tensor([1, 2 + i]) for i in range(n_texts)]
        before = sum(each.captures for each in recorded_graphs)
        found, _ = in_chunks(model, prompts, values)
        assert torch.equal(found, plain(model, prompts, values)[0])
        return sum(each.captures for each in recorded_graphs) - before

    both = 2  # step and draw
    assert write() == both
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert write() == 0
    assert write(temperature=1.5) == 1
    assert write(temperature=1.5, repetition_penalty=1.3) == 1
    assert write(temperature=1.5, repetition_penalty=1.3) == 0
    model.lm_head.weight.data = model.lm_head.weight.flip(0).clone()
    assert write() == both
    assert write(2) == both
    assert write() == both
    with torch.autocast("cpu", torch.bfloat16):
        assert write() == both
        assert write() == 0
    assert write() == both
    captured.forget(model)
    assert write() == both


def test_numbers_that_were_not_finite_leave_no_trace(recorded_graphs: Graphs) -> None:
    model = far_from_its_start("gpt2")
    prompts, settings = [torch.tensor([1, 2])], SamplingSettings(max_new_tokens=20)
    wanted, _ = in_chunks(model, prompts, settings)
    weight = model.wte.weight.data.clone()
    model.wte.weight.data.fill_(torch.nan)
    in_chunks(model, prompts, settings)
    model.wte.weight.data.copy_(weight)
    assert torch.equal(in_chunks(model, prompts, settings)[0], wanted)


@torch.inference_mode()
def test_lengths_are_copied_to_a_gpu_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerators.placed` is tested in tests/devices; a tensor made on the GPU waits."""
    made = []
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, **how: made.append(how) or tensor(*args))
    windows = Windows(far_from_its_start("gpt2"), [tensor([1]), tensor([2, 3])])
    for ids in tensor([[4, 5], [6, 7], [8, 9]]):
        windows.logits()
        windows.append(ids)
    windows.extend(tensor([[1, 2], [3, 4]]))
    assert made
    assert all("device" not in how for how in made)


def test_a_decoder_does_not_keep_its_model_alive(recorded_graphs: Graphs) -> None:
    model = far_from_its_start(MODERN)
    in_chunks(model, [torch.tensor([1])], SamplingSettings(max_new_tokens=9))
    weight = weakref.ref(model.lm_head.weight)
    recorded_graphs.clear()
    del model
    gc.collect()  # the model
    gc.collect()  # its decoder
    assert weight() is None
