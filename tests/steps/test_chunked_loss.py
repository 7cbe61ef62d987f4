"""The loss in chunks of rows, compared with that of all logits at once."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptlit.data.loaders import IGNORED
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.steps import chunked_loss, losses
from tests.conftest import TINY, Result, read_metrics

V, B, T = 37, 3, 11
CONFIG = GPTConfig(vocab_size=V, n_layer=1, n_head=2, n_embd=8, block_size=T)
ROWS = 5  # doesn't divide the 33 rows
Losses = tuple[Tensor, Tensor]


@pytest.fixture(params=[ROWS, 64])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Choose chunks of some rows, or of more rows than there are."""
    use_chunks(monkeypatch, request.param)
    return int(request.param)


def use_chunks(monkeypatch: pytest.MonkeyPatch, rows: int | None) -> None:
    monkeypatch.setattr(chunked_loss, "rows_at_once", lambda *_: rows)


def net_of(config: GPTConfig = CONFIG, dtype: torch.dtype = torch.float64) -> GPT:
    torch.manual_seed(1)
    net = GPT(replace(config, init="unit"))
    if config.head_bias:
        torch.nn.init.normal_(net.lm_head.bias)
    return net.to(dtype)


def batch(n_ignored: int = 4) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, the last of which are ignored."""
    torch.manual_seed(2)
    inputs, targets = torch.randint(V, (B, T)), torch.randint(V, (B, T))
    if n_ignored:
        targets.view(-1)[-n_ignored:] = IGNORED
    return inputs, targets


def plain(
    net: GPT, label_smoothing: float = 0.0, z_loss: float = 0.0, n_ignored: int = 4
) -> Losses:
    inputs, targets = batch(n_ignored)
    return losses.objective(net(inputs), targets, label_smoothing, z_loss)


def gradients(net: GPT, minimised: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(minimised, list(net.parameters()), **options))


@pytest.mark.parametrize("n_ignored", [0, 4, 20])
@pytest.mark.parametrize(
    "terms",
    [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.2, "z_loss": 0.02}],
)
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tie_weights=False, head_bias=True),
        replace(CONFIG, head_bias=True, logit_softcap=1.5),
    ],
)
def test_values_and_gradients_are_those_of_all_logits(
    config: GPTConfig, terms: dict[str, float], n_ignored: int, rows: int
) -> None:
    net = net_of(config)
    chunked = losses.of_batch(net, *batch(n_ignored), **terms)
    wanted = plain(net, n_ignored=n_ignored, **terms)
    torch.testing.assert_close(chunked, wanted, rtol=1e-12, atol=1e-12)
    # the gradient of a multiple, since the chunks' gradients are computed before it is known
    got, all_at_once = (gradients(net, 3 * each[0]) for each in (chunked, wanted))
    torch.testing.assert_close(got, all_at_once, rtol=1e-12, atol=1e-12)
    assert (chunked[0] is chunked[1]) == (not terms)
    assert chunked[1].requires_grad == (not terms)


def test_a_second_backward_pass_gives_the_same(rows: int) -> None:
    net = net_of()
    minimised, _ = losses.of_batch(net, *batch())
    first = gradients(net, minimised, retain_graph=True)
    torch.testing.assert_close(gradients(net, minimised), first, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", ["lm_head", "but lm_head"])
def test_frozen_parameters(frozen: str, rows: int) -> None:
    net = net_of(replace(CONFIG, tie_weights=False, head_bias=True))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith("lm_head") != (frozen == "lm_head"))
    for minimised, _ in (plain(net), losses.of_batch(net, *batch())):
        minimised.backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_without_scored_targets_the_loss_is_nan_as_at_once(rows: int) -> None:
    net = net_of()
    assert plain(net, n_ignored=B * T)[0].isnan()
    assert losses.of_batch(net, *batch(B * T))[0].isnan()


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_validation_sums(softcap: float | None, rows: int) -> None:
    net = net_of(replace(CONFIG, logit_softcap=softcap))
    nats, n_tokens = losses.summed(net, *batch())
    assert nats.dtype == torch.float64
    assert not nats.requires_grad
    assert n_tokens == B * T - 4
    torch.testing.assert_close(nats / n_tokens, plain(net)[1], rtol=1e-12, atol=0)


# ---------------------------------------------------------------------- low precision


def errors(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(got, exact, strict=True)]


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_autocast_to_bfloat16(softcap: float | None, rows: int) -> None:
    """Rounding errors are about those of all logits at once, and the losses are in float32."""
    config = replace(CONFIG, logit_softcap=softcap, head_bias=True)
    exact, net = net_of(config), net_of(config, torch.float32)
    terms = {"label_smoothing": 0.1, "z_loss": 0.01}
    of_exact = gradients(exact, plain(exact, **terms)[0])
    with torch.autocast("cpu", torch.bfloat16):
        at_once = plain(net, **terms)
        chunked = losses.of_batch(net, *batch(), **terms)
    assert [each.dtype for each in chunked] == [torch.float32] * 2
    torch.testing.assert_close(chunked, at_once, rtol=1e-3, atol=0)
    got = gradients(net, chunked[0])
    assert {each.dtype for each in got} == {torch.float32}
    wanted = [each.float() for each in of_exact]
    wrong, as_wrong = errors(got, wanted), errors(gradients(net, at_once[0]), wanted)
    assert all(a < 1.3 * b + 1e-3 for a, b in zip(wrong, as_wrong, strict=True))
    assert max(wrong) < 0.03


def test_small_gradients_in_float16_are_scaled() -> None:
    """Each of 4,096 even probabilities divided by 1,024 rows is 0 in float16 without a scale."""
    hidden = torch.zeros(1024, 8, requires_grad=True)
    head = torch.nn.Linear(8, 4096)
    torch.nn.init.zeros_(head.bias)
    targets = torch.zeros(1024, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        minimised, _ = chunked_loss.sums(hidden, head, targets, chunked_loss.Terms(), 256)
    (minimised / 1024).backward()
    assert head.bias.grad is not None
    torch.testing.assert_close(head.bias.grad[1:], torch.full((4095,), 1 / 4096), rtol=2e-2, atol=0)


# ---------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Records the number of values of the largest tensor that an operation returns."""

    values = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = (each.numel() for each in tree_leaves(result) if isinstance(each, Tensor))
        self.values = max(self.values, *sizes, 0)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_no_tensor_holds_more_than_a_chunk(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, softcap: float | None
) -> None:
    n_rows = 16
    config = replace(CONFIG, vocab_size=600, block_size=64, logit_softcap=softcap)
    net = net_of(config, torch.float32)
    inputs = torch.randint(600, (8, 64))

    def largest() -> int:
        with Largest() as seen, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            losses.of_batch(net, inputs, inputs, 0.1, 0.01)[0].backward()
            losses.summed(net, inputs, inputs)
        return seen.values

    use_chunks(monkeypatch, None)
    assert largest() >= inputs.numel() * 600
    use_chunks(monkeypatch, n_rows)
    hidden_of_mlp = inputs.numel() * 4 * config.n_embd
    assert largest() <= max(n_rows * 600, hidden_of_mlp)


