"""The parts of gpu_all.py, each of which yields rows of its table."""

import contextlib
import functools
import itertools
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import gpu
import numpy as np
import torch
from gpu_loops import Bare, Loop, LossOf, Sizes, at_once, in_chunks, median_of, random_ids, shape_of
from train_step import random_text, wait_for

from gptlit.devices import peaks
from gptlit.devices.accelerators import name_of
from gptlit.generation.generate import generate_chunks
from gptlit.generation.settings import SamplingSettings
from gptlit.model import cost
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.optim import optimizers
from gptlit.optim.optimizers import Recipe
from gptlit.steps.losses import rows_at_once

NANOGPT_LINE = re.compile(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms")


@dataclass(frozen=True)
class Row:
    """A row of the table: what was measured, the result, and remarks."""

    what: str
    result: str
    remarks: str = ""


def step_row(what: str, seconds: float, n_tokens: int, remarks: str = "") -> Row:
    return Row(what, f"{seconds * 1e3:.2f} ms a step, {n_tokens / seconds:,.0f} tokens/s", remarks)


def failed_row(what: str, error: Exception | str) -> Row:
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return Row(what, "failed", " ".join(reason.split())[:160])


def fit_rows(sizes: Sizes, config: str, how: str) -> Iterator[Row]:
    """Train by `gptlit fit` in the current folder."""
    Path("text.txt").write_text(random_text(sizes.n_characters), encoding="utf-8")
    # logs, validates and samples as the configs do, and compiling is the only choice
    code = run_quietly(
        gpu.gptlit,
        [
            "fit",
            f"--config={config}",
            "--data.path=text.txt",
            f"--model.compile={how}",
            f"--trainer.accelerator={sizes.device}",
            f"--trainer.max_steps={sizes.fit_steps}",
            f"--trainer.val_check_interval={sizes.fit_steps // 2}",
            "--trainer.enable_progress_bar=false",
            f"--trainer.callbacks={gpu.Clock.__module__}.Clock",
            "--trainer.callbacks.mode=fit",
            *sizes.fit_options,
        ],
    )
    if code:
        raise RuntimeError(f"gptlit fit exited with {code}")
    run = gpu.RUN
    median, mean = statistics.median(run.steps), statistics.fmean(run.steps)
    what = f"`gptlit fit --config {config} --model.compile {how}`"
    rest = run.in_all - run.training(run.n_steps - gpu.Clock.WARMUP)
    remarks = f"{run.precision}; mean {mean * 1e3:.2f} ms; "
    remarks += f"first {gpu.Clock.WARMUP} steps {run.compiling:.1f} s; "
    remarks += f"validations, samples and saving {max(rest, 0):.1f} s of {run.in_all:.1f} s"
    yield step_row(what, median, run.tokens_per_step, remarks)


def start_rows(sizes: Sizes, config: str) -> Iterator[Row]:
    """Time a fit from the command to its first step, compiled anew and from the cache."""
    Path("text.txt").write_text(random_text(sizes.n_characters), encoding="utf-8")
    command = [sys.executable, "-m", "gptlit", "fit", f"--config={config}", "--data.path=text.txt"]
    command += [
        f"--trainer.accelerator={sizes.device}",
        "--trainer.max_steps=2",
        *sizes.fit_options,
    ]
    command += ["--trainer.limit_val_batches=0", "--model.compile=graph"]
    variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(Path("compiled").resolve())}
    for code in ("compiled anew", "from the cache of compiled code"):
        began, first = time.perf_counter(), None
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if first is None and line.startswith("first loss"):
                    first = time.perf_counter() - began
        if process.returncode or first is None:
            raise RuntimeError(f"gptlit fit exited with {process.returncode}")
        what = f"`gptlit fit --config {config} --model.compile graph`, {code}"
        yield Row(what, f"{first:.1f} s from the command to the first loss")


