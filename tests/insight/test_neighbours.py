import math

import pytest
import torch

from gptlit.insight.neighbours import nearest_neighbours


def test_neighbours_by_hand() -> None:
    embedding = torch.tensor([[2.0, 0], [1, 1], [0, 3], [-5, 0], [0, 0]])
    ids, cosines = nearest_neighbours(embedding, torch.tensor([0, 3]), 3)
    assert ids[0].tolist()[0] == 1
    assert {*ids[0].tolist()[1:]} == {2, 4}
    assert cosines[0].tolist() == pytest.approx([math.sqrt(0.5), 0, 0])
    assert ids[1].tolist()[2] == 1
    assert cosines[1].tolist() == pytest.approx([0, 0, -math.sqrt(0.5)])


def test_no_more_neighbours_than_other_tokens() -> None:
    ids, cosines = nearest_neighbours(torch.randn(3, 4), torch.arange(3), 9)
    assert ids.shape == cosines.shape == (3, 2)
    assert [sorted(row) for row in ids.tolist()] == [[1, 2], [0, 2], [0, 1]]
