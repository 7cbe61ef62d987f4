"""The device that writes texts soonest, or that an option names."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from gptlit.devices import accelerators
from gptlit.messages import UsageError

AUTO = "auto"
NAMES = "auto, cpu, cuda, cuda:N or mps"
ROWS_AT_ONCE = 64  # texts that are written in a batch


class Speed(NamedTuple):
    """Estimates of what a device needs to write.

    Args:
        start: Seconds until it computes: a context, kernels, captured steps.
        step: Seconds of a step for one token in each row, however small the model.
        bytes_per_s: Bytes of weights that it reads in a second.
        flops: Floating-point operations in a second.
    """

    start: float
    step: float
    bytes_per_s: float
    flops: float


# estimates for two cores of a CPU, a data center's GPU and one of Apple's; none was measured
SPEEDS = {
    "cpu": Speed(start=0.0, step=5e-4, bytes_per_s=1e10, flops=5e10),
    "cuda": Speed(start=4.0, step=4e-4, bytes_per_s=5e11, flops=1e13),
    "mps": Speed(start=2.0, step=4e-3, bytes_per_s=1e11, flops=2e12),
}


def seconds(kind: str, n_parameters: int, n_texts: int, n_tokens: int) -> float:
    """Estimate the time in which a type of device writes texts in float32."""
    speed = SPEEDS[kind]
    whole, rest = divmod(n_texts, ROWS_AT_ONCE)
    rows_of_batches = [ROWS_AT_ONCE] * whole + [rest] * (rest > 0)
    steps = (
        speed.step
        + max(4 * n_parameters / speed.bytes_per_s, 2 * n_parameters * rows / speed.flops)
        for rows in rows_of_batches
    )
    return speed.start + n_tokens * sum(steps)


def soonest(
    n_parameters: int,
    n_texts: int,
    n_tokens: int,
    fastest: Callable[[], str] = accelerators.fastest,
) -> str:
    """Return the type of device that writes texts soonest, by the estimates of SPEEDS.

    Args:
        n_parameters: Parameters of the model.
        n_texts: Number of texts.
        n_tokens: Tokens of each text.
        fastest: Returns the type of the machine's fastest device. To look for a GPU takes time as
            well, so it is not called where no GPU could be sooner.
    """
    work = (n_parameters, n_texts, n_tokens)
    on_cpu = seconds("cpu", *work)
    if all(on_cpu <= seconds(kind, *work) for kind in SPEEDS):
        return "cpu"
    kind = fastest()
    return kind if seconds(kind, *work) < on_cpu else "cpu"


def named(option: str) -> torch.device | None:
    """Return the device that an option names; None for auto.

    Raises:
        UsageError: It names no device, or one that this machine doesn't have.
    """
    kind, _, index = option.partition(":")
    if option == AUTO:
        return None
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,4})?", option):
        raise UsageError(f"must be {NAMES}", "device", option)
    if kind == "mps" and not accelerators.mps_is_available():
        raise UsageError("this machine has no GPU of Apple's; use cpu or auto", "device", option)
    if kind == "cuda":
        n_gpus = torch.cuda.device_count()
        if n_gpus == 0:
            reason = "PyTorch finds no GPU with CUDA on this machine; use cpu or auto"
            raise UsageError(reason, "device", option)
        if index and int(index) >= n_gpus:
            reason = f"PyTorch finds {n_gpus}, the last of them cuda:{n_gpus - 1}"
            raise UsageError(reason, "device", option)
    return torch.device(option)
