"""Which class of Hugging Face's transformers computes exactly what a config's model computes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gptlit.checkpoints.weight_shapes import State, shapes
from gptlit.messages import opt
from gptlit.model.config import GPTConfig
from gptlit.terminal import format_value

ANY = None  # every value of an option
UNGATED = ("gelu", "gelu_tanh", "relu", "relu2")
# what a class holds unless its own entry differs; options that aren't here don't matter to it
USUAL: Mapping[str, tuple[Any, ...] | None] = {
    "mixer": ("attention",),
    "positions": ("rotary",),
    "norm": ("rms",),
    "norm_place": ("pre",),
    "qk_norm": (False,),
    "activation": ("swiglu",),
    "bias": ANY,
    "head_bias": (False,),
    "logit_softcap": (None,),
    "token_shift": (0,),
}


@dataclass(frozen=True, eq=False)
class HubClass:
    """A class of transformers for causal language models.

    Args:
        model_type: Its name in config.json, such as llama.
        architecture: Its name in Python.
        differs: Values of options that it holds, where they aren't those of USUAL.
        names: Parts of names of its weights that differ from Llama's, which are the keys.
        norm_minus: Number that it adds to the weights of norms.
    """

    model_type: str
    architecture: str
    differs: Mapping[str, tuple[Any, ...] | None] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    norm_minus: float = 0.0

    def obstacles(self, config: GPTConfig) -> dict[str, Any]:
        """Return the options of a config, with their values, that the class can't hold."""
        held = {**USUAL, **self.differs}
        wrong = {
            name: getattr(config, name)
            for name, values in held.items()
            if values is not ANY and getattr(config, name) not in values
        }
        # GPT-2 has no shared heads; all others have
        if self.model_type == "gpt2" and config.kv_heads != config.n_head:
            wrong["n_kv_head"] = config.n_kv_head
        return wrong


_LAYER, _NO_BIAS = {"norm": ("layer",)}, {"bias": (False,)}
_MLP_NAMES = {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
GPT2 = HubClass(
    "gpt2", "GPT2LMHeadModel", {**_LAYER, "positions": ("learned",), "activation": UNGATED}
)
# the first one that holds a config is taken
CLASSES = (
    GPT2,
    HubClass("llama", "LlamaForCausalLM"),
    HubClass("qwen3", "Qwen3ForCausalLM", {**_NO_BIAS, "qk_norm": (True,)}),
    HubClass("smollm3", "SmolLM3ForCausalLM", {"positions": ("none",)}),
    HubClass("arcee", "ArceeForCausalLM", {"activation": UNGATED}),
    HubClass(
        "apertus",
        "ApertusForCausalLM",
        {**_NO_BIAS, "qk_norm": (True,), "activation": UNGATED},
        {
            "input_layernorm": "attention_layernorm",
            "post_attention_layernorm": "feedforward_layernorm",
        },
    ),
    HubClass(
        "vaultgemma",
        "VaultGemmaForCausalLM",
        {**_NO_BIAS, "logit_softcap": ANY},
        {"post_attention_layernorm": "pre_feedforward_layernorm"},
        norm_minus=1.0,
    ),
    HubClass(
        "nemotron",
        "NemotronForCausalLM",
        {**_LAYER, "activation": ("relu2",)},
        norm_minus=1.0,
    ),
    HubClass("starcoder2", "Starcoder2ForCausalLM", {**_LAYER, "activation": UNGATED}, _MLP_NAMES),
    HubClass("stablelm", "StableLmForCausalLM", {**_LAYER, **_NO_BIAS}),
)


def holding(config: GPTConfig) -> HubClass | None:
    """Return the class of transformers that computes a config's model; None if there is none."""
    return next((kind for kind in CLASSES if not kind.obstacles(config)), None)


def nearest(config: GPTConfig) -> tuple[HubClass, str]:
    """Return the class that can't hold the fewest options of a config, and these options in words.

    Where several can't hold equally many, it is the first one.
    """
    kind = min(CLASSES, key=lambda each: len(each.obstacles(config)))
    return kind, in_words(kind.obstacles(config))


def in_words(options: Mapping[str, Any]) -> str:
    """Name options with their values, as flags or as Python's arguments."""
    return ", ".join(f"{opt(f'model.{name}')} {format_value(v)}" for name, v in options.items())


def written_out(config: GPTConfig, state: State) -> tuple[GPTConfig, State]:
    """Return the same model with the weights that other programs expect and gptlit can omit.

    Norms have weights of one and biases of zero, and attention without an output projection has
    the identity, which changes no number.
    """
    has_projection = config.mixer == "attention"
    full = dataclasses.replace(config, norm_weight=True, attn_proj=True)
    written: State = {}
    for name, shape in shapes(full):
        if name in state:
            written[name] = state[name].detach()
        elif name.endswith("c_proj.weight") and has_projection:
            written[name] = torch.eye(shape[0])
        else:
            written[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return full, written
