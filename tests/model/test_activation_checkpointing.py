"""Activation checkpointing, compared with a backward pass from kept activations."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT, Block
from tests.conftest import TINY, Result, assert_same_run

CONFIG = GPTConfig(vocab_size=11, n_layer=3, n_head=2, n_embd=8, block_size=6, init="unit")
IDX = torch.arange(12).view(2, 6) % 11


def nets(dropout: float) -> tuple[GPT, GPT]:
    """Return two nets with the same weights, without and with checkpointing, in training mode."""
    config = replace(
        CONFIG, dropout=dropout, dropout_at=("embedding", "attention", "branch", "block")
    )
    kept, recomputed = GPT(config), GPT(replace(config, activation_checkpointing=True))
    recomputed.load_state_dict(kept.state_dict())
    return kept.train(), recomputed.train()


def logits_and_gradients(net: GPT, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    logits = forward(IDX)
    logits.square().sum().backward()
    return [logits, *(p.grad for p in net.parameters() if p.grad is not None), torch.rand(2)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_and_later_random_numbers_are_the_same(dropout: float) -> None:
    kept, recomputed = (logits_and_gradients(net, net) for net in nets(dropout))
    assert len(kept) > 10
    for ours, theirs in zip(recomputed, kept, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("default")  # compiling warns of torch's own code
def test_compiled() -> None:
    kept, recomputed = nets(0.0)
    wanted = logits_and_gradients(kept, kept)
    compiled = torch.compile(lambda idx: recomputed(idx), backend="aot_eager")
    torch.testing.assert_close(logits_and_gradients(recomputed, compiled), wanted)


def test_blocks_are_computed_again_in_training_only() -> None:
    _, net = nets(0.0)
    calls: list[str] = []
    for block in net.h:
        assert isinstance(block, Block)
        block.mlp.register_forward_pre_hook(lambda *_: calls.append("mlp"))
    net(IDX).sum().backward()
    assert len(calls) == 2 * CONFIG.n_layer
    calls.clear()
    net.eval()(IDX).sum().backward()
    assert len(calls) == CONFIG.n_layer


def test_a_run_is_the_same_and_may_change_it_when_it_resumes(
    gptlit: Callable[..., Result], text_file: Path
) -> None:
    """Bit for bit, with dropout."""
    options = [f"--data.path={text_file}", "--model.dropout=0.2", "--trainer.val_check_interval=3"]
    on, off = (f"--model.activation_checkpointing={value}" for value in ("true", "false"))
    for more in (["--trainer.max_steps=6", off], ["--trainer.max_steps=3", on]):
        done = gptlit("fit", *TINY, *options, *more)
        assert done.code == 0, done.err
    last = "lightning_logs/version_1/checkpoints/last.ckpt"
    resumed = gptlit("fit", f"--ckpt_path={last}", "--trainer.max_steps=6", off)
    assert resumed.code == 0, resumed.err
    runs = Path("lightning_logs")
    assert_same_run(runs / "version_0", runs / "version_1")
