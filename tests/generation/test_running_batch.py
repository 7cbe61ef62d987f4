"""Texts that join and leave a batch are those that they are alone, for every part of a model."""

import random
from typing import Any

import pytest
import torch

from gptlit.generation.decoding import Windows
from gptlit.generation.generate import generate_step
from gptlit.generation.running_batch import Row, RunningBatch
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError
from gptlit.model.ensemble import Ensemble
from gptlit.model.gpt import GPT
from tests.generation.test_decoding import far_from_its_start, window
from tests.model.test_gpt import KINDS

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"temperature": 0.0},
    {"temperature": 1.3, "top_k": 4},
    {"top_p": 0.7, "frequency_penalty": 0.5},
    {"min_p": 0.1, "repetition_penalty": 1.3},
    {"typical_p": 0.8, "presence_penalty": -0.5, "min_new_tokens": 7},
]


def made_up_rows(pick: random.Random, n: int) -> list[tuple[Row, int]]:
    """Rows with prompts, settings and rules of their own, and the numbers of their tokens."""
    rows = []
    for index in range(n):
        prompt = torch.tensor([pick.randrange(11) for _ in range(pick.randint(1, 9))])
        length = pick.randint(1, 15)
        chosen = SETTINGS[index % len(SETTINGS)]
        settings = SamplingSettings(**chosen, max_new_tokens=max(length, 7))
        rules = {"eos_id": 10, "banned": [3] * (index % 2), "forced": [1, 2] * (index % 3 == 2)}
        rows.append((Row(prompt, settings, pick.randrange(2**40), rules, n_best=index % 4), length))
    return rows


@pytest.mark.parametrize("kind", [*KINDS, "ensemble"])
def test_rows_are_those_of_a_row_alone(kind: str) -> None:
    """Rows join and leave at random; ids, log probabilities and the likeliest tokens are equal."""
    pick = random.Random(5)
    model = far_from_its_start("llama" if kind == "ensemble" else kind).eval()
    if kind == "ensemble":
        model = Ensemble([model, far_from_its_start("gpt2")]).eval()
    waiting = made_up_rows(pick, 12)
    lengths = dict(waiting)
    found: dict[Row, list[Any]] = {row: [] for row, _ in waiting}
    batch = RunningBatch(model)
    largest = 0
    while waiting or batch.rows:
        joining = [waiting.pop()[0] for _ in range(pick.choice([0, 0, 0, 1, 3])) if waiting]
        leaving = {row for row in batch.rows if len(found[row]) >= lengths[row]}
        batch.change(leaving, joining)
        if batch.rows:
            largest = max(largest, len(batch.rows))
            for row, drawn in zip(list(batch.rows), batch.step(), strict=True):
                found[row].append(drawn)
    assert largest >= 4
    for row, length in lengths.items():
        alone = generate_step(model, [row.prompt], row.settings, [row.seed], **row.rules)
        for _, (ids, logits), drawn in zip(range(length), alone, found[row], strict=False):
            assert drawn.id == int(ids)
            logs = logits[0].float().log_softmax(dim=-1)
            assert drawn.logprob == pytest.approx(float(logs[drawn.id]), abs=1e-5)
            best = [(id_, float(logs[id_])) for id_ in logs.argsort(descending=True).tolist()]
            assert [each[1] for each in drawn.best] == pytest.approx(
                [each[1] for each in best[: row.n_best]], abs=1e-5
            )
        assert len(found[row]) == length


def test_rows_without_scores_have_none() -> None:
    batch = RunningBatch(far_from_its_start("gpt2").eval())
    row = Row(torch.tensor([1, 2]), SamplingSettings(), 7)
    batch.change((), [row])
    (drawn,) = batch.step()
    assert (drawn.logprob, drawn.best) == (None, ())


def test_rules_that_leave_no_token_change_nothing() -> None:
    batch = RunningBatch(far_from_its_start("gpt2").eval())
    first = Row(torch.tensor([1, 2]), SamplingSettings(), 7)
    batch.change((), [first])
    with pytest.raises(UsageError, match="ban fewer"):
        batch.change({first}, [Row(first.prompt, first.settings, 7, {"banned": [*range(11)]})])
    assert batch.rows == [first]
    assert len(batch.step()) == 1


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_changed_windows_are_those_of_their_texts(kind: str, use_cache: bool) -> None:
    model: GPT = far_from_its_start(kind)
    texts = [[1, 2, 3], [4, 5, 6, 7], [7, 8], [2]]
    windows = Windows(model, [torch.tensor(ids) for ids in texts], use_cache)
    changes = [([0, 3, 2], [[5, 5]]), ([0, 1, 2, 3], []), ([2], [[9] * 8, [1], [2]]), ([0, 3], [])]
    for rows, prompts in changes * 3:
        windows.logits()
        ids = torch.arange(len(texts)) + 1
        windows.append(ids)
        texts = [[*text, int(id_)] for text, id_ in zip(texts, ids, strict=True)]
        rows = [row for row in rows if row < len(texts)]
        windows.change(rows, [torch.tensor(ids) for ids in prompts])
        new = [ids[-6:] for ids in prompts]
        texts = [*(texts[row] for row in rows), *new]
        for text, found in zip(texts, windows.logits(), strict=True):
            alone = model(torch.tensor([window(text)]))[0, -1]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        windows.append(torch.zeros(len(texts), dtype=torch.long))
        texts = [[*text, 0] for text in texts]
