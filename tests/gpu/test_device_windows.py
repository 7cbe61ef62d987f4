"""Windows that are cut on the device, or copied there ahead, are those of the host."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gptlit.data import device_windows
from gptlit.data.device_windows import DeviceCutter, EvalAhead, SideStream, TrainAhead
from gptlit.data.loaders import EvalLoader, HostCutter, TrainLoader
from gptlit.data.window_order import SideBySide, WindowOrder
from tests.conftest import Result, read_metrics

PIECES = np.array([[0, 700], [710, 1000]])


def ids(dtype: type) -> np.ndarray:
    largest = min(2**17, np.iinfo(dtype).max)
    return np.random.default_rng(0).integers(largest + 1, size=1000).astype(dtype)


def before(positions: np.ndarray) -> np.ndarray:
    return positions % 7


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("windows", ["pass", "documents"])
@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_those_of_the_host(device: str, dtype: type, windows: str, ahead: bool) -> None:
    if ahead and device != "cuda":
        pytest.skip("only CUDA copies on a stream of its own")
    host = HostCutter(ids(dtype))
    cutter = host if ahead else DeviceCutter(ids(dtype), torch.device(device))
    order = WindowOrder(PIECES, 8, seed=1, windows=windows)  # type: ignore[arg-type]
    train = [TrainLoader(each, order, 4, before=before, n_batches=20) for each in (host, cutter)]
    sides = SideBySide(PIECES, 8)
    score = [EvalLoader(each, sides, before, 8, 4, n_ranks=3, rank=2) for each in (host, cutter)]
    pairs = [tuple(train), tuple(score)]
    if ahead:
        begin = SideStream(torch.device("cuda", 0)).begin
        pairs = [(train[0], TrainAhead(train[1], begin)), (score[0], EvalAhead(score[1], begin))]
    for expected, found in pairs:
        # all are kept, so that memory that is used again too early would show
        for batch, wanted in zip(list(found), expected, strict=True):
            for part, tensor in zip(batch, wanted, strict=True):
                assert part.device.type == device
                assert part.dtype == torch.int64
                assert torch.equal(part.cpu(), tensor)


def test_runs_have_the_losses_of_the_host(
    fit: Callable[..., Result], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model.dropout=0", "--trainer.precision=32-true", "--trainer.log_every_n_steps=1"]
    fit(*options, "--data.on_device=false")
    fit(*options, "--data.on_device=true")
    monkeypatch.setattr(device_windows, "SHARE", 10**12)  # too large for the device
    fit(*options, "--data.on_device=auto")
    losses = [
        [float(row["train/loss"]) for row in read_metrics(run) if row["train/loss"]]
        for run in (Path("lightning_logs") / f"version_{n}" for n in range(3))
    ]
    assert len(losses[0]) >= 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)
