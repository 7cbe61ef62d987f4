import math

import pytest
import torch

from gptlit.attention import eager, sdpa
from gptlit.messages import UsageError
from gptlit.model import GPT, GPTConfig, KVCache


def gpt(**options: object) -> GPT:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6}
    return GPT(GPTConfig(**{**sizes, **options})).eval()  # type: ignore[arg-type]  # any option


def parameters_by_hand(V: int, T: int, C: int, L: int) -> int:
    block = (2 * C) + (C * 3 * C + 3 * C) + (C * C + C) + (2 * C) + (8 * C * C + 5 * C)
    return V * C + T * C + L * block + 2 * C


@pytest.mark.parametrize(("V", "T", "C", "L"), [(11, 6, 8, 2), (65, 64, 128, 4)])
def test_parameter_count(V: int, T: int, C: int, L: int) -> None:
    model = GPT(GPTConfig(vocab_size=V, block_size=T, n_embd=C, n_layer=L))
    assert model.num_parameters() == parameters_by_hand(V, T, C, L)


def test_the_head_is_the_embedding() -> None:
    model = gpt()
    assert model.lm_head.weight is model.wte.weight


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    model = gpt(vocab_size=65, n_embd=64, block_size=32)
    idx = torch.randint(65, (16, 33))
    logits = model(idx[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.1


def test_initialisation_is_the_table_of_its_docstring() -> None:
    model = gpt(vocab_size=500, n_embd=128, n_layer=3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() > 10_000:
            wanted = 0.02 / math.sqrt(6) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name
            assert abs(parameter.mean().item()) < 1e-3, name


@pytest.mark.parametrize("at", range(6))
def test_causality(at: int) -> None:
    model = gpt()
    idx = torch.randint(11, (1, 6))
    changed = idx.clone()
    changed[0, at] = (changed[0, at] + 1) % 11
    same = torch.isclose(model(idx), model(changed), atol=1e-6).all(dim=2)[0]
    assert same[:at].all()
    assert not same[at]


def test_positions_matter() -> None:
    model = gpt()
    logits = model(torch.full((1, 6), 3))
    assert not torch.allclose(logits[0, 0], logits[0, 5], atol=1e-4)


def test_the_block_is_the_textbook_formula() -> None:
    """An independent evaluation, head by head, with explicit loops."""
    model = gpt(n_layer=1)
    block, C, size = model.h[0], 8, 4
    idx = torch.randint(11, (1, 5))
    x = model.wte.weight[idx[0]] + model.wpe.weight[:5]

    def norm(layer: torch.nn.LayerNorm, v: torch.Tensor) -> torch.Tensor:
        centred = v - v.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    qkv = norm(block.ln_1, x) @ block.attn.c_attn.weight.T
    heads = []
    for head in range(2):
        q, k, v = (
            qkv[:, part * C + head * size : part * C + (head + 1) * size] for part in range(3)
        )
        rows = []
        for t in range(5):
            weights = torch.softmax((q[t] * k[: t + 1]).sum(-1) / math.sqrt(size), dim=0)
            rows.append((weights[:, None] * v[: t + 1]).sum(0))
        heads.append(torch.stack(rows))
    x = x + torch.cat(heads, dim=1) @ block.attn.c_proj.weight.T
    hidden = norm(block.ln_2, x) @ block.mlp.c_fc.weight.T
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    x = x + gelu @ block.mlp.c_proj.weight.T
    logits = norm(model.ln_f, x) @ model.wte.weight.T
    torch.testing.assert_close(model(idx)[0], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("split", [(6,), (1,) * 6, (4, 1, 1), (2, 3, 1), (1, 5)])
def test_cached_and_uncached_logits_agree(split: tuple[int, ...]) -> None:
    model = gpt()
    idx = torch.randint(11, (3, 6))
    cache = KVCache(model.config, 3, model.lm_head.weight)
    with torch.inference_mode():
        parts = [model(part, cache) for part in idx.split(split, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(idx), atol=1e-5, rtol=1e-5)
    assert cache.length == 6


def test_last_gives_the_last_position_only() -> None:
    model = gpt()
    idx = torch.randint(11, (2, 5))
    torch.testing.assert_close(model(idx, last=True), model(idx)[:, -1:])


def test_more_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="7 positions exceed block_size 6"):
        gpt()(torch.zeros(1, 7, dtype=torch.long))


def test_dropout_only_in_training() -> None:
    model = gpt(dropout=0.5)
    idx = torch.randint(11, (1, 6))
    torch.testing.assert_close(model(idx), model(idx))
    model.train()
    assert not torch.allclose(model(idx), model(idx))


def test_attention_dropout_reaches_the_weights() -> None:
    q = torch.randn(1, 2, 6, 4)
    for attend in (eager, sdpa):
        assert not torch.allclose(attend(q, q, q, 0.5), attend(q, q, q, 0.0))


@pytest.mark.parametrize("n_query", [1, 3, 7])
def test_attention_back_ends_agree_in_values_and_gradients(n_query: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (n_query, 7, 7))
    results = []
    for attend in (eager, sdpa):
        y = attend(q, k, v)
        results.append((y, *torch.autograd.grad(y.pow(2).sum(), (q, k, v))))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns() -> None:
    model = gpt().train()
    idx = torch.randint(11, (4, 7))
    loss = torch.nn.functional.cross_entropy(model(idx[:, :6]).flatten(0, 1), idx[:, 1:].flatten())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_embd": 130, "n_head": 4}, "--model.n_embd 130.*--model.n_head 4.*128 or 132"),
        ({"n_embd": 2, "n_head": 4}, "4 would work"),
        ({"n_layer": -1}, "--model.n_layer -1"),
        ({"block_size": -1}, "--model.block_size -1"),
        ({"dropout": 1.0}, "--model.dropout 1.0"),
    ],
)
def test_sizes_that_can_not_work(options: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        GPTConfig(vocab_size=11, **options)  # type: ignore[arg-type]  # any option
