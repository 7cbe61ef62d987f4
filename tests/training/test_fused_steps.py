"""Fused optimizer steps: with which precision, device and clipping."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from gptlit.cli.lightning_warnings import quiet
from gptlit.data.datamodule import TextDataModule
from gptlit.training.module import LitGPT
from tests.conftest import made_up_text

# without biases: the gradient of a key's bias is 0 but for rounding, which Adam would scale up
SIZES: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": False}


def fit(folder: Path, **options: Any) -> LitGPT:
    path = folder / "text.txt"
    path.write_text(made_up_text(), encoding="utf-8")
    torch.manual_seed(5)
    model = LitGPT(**SIZES, lr=1e-2, warmup_steps=2)
    switched_off = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=6,
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=2,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **dict.fromkeys(switched_off, False),  # type: ignore[arg-type]
        **options,
    )
    data = TextDataModule(
        path=str(path), data_dir=str(folder / "data"), block_size=8, batch_size=4, seed=1
    )
    with quiet():
        trainer.fit(model, datamodule=data)
    return model


def is_fused(model: LitGPT) -> bool:
    optimizer = model.trainer.optimizers[0]
    return all(group["fused"] is True for group in optimizer.param_groups)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_fused_step_equals_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, clip: float | None
) -> None:
    """Steps at which the norm is logged, and steps at which only clipping needs it."""
    fused = fit(tmp_path, precision=precision, gradient_clip_val=clip)
    assert is_fused(fused)
    monkeypatch.setattr(LitGPT, "can_fuse", lambda self: False)
    # Lightning's own clipping, at every step
    monkeypatch.setattr(LitGPT, "configure_gradient_clipping", LitGPT.clip_gradients)
    plain = fit(tmp_path, precision=precision, gradient_clip_val=clip)
    assert not is_fused(plain)
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_lightning_clips_by_value_which_excludes_a_fused_step_in_mixed_precision(
    tmp_path: Path,
) -> None:
    by_value: dict[str, Any] = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}
    assert not is_fused(fit(tmp_path, precision="bf16-mixed", **by_value))
    assert is_fused(fit(tmp_path, precision="32-true", **by_value))


@pytest.mark.parametrize(
    ("device", "precision", "algorithm", "strategy", "expected"),
    [
        ("cuda", "bf16-mixed", "norm", None, True),
        ("cuda", "bf16-mixed", None, None, True),
        ("cuda", "bf16-mixed", "value", None, False),
        ("cuda", "bf16-mixed", None, ModelParallelStrategy, False),  # Lightning clips
        ("cuda", "16-mixed", None, None, False),
        ("cuda", "32-true", None, ModelParallelStrategy, True),
        ("mps", "32-true", None, None, False),
        ("mps", "bf16-mixed", None, None, False),
    ],
)
def test_choice(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    precision: str,
    algorithm: str | None,
    strategy: Any,
    expected: bool,
) -> None:
    if strategy is not None:
        monkeypatch.setattr(strategy, "root_device", torch.device(device))
    trainer = SimpleNamespace(
        strategy=strategy() if strategy else SimpleNamespace(root_device=torch.device(device)),
        precision=precision,
        gradient_clip_algorithm=algorithm,
    )
    model = LitGPT(**SIZES)
    monkeypatch.setattr(LitGPT, "trainer", trainer)
    assert model.can_fuse() is expected
