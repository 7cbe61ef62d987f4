"""The sources' models have exactly the published numbers of parameters."""

import dataclasses
from typing import Any

import pytest
import torch
import yaml

from gptlit.cli.configs import find_config, shipped_configs
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT

SINGLE = {"n_head": 1, "attn_proj": False}
FIELDS = {field.name for field in dataclasses.fields(GPTConfig)}


def hand_sum(
    V: int, T: int, C: int, L: int, hidden: int, bias: bool, attention: bool = True
) -> int:
    """Count wte, wpe, the blocks' norms, attention and MLP, and the last norm; the head is tied."""
    norm = 2 * C if bias else C
    attn = 4 * C * C + (4 * C if bias else 0) + norm if attention else 0
    mlp = 2 * C * hidden + (hidden + C if bias else 0) + norm
    return V * C + T * C + L * (attn + mlp) + norm


@pytest.mark.parametrize(
    ("name", "vocab_size", "changes", "wanted"),
    [
        ("session4", 65, {}, 3_323_904),
        ("tinyshakespeare_readme", 65, {}, hand_sum(65, 64, 128, 4, 512, True)),
        ("local_code_model", 33, {}, hand_sum(33, 16, 32, 2, 64, True)),
        ("dante_basic", 20_978, {}, 42_985_970),
        ("dante_basic", 20_979, {}, 42_988_019),
        ("dante_advanced", 20_792, {}, 109_803_832),
        ("dante_advanced", 20_792, SINGLE, 101_407_032),
        ("llm_from_scratch_tinylm", 65, {}, hand_sum(65, 64, 128, 4, 512, False, attention=False)),
        ("llm_from_scratch_tiny", 65, {}, hand_sum(65, 128, 128, 2, 512, False)),
        ("llm_from_scratch_small", 65, {}, hand_sum(65, 256, 256, 4, 1024, False)),
        ("llm_from_scratch_medium", 65, {}, 10_745_088),
        ("llm_from_scratch_medium", 65, {"tie_weights": False}, 10_770_048),
        ("gpt2_124m", 50_257, {}, 124_439_808),
        ("gpt2_124m", 50_257, {"bias": False}, 124_337_664),
        ("gpt2_124m", 50_257, {"bias": False, "tie_weights": False}, 162_935_040),
    ],
)
def test_parameter_counts(name: str, vocab_size: int, changes: dict[str, Any], wanted: int) -> None:
    path = find_config(f"sources/{name}.yaml")
    options = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
    own = {option: value for option, value in options.items() if option in FIELDS}
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=vocab_size, **{**own, **changes}))
    assert model.num_parameters() == wanted
    header = path.read_text(encoding="utf-8").split("model:")[0]
    assert f"--config sources/{name}.yaml" in header
    if name != "local_code_model":
        assert f"{wanted:,}" in header


def test_best_cpu_stays_within_its_budget() -> None:
    """At most 0.81 M parameters and 1,536,000 tokens; all parts start as zero."""
    path = find_config("best_cpu.yaml")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    options = {name: value for name, value in config["model"].items() if name in FIELDS}
    model = GPT(GPTConfig(vocab_size=65, **options))
    blocks = 4 * (4 * 128 * 128 + 2 * 128 * 512 + 2 * 3 * 128)  # the last term is the token shifts
    assert model.num_parameters() == 2 * 65 * 128 + blocks == 806_144 <= 810_000
    assert "806,144" in path.read_text(encoding="utf-8").split("model:")[0]
    tokens = config["trainer"]["max_steps"] * config["data"]["batch_size"] * model.config.block_size
    assert tokens == 1_536_000
    assert not model(torch.zeros(1, 64, dtype=torch.long)).any()
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("c_proj.weight"))


def test_every_source_has_its_config() -> None:
    shipped = {name for name in shipped_configs() if name.startswith("sources/")}
    sizes = ("tinylm", "tiny", "small", "medium")
    names = ["session4", "tinyshakespeare_readme", "local_code_model", "dante_basic"]
    names += ["dante_advanced", "gpt2_124m", *(f"llm_from_scratch_{size}" for size in sizes)]
    assert shipped == {f"sources/{name}.yaml" for name in names}
