"""Memory of training on a GPU: the loss in chunks of logits, and activation checkpointing."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.steps import chunked_loss, losses
from gptlit.steps.compiling import has_compiler
from tests.conftest import Result, read_metrics

V, ROWS = 1000, 64  # 64 rows don't divide the 3 x 50
CONFIG = GPTConfig(
    vocab_size=V, n_layer=2, n_head=2, n_embd=32, block_size=50, logit_softcap=20.0, head_bias=True
)
PRECISIONS = {None: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # autocast, relative error


def use_chunks(monkeypatch: pytest.MonkeyPatch, rows: int | None) -> None:
    monkeypatch.setattr(chunked_loss, "rows_at_once", lambda *_: rows)


def net_on(device: str, config: GPTConfig = CONFIG) -> GPT:
    torch.manual_seed(0)
    return GPT(config).to(device).train()


def batch_on(device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    inputs, targets = torch.randint(V, (2, 3, 50)).unbind()
    return inputs.to(device), targets.to(device)


def gradients(net: GPT, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def assert_close(ours: list[Tensor], theirs: list[Tensor], error: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= error * other.norm() + 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_in_chunks_is_that_of_all_logits(
    device: str, precision: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "mps" and precision is not None:
        pytest.skip("32 bits only on mps")
    net, (inputs, targets) = net_on(device), batch_on(device)
    found = []
    for rows in (None, ROWS):
        use_chunks(monkeypatch, rows)
        with torch.autocast(device, precision, enabled=precision is not None):
            minimised, loss = losses.of_batch(net, inputs, targets, 0.1, 1e-3)
        scale = 2.0**12 if precision == torch.float16 else 1.0  # as of a gradient scaler
        scaled = [each / scale for each in gradients(net, minimised * scale)]
        found.append([minimised.detach(), loss, *scaled])
    assert_close(found[1], found[0], PRECISIONS[precision])


def test_a_captured_loss_in_chunks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph, which no operation may wait for."""
    if device != "cuda":
        pytest.skip("CUDA graphs need CUDA")
    use_chunks(monkeypatch, ROWS)
    net, (inputs, targets) = net_on(device), batch_on(device)

    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            minimised, loss = losses.of_batch(net, inputs, targets, z_loss=1e-3)
        return [minimised.detach(), loss, *gradients(net, minimised)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for static, new in zip((inputs, targets), batch_on(device, seed=1), strict=True):
        static.copy_(new)
    graph.replay()
    assert_close(found, step(), 1e-3)


def test_a_compiled_loss_in_chunks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "mps" or (device == "cpu" and not has_compiler()):
        pytest.skip("not compiled here")
    use_chunks(monkeypatch, ROWS)
    net, batch = net_on(device, replace(CONFIG, n_layer=1)), batch_on(device)
    found = []
    for compute in (losses.of_batch, torch.compile(losses.of_batch)):
        minimised, loss = compute(net, *batch, z_loss=1e-3)
        found.append([minimised.detach(), loss, *gradients(net, minimised)])
    assert_close(found[1], found[0], 1e-3)


def test_activation_checkpointing_drops_alike(device: str) -> None:
    config = replace(CONFIG, dropout=0.3, dropout_at=("embedding", "attention", "branch", "block"))
    found = []
    for checkpointing in (False, True):
        net = net_on(device, replace(config, activation_checkpointing=checkpointing))
        torch.manual_seed(1)
        minimised, _ = losses.of_batch(net, *batch_on(device))
        found.append([minimised.detach(), *gradients(net, minimised)])
    assert_close(found[1], found[0], 1e-4)


def test_both_take_less_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cuda":
        pytest.skip("measured on CUDA")
    config = replace(CONFIG, vocab_size=20_000, n_layer=8)
    torch.manual_seed(0)
    inputs = torch.randint(V, (64, 50), device=device)

    def peak(rows: int | None, checkpointing: bool) -> int:
        use_chunks(monkeypatch, rows)
        net = net_on(device, replace(config, activation_checkpointing=checkpointing))
        step = partial(losses.of_batch, net, inputs, inputs)
        step()[0].backward()
        torch.cuda.reset_peak_memory_stats()
        step()[0].backward()
        return torch.cuda.max_memory_allocated()

    at_once, in_chunks, both = peak(None, False), peak(256, False), peak(256, True)
    assert both < in_chunks < at_once


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_run_with_both(
    fit: Callable[..., Result], device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "16-mixed" and device != "cuda":
        pytest.skip("16-mixed needs a GPU")
    options = [f"--trainer.precision={precision}", "--model.activation_checkpointing=true"]
    found = []
    for number, rows in enumerate((None, 8)):
        use_chunks(monkeypatch, rows)
        fit("--trainer.max_steps=20", "--trainer.gradient_clip_val=1", *options)
        metrics = read_metrics(Path(f"lightning_logs/version_{number}"))
        found.append([float(row["val/loss"]) for row in metrics if row["val/loss"]])
    assert found[1] == pytest.approx(found[0], abs=2e-2)
