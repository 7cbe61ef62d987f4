import math
from collections.abc import Callable

import pytest
import torch

from gptlit.messages import UsageError
from gptlit.model.activations import ACTIVATIONS
from gptlit.model.attention import BACK_ENDS, eager, sdpa
from gptlit.model.gpt import GPT, GPTConfig, KVCache, TokenShift
from gptlit.model.positions import Rotary


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


KINDS = {
    "gpt2": {},
    "s1": {"norm_place": "post", "activation": "relu", "init": "torch", "tie_weights": False},
    "s4": {
        "positions": "sinusoidal",
        "norm_place": "post",
        "init": "torch",
        "n_head": 1,
        "attn_proj": False,
        "tie_weights": False,
        "head_bias": True,
    },
    "s5": {"bias": False, "mlp_ratio": 2.0},
    "tinylm": {"mixer": "none", "bias": False},
    "llama": {
        "positions": "rotary",
        "norm": "rms",
        "activation": "swiglu",
        "n_kv_head": 1,
        "bias": False,
        "tie_weights": False,
    },
    "modern": {
        "positions": "rotary",
        "norm": "rms",
        "norm_weight": False,
        "qk_norm": True,
        "activation": "relu2",
        "bias": False,
        "tie_weights": False,
        "token_shift": 3,
        "init": "unit",
        "logit_softcap": 15.0,
    },
    "plain": {"positions": "none", "activation": "gelu_tanh", "mlp_hidden": 12},
}


def shifted(model: GPT) -> GPT:
    """The model with token shifts that aren't zero, as they are at first."""
    for name, parameter in model.named_parameters():
        if ".shares." in name:
            torch.nn.init.uniform_(parameter, 0.2, 0.8)
    return model


def test_a_token_shift_by_hand() -> None:
    shift = TokenShift(GPTConfig(vocab_size=1, n_embd=4, token_shift=2))
    x = torch.tensor([1.0, 10, 100, 1000]).view(1, 4, 1).expand(1, 4, 4)
    assert torch.equal(shift(x, None), x)
    shift.load_state_dict({"shares.0": torch.full((4,), 2.0), "shares.1": torch.full((4,), 3.0)})
    assert shift(x, None)[0, :, 0].tolist() == [1, 12, 123, 1230]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", range(6))
def test_causality(kind: str, at: int) -> None:
    model = shifted(gpt(**KINDS[kind]))
    idx = torch.randint(11, (1, 6))
    changed = idx.clone()
    changed[0, at] = (changed[0, at] + 1) % 11
    same = torch.isclose(model(idx), model(changed), atol=1e-6).all(dim=2)[0]
    assert same[:at].all()
    assert not same[at]
    if kind == "tinylm":
        assert same[at + 1 :].all()
    elif at < 5:
        assert not same[at + 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [(1,) * 6, (4, 1, 1), (2, 3, 1)])
