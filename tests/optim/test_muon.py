"""Muon against the same arithmetic in plain code, matrix by matrix."""

import io
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim import muon
from gptlit.optim.muon import Muon, orthogonalize, working_dtype
from gptlit.optim.optimizers import Recipe, build

SHAPES = [(6, 6), (4, 12), (12, 4), (5, 7), (7, 5), (6, 6), (12, 4), (3, 40)]


def by_singular_values(matrix: Tensor) -> Tensor:
    """The five steps on singular values, in float64: each v becomes a v + b v^3 + c v^5."""
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (u * values) @ v


@pytest.mark.parametrize("shape", sorted(set(SHAPES)))
def test_the_iteration_acts_on_singular_values_alone(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 50.0])[:, None, None]
    done = orthogonalize(matrices)
    for matrix, one in zip(matrices, done, strict=True):
        wanted = by_singular_values(matrix).float()
        torch.testing.assert_close(one, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_updates_are_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    low_rank = torch.randn(shape[0], 12) @ torch.randn(12, shape[1])
    values = torch.linalg.svdvals(orthogonalize(low_rank[None])[0])
    assert ((values[:12] > 0.6) & (values[:12] < 1.3)).all()
    assert (values[12:] < 0.01).all()  # directions that aren't there stay so


def test_a_gradient_of_zeros_updates_nothing() -> None:
    assert not orthogonalize(torch.zeros(2, 3, 9)).any()
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("shape", [(8, 8), (8, 40)])
def test_updates_in_bfloat16(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    matrices = torch.randn(2, *shape)
    done = orthogonalize(matrices.bfloat16())
    assert done.dtype == torch.bfloat16
    torch.testing.assert_close(done.float(), orthogonalize(matrices), atol=0.1, rtol=0)


def test_a_cpu_computes_in_float32() -> None:
    assert working_dtype(torch.device("cpu")) == torch.float32


class Reference:
    """One matrix, in float64."""

    def __init__(self, weight: Tensor, beta2: float | None = None) -> None:
        self.weight = weight.double()
        self.momentum = torch.zeros_like(self.weight)
        self.beta2 = beta2
        self.squares: dict[int, float] = defaultdict(float)  # of each row, or column

    def step(self, gradient: Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        w, g = self.weight, gradient.double()
        self.momentum = momentum * self.momentum + g
        scale = math.sqrt(max(1.0, w.size(0) / w.size(1)))
        update = by_singular_values(g + momentum * self.momentum)
        if self.beta2 is not None:
            lines = update if w.size(0) >= w.size(1) else update.T  # views
            size = update.norm()
            for index, line in enumerate(lines):
                square = line.square().mean().item()
                self.squares[index] += (1 - self.beta2) * (square - self.squares[index])
                line /= math.sqrt(self.squares[index])
            update *= size / update.norm()
        self.weight = w - lr * weight_decay * w - lr * scale * update


def parameters(seed: int = 3) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def muon_of(
    matrices: list[nn.Parameter], others: list[nn.Parameter], beta2: float | None = 0.7
) -> Muon:
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.3, "beta2": beta2}
    adamw = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.2}
    return Muon([{"params": matrices, **options}, {"params": others, **adamw}])


def give_gradients(weights: list[nn.Parameter], step: int) -> None:
    drawn = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=drawn)


@pytest.mark.parametrize("beta2", [None, 0.7])
def test_steps_equal_plain_code(beta2: float | None) -> None:
    """Three steps with a schedule, batched matrices, and parameters of AdamW."""
    matrices, others = parameters(), [nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(2, 2))]
    optimizer = muon_of(matrices, others, beta2)
    references = [Reference(matrix.detach(), beta2) for matrix in matrices]
    twins = [nn.Parameter(other.detach().clone()) for other in others]
    adamw = torch.optim.AdamW(twins, lr=0.01, betas=(0.8, 0.9), weight_decay=0.2)
    for step in range(3):
        give_gradients([*matrices, *others], step)
        for other, twin in zip(others, twins, strict=True):
            twin.grad = other.grad
        optimizer.param_groups[0]["lr"] = 0.05 / (step + 1)
        for matrix, reference in zip(matrices, references, strict=True):
            assert matrix.grad is not None
            reference.step(matrix.grad, 0.05 / (step + 1), 0.3, 0.9)
        optimizer.step()
        adamw.step()
    for matrix, reference in zip(matrices, references, strict=True):
        wanted = reference.weight.float()
        torch.testing.assert_close(matrix.detach(), wanted, atol=2e-5, rtol=1e-5)
    for other, twin in zip(others, twins, strict=True):
        torch.testing.assert_close(other, twin)


