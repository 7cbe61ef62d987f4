"""`gptlit summary`: prints the size, memory and time of a run without training it."""

import statistics
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import lightning as L
import torch
from torch import nn

from gptlit.data.loaders import Batch
from gptlit.devices.accelerators import name_of
from gptlit.model import cost, module_tree
from gptlit.model.activation_memory import bytes_of
from gptlit.terminal import align_columns, count_of, duration
from gptlit.training import run_length
from gptlit.training.module import LitGPT

COLUMNS = 80
LONGEST_NAME = 50
WARMUP_STEPS = 3
PROBE_STEPS = 20
PROBE_SECONDS = 4.0
OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "muon": "Muon, AdamW"}
Rows = list[tuple[str, str]]


def report(trainer: L.Trainer, module: LitGPT, precision_reason: str) -> str:
    """Return the summary, in lines of at most COLUMNS; measures a few steps.

    Args:
        trainer: Unused Trainer whose data module is set up.
        module: Module whose net is built.
        precision_reason: Reason for the precision; "" shows none.
    """
    net, text, options = module.net, module.text, module.options
    precision, device = str(trainer.precision), trainer.strategy.root_device
    at_once = module.logits_at_once
    memory = cost.memory(
        net, text.batch_size, precision, device.type, options, bool(options.ema), at_once
    )
    memory = replace(memory, text=text.bytes_on(device))
    if module.teachers:
        n_tokens = text.batch_size * text.block_size
        n_bytes = module.teachers.n_bytes(n_tokens, bytes_of(precision).value)
        memory = replace(memory, teachers=n_bytes)
    batch = f"{text.batch_size} windows of {text.block_size} tokens, {precision}"
    sections = {
        "parameters": parameter_rows(module),
        f"memory on each device ({batch})": memory_rows(memory, options.optimizer, at_once),
        "operations": flops_rows(module),
        "training": training_rows(module),
        "time": time_rows(trainer, module),
    }
    parts = [f"model\n{module_tree.lines(net)}"]
    for name, rows in sections.items():
        lines = align_columns(rows, left=(0, 1))
        parts.append("\n  ".join([name, *lines]))
    if precision_reason:
        parts.append(textwrap.fill(f"{precision}: {precision_reason}", COLUMNS))
    if options.compile:
        parts.append(textwrap.fill(f"compile: {module.compiled.decide(module)}", COLUMNS))
    return "\n\n".join(parts)


def _share(count: int, total: int) -> str:
    return f"{count:>15,}  {count / total:>6.1%}"


# ---------------------------------------------------------------------- rows


def parameter_rows(module: LitGPT) -> Rows:
    """Return parameter counts by component, and of trainable and decayed parameters."""
    net = module.net
    counts, total = cost.parameters(net), net.num_parameters()
    tied = " (also the head)" if net.config.tie_weights else ""
    rows = [
        (name + (tied if name == "embedding" else ""), _share(count, total))
        for name, count in counts.items()
        if count
    ]
    decayed, undecayed = cost.decayed(net, module.options)
    return [
        *rows,
        ("total", _share(total, total)),
        ("trainable", _share(cost.trainable(net), total)),
        ("weight decay", _share(decayed, total)),
        ("no weight decay", _share(undecayed, total)),
    ]


def size(n_bytes: int) -> str:
    """Format bytes in units of 10^6 or 10^9: 0.05 MB, 12.3 MB, 1.23 GB."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.{1 if n_bytes >= 1e7 else 2}f} MB"


def memory_rows(memory: cost.Memory, optimizer: str, at_once: int | None = None) -> Rows:
    """Return the memory of each use.

    Args:
        memory: Bytes.
        optimizer: The option `model.optimizer`.
        at_once: Number of tokens whose logits are computed at once; None for all of a batch.
    """
    in_chunks = "" if at_once is None else f", logits of {at_once:,} tokens at once"
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        f"optimizer ({OPTIMIZERS[optimizer]})": memory.optimizer,
        **({"moving average": memory.average} if memory.average else {}),
        **({"token ids": memory.text} if memory.text else {}),
        **({"teachers": memory.teachers} if memory.teachers else {}),
        f"activations at peak{in_chunks}": memory.activations,
        "total, at most": memory.total,
    }
    return [(name, f"{size(n_bytes):>12}") for name, n_bytes in parts.items()]


def operations(count: float) -> str:
    """Format a count with a metric prefix: 1.62 M, 95.1 G."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {prefix}"
    return f"{count:.3g} "


def flops_rows(module: LitGPT) -> Rows:
    """Return FLOPs per token and step, with and without the masked half of attention."""
    net, teachers = module.net, module.teachers
    per_step = module.text.windows_per_step * module.text.block_size
    counts: dict[str, tuple[int, Callable[..., int]]] = {
        "per token, forward": (1, partial(cost.flops_per_token, net)),
        "per token, training": (1, partial(cost.training_flops_per_token, net)),
        "per step": (per_step, partial(_step_flops_per_token, module)),
    }
    if teachers:
        counts["teachers' part of it"] = (per_step, teachers.flops_per_token)
    rows = []
    for name, (n_tokens, count) in counts.items():
        full, half = (operations(count(causal=causal) * n_tokens) for causal in (False, True))
        without_mask = f"   ({half}FLOP without masked scores)" if full != half else ""
        rows.append((name, f"{full + 'FLOP':>12}{without_mask}"))
    return rows


