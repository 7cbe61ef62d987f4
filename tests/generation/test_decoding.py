"""The fast step for one token against the model itself, for every part of a model."""

import itertools

import pytest
import torch
from torch import Tensor

from gptlit.generation.decoding import Windows, kept_tokens, window_starts
from gptlit.model.gpt import GPT
from tests.model.test_gpt import KINDS, gpt

BLOCK = 6


def far_from_its_start(kind: str) -> GPT:
    """A model without zeros and ones that could hide a mistake."""
    model = gpt(**KINDS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def window(ids: list[int]) -> list[int]:
    """The window of a text that was read token by token, by the rule in plain code."""
    seen: list[int] = []
    for id_ in ids:
        seen = [*(seen if len(seen) < BLOCK else seen[-(BLOCK // 2 - 1) :]), id_]
    return seen


def texts_and_logits(
    model: GPT, prompts: list[list[int]], more: Tensor, use_cache: bool
) -> list[Tensor]:
    """(B, V) logits after the prompts, then after each row of (n, B) further ids."""
    windows = Windows(model, [torch.tensor(ids) for ids in prompts], use_cache)
    logits = [windows.logits().clone()]
    for ids in more:
        windows.append(ids)
        logits.append(windows.logits().clone())
    return logits


PROMPTS = {
    "even": [[1, 2], [3, 4], [5, 6]],
    "ragged": [[1], [3, 4, 5, 6], [5, 6, 7]],
    "full": [[1, 2, 3, 4, 5, 6], [7], [7, 8, 9, 1, 2, 3]],
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_equals_reading_for_every_kind(kind: str, prompts: list[list[int]]) -> None:
    """Every row's logits are those of the model on that row's window alone, past block_size."""
    model = far_from_its_start(kind)
    more = torch.randint(11, (17, 3), generator=torch.Generator().manual_seed(2))
    for use_cache in (True, False):
        logits = texts_and_logits(model, prompts, more, use_cache)
        for row, prompt in enumerate(prompts):
            for n, found in enumerate(logits):
                text = prompt + more[:n, row].tolist()
                alone = model(torch.tensor([window(text)]))[0, -1]
                torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_reordered_rows_keep_their_past(kind: str) -> None:
    model = far_from_its_start(kind)
    texts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    windows = Windows(model, [torch.tensor(ids) for ids in texts])
    windows.logits()
    for rows, ids in (((2, 0, 0), [1, 2, 3]), ((1, 1, 2), [4, 5, 6]), ((2, 1, 0), [7, 8, 9])) * 3:
        windows.reorder(rows)
        windows.append(torch.tensor(ids))
        texts = [[*texts[row], id_] for row, id_ in zip(rows, ids, strict=True)]
        for row, found in enumerate(windows.logits()):
            alone = model(torch.tensor([window(texts[row])]))[0, -1]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block_size", [1, 2, 7, 8])
def test_window_starts_follow_the_rule_of_windows(block_size: int) -> None:
    """Each token is predicted from the window that `Windows` has when it is appended."""
    lengths, length = [], 1
    for _ in range(1, 40):
        lengths.append(length)
        length = (kept_tokens(block_size) - 1 if length == block_size else length) + 1
    starts = [*window_starts(40, block_size), (0, 40)]
    found = []
    for (start, first), (_, following) in itertools.pairwise(starts):
        found += [token - start for token in range(first, following)]
    assert found == lengths
