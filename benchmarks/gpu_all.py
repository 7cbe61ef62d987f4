"""Everything that is measured on a GPU, in one call of at most 8 minutes: `make gpu`.

    PYTHONPATH=. python benchmarks/gpu_all.py [--output gpu.md] [--nanogpt FOLDER] [--limit 480]
    PYTHONPATH=. python benchmarks/gpu_all.py --dry

Runs tests/gpu, then each part in a process of its own, and prints one Markdown table for
BENCHMARKS.md with device, driver, versions and date. A part that fails or for which no time is left
is a row that says so. gptlit need not be installed. --dry uses tiny sizes on the CPU, to try the
script itself: its figures mean nothing. --parts chooses some of the parts.

- tests: tests/gpu, with a summary of the results.
- fit: `gptlit fit` with medium.yaml and best_gpu.yaml, --model.compile false, true and graph;
  medians over the steps without validations and samples, timed as in gpu.py. After graph, the same
  net is timed in a bare loop, compiled and with the whole step captured, in the same process.
- bare: the same nets and batches in a bare loop, with the batch cut on the device: eager, with the
  whole step captured as a CUDA graph, and compiled with reduce-overhead.
- generation: tokens per second of 10.7M parameters with random weights at batches of 1 to 512.
- gpt2: a step of GPT-2 124M, 16 windows of 1,024 tokens, with its MFU and peak memory: eager with
  all logits at once, with the loss in chunks, with activation checkpointing as well, and compiled.
- nanogpt: nanoGPT's train.py on the same text, if --nanogpt names its folder.

The text is random, since speed does not depend on it: 1,115,394 characters of 65 kinds, as many as
Tiny Shakespeare has. NOT yet run on a GPU.
"""

import argparse
import collections
import contextlib
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import pickle
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import gpu
import numpy as np
import torch
import yaml
from train_step import random_text, wait_for

from gptlit.devices.accelerators import name_of
from gptlit.files import configs_folder
from gptlit.generation.generate import generate_chunks
from gptlit.generation.settings import SamplingSettings
from gptlit.model import cost
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.optim import optimizers
from gptlit.optim.optimizers import Recipe
from gptlit.steps.losses import objective, of_batch, rows_at_once

