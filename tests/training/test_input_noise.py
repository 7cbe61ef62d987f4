"""Runs with masked and wrong inputs: exact on resume, and never in what a model writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.checkpoints import checkpoint
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, assert_equal

Call = Callable[..., Result]
NOISE = ["--model.token_dropout=0.2", "--model.token_noise=0.1"]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The random numbers of all batches, in their order."""
    found: list[Tensor] = []
    rand = torch.rand

    def recorded(*size: Any, **options: Any) -> Tensor:
        numbers = rand(*size, **options)
        if numbers.shape == (4, 8):  # of a batch, not of a sample
            found.append(numbers)
        return numbers

    monkeypatch.setattr(torch, "rand", recorded)
    return found


def fit(gptlit: Call, text: Path, *more: str) -> dict[str, Any]:
    done = gptlit("fit", *TINY, f"--data.path={text}", "--trainer.max_steps=4", *more)
    assert done.code == 0, done.err
    folder = max(Path("lightning_logs").iterdir())
    return checkpoint.read(folder / "checkpoints" / "last.ckpt")


def test_noise_is_a_function_of_seed_step_batch_and_rank(
    gptlit: Call, text_file: Path, drawn: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*NOISE, "--trainer.accumulate_grad_batches=2", "--model.decay_steps=4"]
    whole = fit(gptlit, text_file, *more)
    first = drawn.copy()
    assert len(first) == 8  # none in validation
    assert len({each.sum().item() for each in first}) == 8
    drawn.clear()

    fit(gptlit, text_file, *more, "--trainer.max_steps=2", "--model.min_lr=0")
    torch.manual_seed(99)
    path = "lightning_logs/version_1/checkpoints/last.ckpt"
    resumed = gptlit("fit", f"--ckpt_path={path}", "--trainer.max_steps=4")
    assert resumed.code == 0, resumed.err
    assert_equal(drawn, first, "draws")
    for part in ("state_dict", "optimizer_states"):
        assert_equal(checkpoint.read(path)[part], whole[part], part)

    for change in ("seed", "rank"):
        drawn.clear()
        if change == "rank":
            monkeypatch.setattr(LitGPT, "global_rank", 1)
        fit(gptlit, text_file, *more, *(["--seed_everything=5"] if change == "seed" else []))
        assert len(drawn) == 8
        assert not any(torch.equal(*pair) for pair in zip(drawn, first, strict=True))


def test_what_is_loaded_writes_and_begins_a_run_without_a_mask(
    gptlit: Call, text_file: Path
) -> None:
    """A run with a mask, then one without that starts from it, and another with a mask."""
    saved = fit(gptlit, text_file, *NOISE)
    assert saved["state_dict"]["net.noise.mask"].shape == (1, 16)
    model, _ = checkpoint.load(LAST)
    assert model.noise is not None
    assert model.noise.mask is None
    judged = gptlit("validate", f"--ckpt_path={LAST}", f"--data.path={text_file}")
    assert judged.code == 0, judged.err
    for version, noise in ((1, []), (2, ["--model.token_dropout=0.1"])):
        fit(gptlit, text_file, *noise, f"--model.init_from={LAST}", "--trainer.max_steps=1")
        last = Path(f"lightning_logs/version_{version}/checkpoints/last.ckpt")
        assert ("net.noise.mask" in checkpoint.read(last)["state_dict"]) == bool(noise)


def test_a_resume_changes_the_share_but_not_whether_there_is_a_mask(
    gptlit: Call, text_file: Path
) -> None:
    fit(gptlit, text_file, *NOISE)
    changed = ["--model.token_dropout=0.3", "--model.token_noise=0"]
    for options, code in ((changed, 0), (["--model.token_dropout=0"], 2)):
        done = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=6", *options)
        assert done.code == code, done.err
    assert "--model.token_dropout 0.0: the checkpoint's model has 0.3" in done.err
