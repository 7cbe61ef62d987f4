"""Scores of passages by ids; those of texts are in tests/predict/test_explain.py."""

import math

import pytest
import torch

from gptlit.insight.passages import ROWS, score, scores_of
from tests.model.test_gpt import gpt


def test_scores_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25] * 4]).log() + 3
    scores = scores_of(logits, torch.tensor([1, 2]), 2)
    assert scores.logprobs.tolist() == pytest.approx([-math.log(4)] * 2)
    assert scores.ranks.tolist() == [2, 1]
    assert scores.entropies.tolist() == pytest.approx([1.75 * math.log(2), 2 * math.log(2)])
    assert scores.best[0].tolist() == [0, 1]
    assert scores.best_logprobs[0].tolist() == pytest.approx([-math.log(2), -math.log(4)])
    assert scores_of(logits, torch.tensor([1, 2]), 9).best.shape == (2, 4)


def test_a_passage_is_scored_by_its_earlier_tokens() -> None:
    model = gpt(block_size=ROWS + 40, dropout=0.5).train()
    ids = torch.randint(11, (ROWS + 30,))
    scores = score(model, ids, 3)
    assert model.training
    wanted = scores_of(model.eval()(ids[None])[0, :-1], ids[1:], 3)
    for own, other in zip(vars(scores).values(), vars(wanted).values(), strict=True):
        torch.testing.assert_close(own, other)
    assert scores.logprobs.shape == (ROWS + 29,)


def test_a_single_token_has_no_scores() -> None:
    scores = score(gpt(), torch.tensor([3]), 4)
    assert [each.shape for each in vars(scores).values()] == [(0,), (0,), (0,), (0, 4), (0, 4)]