SCRIPT = Path(__file__).resolve()
ROOT = SCRIPT.parent.parent
N_CHARACTERS = 1_115_394
STOPPED = 124  # exit code of a process that is stopped at its limit
LossOf = Callable[[GPT, torch.Tensor, torch.Tensor], torch.Tensor]
NANOGPT_LINE = re.compile(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms")


@dataclass(frozen=True)
class Row:
    """A row of the table: what was measured, the result, and remarks."""

    what: str
    result: str
    remarks: str = ""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts, on a GPU or for a dry run."""

    device: str = "cuda"
    n_characters: int = N_CHARACTERS
    fit_steps: int = 400
    fit_options: tuple[str, ...] = ()
    bare_steps: int = 100
    small: tuple[int, int, int, int, int] = (6, 6, 384, 256, 64)  # layers, heads, width, T, B
    gpt2: tuple[int, int, int, int, int] = (12, 12, 768, 1024, 16)
    gpt2_vocab: int = 50304  # 50,257, padded to a multiple of 64
    gpt2_steps: int = 20
    batches: tuple[int, ...] = (1, 8, 64, 512)
    n_tokens: int = 240
    nanogpt_steps: int = 500


DRY = Sizes(
    device="cpu",
    n_characters=5000,
    fit_steps=12,
    fit_options=(
        "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=8",
        "--data.batch_size=4", "--samples.max_new_tokens=4",
    ),
    bare_steps=4,
    small=(1, 2, 16, 8, 4),
    gpt2=(1, 2, 16, 64, 64),
    gpt2_vocab=600,
    gpt2_steps=3,
    batches=(1, 8),
    n_tokens=6,
    nanogpt_steps=20,
)  # fmt: skip


# ---------------------------------------------------------------------- parts


def shape_of(numbers: tuple[int, int, int, int, int]) -> tuple[dict[str, Any], int, int]:
    """Return options of GPTConfig, the block size and the batch size."""
    n_layer, n_head, n_embd, block, batch = numbers
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block}
    return shape, block, batch


def config_of(name: str, sizes: Sizes, vocab_size: int = 65) -> tuple[GPTConfig, Recipe]:
    """Return the net and the recipe of a shipped config, at the part's sizes."""
    options = yaml.safe_load((configs_folder() / name).read_text(encoding="utf-8"))["model"]
    parts, recipe = (
        {each.name: options[each.name] for each in fields(kind) if each.name in options}
        for kind in (GPTConfig, Recipe)
    )
    parts |= shape_of(sizes.small)[0] | {"vocab_size": vocab_size}
    return GPTConfig(**parts), Recipe(**recipe)


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


def step_row(what: str, seconds: float, n_tokens: int, remarks: str = "") -> Row:
    return Row(what, f"{seconds * 1e3:.2f} ms a step, {n_tokens / seconds:,.0f} tokens/s", remarks)


def median_of(step: Callable[[], object], n_steps: int, device: torch.device) -> float:
    """Return the median seconds of a step over 5 stretches of steps, after a warmup."""
    for _ in range(max(3, n_steps // 10)):
        step()
    seconds = []
    for _ in range(5):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(max(1, n_steps // 5)):
            step()
        wait_for(device)
        seconds.append((time.perf_counter() - began) / max(1, n_steps // 5))
    return statistics.median(seconds)


def at_once(net: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of (B, T) inputs and targets, from all logits at once."""
    return objective(net(inputs), targets)[0]


def in_chunks(net: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the same as gptlit computes it: in chunks, where the logits are large."""
    return of_batch(net, inputs, targets)[0]


class Loop:
    """A bare training loop: batch, forward, backward, clipping and optimizer.

    Args:
        net: Net in training mode, on the device.
        optimizer: Its optimizer.
        ids: Token ids on the device, from which a step cuts its batch.
        batch: Number of windows.
        mode: Mode of torch.compile for the net with its loss, or None for eager steps.
        loss_of: Function that computes the loss.
    """

    def __init__(
        self, net: GPT, optimizer: torch.optim.Optimizer, ids: torch.Tensor, batch: int,
        mode: str | None = None, loss_of: LossOf = at_once,
    ) -> None:  # fmt: skip
        self.net = net
        self.optimizer = optimizer
        self.ids = ids
        self.batch = batch
        loss = functools.partial(loss_of, net)
        self.loss = loss if mode is None else torch.compile(loss, mode=mode)
        self.offsets = torch.arange(net.config.block_size, device=ids.device)

    def step(self) -> None:
        """Make a step; may be captured as a CUDA graph after some steps."""
        device = self.ids.device
        size = (self.batch, 1)
        starts = torch.randint(len(self.ids) - len(self.offsets) - 1, size, device=device)
        at = starts + self.offsets
        on_gpu = device.type == "cuda"
        # a cache of cast weights would outlive the captured step
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            loss = self.loss(self.ids[at], self.ids[at + 1])
        loss.backward()
        parameters = list(self.net.parameters())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph, and return the function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def random_ids(n_ids: int, vocab_size: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (n_ids,), generator=generator).to(device)


class Bare:
    """Makes bare loops of a config's net.

    Args:
        sizes: Sizes of the net and its batches.
        name: Name of the config.
        optimizer: Optimizer, with the config's options.
    """

    def __init__(self, sizes: Sizes, name: str, optimizer: Literal["adamw", "muon"]) -> None:
        self.device = torch.device(sizes.device)
        self._config, recipe = config_of(name, sizes)
        self._recipe = replace(recipe, optimizer=optimizer)
        self._ids = random_ids(sizes.n_characters, 65, self.device)
        self._batch = sizes.small[-1]
        self.tokens = self._batch * self._config.block_size  # of a step

    def made(self, mode: str | None = None) -> Loop:
        net = GPT(self._config).to(self.device).train()
        optimizer = optimizers.build(net, self._recipe, fused=True)
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True  # AdamW refuses to be captured without it
        return Loop(net, optimizer, self._ids, self._batch, mode)

    def captured(self, mode: str | None = None) -> Callable[[], None]:
        return captured(self.made(mode).step)


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
    peak = gpu.peak_tflops(name_of(device))
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


# ---------------------------------------------------------------------- the table


def failed_row(what: str, error: Exception | str) -> Row:
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return Row(what, "failed", " ".join(reason.split())[:160])


def test_row(device: str, limit: float) -> Row:
    """Run tests/gpu and count the results, also of a call that is stopped at its limit."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-vv", "tests/gpu"]
    done = run_limited(command, limit, ROOT, GPTLIT_TEST_DEVICE=device)
    sys.stderr.write(done.stdout + done.stderr)
    results = re.findall(
        r"^(tests/gpu/\S+) (PASSED|FAILED|SKIPPED|ERROR)", done.stdout, re.MULTILINE
    )
    if not results:
        return failed_row("tests/gpu", f"exit code {done.returncode}: {done.stderr[-120:]}")
    counts = collections.Counter(outcome.lower() for _, outcome in results)
    result = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    names = [name for name, outcome in results if outcome in ("FAILED", "ERROR")]
    seconds = f"{time.monotonic() - began:.0f} s"
    if done.returncode == STOPPED:
        seconds = f"stopped after {seconds}, the last finished: {results[-1][0]}"
    return Row("tests/gpu", result, " ".join([seconds, *names]))


def part_rows(name: str, arguments: list[str], limit: float) -> list[Row]:
    """Run a part in a process of its own, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SCRIPT), "--only", name, *arguments]
        done = run_limited(command, limit, Path(folder))
    sys.stderr.write(done.stderr)
    rows = [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == STOPPED:
        rows.append(Row(name, "not finished", f"stopped after {limit:.0f} s"))
    elif done.returncode:
        *_, reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        rows.append(failed_row(name, reason))
    return rows


def run_limited(
    command: list[str], limit: float, folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with the source tree on Python's path.

    At the limit it is stopped, with the processes that it started, and its exit code is STOPPED.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return subprocess.CompletedProcess(command, STOPPED, out, err)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def machine(sizes: Sizes) -> Iterator[Row]:
    """Describe device, driver, versions and date."""
    device = torch.device(sizes.device)
    yield Row("device", name_of(device), f"{os.cpu_count()} CPU cores")
    yield Row("driver", driver(), f"CUDA of torch: {torch.version.cuda or 'none'}")
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "lightning")]
    yield Row("versions", ", ".join(versions), f"gptlit at {commit()}")
    now = datetime.datetime.now(datetime.UTC)
    yield Row("date", f"{now:%Y-%m-%d %H:%M} UTC", "`make gpu`")


def driver() -> str:
    """Return the version of NVIDIA's driver, or "none"."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return (done.stdout.splitlines() or ["none"])[0] if not done.returncode else "none"


def commit() -> str:
    """Return the short hash of the source tree's commit, or "an unknown commit"."""
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "an unknown commit"
    return done.stdout.strip() or "an unknown commit"


def table(rows: list[Row], dry: bool) -> str:
    """Format a section of BENCHMARKS.md."""
    title = "A dry run on the CPU: the figures mean nothing" if dry else "On a GPU"
    escaped = [
        [cell.replace("|", "\\|") for cell in (row.what, row.result, row.remarks)] for row in rows
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in escaped]
    return "\n".join([f"## {title}", "", "| what | result | remarks |", "|---|---|---|", *lines])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--nanogpt", type=Path, help="folder of nanoGPT's train.py")
    parser.add_argument("--output", type=Path, help="file to which the table is written as well")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for all parts")
    parser.add_argument("--parts", nargs="*", help="names of parts; tests is one")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sizes = DRY if given.dry else Sizes()
    if sizes.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is false; --dry tries the script")
    nanogpt = given.nanogpt and given.nanogpt.expanduser().resolve()
    parts = parts_of(sizes, nanogpt)
    if given.only:
        for row in parts[given.only]():
            print(json.dumps(vars(row)), flush=True)
        return
    chosen = given.parts or ["tests", *parts]
    if unknown := set(chosen) - {"tests", *parts}:
        raise SystemExit(f"--parts {' '.join(unknown)}: choose from tests, {', '.join(parts)}")
    if given.dry:
        os.environ["OMP_NUM_THREADS"] = "1"  # tiny sizes, and several ranks in the tests
    end = time.monotonic() + given.limit
    words = ["--dry"] * given.dry + ([f"--nanogpt={nanogpt}"] if nanogpt else [])
    rows = list(machine(sizes))
    for name in chosen:
        left = end - time.monotonic()
        if left < 5:
            rows.append(Row(name, "not measured", "no time was left"))
        elif name == "tests":
            rows.append(test_row(sizes.device, min(left, given.limit / 3)))
        else:
            rows += part_rows(name, words, left)
        # also printed if the call is stopped before its end
        left = end - time.monotonic()
        print(f"{name}: {left:.0f} s left", *rows[-4:], sep="\n  ", file=sys.stderr)
    text = table(rows, given.dry)
    print(text)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