def graph_rows(sizes: Sizes, config: str, optimizer: Literal["adamw", "muon"]) -> Iterator[Row]:
    """Train by `gptlit fit` with captured steps, then time the net in a bare captured loop."""
    yield from fit_rows(sizes, config, "graph")
    median = statistics.median(gpu.RUN.steps)
    loop = Bare(sizes, config, optimizer)
    step = loop.captured("default") if sizes.device == "cuda" else loop.made().step
    seconds = median_of(step, sizes.bare_steps, loop.device)
    ratio = f"`gptlit fit` takes {median / seconds:.2f} times as long"
    what = f"bare loop, {config}'s net, {optimizer}, compiled and captured, in the same process"
    yield step_row(what, seconds, loop.tokens, ratio)


def bare_rows(sizes: Sizes, name: str, optimizer: Literal["adamw", "muon"]) -> Iterator[Row]:
    """Time the nets of `fit` in a bare loop: eager, captured, and compiled."""
    loop = Bare(sizes, name, optimizer)
    ways: dict[str, Callable[[], Callable[[], object]]] = {"eager": lambda: loop.made().step}
    if loop.device.type == "cuda":
        ways["whole step captured"] = loop.captured
        ways["reduce-overhead"] = lambda: loop.made("reduce-overhead").step
    for way, make in ways.items():
        what = f"bare loop, {name}'s net, {optimizer}, {way}"
        try:
            seconds = median_of(make(), sizes.bare_steps, loop.device)
            yield step_row(what, seconds, loop.tokens)
        except Exception as error:  # the other ways are still measured
            yield failed_row(what, error)


def generation_rows(sizes: Sizes) -> Iterator[Row]:
    """Write with random weights, by captured steps on CUDA."""
    device = torch.device(sizes.device)
    shape, _, _ = shape_of(sizes.small)
    model = GPT(GPTConfig(vocab_size=65, **shape)).to(device).eval()
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        for batch in sizes.batches:
            seconds = []
            for n_tokens in (8, sizes.n_tokens, sizes.n_tokens):  # the first warms up
                prompts = torch.zeros(batch, 1, dtype=torch.long, device=device)
                settings = SamplingSettings(max_new_tokens=n_tokens)
                wait_for(device)
                began = time.perf_counter()
                for _ in generate_chunks(model, prompts, settings, range(batch)):
                    pass
                wait_for(device)
                seconds.append(time.perf_counter() - began)
            rate = batch * sizes.n_tokens / min(seconds[1:])
            weights = str(dtype).removeprefix("torch.")
            what = f"generation, {model.num_parameters():,} parameters, batch {batch}, {weights}"
            yield Row(what, f"{rate:,.0f} tokens/s", f"{sizes.n_tokens} tokens each; best of 2")