# ---------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("n_rows", "vocab_size", "device", "rows"),
    [
        (64 * 256, 65, "cuda", None),
        (16 * 1024, 50_257, "cuda", 2624),  # GPT-2 124M
        (4 * 1024, 50_257, "cuda", None),
        (32 * 2048, 2**21, "cuda", 64),
        (16 * 1024, 50_257, "mps", 2624),
        (512 * 256, 65, "cpu", None),
        (32 * 128, 511, "cpu", None),
        (32 * 128, 512, "cpu", 256),
        (4095, 512, "cpu", None),
        (64, 50_257, "cpu", 256),
    ],
)
def test_large_logits_are_computed_in_chunks(
    n_rows: int, vocab_size: int, device: str, rows: int | None
) -> None:
    assert chunked_loss.rows_at_once(n_rows, vocab_size, device) == rows


@pytest.mark.filterwarnings("default")  # compiling warns of torch's own code
def test_compiled_steps(rows: int) -> None:
    net = net_of(replace(CONFIG, tie_weights=False))
    compiled = torch.compile(partial(losses.of_batch, net, z_loss=0.01), backend="aot_eager")
    for _ in range(2):
        minimised, loss = compiled(*batch())
        wanted = plain(net, z_loss=0.01)
        torch.testing.assert_close((minimised, loss), wanted, rtol=1e-12, atol=0)
        of_plain = gradients(net, wanted[0])
        torch.testing.assert_close(gradients(net, minimised), of_plain, rtol=1e-9, atol=1e-12)


def test_a_run_has_the_same_losses(
    gptlit: Callable[..., Result], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for number, chunk in enumerate((None, ROWS)):
        use_chunks(monkeypatch, chunk)
        run = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--data.batch_size=2"]
        terms = ["--model.z_loss=1e-3", "--trainer.accumulate_grad_batches=2"]
        done = gptlit("fit", *TINY, f"--data.path={text_file}", *run, *terms)
        assert done.code == 0, done.err
        metrics = read_metrics(Path(f"lightning_logs/version_{number}"))
        names = ("train/loss", "val/loss", "train/loss_eval")
        found.append([float(row[name]) for row in metrics for name in names if row.get(name)])
    at_once, chunked = found
    assert len(chunked) >= 6
    assert chunked == pytest.approx(at_once, rel=1e-5)


def test_the_start_block_and_the_summary_say_so(
    gptlit: Callable[..., Result], text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [*TINY, f"--data.path={text_file}", "--trainer.max_steps=1", "--data.batch_size=2"]
    assert "  loss  " not in gptlit("fit", *run).out
    assert "at once" not in gptlit("summary", *run).out
    use_chunks(monkeypatch, ROWS)
    assert (
        "  loss       from logits of 5 tokens at once, of a batch's 16" in gptlit("fit", *run).out
    )
    assert "activations at peak, logits of 5 tokens at once" in gptlit("summary", *run).out
