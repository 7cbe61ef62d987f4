from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gptlit
from gptlit.devices import instructions
from gptlit.generation import int8
from gptlit.generation.generate import generate
from gptlit.generation.int8 import Int8Linear, pack_int8
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.characters import CharTokenizer
from tests.conftest import Run
from tests.generation.by_keywords import generate_samples
from tests.model.test_gpt import gpt


@pytest.fixture(params=["VNNI", ""])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels for integers, which are exact on any CPU with torch's own loop, and for floats.

    On a CPU without VNNI, oneDNN's sums of integers may saturate: they are computed here by torch.
    """
    monkeypatch.setattr(instructions, "for_int8", lambda: request.param)
    monkeypatch.setattr(
        torch, "_int_mm", lambda a, b: (a.double() @ b.double()).round().to(torch.int32)
    )
    return str(request.param)


def in_integers(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Compute the layer in integers of 64 bits and scales of float64: an independent reference."""
    weight, x = linear.weight.detach().double(), x.double()
    steps = weight.abs().amax(1) / 127, x.abs().amax(1, keepdim=True) / 127
    rounded = (weight / steps[0][:, None]).round().long(), (x / steps[1]).round().long()
    y = (rounded[1] @ rounded[0].T) * steps[0] * steps[1]
    return y if linear.bias is None else y + linear.bias.detach().double()


@pytest.mark.parametrize("size", [(128, 96), (10, 7), (50, 150), (100, 300), (24, 24), (126, 65)])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_any_size_multiply_integers(kernels: str, size: Any, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(*size, bias=bias)
    packed = Int8Linear(linear)
    for n_rows in (1, 2, 4, 5, 40):
        x = 3 * torch.randn(n_rows, size[0])
        y = packed(x)
        assert y.dtype == torch.float32
        # float kernels round their sums to bfloat16, 8 significant bits
        rtol, atol = (1e-4, 1e-5) if kernels else (2**-8, 2e-2)
        torch.testing.assert_close(y.double(), in_integers(linear, x), rtol=rtol, atol=atol)
        torch.testing.assert_close(y, linear(x), rtol=0.02, atol=0.15)


def test_rows_of_zeros_give_the_bias(kernels: str) -> None:
    linear = nn.Linear(32, 6)
    with torch.no_grad():
        linear.weight[2] = 0
    x = torch.randn(3, 32)
    x[1] = 0
    y = Int8Linear(linear)(x)
    assert torch.equal(y[1], linear.bias)
    assert torch.equal(y[:, 2], linear.bias[2].expand(3))


def test_no_row_depends_on_the_others(kernels: str) -> None:
    """Sums of integers are exact: rows are equal in all batches, and in windows."""
    packed = Int8Linear(nn.Linear(100, 30))
    x = torch.randn(12, 100) * torch.logspace(-3, 3, 12)[:, None]
    for n in (1, 2, 3, 5, 8):
        assert torch.equal(torch.cat([packed(rows) for rows in x.split(n)]), packed(x))
    assert torch.equal(packed(x.view(3, 4, 100)).flatten(0, 1), packed(x))


def test_this_cpu_sums_integers_exactly() -> None:
    """If it has instructions for them; the largest integers of one sign are the hardest."""
    packed = Int8Linear(nn.Linear(64, 48))
    if packed._sums != packed._in_integers:
        pytest.skip("a CPU without VNNI and AMX")
    packed.integers.fill_(127)
    packed.integers[::2] = -127
    for n in (1, 2, 9, 64):
        rows = torch.full((n, 64), 127.0)
        assert torch.equal(packed._in_integers(rows), (rows @ packed.integers.T.float()).int())


def test_a_sample_is_the_same_alone_and_in_any_batch(kernels: str) -> None:
    model, tokenizer = gpt(n_embd=20, block_size=12), CharTokenizer("\nabcdefghij")
    pack_int8(model)
    alone = [generate(model, tokenizer, "ab", seed=seed, max_new_tokens=60) for seed in range(9)]
    together = generate_samples(model, tokenizer, "ab", seeds=range(9), max_new_tokens=60)
    assert together == alone
    assert len(set(alone)) == 9


def test_every_linear_layer_of_a_model_is_packed() -> None:
    model, plain = gpt(n_embd=16), gpt(n_embd=16)
    pack_int8(model)
    kinds = [type(module) for module in model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 2 * 4 + 1
    idx = torch.randint(11, (3, 6))
    torch.testing.assert_close(model(idx), plain(idx), atol=0.02, rtol=0.05)
    assert len(generate(model, CharTokenizer("\nabcdefghij"), "ab", max_new_tokens=20)) == 22


def test_the_loss_of_a_trained_model_hardly_changes(run: Run, kernels: str) -> None:
    """By less than 0.002 nats per token, of about 2.9."""
    losses = []
    for pack in (lambda _: None, pack_int8):
        model, tokenizer = gptlit.load(run.folder / "checkpoints" / "last.ckpt")
        pack(model)
        size = model.config.block_size
        ids = torch.as_tensor(tokenizer.encode(run.text.read_text("utf-8")).astype("int64"))
        ids = ids[: 200 * size + 1]
        with torch.inference_mode():
            logits = model(ids[:-1].view(-1, size)).flatten(0, 1)
        losses.append(float(F.cross_entropy(logits, ids[1:])))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.002)


# ---------------------------------------------------------------------- where they pay


def of_width(n_embd: int, device: str = "cpu") -> GPT:
    config = GPTConfig(vocab_size=65, n_layer=6, n_head=4, n_embd=n_embd, block_size=8)
    with torch.device("meta"):
        model = GPT(config)
    return model if device == "meta" else model.to_empty(device=device)


@pytest.mark.parametrize("name", ["AMX", "VNNI", "dot product", ""])
def test_they_pay_for_large_models_on_cpus_with_the_instructions(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(instructions, "for_int8", lambda: name)
    assert int8.pays(of_width(384)) == bool(name)
    assert not int8.pays(of_width(128))
    assert not int8.pays(of_width(384, "meta"))


def test_the_size_is_that_of_a_mean_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many narrow layers, however many weights they have, cost more for their inputs."""
    monkeypatch.setattr(instructions, "for_int8", lambda: "VNNI")
    layer: Callable[..., nn.Linear] = nn.Linear
    assert int8.pays(nn.Sequential(layer(500, 500)))
    assert not int8.pays(nn.Sequential(*(layer(490, 500) for _ in range(9))))
