import math
from typing import Any

import pytest
import torch
from torch import nn

from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim.optimizers import Recipe, build, group_options, schedule, split, warmup_cosine


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.0),
        (50, 1.5e-4),
        (100, 3e-4),
        (2550, 1.65e-4),
        (5000, 3e-5),
        (5001, 3e-5),
        (9999, 3e-5),
    ],
)
def test_the_schedule_of_the_course(step: int, rate: float) -> None:
    assert 3e-4 * warmup_cosine(100, 5000, 0.1)(step) == pytest.approx(rate, rel=1e-9)


def test_schedules_without_warmup_or_cosine() -> None:
    assert warmup_cosine(0, 10, 0.1)(0) == 1
    assert [warmup_cosine(4, 4, 0.5)(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 0.5, 0.5]
    assert [warmup_cosine(10, 4, 0.5)(step) for step in (4, 9, 10)] == [0.4, 0.9, 0.5]


def rates(name: str, steps: int, end: int, **options: Any) -> list[float]:
    recipe = Recipe(schedule=name, lr=1.0, **options)  # type: ignore[arg-type]  # a schedule's name
    factor = schedule(recipe, end)
    return [factor(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("linear", {}, [0, 0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.2, 0.2]),
        ("wsd", {}, [0, 0.5, 1, 1, 1, 1, 0.84, 0.68, 0.52, 0.36, 0.2, 0.2, 0.2]),
        ("wsd", {"decay_fraction": 0.2}, [0, 0.5, *[1] * 7, 0.6, 0.2, 0.2, 0.2]),
        # as linear: there is nothing to hold behind the warmup
        ("wsd", {"decay_fraction": 1.0}, [0, 0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
        ("constant", {}, [0, 0.5, *[1] * 11]),
    ],
)
def test_schedules_by_hand(name: str, options: dict[str, Any], wanted: list[float]) -> None:
    """A warmup of 2 steps and a floor of 0.2 at step 10."""
    told = rates(name, len(wanted), 10, warmup_steps=2, min_lr=0.2, **options)
    assert told == pytest.approx(wanted, abs=1e-12)


def test_the_cosine_is_that_of_the_options() -> None:
    told = rates("cosine", 12, 10, warmup_steps=2, min_lr=0.2)
    wanted = [0.2 + 0.4 * (1 + math.cos(math.pi * (step - 2) / 8)) for step in range(2, 10)]
    assert told == pytest.approx([0, 0.5, *wanted, 0.2, 0.2], abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "wsd"])
def test_a_decay_to_zero_within_the_warmup(name: str) -> None:
    assert rates(name, 6, 3, warmup_steps=4, min_lr=0.0) == [0, 0.25, 0.5, 0.75, 0, 0]
    assert rates(name, 3, 1, warmup_steps=0, min_lr=0.0) == [1, 0, 0]


def gpt(**options: Any) -> GPT:
    return GPT(GPTConfig(vocab_size=7, n_layer=2, n_head=1, n_embd=4, block_size=3, **options))


def names(model: GPT, parameters: list[nn.Parameter]) -> set[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in parameters}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
def test_each_parameter_is_in_one_group(optimizer: Any) -> None:
    model = gpt(tie_weights=False)
    model.h[0].ln_1.weight.requires_grad_(False)  # type: ignore[union-attr]  # a block's
    groups = build(model, Recipe(optimizer=optimizer)).param_groups
    found = [parameter for group in groups for parameter in group["params"]]
    wanted = {name for name, _ in model.named_parameters()} - {"h.0.ln_1.weight"}
    assert names(model, found) == wanted
    assert len(found) == len(wanted)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_matrices_decay(optimizer: Any) -> None:
    model = gpt()
    decayed, undecayed = build(model, Recipe(optimizer=optimizer, weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.3, 0)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in undecayed["params"]} == {1}


def test_muon_has_the_matrices_of_blocks() -> None:
    model = gpt(tie_weights=False, token_shift=2)
    first, second = split(model.named_parameters(), "muon")
    kinds = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert names(model, first) == {f"h.{n}.{kind}.weight" for n in (0, 1) for kind in kinds}
    assert {"wte.weight", "wpe.weight", "lm_head.weight"} <= names(model, second)
    muon, adamw = group_options(Recipe(optimizer="muon", lr=0.003, weight_decay=0.2))
    assert muon == {"lr": 0.012, "momentum": 0.95, "beta2": 0.95, "weight_decay": 0.2}
    assert adamw == {"lr": 0.003, "betas": (0.9, 0.95), "weight_decay": 0}


def test_adam_does_not_decay() -> None:
    assert [group["weight_decay"] for group in group_options(Recipe(optimizer="adam"))] == [0, 0]


def stepped(gradients: list[float], fused: bool, **options: Any) -> tuple[float, float]:
    """A weight that began at 2 and a bias that began at 3, after steps at rate 0.1."""
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(3.0)
    optimizer = build(layer, Recipe(lr=0.1, min_lr=0, **options), fused=fused)
    for gradient in gradients:
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return layer.weight[0, 1].item(), layer.bias.item()


@pytest.mark.parametrize("fused", [False, True])
def test_steps_by_hand(fused: bool) -> None:
    # at the first step of Adam's the update is lr * sign(grad), whatever the betas
    adam = stepped([4.0], fused, optimizer="adam", weight_decay=0.5)
    assert adam == pytest.approx((1.9, 2.9), abs=1e-5)
    adamw = stepped([4.0], fused, optimizer="adamw", weight_decay=0.5)
    assert adamw == pytest.approx((2.0 * (1 - 0.1 * 0.5) - 0.1, 2.9), abs=1e-5)
    # Nesterov: m is the gradient, then 0.9 m + gradient; the step is gradient + 0.9 m
    m = (4.0, 0.9 * 4.0 + 1.0)
    bias = 3.0 - 0.1 * (4.0 + 0.9 * m[0]) - 0.1 * (1.0 + 0.9 * m[1])
    sgd = stepped([4.0, 1.0], fused, optimizer="sgd", weight_decay=0.0)
    assert sgd == pytest.approx((bias - 1.0, bias), abs=1e-5)
    plain = stepped([4.0], fused, optimizer="sgd", momentum=0.0, weight_decay=0.5)
    assert plain == pytest.approx((2.0 - 0.1 * (4.0 + 0.5 * 2.0), 3.0 - 0.1 * 4.0), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"muon_lr": 0.0}, "^muon_lr 0.0: must be above 0"),
        ({"decay_fraction": 0.0}, "^decay_fraction 0.0"),
        ({"decay_fraction": 1.5}, "^decay_fraction 1.5"),
        ({"lr": math.inf}, "^lr inf"),
        ({"momentum": 1.0, "optimizer": "muon"}, "^momentum 1.0"),
        ({"momentum": 0.9}, "^momentum 0.9: is of optimizer sgd and muon"),
    ],
)
def test_recipes_that_can_not_work(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Recipe(**options)
