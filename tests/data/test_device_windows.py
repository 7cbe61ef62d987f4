"""Windows that are cut on the device, or copied there ahead, are those of the host."""

import contextlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptlit.checkpoints import checkpoint
from gptlit.cli import summary
from gptlit.data import device_windows
from gptlit.data.datamodule import TextDataModule
from gptlit.data.device_windows import (
    DeviceCutter,
    EvalAhead,
    Placement,
    SideStream,
    TrainAhead,
    keeps,
    one_ahead,
)
from gptlit.data.loaders import Batch, EvalLoader, HostCutter, TrainLoader
from gptlit.data.token_file import TokenFile
from gptlit.data.window_order import WindowOrder
from gptlit.model import cost
from tests.conftest import TINY, Result, read_metrics

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
WINDOWS = ["pass", "side_by_side", "every_offset", "random", "documents"]
RUN = Path("lightning_logs")
IDS = np.random.default_rng(0).integers(2**16, size=1000).astype(np.uint16)


def assert_same(one: Any, other: Any) -> None:
    """Assert that two iterables give the same batches, with the same types."""
    for found, wanted in zip(one, other, strict=True):
        for part, expected in zip(found, wanted, strict=True):
            assert part.dtype == expected.dtype == torch.int64
            assert torch.equal(part, expected)


@st.composite
def token_files(draw: st.DrawFn) -> TokenFile:
    """A text of documents, its splits of several spans, and perhaps a separate text."""
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    own = draw(st.integers(0, 30))
    n_main = sum(lengths)
    dtype = draw(st.sampled_from([np.uint16, np.uint32]))
    largest = draw(st.sampled_from([3, 40_000, 65_535 if dtype == np.uint16 else 200_000]))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    ids = rng.integers(largest + 1, size=n_main + own).astype(dtype)
    ends = np.cumsum([*lengths, *[own] * (own > 0)])
    cuts = sorted({0, n_main, *draw(st.lists(st.integers(0, n_main), max_size=4))})
    spans: dict[str, list[list[int]]] = {"train": [], "val": [], "test": []}
    for first, end in itertools.pairwise(cuts):
        spans[draw(st.sampled_from(["train", "train", "val", "test"]))].append([first, end])
    if own:
        spans["val"] = [[n_main, n_main + own]]
    starts = [0, n_main] if own else [0]
    tokenizer: Any = SimpleNamespace(start_id=draw(st.integers(0, largest)))
    return TokenFile(ids, ends, spans, starts, tokenizer, {})


@settings(max_examples=150, deadline=None)
@given(
    tokens=token_files(),
    kind=st.sampled_from(WINDOWS),
    block_size=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    n_ranks=st.integers(1, 3),
    fraction=st.sampled_from([1.0, 0.6]),
)
def test_all_windows_are_those_of_the_host(
    tokens: TokenFile, kind: str, block_size: int, batch_size: int, n_ranks: int, fraction: float
) -> None:
    modules = []
    for on_device in (False, True):
        data = TextDataModule(
            windows=kind,
            block_size=block_size,
            batch_size=batch_size,
            train_fraction=fraction,
            on_device=on_device,
        )
        data._tokens = tokens
        modules.append(data)
    splits = [split for split in ("val", "test") if tokens.size(split)]
    for rank in range(n_ranks):
        ranks = mock.patch.object(
            TextDataModule, "_ranks", lambda _, rank=rank: {"rank": rank, "n_ranks": n_ranks}
        )
        with ranks:
            for split in splits:
                assert_same(*(data._whole_split(split) for data in modules))
            if modules[0].n_train_tokens:
                assert_same(*(data.train_slice() for data in modules))
            if modules[0].steps_per_epoch < 1:
                continue
            host, device = (data.train_dataloader() for data in modules)
        for epoch in range(2):
            for loader in (host, device):
                loader.set_epoch(epoch)
            for found, wanted in zip(device, host, strict=True):
                assert_same([found], [wanted])
                assert device.state_dict() == host.state_dict()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_text_is_copied_in_parts_and_without_changing_its_ids(
    monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setattr(device_windows, "TOKENS_AT_ONCE", 7)
    ids = np.array([0, 1, 2**15 - 1, 2**15, 2**16 - 1, *range(20)], dtype=dtype)
    ids.flags.writeable = False  # as those of a memory-mapped file
    cutter = DeviceCutter(ids, CPU)
    for size in (4, 2):
        starts = np.arange(len(ids) - size)
        found = cutter.windows(cutter.placed(starts), size)
        assert_same([found], [HostCutter(np.array(ids)).windows(starts, size)])
    assert cutter._ids.dtype.itemsize == ids.itemsize


def test_positions_are_copied_for_many_batches_at_once() -> None:
    cutter = DeviceCutter(IDS, CPU)
    order = WindowOrder(np.array([[0, len(IDS)]]), 8, seed=1)
    copies: list[np.ndarray] = []

    def placed(values: np.ndarray) -> Tensor:
        copies.append(values)
        return torch.from_numpy(values)

    cutter.placed = placed  # type: ignore[method-assign]
    list(TrainLoader(cutter, order, 1, n_batches=100))
    assert [len(each) for each in copies] == [64, 36]


# ---------------------------------------------------------------------- a batch ahead


def begin(batch: Batch) -> Callable[[], Batch]:
    return lambda: batch


def train_loader(n_batches: int = 5, **options: Any) -> TrainLoader:
    order = WindowOrder(np.array([[0, len(IDS)]]), 8, seed=1)
    return TrainLoader(HostCutter(IDS), order, 4, n_batches=n_batches, **options)


def test_each_item_is_yielded_after_the_next_is_made() -> None:
    made = []

    def items() -> Any:
        for item in range(4):
            made.append(item)
            yield item

    seen = [(item, len(made)) for item in one_ahead(items())]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_ahead(iter(()))) == []


