"""A GPT of gptlit as a model of transformers; `own_code` writes it to folders, below gptlit's GPT.

gptlit itself never imports it, since it needs transformers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from gptlit.model.gpt import GPT, GPTConfig, TokenShift
from gptlit.model.positions import Rotary, SinusoidalPositions


class GPTLitConfig(PretrainedConfig):
    """The options of GPTConfig, and those that transformers adds to all models."""

    model_type = "gptlit"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  # as in transformers
    attribute_map = {  # noqa: RUF012  # as in transformers
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
    }

    def __init__(self, **options: Any) -> None:
        names = GPTConfig.__dataclass_fields__.keys()
        for name in names & options.keys():
            setattr(self, name, options.pop(name))
        super().__init__(**options)

    def of_gpt(self) -> GPTConfig:
        """Return the options of the GPT alone."""
        names = GPTConfig.__dataclass_fields__.keys()
        return GPTConfig(**{name: getattr(self, name) for name in names if hasattr(self, name)})


class LayeredCache:
    """A cache of transformers, with the interface that gptlit's GPT expects.

    Args:
        cache: Keys and values by layer. The inputs of token shifts are in layers of their own.
        gpt: Model that is run.
    """

    def __init__(self, cache: DynamicCache, gpt: GPT) -> None:
        self.cache = cache
        self.length = cache.get_seq_length()
        shifts = [module for module in gpt.modules() if isinstance(module, TokenShift)]
        self.inputs = ShiftInputs(cache, {each: len(gpt.h) + i for i, each in enumerate(shifts)})
        # without attention nothing else counts the positions
        self.counts = not any(block.attn is not None for block in gpt.h)

    def append(self, layer: int, kv: Tensor) -> Tensor:
        """Add (B, 2 kv_heads, T, head_size) keys and values; return those of all positions."""
        keys, values = kv.chunk(2, dim=1)
        return torch.cat(self.cache.update(keys, values, layer), dim=1)

    def count(self, idx: Tensor) -> None:
        """Add the number of (B, T) positions, where no keys and values are appended."""
        if self.counts:
            none = idx.new_zeros(idx.size(0), 1, idx.size(1), 1, dtype=torch.float)
            layer_of(self.cache, 0).update(none, none)


class ShiftInputs:
    """The (B, n, C) last inputs of each token shift."""

    def __init__(self, cache: DynamicCache, layers: dict[nn.Module, int]) -> None:
        self.cache, self.layers = cache, layers

    def __getitem__(self, shift: nn.Module) -> Tensor:
        return layer_of(self.cache, self.layers[shift]).keys[:, 0]

    def __setitem__(self, shift: nn.Module, inputs: Tensor) -> None:
        layer, inputs = layer_of(self.cache, self.layers[shift]), inputs[:, None]
        if not layer.is_initialized:
            layer.lazy_initialization(inputs, inputs)
        layer.keys, layer.values = inputs, inputs[..., :0]


def layer_of(cache: DynamicCache, index: int) -> DynamicLayer:
    """Return a layer of a cache, which is added if need be."""
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    return cache.layers[index]


class GPTLitForCausalLM(PreTrainedModel, GenerationMixin):
    """A GPT of gptlit with the interface of transformers."""

    config_class = GPTLitConfig
    base_model_prefix = "gpt"
    _tied_weights_keys = {"gpt.lm_head.weight": "gpt.wte.weight"}  # noqa: RUF012  # as in transformers

    def __init__(self, config: GPTLitConfig) -> None:
        super().__init__(config)
        self.gpt = GPT(config.of_gpt())
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Compute tables of positions, which aren't in the file of weights."""
        if isinstance(module, (Rotary, SinusoidalPositions)):
            with torch.device("cpu"):
                computed = type(module)(self.config.of_gpt())
            for name, table in computed.named_buffers():
                getattr(module, name).copy_(table)

    def get_input_embeddings(self) -> nn.Module:
        return self.gpt.wte

    def get_output_embeddings(self) -> nn.Module:
        return self.gpt.lm_head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """Return (B, T, V) logits, or the last `logits_to_keep` of them, and a grown cache.

        Args:
            input_ids: (B, T) ids of tokens.
            attention_mask: (B, T) ones; padded rows aren't supported.
            past_key_values: Cache of the positions before.
            labels: (B, T) ids, whose loss is computed; -100 for positions without a loss.
            use_cache: Whether to return a cache; by default in evaluation.
            logits_to_keep: Number of last positions whose logits are returned; 0 for all.
            unused: What `generate` gives to all models.
        """
        if use_cache is None:
            use_cache = not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        cache = None if past_key_values is None else LayeredCache(past_key_values, self.gpt)
        is_first = cache is None or not cache.length
        if is_first and attention_mask is not None and not attention_mask.all():
            raise ValueError("attention_mask has zeros: this model takes rows without padding")
        hidden = self.gpt.hidden(input_ids, cache)  # type: ignore[arg-type]  # (B, T, C)
        if cache is not None:
            cache.count(input_ids)
        logits = self.gpt.logits(hidden[:, -logits_to_keep:])  # (B, T, V)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
