"""A net's modules as an indented tree."""

import re

from torch import nn

from gptlit.model import module_tree
from gptlit.model.gpt import GPT, GPTConfig


def tree(**options: object) -> list[str]:
    sizes = {"vocab_size": 11, "n_layer": 3, "n_head": 2, "n_embd": 8, "block_size": 6}
    return module_tree.lines(GPT(GPTConfig(**{**sizes, **options}))).splitlines()  # type: ignore[arg-type]  # any option


def test_repeated_blocks_are_shown_once() -> None:
    lines = tree()
    assert [line.split()[0] for line in lines] == [
        "wte", "wpe", "h.0", "ln_1", "attn", "c_attn", "c_proj", "ln_2", "mlp", "c_fc", "act",
        "c_proj", "ln_f", "lm_head",
    ]  # fmt: skip
    assert re.fullmatch(r"  h.0 to h.2 +Block +872 each", lines[2])


def test_modules_that_compute_are_shown() -> None:
    lines = "\n".join(tree(dropout=0.1, positions="rotary", qk_norm=True, norm="rms"))
    for shown in ("Dropout(0.1)", "Rotary", "RMSNorm(4)"):
        assert shown in lines
    *_, noise = tree(token_dropout=0.1, token_noise=0.05)
    assert noise.split() == ["noise", "InputNoise(0.1,", "0.05)", "8"]
    assert "Identity" not in lines
    assert "wpe" not in lines


def test_blocks_that_differ_are_shown_apart() -> None:
    model = GPT(GPTConfig(vocab_size=11, n_layer=3, n_head=2, n_embd=8))
    model.h[1].mlp.act = nn.ReLU()  # type: ignore[union-attr]  # a block's
    names = [line.split()[0] for line in module_tree.lines(model).splitlines()]
    assert [name for name in names if name.startswith("h.")] == ["h.0", "h.1", "h.2"]
