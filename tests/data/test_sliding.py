"""Windows that slide, against the rule in plain code."""

import numpy as np
import pytest
import torch

from gptlit.data.loaders import IGNORED, EvalLoader, HostCutter
from gptlit.data.window_order import SideBySide, Sliding

PIECES = np.array([[0, 23], [30, 30], [40, 44], [50, 58], [60, 69]])
IDS = np.arange(100, dtype=np.uint16)


@pytest.mark.parametrize("stride", range(1, 9))
def test_each_token_is_scored_once_from_enough_context(stride: int) -> None:
    windows = Sliding(PIECES, 8, stride)
    scored = []
    for start, end, first in windows[:].tolist():
        (piece,) = [each for each in PIECES.tolist() if each[0] <= start < end <= each[1]]
        assert end - start <= 8
        if start > piece[0]:
            # its inputs are the token before the window, and those before it within the window
            assert first - start == 8 - stride
        scored += range(first, end)
    assert scored == [at for first, end in PIECES.tolist() for at in range(first, end)]


def test_a_stride_of_the_block_is_side_by_side() -> None:
    windows = Sliding(PIECES, 8, 8)[:]
    assert np.array_equal(windows[:, :2], SideBySide(PIECES, 8)[:])
    assert np.array_equal(windows[:, 2], windows[:, 0])


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_batches_ignore_what_other_windows_score(n_ranks: int) -> None:
    found = []
    for rank in range(n_ranks):
        windows = Sliding(PIECES, 8, 3)
        cutter = HostCutter(IDS)
        loader = EvalLoader(cutter, windows, lambda at: at + 1, 8, 2, rank=rank, n_ranks=n_ranks)
        assert len({len(targets) for _, targets in loader}) == 1 or n_ranks == 1
        for inputs, targets in loader:
            at = targets != IGNORED
            found += targets[at].tolist()
            # the input before a target is the token before it
            assert torch.equal(inputs[:, 1:][at[:, 1:]], targets[:, 1:][at[:, 1:]] - 1)
    assert sorted(found) == [at for first, end in PIECES.tolist() for at in range(first, end)]