def test_the_state_is_that_after_the_batch_yielded_last() -> None:
    host, ahead = train_loader(), TrainAhead(train_loader(), begin)
    assert len(ahead) == len(host)
    assert ahead.state_dict() == host.state_dict()
    for epoch in (0, 1, 4):
        for loader in (host, ahead):
            loader.sampler.set_epoch(epoch)
        for found, wanted in zip(ahead, host, strict=True):
            assert_same([found], [wanted])
            assert ahead.state_dict() == host.state_dict()
        assert ahead.state_dict() == host.state_dict() == {"epoch": epoch, "position": 0}


@pytest.mark.parametrize("read", [0, 1, 3, 5])
@pytest.mark.parametrize("to_ahead", [False, True])
@pytest.mark.parametrize("from_ahead", [False, True])
def test_a_loader_ahead_and_the_host_resume_each_other(
    read: int, from_ahead: bool, to_ahead: bool
) -> None:
    whole = train_loader()
    whole.set_epoch(2)
    wanted = list(whole)

    def made(ahead: bool) -> TrainLoader | TrainAhead:
        return TrainAhead(train_loader(), begin) if ahead else train_loader()

    first = made(from_ahead)
    first.set_epoch(2)
    stream = iter(first)
    for _ in range(read):
        next(stream)
    second = made(to_ahead)
    iter(second)  # Lightning calls iter once more than it reads
    second.load_state_dict(first.state_dict())
    stream = iter(second)
    second.set_epoch(2)  # and sets the epoch after that
    assert_same(stream, wanted[read:])


def test_batches_copied_ahead_by_an_abandoned_iterator_come_again() -> None:
    host, ahead = train_loader(), TrainAhead(train_loader(), begin)
    wanted = list(host)
    stream = iter(ahead)
    assert_same([next(stream), next(stream)], wanted[:2])
    assert_same(ahead, wanted[2:])


def test_a_cuda_batch_is_copied_on_a_stream_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's calls are replaced, and the copies stay on the CPU."""
    events: list[str] = []

    def copied_without_waiting(part: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert non_blocking
        assert part.is_contiguous()
        events.append("copy")
        return part.clone()

    stream, current = mock.Mock(), mock.Mock()
    current.wait_event.side_effect = lambda event: events.append(f"wait for {event}")
    stream.record_event.side_effect = lambda: events.append("event") or "event"
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(Tensor, "pin_memory", lambda part: part)
    monkeypatch.setattr(Tensor, "to", copied_without_waiting)
    monkeypatch.setattr(Tensor, "record_stream", lambda part, stream: events.append("keep"))
    (batch, *_) = train_loader()
    finish = SideStream(CUDA).begin(batch)
    assert events == ["copy", "copy", "event"]
    assert_same([finish()], [batch])
    assert events[3:] == ["wait for event", "keep", "keep"]


# ---------------------------------------------------------------------- the choice


@pytest.mark.parametrize(("free", "expected"), [(3999, False), (4000, True)])
def test_a_text_fits_in_a_quarter_of_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    assert keeps(1000, CUDA, "auto") is expected
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: free + 50)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 50)
    assert keeps(1000, torch.device("mps"), "auto") is expected
    assert not keeps(1000, CPU, "auto")