def gpt2_rows(sizes: Sizes) -> Iterator[Row]:
    """Time a step of GPT-2 124M."""
    device = torch.device(sizes.device)
    shape, block, batch = shape_of(sizes.gpt2)
    config = GPTConfig(vocab_size=sizes.gpt2_vocab, dropout=0.0, activation="gelu_tanh", **shape)
    ids = random_ids(max(100_000, 2 * block), sizes.gpt2_vocab, device)
    peak = peaks.tflops(name_of(device))
    ways: list[tuple[str, str | None, LossOf, bool]] = [
        ("eager, all logits at once", None, at_once, False),
        ("eager", None, in_chunks, False),
        ("eager, activation checkpointing", None, in_chunks, True),
    ]
    if device.type == "cuda":
        ways.append(("torch.compile", "default", in_chunks, False))
    for way, mode, loss_of, checkpointing in ways:
        what = f"GPT-2 124M, {batch} x {block:,}, {way}"
        net = GPT(replace(config, activation_checkpointing=checkpointing)).to(device).train()
        adamw = optimizers.build(net, Recipe(), fused=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            step = Loop(net, adamw, ids, batch, mode, loss_of).step
            seconds = median_of(step, sizes.gpt2_steps, device)
        except Exception as error:
            yield failed_row(what, error)
            continue
        rate = batch * block / seconds
        rows = rows_at_once(net, batch * block, device) if loss_of is in_chunks else None
        precision = "bf16-mixed" if device.type == "cuda" else "32-true"
        estimate = cost.memory(net, batch, precision, device.type, rows=rows).total
        remarks = [] if rows is None else [f"logits of {rows:,} tokens at once"]
        if peak is not None:
            share = rate * cost.training_flops_per_token(net, causal=False) / (peak * 1e12)
            remarks.append(f"MFU {share:.1%} of {peak:g} TFLOP/s")
        if device.type == "cuda":
            remarks.append(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
        remarks.append(f"estimated memory {estimate / 1e9:.1f} GB")
        yield step_row(what, seconds, batch * block, "; ".join(remarks))


def nanogpt_rows(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Train by nanoGPT's train.py in a copy of its folder."""
    text = random_text(sizes.n_characters)
    kinds = sorted(set(text))
    ids = np.searchsorted(np.array(kinds), np.array(list(text))).astype(np.uint16)
    copy = Path("nanogpt")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".git", "*.bin", "*.pt"))
    data = copy / "data" / "random_char"
    data.mkdir(parents=True)
    n_train = int(0.9 * len(ids))
    ids[:n_train].tofile(data / "train.bin")
    ids[n_train:].tofile(data / "val.bin")
    index = dict(enumerate(kinds))
    meta = {"vocab_size": len(kinds), "itos": index, "stoi": {c: i for i, c in index.items()}}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    options = [
        "--dataset=random_char", f"--max_iters={sizes.nanogpt_steps}", "--eval_iters=1",
        "--eval_interval=1000000", "--log_interval=10", "--always_save_checkpoint=False",
        f"--device={sizes.device}",
    ]  # fmt: skip
    if sizes.device == "cpu":
        n_layer, n_head, n_embd, block, batch = sizes.small
        options += [
            "--compile=False", "--dtype=float32", f"--n_layer={n_layer}", f"--n_head={n_head}",
            f"--n_embd={n_embd}", f"--block_size={block}", f"--batch_size={batch}",
        ]  # fmt: skip
    command = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py", *options]
    lines, arrivals = [], []
    with subprocess.Popen(
        command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := NANOGPT_LINE.match(line):
                # a printed line has waited for the device
                arrivals.append((int(found[1]), time.perf_counter()))
    if process.returncode or len(arrivals) < 3:
        raise RuntimeError(f"train.py exited with {process.returncode}: {''.join(lines[-3:])}")
    arrivals = arrivals[len(arrivals) // 3 :]  # without compiling
    seconds = [
        (end - begin) / (last - first)
        for (first, begin), (last, end) in itertools.pairwise(arrivals)
    ]
    per_step = sizes.small[-1] * sizes.small[-2]
    yield step_row("nanoGPT's train.py", statistics.median(seconds), per_step, "as it is shipped")


def parts_of(sizes: Sizes, nanogpt: Path | None) -> dict[str, Callable[[], Iterator[Row]]]:
    """Return the parts in the order in which they run, the most important first."""
    part = functools.partial
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "fit medium graph": part(graph_rows, sizes, "medium.yaml", "adamw"),
        "fit best_gpu graph": part(graph_rows, sizes, "best_gpu.yaml", "muon"),
        "start": part(start_rows, sizes, "medium.yaml"),
        "bare medium": part(bare_rows, sizes, "medium.yaml", "adamw"),
        "generation": part(generation_rows, sizes),
        "gpt2": part(gpt2_rows, sizes),
        "fit medium": part(fit_rows, sizes, "medium.yaml", "false"),
        "fit medium compiled": part(fit_rows, sizes, "medium.yaml", "true"),
        "bare best_gpu": part(bare_rows, sizes, "best_gpu.yaml", "muon"),
        "fit best_gpu compiled": part(fit_rows, sizes, "best_gpu.yaml", "true"),
        "fit best_gpu": part(fit_rows, sizes, "best_gpu.yaml", "false"),
    }
    if nanogpt is not None:
        parts["nanogpt"] = part(nanogpt_rows, sizes, nanogpt)
    return parts


def run_quietly(function: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Call a function with its standard output sent to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        return function(arguments)
