"""Speed of generation, compared with transformers, bare matrix products, and memory bandwidth.

    python benchmarks/generate.py [--rounds 5] [--sizes 10.7M 0.8M] [--batches 1 4 8 16 64]

transformers is included if it is installed, as in the environment of `make parity`:
`.venv-parity/bin/python benchmarks/generate.py`. Weights are random, the same for all, in float32
except for int8. Each round runs every contender once, in turn. Prints medians of tokens per second.
"Within" writes 240 tokens, which fit into the block of 256; "beyond" writes 500 with gptlit, which
continues beyond the block. --ckpt_path CKPT --text FILE first prints the checkpoint's loss in
float32 and in int8.

"Bare pass" is F.linear of each of the model's matrices with one row, nothing else. "Bound" is the
speed of reading a tensor as large as the weights and the mean cache, by summing it.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import gptlit
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.generation.generate import generate_step
from gptlit.generation.int8 import pack_int8, pays
from gptlit.generation.settings import SamplingSettings
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.characters import CharTokenizer

BLOCK, WITHIN, BEYOND = 256, 240, 500
SIZES = {"10.7M": (6, 6, 384), "0.8M": (4, 4, 128)}
TOKENIZER = CharTokenizer("\n" + "".join(chr(33 + i) for i in range(64)))


def build(size: str) -> GPT:
    torch.manual_seed(0)
    n_layer, n_head, n_embd = SIZES[size]
    config = GPTConfig(
        vocab_size=65, n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=BLOCK
    )
    return GPT(config).eval()


def write(model: GPT, batch: int, n_tokens: int, use_cache: bool = True) -> int:
    prompts = torch.zeros(batch, 1, dtype=torch.long)
    sampling = SamplingSettings(max_new_tokens=n_tokens)
    for _ in generate_step(model, prompts, sampling, range(batch), use_cache):
        pass
    return batch * n_tokens


def transformers_writer(model: GPT, batch: int) -> Callable[[], int] | None:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        write_hugging_face(model, TOKENIZER, Path(folder) / "model")
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "model").eval()
    prompts = torch.ones(batch, 1, dtype=torch.long)
    options: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_k": 0, "pad_token_id": 0}
    options |= {"max_new_tokens": WITHIN, "min_new_tokens": WITHIN}
    options["attention_mask"] = torch.ones_like(prompts)

    def run() -> int:
        with torch.inference_mode():
            theirs.generate(prompts, **options)
        return batch * WITHIN

    return run


def bare_pass(model: GPT) -> Callable[[], int]:
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    rows = {weight.size(1): torch.randn(1, weight.size(1)) for weight in matrices}

    def run() -> int:
        with torch.inference_mode():
            for _ in range(WITHIN):
                for weight in matrices:
                    F.linear(rows[weight.size(1)], weight)
        return WITHIN

    return run


def bound(model: GPT, batch: int) -> Callable[[], int]:
    config = model.config
    cache = batch * config.n_layer * 2 * config.n_embd * WITHIN // 2
    read = torch.randn(model.num_parameters() + cache)

    def run() -> int:
        for _ in range(WITHIN // 4):
            read.sum()
        return batch * (WITHIN // 4)

    return run


def contenders(size: str, batch: int) -> dict[str, Callable[[], int] | None]:
    model, packed = build(size), build(size)
    pack_int8(packed)
    # without a cache each token costs a whole window: fewer tokens suffice
    uncached = 60 if batch == 1 else 10
    return {
        "bound": bound(model, batch),
        "bare pass": bare_pass(model) if batch == 1 else None,
        "gptlit, within": lambda: write(model, batch, WITHIN),
        "gptlit, beyond": lambda: write(model, batch, BEYOND),
        "int8, within": lambda: write(packed, batch, WITHIN),
        f"no cache, {uncached}": lambda: write(model, batch, uncached, use_cache=False),
        "transformers, within": transformers_writer(model, batch),
    }


def cost_of_int8(ckpt_path: str, text: Path) -> None:
    """Print the loss of a checkpoint on the last tenth of a text, before and after packing."""
    model, tokenizer = gptlit.load(ckpt_path)
    ids = torch.as_tensor(tokenizer.encode(text.read_text("utf-8")).astype("int64"))
    ids = ids[-len(ids) // 10 :]
    n_windows = (len(ids) - 1) // model.config.block_size
    inputs, targets = (
        part[: n_windows * model.config.block_size].view(n_windows, -1) for part in (ids, ids[1:])
    )
    losses = []
    for pack in (lambda _: None, pack_int8):
        pack(model)
        with torch.inference_mode():
            total = sum(
                F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").double()
                for x, y in zip(inputs.split(64), targets.split(64), strict=True)
            )
        losses.append(float(total) / targets.numel())
    print(f"loss in float32 {losses[0]:.5f}, in int8 {losses[1]:.5f}, {targets.numel():,} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4, 8, 16, 64])
    parser.add_argument(
        "--ckpt_path", help="Print this checkpoint's loss on --text in float32 and int8."
    )
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    if options.ckpt_path:
        cost_of_int8(options.ckpt_path, options.text)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, tokens per second")
    for size in options.sizes:
        auto = "int8" if pays(build(size)) else "float32"
        for batch in options.batches:
            runs = {name: run for name, run in contenders(size, batch).items() if run}
            seen: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(options.rounds + 1):  # the first warms up
                for name, run in runs.items():
                    began = time.perf_counter()
                    n_tokens = run()
                    seen[name].append(n_tokens / (time.perf_counter() - began))
            medians = {name: statistics.median(rates[1:]) for name, rates in seen.items()}
            ours = medians["gptlit, within"]
            print(f"\n{size}, batch {batch}, --weights auto: {auto}")
            for name, median in medians.items():
                low, high = min(seen[name][1:]), max(seen[name][1:])
                share = ours / median if median else math.nan
                print(
                    f"  {name:21} {median:9,.0f}  ({low:,.0f} to {high:,.0f})  ours x {share:.2f}"
                )


if __name__ == "__main__":
    main()