@pytest.mark.parametrize(
    ("device", "option", "free", "expected"),
    [
        ("cpu", "auto", 10**9, "host"),
        ("cpu", False, 10**9, "host"),
        ("cpu", True, 0, "device"),
        ("cuda", "auto", 10**9, "device"),
        ("cuda", "auto", 0, "ahead"),
        ("cuda", True, 0, "device"),
        ("cuda", False, 10**9, "host"),
        ("mps", "auto", 10**9, "device"),
        ("mps", "auto", 0, "host"),
    ],
)
def test_where_windows_are_cut(
    monkeypatch: pytest.MonkeyPatch, device: str, option: Any, free: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: free)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
    monkeypatch.setattr(device_windows, "SideStream", mock.Mock())
    monkeypatch.setattr(device_windows, "DeviceCutter", lambda ids, device: DeviceCutter(ids, CPU))
    place = Placement(IDS, torch.device(device), option)
    assert isinstance(place.cutter, DeviceCutter) == (expected == "device")
    assert isinstance(place.train(train_loader()), TrainAhead) == (expected == "ahead")
    evaluation = mock.Mock(spec=EvalLoader)
    assert isinstance(place.evaluate(evaluation), EvalAhead) == (expected == "ahead")
    described = {
        "device": "cut on the device, which holds the text",
        "ahead": "cut on the host; each is copied while the one before is computed",
        "host": "cut on the host; each is copied when it is used",
    }
    if device == "cpu" and expected == "host":
        assert str(place) == "cut from the token file"
    else:
        assert str(place) == described[expected]


def test_the_summary_counts_ids_that_a_gpu_would_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    data = TextDataModule()
    data._tokens = TokenFile(IDS, np.array([len(IDS)]), {}, [0], mock.Mock(), {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8000, 10**12))
    assert [data.bytes_on(device) for device in (CUDA, CPU)] == [2000, 0]
    memory = cost.Memory(1, 2, 3, 4, text=2000)
    assert memory.total == 2010
    assert ("token ids", f"{'0.00 MB':>12}") in summary.memory_rows(memory, "adamw")


# ---------------------------------------------------------------------- whole runs


def run_of(n: int) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The last checkpoint of a run, and the metrics that don't depend on time."""
    rows = read_metrics(RUN / f"version_{n}")
    kept = [
        {name: value for name, value in row.items() if name.startswith(("train/", "val/", "step"))}
        for row in rows
    ]
    return checkpoint.read(RUN / f"version_{n}" / "checkpoints" / "last.ckpt"), kept


def assert_same_run(one: int, other: int) -> None:
    (found, metrics), (wanted, expected) = run_of(one), run_of(other)
    assert metrics == expected
    assert found["state_dict"].keys() == wanted["state_dict"].keys()
    for name, tensor in found["state_dict"].items():
        assert torch.equal(tensor, wanted["state_dict"][name]), name
    loaders = [each["loops"]["fit_loop"]["state_dict"] for each in (found, wanted)]
    assert loaders[0] == loaders[1]


@pytest.mark.parametrize("ahead", [False, True])
def test_runs_are_those_of_the_host_and_resume_within_an_epoch(
    gptlit: Callable[..., Result], text_file: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Epochs of 22 steps; saved at step 30, and resumed on the host and on the device."""
    options = [
        f"--data.path={text_file}",
        "--data.train_fraction=0.05",
        "--model.dropout=0.1",
        "--trainer.val_check_interval=10",
    ]
    on_device = f"--data.on_device={'auto' if ahead else 'true'}"

    def fit(*arguments: str) -> None:
        result = gptlit("fit", *arguments)
        assert result.code == 0, result.err

    fit(*TINY, *options, "--trainer.max_steps=50", "--snapshot_every=30", "--data.on_device=false")
    used = mock.Mock(side_effect=begin if ahead else DeviceCutter)

    def place(self: Placement, ids: np.ndarray, device: torch.device, _: object) -> None:
        self.device, self.cutter, self._begin = device, HostCutter(ids), used

    if ahead:
        monkeypatch.setattr(Placement, "__init__", place)
    else:
        monkeypatch.setattr(device_windows, "DeviceCutter", used)
    fit(*TINY, *options, "--trainer.max_steps=50", "--snapshot_every=30", on_device)
    assert used.called
    assert_same_run(1, 0)
    shutil.copytree(RUN / "version_0", RUN / "version_2")
    fit(f"--ckpt_path={RUN / 'version_2' / 'checkpoints' / 'step_30.ckpt'}", on_device)
    assert_same_run(2, 0)
