"""Counts and estimates against what PyTorch itself counts and allocates."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from gptlit.model import activation_memory, cost
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.optim import optimizers
from gptlit.optim.ema import Average
from gptlit.steps import chunked_loss
from gptlit.steps.chunked_loss import Terms

LLAMA = {"norm": "rms", "positions": "rotary", "activation": "swiglu", "bias": False}
SIZES = {"vocab_size": 65, "n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 64}


def gpt(**options: object) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SIZES, **options}))  # type: ignore[arg-type]  # any option


def batch(model: GPT, batch_size: int) -> tuple[Tensor, Tensor]:
    size = (batch_size, model.config.block_size)
    return torch.randint(model.config.vocab_size, size), torch.randint(
        model.config.vocab_size, size
    )


# ---------------------------------------------------------------------- parameters


def test_parameters_by_component_by_hand() -> None:
    """V = 65, T = 64, C = 64, two layers."""
    V, T, C = 65, 64, 64
    assert cost.parameters(gpt()) == {
        "embedding": V * C + T * C,
        "attention": 2 * (C * 3 * C + 3 * C + C * C + C),
        "mlp": 2 * (C * 4 * C + 4 * C + 4 * C * C + C),
        "norms": 5 * 2 * C,
        "head": 0,
    }


OPTIONS = [
    {},
    {"tie_weights": False, "head_bias": True},
    {"qk_norm": True, "token_shift": 1, "n_kv_head": 2},
    {"mixer": "none"},
    {"n_layer": 0, "positions": "none"},
    {**LLAMA, "norm_weight": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_components_sum_to_the_total(options: dict) -> None:
    model = gpt(**options)
    counts = cost.parameters(model)
    assert sum(counts.values()) == model.num_parameters()
    assert sum(cost.decayed(model)) == cost.trainable(model) == model.num_parameters()


def test_parameters_are_in_their_components() -> None:
    counts = cost.parameters(gpt(tie_weights=False, head_bias=True, qk_norm=True))
    assert counts["head"] == 65 * 64 + 65
    assert counts["norms"] == 5 * 2 * 64 + 2 * 2 * 16
    assert cost.parameters(gpt(mixer="none"))["attention"] == 0


def test_frozen_parameters_are_not_trainable() -> None:
    model = gpt()
    model.wpe.weight.requires_grad_(False)  # type: ignore[union-attr]  # an embedding
    assert cost.trainable(model) == model.num_parameters() - 64 * 64
    assert sum(cost.decayed(model)) == cost.trainable(model)


def test_matrices_decay_and_vectors_do_not() -> None:
    vectors = 2 * (3 * 64 + 64 + 4 * 64 + 64) + 5 * 2 * 64
    model = gpt()
    assert cost.decayed(model) == (model.num_parameters() - vectors, vectors)


# ---------------------------------------------------------------------- operations


@pytest.mark.parametrize(
    "options",
    [
        {},
        {**LLAMA, "n_kv_head": 1},
        {"mixer": "none"},
        {"tie_weights": False, "vocab_size": 200},
        {"n_layer": 3, "attn_proj": False, "block_size": 16, "mlp_ratio": 2.0},
        {"n_layer": 0},
    ],
)
def test_flops_equal_pytorchs_count(options: dict) -> None:
    """With eager attention, since a fused backward also counts its recomputations."""
    model = gpt(attention="eager", **options)
    inputs, targets = batch(model, 3)
    with FlopCounterMode(display=False) as forward:
        logits = model(inputs)
    assert forward.get_total_flops() == inputs.numel() * cost.flops_per_token(model)
    with FlopCounterMode(display=False) as backward:
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == inputs.numel() * cost.training_flops_per_token(model)


def test_causal_attention_is_half_and_its_diagonal() -> None:
    full, causal = (cost.flops_per_token(gpt(), causal=causal) for causal in (False, True))
    without = 2 * cost.matmul_parameters(gpt())
    assert (causal - without) / (full - without) == pytest.approx((64 + 1) / (2 * 64))
    # PaLM's 6 N + 12 L H Q T, where N leaves out what no token is multiplied by
    assert cost.training_flops_per_token(gpt()) == 3 * without + 12 * 2 * 64 * 64


# ---------------------------------------------------------------------- memory


def loss_of(
    model: GPT, inputs: Tensor, targets: Tensor, precision: str, rows: int | None = None
) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        if rows is None:
            return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        terms = Terms(softcap=model.config.logit_softcap)
        hidden = model.hidden(inputs).flatten(0, 1)
        nats, _ = chunked_loss.sums(hidden, model.lm_head, targets.flatten(), terms, rows)
        return nats / targets.numel()


def kept(
    model: GPT, inputs: Tensor, targets: Tensor, precision: str, rows: int | None = None
) -> int:
    """Bytes of all storages that autograd keeps, without parameters and tables."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model, inputs, targets, precision, rows)
    return sum(storage.nbytes() for storage in storages.values())


