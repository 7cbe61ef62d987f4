"""The README.md of exported folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from gptlit.checkpoints import checkpoint
from gptlit.corpora.catalog import CORPORA
from gptlit.exports import model_card
from gptlit.exports.model_card import Exported
from gptlit.generation.generate import generate
from tests.conftest import Result, Run


@pytest.fixture
def content(run: Run) -> dict[str, Any]:
    return checkpoint.read(run.folder / "checkpoints" / "last.ckpt")


def card_of(content: dict[str, Any], form: str = "hf", **changes: str) -> str:
    model, tokenizer = checkpoint.build(content)
    usual = {"name": "my-model", "architecture": "GPT2LMHeadModel", "dtype": "f32"}
    exported = Exported(form=form, **{**usual, **changes})
    return model_card.text(content, model, tokenizer, exported)


def test_front_matter_figures_and_sample(content: dict[str, Any]) -> None:
    card = card_of(content)
    evaluated = content["gptlit"]["evaluated"]
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers", "text-generation", "unknown"
    )  # fmt: skip
    found = {each.metric_type: each.metric_value for each in data.eval_results}
    assert found["loss"] == pytest.approx(evaluated["val/loss"], abs=1e-4)
    assert found["bits_per_byte"] == pytest.approx(evaluated["val/bits_per_byte"], abs=1e-4)
    model, tokenizer = checkpoint.build(content)
    assert f"A GPT of {model.num_parameters():,} parameters" in card
    assert f"for {content['global_step']:,} steps" in card
    assert generate(model, tokenizer, "ROMEO:", max_new_tokens=200) in card
    assert f"| loss per token, in nats | {evaluated['val/loss']:.4f} |" in card


def test_a_users_text_is_named_without_its_folders(content: dict[str, Any]) -> None:
    text = {**content["gptlit"]["text"], "name": "/home/me/speeches.txt"}
    card = card_of({**content, "gptlit": {**content["gptlit"], "text": text}})
    assert "Text: `speeches.txt`, sha256 " in card
    assert "licence isn't known" in card
    assert "/home/me" not in card


def test_a_published_text_has_its_licence(content: dict[str, Any]) -> None:
    text = content["gptlit"]["text"]
    known = {**text, "name": "dante", "sha256": CORPORA["dante"].sha256}
    assert "Its licence: public domain." in card_of(
        {**content, "gptlit": {**content["gptlit"], "text": known}}
    )
    # another text under its name
    other = {**known, "sha256": "0"}
    assert "licence isn't known" in card_of(
        {**content, "gptlit": {**content["gptlit"], "text": other}}
    )


@pytest.mark.parametrize(
    ("form", "changes", "tools"),
    [
        ("hf", {}, ["transformers", "PyTorch", "gptlit", "vLLM"]),
        ("hf", {"architecture": "NemotronForCausalLM"}, ["transformers", "PyTorch", "vLLM"]),
        (
            "hf",
            {"architecture": "GPTLitForCausalLM"},
            [
                "transformers (runs modeling_gptlit.py of the folder: read it first)",
                "PyTorch",
                "gptlit",
            ],
        ),
        ("gguf", {}, ["ollama", "llama.cpp", "llama-cpp-python"]),
        ("gguf", {"name": "me/x"}, ["ollama", "llama.cpp", "llama-cpp-python"]),
    ],
)
def test_how_to_use_it(
    content: dict[str, Any], form: str, changes: dict[str, str], tools: list[str]
) -> None:
    use = card_of(content, form, **changes).partition("## Use\n")[2]
    blocks = use.strip().split("\n\n")
    shown = [block.removesuffix(":") for block in blocks if block.endswith(":")]
    assert shown == tools
    for block in use.split("```python\n")[1:]:
        compile(block.partition("\n```")[0], "card", "exec")
    assert ("trust_remote_code=True" in use) == ("GPTLit" in changes.get("architecture", ""))
    assert ("hf.co/me/x" in use) == ("name" in changes)


def test_texts_stay_within_their_place(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fences, line breaks and colours of a sample, a prompt or a name don't leave their block."""
    monkeypatch.setattr(model_card, "generate", lambda *_, **__: "```\n# no\x1b[31m heading\n````")
    run = yaml.safe_load(content["gptlit"]["run"])
    run["samples"]["prompts"] = ["the king\n"]
    described = {**content["gptlit"], "run": yaml.safe_dump(run)}
    described["text"] = {**described["text"], "name": "a\n---\nb.txt"}
    card = card_of({**content, "gptlit": described})
    assert "`````text\n```\n# no\\x1b[31m heading\n````\n`````" in card
    assert "Prompt `the king\\n`" in card
    assert "Text: `a\\n---\\nb.txt`" in card
    assert ModelCard(card).data.license == "unknown"


def test_plain_formats_have_no_card(gptlit: Callable[..., Result], run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    for form in ("safetensors", "torch"):
        assert gptlit("export", path, form, f"--format={form}").code == 0
        assert not Path(form, "README.md").exists()
