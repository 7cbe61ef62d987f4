import math
from typing import Any

import pytest
import torch
from torch import nn

from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim.optimizers import Recipe, build, group_options, split_parameters


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
    first, second = split_parameters(model.named_parameters(), Recipe(optimizer="muon"))
    kinds = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert names(model, first) == {f"h.{n}.{kind}.weight" for n in (0, 1) for kind in kinds}
    assert {"wte.weight", "wpe.weight", "lm_head.weight"} <= names(model, second)
    muon, adamw = group_options(Recipe(optimizer="muon", lr=0.003, weight_decay=0.2))
    assert muon == {"lr": 0.012, "momentum": 0.95, "beta2": 0.95, "weight_decay": 0.2}
    assert adamw == {"lr": 0.003, "betas": (0.9, 0.95), "weight_decay": 0}


TOKENS = {"wte.weight", "lm_head.weight", "noise.mask"}


@pytest.mark.parametrize(("optimizer", "positions_decay"), [("adamw", 0.2), ("muon", 0.0)])
@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_decay_by_an_option_of_their_own(
    tied: bool, optimizer: Any, positions_decay: float
) -> None:
    """One step by AdamW from zero moments: w - lr (decay w + sign of the gradient)."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"head_bias": True, "token_dropout": 0.1, "qk_norm": True}
    model = gpt(tie_weights=tied, token_shift=1, **options)
    for parameter in model.parameters():
        parameter.data.normal_()
        parameter.grad = torch.randn_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recipe = Recipe(
        lr=0.01, min_lr=0, weight_decay=0.2, embedding_weight_decay=0.7, optimizer=optimizer
    )
    built = build(model, recipe)
    _, own, others = built.param_groups
    assert names(model, own["params"]) == TOKENS - ({"lm_head.weight"} if tied else set())
    assert {p.dim() for p in others["params"]} == ({1} if optimizer == "adamw" else {1, 2})
    assert [group["weight_decay"] for group in built.param_groups] == [0.2, 0.7, 0.0]
    built.step()
    for name, parameter in model.named_parameters():
        if name.startswith("h.") and parameter.dim() == 2 and optimizer == "muon":
            continue
        decay = {**dict.fromkeys(TOKENS, 0.7), "wpe.weight": positions_decay}.get(name, 0.0)
        if name.startswith("h.") and parameter.dim() == 2:
            decay = 0.2
        assert parameter.grad is not None
        wanted = before[name] * (1 - 0.01 * decay) - 0.01 * parameter.grad.sign()
        torch.testing.assert_close(parameter.detach(), wanted, atol=1e-5, rtol=0, msg=name)


def test_adam_does_not_decay() -> None:
    assert [group["weight_decay"] for group in group_options(Recipe(optimizer="adam"))] == [0, 0]


def stepped(gradients: list[float], fused: bool, **options: Any) -> tuple[float, float]:
    """A weight that started at 2 and a bias that started at 3, after steps at rate 0.1."""
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
    ("options", "message"),
    [
        ({"muon_lr": 0.0}, "^muon_lr 0.0: must be above 0"),
        ({"decay_fraction": 0.0}, "^decay_fraction 0.0"),
        ({"decay_fraction": 1.5}, "^decay_fraction 1.5"),
        ({"lr": math.inf}, "^lr inf"),
        ({"momentum": 1.0, "optimizer": "muon"}, "^momentum 1.0"),
        ({"embedding_weight_decay": -0.1}, "^embedding_weight_decay -0.1"),
        (
            {"embedding_weight_decay": 0.1, "optimizer": "adam"},
            "^embedding_weight_decay 0.1: optimizer adam has no weight decay",
        ),
        ({"momentum": 0.9}, "^momentum 0.9: applies to optimizer sgd and muon"),
    ],
)
def test_invalid_recipes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**options)