def peak(
    model: GPT,
    inputs: Tensor,
    targets: Tensor,
    precision: str,
    folder: Path,
    rows: int | None = None,
) -> int:
    """Peak bytes that a forward and backward pass allocates besides weights and gradients."""
    loss_of(model, inputs, targets, precision, rows).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss_of(model, inputs, targets, precision, rows).backward()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [event for event in trace if event["name"] == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        highest = max(highest, now)
    return highest


WIDE = {"vocab_size": 3000, "n_embd": 16}
RECOMPUTED = {"activation_checkpointing": True, "n_layer": 6}
MEASURED = [  # options, precision, rows of a chunk
    ({}, "32-true", None),
    ({"dropout": 0.1}, "32-true", None),
    ({"token_dropout": 0.1, "token_noise": 0.1}, "32-true", None),
    ({"attention": "eager", "dropout": 0.1}, "32-true", None),
    (LLAMA, "32-true", None),
    ({**LLAMA, "n_kv_head": 1, "qk_norm": True}, "32-true", None),
    ({"mixer": "none", "activation": "relu"}, "32-true", None),
    ({"tie_weights": False, "activation": "relu2", "token_shift": 3}, "32-true", None),
    ({**WIDE, "logit_softcap": 30.0}, "32-true", None),
    ({"norm_place": "post", "dropout": 0.2, "dropout_at": ("block",)}, "32-true", None),
    ({}, "bf16-mixed", None),
    ({**LLAMA, "dropout": 0.1}, "bf16-mixed", None),
    (WIDE, "bf16-mixed", None),
    ({}, "bf16-true", None),
    (WIDE, "32-true", 64),
    ({**WIDE, "n_embd": 64, "tie_weights": False, "head_bias": True}, "32-true", 64),
    ({**WIDE, "logit_softcap": 30.0}, "32-true", 512),
    ({**WIDE, "logit_softcap": 30.0}, "bf16-mixed", 512),
    (WIDE, "bf16-mixed", 256),
    (WIDE, "bf16-true", 256),
    (RECOMPUTED, "32-true", None),
    ({**RECOMPUTED, "dropout": 0.1}, "32-true", None),
    ({**RECOMPUTED, "norm_place": "post"}, "32-true", None),
    ({**RECOMPUTED, **LLAMA}, "bf16-mixed", None),
    ({**RECOMPUTED, "vocab_size": 1000}, "32-true", 64),
]


@pytest.mark.parametrize(("options", "precision", "rows"), MEASURED)
def test_activations_equal_measured_ones(
    options: dict, precision: str, rows: int | None, tmp_path: Path
) -> None:
    model = gpt(**options)
    if precision == "bf16-true":
        model = model.bfloat16()
    data = batch(model, 12)
    sizes = activation_memory.bytes_of(precision)
    copied = 0  # weights that autocast copies and the backward pass needs
    if precision == "bf16-mixed":
        in_blocks = 0 if "activation_checkpointing" in options else cost.matmul_parameters(model.h)
        copied = in_blocks + (0 if rows else model.lm_head.weight.numel())
    kept_activations = activation_memory.KeptActivations(model.config, 12, sizes, "cpu", rows)
    counted = kept_activations.total() + 2 * copied
    assert counted == pytest.approx(kept(model, *data, precision, rows), rel=0.02)
    estimated = cost.memory(model, 12, precision, rows=rows).activations
    measured = peak(model, *data, precision, tmp_path, rows)
    assert estimated == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", None), ("bf16-true", torch.bfloat16)])
@pytest.mark.parametrize(
    "recipe",
    [
        optimizers.Recipe(),
        optimizers.Recipe(optimizer="adam"),
        optimizers.Recipe(optimizer="sgd"),
        optimizers.Recipe(optimizer="sgd", momentum=0.0),
        optimizers.Recipe(optimizer="muon"),
    ],
)
def test_weights_gradients_and_moments_equal_measured_ones(
    recipe: optimizers.Recipe, precision: str, dtype: torch.dtype | None
) -> None:
    model = gpt(tie_weights=False).to(dtype)
    optimizer = optimizers.build(model, recipe)
    loss_of(model, *batch(model, 2), precision).backward()
    optimizer.step()
    found = [value for values in optimizer.state.values() for value in values.values()]
    state = [value for value in found if value is not None]
    memory = cost.memory(model, 2, precision, recipe=recipe, averaged=True)
    averages = Average(model, 0.9).averaged().values()
    assert memory.average == sum(value.nbytes for value in averages)
    assert memory.weights == sum(p.nbytes for p in model.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert memory.optimizer == sum(value.nbytes for value in state if value.dim())
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.average)
    assert memory.total == sum(parts) + memory.activations


def test_a_gpu_keeps_dropout_as_booleans_and_no_attention_weights() -> None:
    """12 windows of 64 tokens, 64 channels: masks after embedding and four branches."""
    on = {
        device: activation_memory.KeptActivations(
            gpt(dropout=dropout).config, 12, activation_memory.MIXED, device
        ).total()
        for device, dropout in (("cuda", 0.1), ("cpu", 0.0))
    }
    assert on["cuda"] - on["cpu"] == 5 * 12 * 64 * 64


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("32-true", activation_memory.FULL),
        ("16-mixed", activation_memory.MIXED),
        ("bf16-mixed", activation_memory.MIXED),
        ("bf16-true", activation_memory.HALF),
        ("64-true", activation_memory.DOUBLE),
    ],
)
def test_precisions_by_lightnings_names(name: str, sizes: activation_memory.Precision) -> None:
    assert activation_memory.bytes_of(name) == sizes


def test_memory_grows_with_the_batch_only_in_activations() -> None:
    one, two = (cost.memory(gpt(), size, "32-true") for size in (4, 8))
    assert (one.weights, one.optimizer) == (two.weights, two.optimizer)
    assert math.isclose(two.activations, 2 * one.activations)