def test_every_kind_gives_the_same_logits_from_a_cache(kind: str, split: tuple[int, ...]) -> None:
    model = shifted(gpt(**KINDS[kind]))
    idx = torch.randint(11, (3, 6))
    cache = KVCache(model.config, 3, model.lm_head.weight)
    with torch.inference_mode():
        for _ in range(2):  # the second time the cache holds old values
            cache.length = 0
            parts = [model(part, cache) for part in idx.split(split, dim=1)]
            torch.testing.assert_close(torch.cat(parts, dim=1), model(idx), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_of_every_kind(kind: str) -> None:
    model = gpt(**KINDS[kind], dropout=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        idx = torch.randint(11, (8, 7))
        logits = model(idx[:, :6])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["gpt2", "s5", "llama", "tinylm", "plain"])
def test_every_kind_first_guesses_uniformly(kind: str) -> None:
    options = {**KINDS[kind], "init": "gpt2"}
    model = gpt(**options, vocab_size=65, n_embd=64, block_size=32)  # type: ignore[arg-type]
    idx = torch.randint(65, (16, 33))
    logits = model(idx[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.1


def test_zero_init_makes_branches_and_head_zero() -> None:
    model = gpt(**{**KINDS["modern"], "zero_init": True})
    assert (model(torch.randint(11, (2, 6))) == 0).all()
    parts = dict(model.named_parameters())
    assert (parts["h.0.attn.c_proj.weight"] == 0).all()
    assert parts["h.0.attn.c_attn.weight"].std() > 0.1


def test_the_first_loss_of_session4_is_as_published() -> None:
    losses = []
    for seed in range(3):
        model = gpt(**KINDS["s1"], vocab_size=65, n_layer=4, n_head=4, n_embd=256, block_size=64)
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        idx = torch.randint(65, (8, 65))
        logits = model(idx[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
        losses.append(loss.item())
    assert min(losses) > 4.25
    assert max(losses) < 4.42


def test_rotary_products_depend_on_distance_alone() -> None:
    """The products of rotated queries and keys depend on the distance between them."""
    turn = Rotary(GPTConfig(vocab_size=2, n_head=1, n_embd=8, block_size=12))
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 12, 8)
    products = (turn(q, slice(12)) @ turn(k, slice(12)).transpose(2, 3))[0, 0]
    for distance in range(-11, 12):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-5)
    assert products[0].std() > 0.01
    torch.testing.assert_close(turn(q[:, :, 3:], slice(3, 12)), turn(q, slice(12))[:, :, 3:])
    # one pair of channels, written out
    angle = torch.tensor(3 / 10_000 ** (2 / 8))
    left, right = q[0, 0, 3, 1], q[0, 0, 3, 5]
    turned = turn(q, slice(12))[0, 0, 3]
    assert turned[1].item() == pytest.approx((left * angle.cos() - right * angle.sin()).item())
    assert turned[5].item() == pytest.approx((right * angle.cos() + left * angle.sin()).item())


def test_sinusoidal_positions_follow_the_paper() -> None:
    table = gpt(positions="sinusoidal", position_base=500.0).wpe.weight
    for position in range(6):
        for i in range(4):
            angle = position / 500 ** (2 * i / 8)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_shared_key_heads_equal_repeated_ones() -> None:
    shared = gpt(n_head=4, n_kv_head=2)
    whole = gpt(n_head=4)
    state = shared.state_dict()
    for layer in range(2):
        for part in ("weight", "bias"):
            name = f"h.{layer}.attn.c_attn.{part}"
            q, k, v = state[name].split([8, 4, 4])
            k, v = (
                x.view(2, 2, *x.shape[1:]).repeat_interleave(2, 0).flatten(0, 1) for x in (k, v)
            )
            state[name] = torch.cat([q, k, v])
    whole.load_state_dict(state)
    idx = torch.randint(11, (2, 6))
    torch.testing.assert_close(shared(idx), whole(idx))


@pytest.mark.parametrize(
    ("activation", "by_hand"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ("relu", lambda x: x * (x > 0)),
        ("relu2", lambda x: x * x * (x > 0)),
        ("swiglu", lambda x: x[..., :6] / (1 + torch.exp(-x[..., :6])) * x[..., 6:]),
    ],
)
def test_activations(activation: str, by_hand: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.randn(5, 12)
    torch.testing.assert_close(ACTIVATIONS[activation]()(x), by_hand(x), atol=1e-6, rtol=1e-5)


def test_post_norm_normalises_the_sum() -> None:
    """Each block ends in a norm: mean 0 and variance 1 in every channel row."""
    block = gpt(norm_place="post").h[0]
    y = block(torch.randn(2, 6, 8) * 7)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(-1, unbiased=False), torch.ones(2, 6), atol=1e-3, rtol=0)


@pytest.mark.parametrize("place", ["embedding", "attention", "branch", "block"])
def test_dropout_is_at_the_place_of_the_option(place: str) -> None:
    model = gpt(dropout=0.5, dropout_at=[place]).train()
    active = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.p
    }
    wanted = {
        "embedding": {"drop"},
        "attention": set(),
        "branch": {f"h.{i}.{end}" for i in (0, 1) for end in ("attn.resid_dropout", "mlp.dropout")},
        "block": {"h.0.drop", "h.1.drop"},
    }
    assert active == wanted[place]
    assert model.h[0].attn.dropout == (0.5 if place == "attention" else 0)
    idx = torch.randint(11, (1, 6))
    assert not torch.allclose(model(idx), model(idx))
    torch.testing.assert_close(model.eval()(idx), model(idx))


def test_logits_stay_within_the_cap() -> None:
    model = gpt(logit_softcap=0.5)
    uncapped = gpt()
    with torch.no_grad():
        model.wte.weight *= 100
        uncapped.wte.weight *= 100
    idx = torch.randint(11, (2, 6))
    wanted = 0.5 * torch.tanh(uncapped(idx) / 0.5)
    torch.testing.assert_close(model(idx), wanted)
    assert uncapped(idx).abs().max() > 1


def test_a_model_of_one_token_reaches_the_bigram_entropy_and_no_less() -> None:
    """The mean of -ln p(next | this) by the text's own counts is a lower bound of the loss."""
    torch.manual_seed(0)
    text = torch.randint(5, (400,))
    text[1::2] = (text[::2] * 2 + torch.randint(2, (200,))) % 5
    pairs = torch.zeros(5, 5)
    pairs.index_put_((text[:-1], text[1:]), torch.ones(399), accumulate=True)
    shares = pairs / pairs.sum(1, keepdim=True)
    bound = -(pairs * shares.clamp_min(1e-9).log()).sum().item() / 399
    model = gpt(vocab_size=5, mixer="none", positions="none", block_size=399, n_layer=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        logits = model(text[None, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0], text[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.item() > bound - 1e-4
    assert loss.item() < bound + 0.02


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


def test_more_tokens_than_the_context_are_refused() -> None:
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


@pytest.mark.parametrize("back_end", ["sdpa", "flash"])
@pytest.mark.parametrize("n_kv_head", [1, 2, 6])
@pytest.mark.parametrize("n_query", [1, 3, 7])
def test_attention_back_ends_agree_in_values_and_gradients(
    n_query: int, n_kv_head: int, back_end: str
) -> None:
    torch.manual_seed(0)
    sizes = ((6, n_query), (n_kv_head, 7), (n_kv_head, 7))
    q, k, v = (torch.randn(2, h, n, 4, requires_grad=True) for h, n in sizes)
    results = []
    for attend in (eager, BACK_ENDS[back_end]):
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
    ("options", "message"),
    [
        ({"n_embd": 130, "n_head": 4}, "^n_embd 130.*n_head 4.*128 or 132"),
        ({"n_embd": 2, "n_head": 4}, "multiple of n_head 4; use 4$"),
        ({"n_layer": -1}, "^n_layer -1"),
        ({"block_size": -1}, "^block_size -1"),
        ({"dropout": 1.0}, "^dropout 1.0"),
        ({"n_kv_head": 3}, "^n_kv_head 3: must divide n_head 4; use one of 1, 2, 4"),
        ({"positions": "rotary", "n_embd": 12}, "positions rotary.*n_embd 12.*n_head 4"),
        ({"positions": "sinusoidal", "n_embd": 7, "n_head": 1}, "sinusoidal.*even n_embd, and 7"),
        ({"mixer": "none", "positions": "rotary"}, "positions rotary: needs.*mixer attention"),
        ({"mixer": "none", "qk_norm": True}, "^qk_norm True: needs.*mixer attention"),
        ({"mixer": "none", "n_kv_head": 2}, "^n_kv_head 2: needs.*mixer attention"),
        ({"positions": "rotary", "n_positions": 99}, "n_positions 99.*positions learned"),
        ({"n_positions": 9}, "n_positions 9.*block_size 64"),
        ({"mlp_ratio": 0.0}, "^mlp_ratio 0"),
        ({"mlp_hidden": 0}, "^mlp_hidden 0"),
        ({"logit_softcap": -1.0}, "^logit_softcap -1.0"),
    ],
)
def test_invalid_configs_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GPTConfig(vocab_size=11, **options)  # type: ignore[arg-type]  # any option


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_float32_agree(kind: str) -> None:
    model = gpt(**KINDS[kind])
    idx = torch.randint(11, (4, 6))
    with torch.no_grad():
        exact = model(idx).softmax(-1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(idx).float().softmax(-1)
    # bfloat16 has 8 bits of precision
    torch.testing.assert_close(rounded, exact, atol=0.03, rtol=0.1)