def test_matrices_together_equal_one_by_one() -> None:
    together, alone = parameters(), parameters()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "beta2": 0.5}
    parts = [together, *([weight] for weight in alone)]
    optimizers = [Muon([{"params": part, **options}]) for part in parts]
    for step in range(2):
        give_gradients(together, step)
        for ours, theirs in zip(alone, together, strict=True):
            ours.grad = theirs.grad
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in zip(alone, together, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_parameters_without_a_gradient_are_unchanged() -> None:
    matrices, others = parameters(), [nn.Parameter(torch.ones(5))]
    before = [weight.detach().clone() for weight in matrices]
    optimizer = muon_of(matrices, others)
    optimizer.step()
    give_gradients(matrices[:1], 0)
    optimizer.step()
    assert not torch.equal(matrices[0], before[0])
    for weight, was in zip(matrices[1:], before[1:], strict=True):
        assert torch.equal(weight, was)
    assert set(optimizer.state) == {matrices[0]}


def test_its_state_is_saved_as_plain_data_bit_for_bit() -> None:
    def fresh(seed: int) -> tuple[list[nn.Parameter], Muon]:
        matrices, others = parameters(seed), [nn.Parameter(torch.ones(5))]
        return [*matrices, *others], muon_of(matrices, others)

    def run(steps: range, weights: list[nn.Parameter], optimizer: Muon) -> None:
        for step in steps:
            give_gradients(weights, step)
            optimizer.step()

    whole, one = fresh(3)
    run(range(3), whole, one)
    file = io.BytesIO()
    torch.save([whole, one.state_dict()], file)
    run(range(3, 6), whole, one)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    resumed, other = fresh(4)
    with torch.no_grad():
        for weight, value in zip(resumed, saved, strict=True):
            weight.copy_(value)
    other.load_state_dict(state)
    run(range(3, 6), resumed, other)
    for ours, theirs in zip(whole, resumed, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("fused", "place"), [(("meta",), "meta"), ((), "cpu")])
def test_a_resumed_count_of_steps_is_where_the_step_needs_it(
    monkeypatch: pytest.MonkeyPatch, fused: tuple[str, ...], place: str
) -> None:
    """Loading leaves it on the CPU; meta stands for a GPU, with a fused step or without one."""
    weight = nn.Parameter(torch.ones(3, device="meta"))
    weight.grad = torch.zeros_like(weight)
    optimizer, seen = muon_of([], [weight]), []
    moments = {name: torch.zeros(3) for name in ("exp_avg", "exp_avg_sq")}
    state = optimizer.state_dict()
    state["state"] = {0: {"step": torch.tensor(4.0), **moments}}
    optimizer.load_state_dict(state)
    assert optimizer.state[weight]["exp_avg"].device.type == "meta"
    monkeypatch.setattr(muon, "FUSED", fused)
    monkeypatch.setattr(muon, "adamw", lambda *args, fused, **_: seen.append((args[5], fused)))
    optimizer.step()
    ((counts, is_fused),) = seen
    assert [(count.device.type, count.dtype) for count in counts] == [(place, torch.float32)]
    assert is_fused is bool(fused)


def test_equal_shapes_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a model, each matrix with those of the same shape in other blocks."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(muon, "orthogonalize", lambda x: seen.append(tuple(x.shape)) or x)
    model = GPT(GPTConfig(vocab_size=9, n_layer=3, n_head=2, n_kv_head=1, n_embd=8, block_size=4))
    optimizer = build(model, Recipe(optimizer="muon"))
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    assert sorted(seen) == [(3, 8, 8), (3, 8, 32), (3, 16, 8), (3, 32, 8)]


@pytest.mark.parametrize("options", [{}, {"tie_weights": False, "zero_init": True, "bias": False}])
def test_it_trains_a_model(options: dict[str, Any]) -> None:
    torch.manual_seed(5)
    model = GPT(GPTConfig(vocab_size=9, n_layer=1, n_head=2, n_embd=16, block_size=8, **options))
    optimizer = build(model, Recipe(optimizer="muon", lr=3e-3, muon_lr=0.02))
    windows = torch.randint(9, (4, 9))
    for _ in range(60):
        logits = model(windows[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.6  # from 2.2
