"""LitGPT on a user's own loaders, and a data module from a checkpoint."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import gptlit
from gptlit.data.datamodule import TextDataModule
from gptlit.messages import UsageError
from gptlit.steps.user_batches import as_batch
from gptlit.tokenizers.base import TokenizerOptions
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.training.module import LitGPT
from tests.conftest import Run

TOKENIZER = CharTokenizer("\n abcdefg")
TINY: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "warmup_steps": 1}
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice


def windows() -> Tensor:
    ids = torch.tensor(TOKENIZER.encode("abcdefg " * 30))
    return ids.unfold(0, 9, 8)  # (B, T + 1)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(
        accelerator="cpu", default_root_dir=folder, **quiet, log_every_n_steps=1, **options
    )


def lit(**options: Any) -> LitGPT:
    torch.manual_seed(0)
    model = LitGPT(**{**TINY, **options})
    model.use_tokenizer(TOKENIZER)
    return model


def whole_batches(batches: list[Any]) -> Any:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def pairs() -> Any:
    return whole_batches([(part[:, :-1], part[:, 1:]) for part in windows().split(4)])


def test_a_loader_of_ids_trains_like_one_of_pairs(tmp_path: Path) -> None:
    """And like ids of 32 bits and a dataset of lists, bit for bit."""
    loaders: list[Any] = [
        DataLoader(windows(), batch_size=4),  # type: ignore[arg-type]
        DataLoader(TensorDataset(windows()), batch_size=4),
        whole_batches([part.to(torch.int32) for part in windows().split(4)]),
        pairs(),
    ]
    states = []
    for loader in loaders:
        model = lit()
        run = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
        run.fit(model, loader, loader)
        states.append(model.state_dict())
        assert run.global_step == 2 * len(loaders[0])
        assert set(run.callback_metrics) >= {"train/loss", "val/loss", "val/perplexity"}
        assert "val/bits_per_byte" not in run.callback_metrics  # bytes are not known
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_its_checkpoint_generates_and_resumes(tmp_path: Path) -> None:
    whole, half = lit(), lit()
    trainer(tmp_path, max_steps=6, enable_checkpointing=False).fit(whole, pairs())
    first = trainer(tmp_path, max_steps=4, enable_checkpointing=False)
    half.decay_steps = 6
    first.fit(half, pairs())
    first.save_checkpoint(tmp_path / "x.ckpt")
    model, tokenizer = gptlit.load(tmp_path / "x.ckpt")
    assert gptlit.generate(model, tokenizer, "abc", max_new_tokens=3).startswith("abc")
    again = lit()
    second = trainer(tmp_path, max_steps=6, enable_checkpointing=False)
    second.fit(again, pairs(), ckpt_path=tmp_path / "x.ckpt")
    assert second.global_step == 6
    (metrics,) = second.validate(again, pairs(), verbose=False)
    (wanted,) = trainer(tmp_path, max_steps=6).validate(whole, pairs(), verbose=False)
    assert metrics["val/loss"] == pytest.approx(wanted["val/loss"], rel=1e-2)
    (tested,) = second.test(again, pairs(), verbose=False)
    assert tested["test/loss"] == metrics["val/loss"]


class OwnModule(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return pairs()


def test_a_users_data_module(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2, enable_checkpointing=False)
    run.fit(lit(), datamodule=OwnModule())
    assert run.global_step == 2


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no vocabulary yet.*use_tokenizer\(tokenizer\)"):
        trainer(tmp_path, max_steps=1).fit(LitGPT(**TINY), pairs())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"gave a tensor of \(3,\)"),
        ({"input_ids": torch.zeros(2, 3)}, "gave dict"),
        (
            [torch.zeros(2, 3), torch.zeros(2, 4)],
            r"gave a tensor of \(2, 3\), a tensor of \(2, 4\)",
        ),
        ((torch.zeros(2, 3).long(), torch.zeros(2, 3)), "targets of torch.float32"),
        ("abc", "gave str"),
    ],
)
def test_an_invalid_batch_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(UsageError, match=rf"a batch must be .*\(B, T \+ 1\) token ids.*{message}"):
        as_batch(batch)


# ---------------------------------------------------------------------- load_from_checkpoint


@pytest.fixture
def elsewhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return run.folder / "checkpoints" / "last.ckpt"  # type: ignore[return-value]


def test_a_data_module_from_a_checkpoint_equals_the_saved_one(run: Run, elsewhere: Path) -> None:
    data = TextDataModule.load_from_checkpoint(elsewhere)
    assert (data.options.path, data.batch_size, data.block_size) == (str(run.text), 4, 8)
    assert data.tokenizer_or_options.state() == gptlit.load(elsewhere)[1].state()
    again = TextDataModule(**dict(data.hparams))
    assert again.hparams == data.hparams
    data.prepare_data()
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == y.shape == (4, 8)
    model = LitGPT.load_from_checkpoint(elsewhere, map_location="cpu")
    (metrics,) = trainer(elsewhere.parent / "none").validate(model, data, verbose=False)
    assert metrics["val/loss"] == pytest.approx(model.evaluated["val/loss"], rel=1e-6)


def test_another_text_is_refused_unless_it_is_given(run: Run, elsewhere: Path) -> None:
    changed = Path("changed.txt").absolute()
    changed.write_text(run.text.read_text(encoding="utf-8") + "the king\n", encoding="utf-8")
    data = TextDataModule.load_from_checkpoint(elsewhere)
    # as if the file's content had changed
    data.options = dataclasses.replace(data.options, path=str(changed))
    with pytest.raises(UsageError, match="^path .*the text has changed"):
        data.prepare_data()
    given = TextDataModule.load_from_checkpoint(elsewhere, path=str(changed), batch_size=2)
    given.prepare_data()
    assert given.batch_size == 2
    other = TextDataModule.load_from_checkpoint(elsewhere, tokenizer="word")
    assert isinstance(other.tokenizer_or_options, TokenizerOptions)


def test_a_relative_path_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert TextDataModule(path="t.txt").hparams["path"] == str(tmp_path / "t.txt")