def _step_flops_per_token(module: LitGPT, *, causal: bool = False) -> int:
    """Return FLOPs of training for a token, with the teachers' forward passes."""
    own = cost.training_flops_per_token(module.net, causal=causal)
    return own + (module.teachers.flops_per_token(causal=causal) if module.teachers else 0)


def training_rows(module: LitGPT) -> Rows:
    """Return the text's size, and the tokens, epochs and tokens per parameter of the run."""
    text, n_parameters = module.text, module.net.num_parameters()
    per_step = text.windows_per_step * text.block_size
    name = str(text.tokens.provenance["name"])
    rows = [
        ("text", name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"),
        ("tokens in the text", f"{text.n_train_tokens:>15,}"),
        ("tokens per step", f"{per_step:>15,}"),
        ("steps per epoch", f"{text.steps_per_epoch:>15,}"),
    ]
    steps = run_length.steps_of_run(module.trainer)
    wanted = f"{cost.RULE_OF_20} would be {cost.RULE_OF_20 * n_parameters:,} tokens"
    if steps is None:
        return [*rows, ("steps", "no limit"), ("rule of 20", wanted)]
    n_tokens = steps * per_step
    epochs = steps / text.steps_per_epoch if text.steps_per_epoch else float("inf")
    return [
        *rows,
        ("steps", f"{steps:>15,}"),
        ("tokens seen", f"{n_tokens:>15,}   {epochs:.2f} epochs"),
        ("tokens per parameter", f"{n_tokens / n_parameters:>15.2f}   {wanted}"),
    ]


def time_rows(trainer: L.Trainer, module: LitGPT) -> Rows:
    """Return the measured time of a step, and the time of the run computed from it."""
    device, text = trainer.strategy.root_device, module.text
    step = measure(trainer, module)
    n_windows = text.batch_size * trainer.accumulate_grad_batches  # on this device
    flops = _step_flops_per_token(module) * n_windows * text.block_size
    name = name_of(device)
    on_cpu = device.type == "cpu"
    threads = f", {count_of(torch.get_num_threads(), 'thread')}" if on_cpu else ""
    choice = module.compiled.decide(module)
    eagerly = ", run eagerly" if choice.compiles or choice.captures else ""
    took = f"{step.seconds:.3g} s" if step.seconds >= 1 else f"{step.seconds * 1e3:.3g} ms"
    rows = [
        ("time per step", f"{took:>15}   median of {step.n_steps} on {name}{threads}{eagerly}"),
        ("speed", f"{operations(flops / step.seconds) + 'FLOP/s':>15}   per device"),
    ]
    if step.n_windows < n_windows:
        measured = f"{step.n_windows:>15}   of a step's {n_windows} windows, then scaled up"
        rows.append(("measured on", measured))
    if (steps := run_length.steps_of_run(trainer)) is not None:
        whole = f"{duration(steps * step.seconds):>15}   without start-up and validation"
        rows.append(("whole run", whole))
    return rows


# ---------------------------------------------------------------------- the probe


@dataclass(frozen=True)
class Measured:
    """The measured time of a step.

    Args:
        seconds: Median time of a step.
        n_steps: Number of measured steps.
        n_windows: Number of a step's windows that were computed.
    """

    seconds: float
    n_steps: int
    n_windows: int


def measure(
    trainer: L.Trainer, module: LitGPT, clock: Callable[[], float] = time.perf_counter
) -> Measured:
    """Measure the time of an optimizer step on this machine; this changes the net.

    A step is forward, loss, backward, clipping and optimizer, for all accumulated batches.
    WARMUP_STEPS are not counted, and no step begins after PROBE_SECONDS. If a step takes more
    than a third of that, only some of its windows are computed.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    precision.convert_module(module)
    module.to(device).train()
    if module.teachers:
        module.teachers.place(device, precision.convert_module)
    optimizer = module.configure_optimizers()["optimizer"]
    loader = iter(_endless(module))

    def forward_backward(n_windows: int, n_batches: int) -> None:
        for _ in range(n_batches):
            inputs, targets = (part[:n_windows].to(device) for part in next(loader))
            with precision.forward_context():
                loss, _ = module.compiled.objective(module.net, inputs, targets)
            loss.backward()

    def update() -> None:
        if trainer.gradient_clip_val:
            nn.utils.clip_grad_norm_(module.parameters(), trainer.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad()

    def timed(work: Callable[..., None], *arguments: int) -> float:
        began = clock()
        work(*arguments)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return clock() - began

    forward_backward(1, 1)
    affordable = int(PROBE_SECONDS / 3 / max(timed(forward_backward, 1, 1), 1e-6))
    n_windows, n_batches = module.text.batch_size, trainer.accumulate_grad_batches
    windows_per_step = n_windows * n_batches
    if affordable < windows_per_step:
        n_windows, n_batches = max(1, min(n_windows, affordable)), 1
    step_seconds: list[float] = []
    began = clock()
    while len(step_seconds) < WARMUP_STEPS + PROBE_STEPS and clock() - began < PROBE_SECONDS:
        passed = (
            timed(forward_backward, n_windows, n_batches)
            * windows_per_step
            / (n_windows * n_batches)
        )
        step_seconds.append(passed + timed(update))
    counted = step_seconds[min(WARMUP_STEPS, len(step_seconds) - 1) :]
    return Measured(statistics.median(counted), len(counted), n_windows * n_batches)


def _endless(module: LitGPT) -> Iterator[Batch]:
    while True:
        yield from module.text.train_dataloader()
