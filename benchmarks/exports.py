"""How far exported models are from gptlit's, and how large their files are.

    .venv-parity/bin/python benchmarks/exports.py lightning_logs/version_0/checkpoints/best.ckpt

Needs the environment of `make parity`. Each checkpoint is exported to each target that can hold
it; logits of random windows of its context, and greedy texts, are compared.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gptlit.checkpoints import checkpoint
from gptlit.exports import gguf_file, hub_folder, onnx_graphs
from gptlit.generation.generate import generate
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer

PROMPT = "ROMEO:"
Logits = Callable[[Tensor], np.ndarray]


class Row(NamedTuple):
    """A target: its name, the largest difference of a logit, the common text, the file's size."""

    target: str
    difference: float
    same_tokens: str
    n_bytes: int


def of_transformers(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str) -> tuple[str, Any]:
    from transformers import AutoModelForCausalLM

    name = hub_folder.fill(model, tokenizer, folder, dtype)
    return name, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def of_llama_cpp(model: GPT, tokenizer: Tokenizer, folder: Path, dtype: str) -> tuple[str, Any]:
    import llama_cpp

    name = gguf_file.fill(model, tokenizer, folder, dtype)
    defaults = llama_cpp.llama_model_default_params

    def without_amx() -> Any:  # see tests/parity/test_exports.py
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = without_amx
    options = {"logits_all": True, "verbose": False, "type_k": 0, "type_v": 0}
    path, size = str(folder / gguf_file.FILENAME), model.config.block_size
    return name, llama_cpp.Llama(path, n_ctx=size, flash_attn=False, **options)


def common(one: list[int], other: list[int]) -> str:
    """Return how many tokens two texts share from the start on."""
    pairs = list(zip(one, other, strict=False))
    n = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return f"{n} of {len(pairs)}"


@torch.no_grad()
def rows(model: GPT, tokenizer: Tokenizer, folder: Path) -> Iterator[Row]:
    """Yield a row for each target of a model."""
    size = model.config.block_size
    ids = torch.randint(model.config.vocab_size, (4, size))
    ours = model(ids).numpy()
    prompt = tokenizer.encode(PROMPT).tolist()
    n = size - len(prompt)
    text = generate(model, tokenizer, PROMPT, temperature=0, max_new_tokens=n)
    greedy = tokenizer.encode(text).tolist()[len(prompt) :]
    for dtype in ("f32", "f16", "bf16"):
        place = folder / f"hf-{dtype}"
        place.mkdir()
        name, theirs = of_transformers(model, tokenizer, place, dtype)
        apart = abs(theirs(ids).logits.float().numpy() - ours).max()
        start = torch.tensor([prompt])
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": n, "pad_token_id": 0}
        written = theirs.generate(start, attention_mask=torch.ones_like(start), **options)
        same = common(greedy, written[0, len(prompt) :].tolist())
        weights = (place / "model.safetensors").stat().st_size
        yield Row(f"transformers {name} {dtype}", apart, same, weights)
    for dtype in ("f32", "f16", "bf16", "q8_0"):
        place = folder / f"gguf-{dtype}"
        place.mkdir()
        try:
            name, theirs = of_llama_cpp(model, tokenizer, place, dtype)
        except UsageError as error:
            print(f"llama.cpp: {error}")
            break
        apart = 0.0
        for window, expected in zip(ids, ours, strict=True):
            theirs.reset()
            theirs.eval(window.tolist())
            given = theirs.scores[:size, : model.config.vocab_size]
            apart = max(apart, float(abs(given - expected).max()))
        completed = theirs.create_completion(PROMPT, max_tokens=n, temperature=0.0)
        written = tokenizer.encode(completed["choices"][0]["text"]).tolist()
        same = common(greedy, written)
        n_bytes = (place / gguf_file.FILENAME).stat().st_size
        yield Row(f"llama.cpp {name} {dtype}", apart, same, n_bytes)
    place = folder / "onnx"
    place.mkdir()
    yield from of_onnx(model, tokenizer, place, ids, ours)


def of_onnx(
    model: GPT, tokenizer: Tokenizer, place: Path, ids: Tensor, ours: np.ndarray
) -> Iterator[Row]:
    import onnxruntime

    onnx_graphs.fill(model, tokenizer, place)
    for name in (onnx_graphs.WHOLE, onnx_graphs.CACHED):
        session = onnxruntime.InferenceSession(place / name)
        n_bytes = (place / name).stat().st_size
        if name == onnx_graphs.WHOLE:
            (given,) = session.run(None, {"input_ids": ids.numpy()})
        else:
            names = [each.name for each in session.get_inputs()]
            cache = [each.numpy() for each in onnx_graphs.empty_cache(model.config, 4).values()]
            steps = []
            for step in ids.split(1, dim=1):
                values = [step.numpy(), *cache]
                logits, *cache = session.run(None, dict(zip(names, values, strict=True)))
                steps.append(logits)
            given = np.concatenate(steps, axis=1)
        kind = "whole" if name == onnx_graphs.WHOLE else "cached, token by token"
        yield Row(f"onnxruntime, {kind}", float(abs(given - ours).max()), "", n_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    torch.manual_seed(0)
    for path in parser.parse_args().checkpoints:
        model, tokenizer = checkpoint.load(path)
        print(f"\n{path}: {model.num_parameters():,} parameters\n")
        print("| target | largest difference of a logit | same greedy tokens | file, kB |")
        print("| --- | ---: | --- | ---: |")
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(model, tokenizer, Path(folder)):
                size = f"{row.n_bytes / 1000:,.0f}"
                print(f"| {row.target} | {row.difference:.1e} | {row.same_tokens} | {size} |")


if __name__ == "__main__":
    main()
