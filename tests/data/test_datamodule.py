from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlit.data.datamodule import TextDataModule
from gptlit.data.loaders import IGNORED, EvalLoader, HostCutter, TrainLoader
from gptlit.data.window_order import SideBySide, WindowOrder
from gptlit.messages import UsageError
from tests.conftest import made_up_text

IDS = np.arange(1000, dtype=np.uint16)
ORDER = WindowOrder(np.array([[0, len(IDS)]]), 8, seed=1)


def loader(batch_size: int, n_batches: int, **options: Any) -> TrainLoader:
    return TrainLoader(HostCutter(IDS), ORDER, batch_size, n_batches=n_batches, **options)


def test_batches_are_windows_and_their_successors() -> None:
    x, y = next(iter(loader(4, 5)))
    assert x.shape == y.shape == (4, 8)
    assert x.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_an_epoch_sees_every_window_once() -> None:
    n_windows = ORDER.n_windows
    starts = torch.cat([x[:, 0] for x, _ in loader(4, n_windows // 4)])
    assert len(starts) == len(set(starts.tolist())) == n_windows // 4 * 4


@pytest.mark.parametrize(("n_ranks", "batch_size"), [(2, 6), (4, 3), (1, 6), (3, 2)])
def test_ranks_and_accumulation_only_divide_the_stream(n_ranks: int, batch_size: int) -> None:
    """Any division of steps of 12 windows sees the same 12 windows in each step."""
    whole = [set(x[:, 0].tolist()) for x, _ in loader(12, 5)]
    accumulated = 12 // (n_ranks * batch_size)
    ranks = [
        list(loader(batch_size, 5 * accumulated, rank=rank, n_ranks=n_ranks))
        for rank in range(n_ranks)
    ]
    for step in range(5):
        seen = [
            start
            for batches in ranks
            for x, _ in batches[step * accumulated : (step + 1) * accumulated]
            for start in x[:, 0].tolist()
        ]
        assert len(seen) == 12
        assert set(seen) == whole[step]


@pytest.mark.parametrize("read", [0, 1, 3, 5])
def test_a_restored_loader_resumes_where_the_other_stopped(read: int) -> None:
    whole = loader(4, 5)
    whole.set_epoch(2)
    batches = list(whole)
    first = loader(4, 5)
    first.set_epoch(2)
    stream = iter(first)
    for _ in range(read):
        next(stream)
    state = first.state_dict()
    second = loader(4, 5)
    iter(second)  # Lightning calls iter once more than it reads
    second.load_state_dict(state)
    stream = iter(second)
    second.set_epoch(2)  # and sets the epoch after that
    rest = list(stream)
    assert len(rest) == 5 - read
    for (x, _), (wanted, _) in zip(rest, batches[read:], strict=True):
        assert torch.equal(x, wanted)


def test_epochs_differ_unless_frozen() -> None:
    for frozen in (False, True):
        loader_ = loader(4, 5, frozen=frozen)
        first = torch.cat([x for x, _ in loader_])
        loader_.set_epoch(1)
        assert torch.equal(first, torch.cat([x for x, _ in loader_])) == frozen


@pytest.mark.parametrize("n_tokens", [1, 7, 8, 9, 41])
@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_evaluation_scores_every_token_once(n_tokens: int, n_ranks: int) -> None:
    ids = np.arange(100, 100 + n_tokens, dtype=np.uint16)
    scored = []
    lengths = set()
    windows = SideBySide(np.array([[0, n_tokens]]), 8)
    for rank in range(n_ranks):
        loader_ = EvalLoader(
            HostCutter(ids), windows, lambda at: at + 99, 8, 2, rank=rank, n_ranks=n_ranks
        )
        batches = list(loader_)
        lengths.add((len(loader_), len(batches)))
        for x, y in batches:
            counted = y != IGNORED
            scored += y[counted].tolist()
            # what the model sees is always the token before, the first of all included
            assert torch.equal(x[counted] + 1, y[counted])
    assert sorted(scored) == ids.tolist()
    assert len(lengths) == 1  # ranks that wait for each other need as many batches
    assert len(set(*lengths)) == 1


@pytest.fixture
def module(tmp_path: Path) -> Any:
    def make(content: str = made_up_text(), **options: Any) -> TextDataModule:
        path = tmp_path / "text.txt"
        path.write_text(content, encoding="utf-8")
        settings = {"block_size": 8, "batch_size": 4, **options}
        data = TextDataModule(path=str(path), data_dir=str(tmp_path / "data"), **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def test_the_module_has_both_loaders(module: Any) -> None:
    data = module()
    validation, slice_ = data.val_dataloader()
    n_scored = sum(int((y != IGNORED).sum()) for _, y in validation)
    assert n_scored == data.tokens.size("val")
    n_slice = sum(int((y != IGNORED).sum()) for _, y in slice_)
    assert 0.9 * n_scored <= n_slice <= n_scored
    train = data.tokens.split("train")
    first = int(next(iter(data.train_dataloader()))[0][0, 0])
    assert first in train


def test_the_slice_is_fixed_spread_and_of_the_training_split(module: Any) -> None:
    data = module()
    starts = data.train_slice().windows[:, 0]
    np.testing.assert_array_equal(starts, data.train_slice().windows[:, 0])
    assert len(set(starts.tolist())) == len(starts)
    assert starts[-1] > 0.8 * data.tokens.size("train")
    assert starts[-1] + 8 <= data.tokens.size("train")


@pytest.mark.parametrize("windows", ["pass", "side_by_side", "every_offset", "random"])
def test_all_kinds_of_windows_are_windows_of_the_text(module: Any, windows: str) -> None:
    data = module(windows=windows)
    text = data.tokenizer.decode(data.tokens.split("train"))
    x, y = next(iter(data.train_dataloader()))
    for row in torch.cat([x, y[:, -1:]], dim=1):
        assert data.tokenizer.decode(row.tolist()) in text


def test_without_validation_there_is_the_slice_alone(module: Any) -> None:
    data = module(val_fraction=0)
    assert not data.has_validation
    assert len(data.val_dataloader()) == 1


def test_a_separate_validation_text_leaves_the_other_whole(module: Any, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("the king", encoding="utf-8")
    data = module(val_path=str(tmp_path / "val.txt"))
    assert data.tokens.size("val") == 8
    assert data.tokenizer.decode(data.tokens.split("train")) == made_up_text()


def test_the_error_for_a_short_text_names_the_largest_block(module: Any) -> None:
    content = "0123456789" * 5
    with pytest.raises(UsageError) as caught:
        module(content, block_size=24)
    message = str(caught.value)
    assert "block_size 24" in message
    assert "45 tokens to train on and 5 for validation" in message
    assert "largest block that fits is 22" in message


def test_a_held_out_split_shorter_than_a_window_is_refused(module: Any, tmp_path: Path) -> None:
    content = "0123456789" * 5
    with pytest.raises(UsageError, match="^val_fraction: the val split has 5 tokens, .* 8"):
        module(content)
    data = module(content, val_fraction=0, test_fraction=0.1)
    with pytest.raises(UsageError, match="^test_fraction: the test split has 5 tokens"):
        data.test_dataloader()


def test_the_largest_block_that_fits(module: Any) -> None:
    content = "0123456789" * 5
    with pytest.raises(UsageError, match="largest block that fits is 25"):
        module(content, block_size=26, val_fraction=0)
    fits = module(content, block_size=25, batch_size=1, val_fraction=0)
    assert fits.steps_per_epoch == 1


def test_the_error_for_a_large_batch_names_the_number_of_windows(module: Any) -> None:
    with pytest.raises(UsageError, match="^batch_size 40: .* has 5; lower"):
        module("0123456789" * 5, batch_size=40, val_fraction=0).train_dataloader()


def test_invalid_batch_size() -> None:
    with pytest.raises(UsageError, match="^batch_size 0"):
        TextDataModule(batch_size=0)


def test_nothing_is_read_in_the_constructor(tmp_path: Path) -> None:
    data = TextDataModule(path="/no/such/file", data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="/no/such/file"):
        data.prepare_data()


@pytest.fixture
def collection(tmp_path: Path) -> Any:
    """A data module on documents of one letter each, closed by a token."""

    def make(*lengths: int, **options: Any) -> TextDataModule:
        folder = tmp_path / "documents"
        folder.mkdir(exist_ok=True)
        for index, length in enumerate(lengths):
            content = "abcdefghijklmnopqrstuvwxyz"[index] * length
            (folder / f"{index:02}.txt").write_text(content, encoding="utf-8")
        settings = {"block_size": 8, "batch_size": 2, "eos": True, **options}
        data = TextDataModule(path=str(folder), data_dir=str(tmp_path / "data"), **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def test_windows_of_documents_are_of_one_document(collection: Any) -> None:
    data = collection(5, 20, 3, 8, 16, 9, windows="documents", val_fraction=0)
    eos = data.tokenizer.eos_id
    scored: list[int] = []
    for x, y in data.train_dataloader():
        for inputs, targets in zip(x, y, strict=True):
            counted = targets != IGNORED
            scored += targets[counted].tolist()
            letters = set(targets[counted].tolist()) | set(inputs[counted].tolist())
            assert len(letters - {eos}) == 1
            # what the model sees before a document is what closes documents
            assert torch.equal(inputs[counted][1:], targets[counted][:-1])
    assert data.order.n_windows == 1 + 3 + 1 + 2 + 3 + 2
    assert sorted(scored) == sorted(data.tokens.ids.tolist())


def test_documents_are_scored_each_from_its_start(collection: Any) -> None:
    options = {"windows": "documents", "split_by": "documents", "val_fraction": 0.4}
    data = collection(30, 10, 12, **options)
    (x, y), *rest = data.val_dataloader()[0]
    assert not rest
    eos = data.tokenizer.eos_id
    assert x[y != IGNORED].tolist().count(eos) == 2
    assert y[y != IGNORED].tolist() == data.tokens.split("val").tolist()


def test_spans_of_validation_are_scored_once_each(module: Any) -> None:
    data = module(val_spans=4)
    pieces = data.tokens.pieces("val")
    assert len(pieces) == 4
    ids = data.tokens.ids
    scored = []
    for x, y in data.val_dataloader()[0]:
        counted = y != IGNORED
        scored += y[counted].tolist()
        for inputs, targets, row in zip(x, y, counted, strict=True):
            n = int(row.sum())
            found = [
                start
                for start in range(1, len(ids) - n + 1)
                if ids[start : start + n].tolist() == targets[row].tolist()
                and ids[start - 1 : start - 1 + n].tolist() == inputs[row].tolist()
            ]
            assert found  # a stretch of the text with the token before it
    assert scored == data.tokens.split("val").tolist()
    training = set(np.concatenate([np.arange(a, b) for a, b in data.tokens.pieces("train")]))
    starts = data.order.starts(0, np.arange(data.order.n_windows))
    assert all(start + offset in training for start in starts for offset in range(9))


@pytest.mark.parametrize(("fraction", "spans"), [(0.25, 1), (0.5, 4), (0.8, 3)])
def test_a_fraction_of_the_training_text(module: Any, fraction: float, spans: int) -> None:
    """Only its first tokens are trained on; held-out splits and tokenizer stay the same."""
    whole = module(val_spans=spans)
    part = module(val_spans=spans, train_fraction=fraction, windows="side_by_side")
    n_tokens = int(fraction * whole.tokens.size("train"))
    assert part.n_train_tokens == n_tokens
    trained = [position for first, end in part._pieces("train") for position in range(first, end)]
    every = [position for first, end in whole._pieces("train") for position in range(first, end)]
    assert trained == every[:n_tokens]
    assert part.train_slice().windows[:, 1].max() <= trained[-1] + 1
    assert part.tokenizer.state() == whole.tokenizer.state()
    assert part.tokens.spans == whole.tokens.spans


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_invalid_train_fractions(fraction: float) -> None:
    with pytest.raises(UsageError, match="^train_fraction"):
        TextDataModule(train_fraction=fraction)


def test_too_small_a_fraction_is_reported_as_a_short_text(module: Any) -> None:
    with pytest.raises(UsageError, match="too short"):
        module(train_fraction=1e-4)
