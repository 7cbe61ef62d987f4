"""Writes two ONNX graphs: all positions at once, and the next positions with a cache."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from gptlit.checkpoints import tokenizer_files
from gptlit.checkpoints.weight_files import write_own
from gptlit.checkpoints.weight_shapes import for_writing
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig, TokenShift
from gptlit.tokenizers.base import Tokenizer

WHOLE, CACHED = "model.onnx", "model_cached.onnx"
OPSET = 18
INLINE_BYTES = 2**30  # a file of protobuf has at most twice as many


class Inputs:
    """A cache of the GPT whose contents are inputs and outputs of a graph.

    Args:
        past: (n_layer, B, 2 kv_heads, P, head_size) keys, then values, of P earlier positions.
        before: (n_shifts, B, token_shift, C) last inputs of each token shift.
        shifts: Token shifts of the model, in the order of its modules.
    """

    def __init__(self, past: Tensor, before: Tensor | None, shifts: list[nn.Module]) -> None:
        self.past = past.unbind()
        self.present: list[Tensor] = []
        self.length = past.size(3)
        self.inputs = dict(zip(shifts, [] if before is None else before.unbind(), strict=True))

    def append(self, layer: int, kv: Tensor) -> Tensor:
        self.present.append(torch.cat([self.past[layer], kv], dim=2))
        return self.present[-1]


class Whole(nn.Module):
    """Returns (B, T, V) logits of (B, T) ids."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, input_ids: Tensor) -> Tensor:
        return _logits(self.gpt, input_ids, 0, None)


class Cached(nn.Module):
    """Returns the logits of the next ids, and the cache that has their positions too."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(
        self, input_ids: Tensor, past: Tensor, before: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        shifts = [each for each in self.gpt.modules() if isinstance(each, TokenShift)]
        cache = Inputs(past, before, list(shifts))
        logits = _logits(self.gpt, input_ids, cache.length, cache)
        present = torch.stack(cache.present)
        if before is None:
            return logits, present
        return logits, present, torch.stack([cache.inputs[shift] for shift in shifts])


def _logits(gpt: GPT, ids: Tensor, past: int, cache: Inputs | None) -> Tensor:
    """Return what `GPT.forward` returns, without checks of sizes, which a graph can't have."""
    x = gpt.wpe(gpt.wte(ids), past)
    for block in gpt.h:
        x = block(x, cache)
    return gpt.logits(gpt.ln_f(x))


def fill(model: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model.onnx, model_cached.onnx, tokenizer.json and the options.

    Args:
        model: Model of any options; without attention it has no graph with a cache.
        tokenizer: Its tokenizer.
        folder: Existing folder to write to.

    Raises:
        UsageError: onnx or onnxscript isn't installed.
    """
    config, state = for_writing(model.config, model.state_dict())
    gpt = GPT(dataclasses.replace(config, attention="eager", token_noise=0.0)).eval()
    gpt.load_state_dict(state)
    _export(Whole(gpt), _ids(config), folder / WHOLE, ["logits"])
    if config.mixer == "attention" and config.n_layer:
        outputs = ["logits", "present", *(["after"] if config.token_shift else [])]
        inputs = {**_ids(config), **empty_cache(config, rows=2, n_positions=2)}
        _export(Cached(gpt), inputs, folder / CACHED, outputs)
    tokenizer_files.write(tokenizer, folder, config.block_size)
    write_own(folder, config, tokenizer)


def _ids(config: GPTConfig) -> dict[str, Tensor]:
    # sizes of 0 and 1 would be taken for constants
    return {"input_ids": torch.zeros(2, min(3, config.block_size), dtype=torch.int64)}


def empty_cache(config: GPTConfig, rows: int, n_positions: int = 0) -> dict[str, Tensor]:
    """Return a cache of zeros, the inputs of the graph with a cache before the first ids."""
    past = torch.zeros(config.n_layer, rows, 2 * config.kv_heads, n_positions, config.head_size)
    if not config.token_shift:
        return {"past": past}
    before = torch.zeros(2 * config.n_layer, rows, config.token_shift, config.n_embd)
    return {"past": past, "before": before}


def _export(module: nn.Module, inputs: dict[str, Tensor], path: Path, outputs: list[str]) -> None:
    dynamic = {
        "input_ids": {0: "batch", 1: "length"},
        "past": {1: "batch", 3: "past_length"},
        "before": {1: "batch"},
    }
    n_bytes = sum(each.numel() * each.element_size() for each in module.parameters())
    try:
        import onnx  # noqa: F401  # which torch.onnx imports later, with longer errors
        import onnxscript  # noqa: F401  # as well
    except ImportError as error:
        reason = "needs the packages onnx and onnxscript: pip install 'gptlit[onnx]'"
        raise UsageError(reason, "format", "onnx") from error
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            kwargs=inputs,
            f=str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes={name: dynamic[name] for name in inputs},
            opset_version=OPSET,
            dynamo=True,
            external_data=n_bytes > INLINE_BYTES,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the exporter's own notes."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
