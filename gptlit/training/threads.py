"""The number of CPU threads that PyTorch computes with; needs no Lightning."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from gptlit.devices import cpus

OMP = "OMP_NUM_THREADS"
VARIABLES = (OMP, "MKL_NUM_THREADS")
MARGIN = 1.25  # fewer threads must be so many times as fast
COMPARE_SECONDS = 0.6
MOST_ROUNDS = 20


@dataclass(frozen=True)
class Threads:
    """A number of threads.

    Args:
        n: Number of threads.
        reason: Why there are so many; empty for as many as PyTorch takes by itself.
        is_given: Whether the user has chosen the number.
    """

    n: int
    reason: str = ""
    is_given: bool = False


@contextlib.contextmanager
def using(option: int = 0, n_processes: int = 1) -> Iterator[Threads]:
    """Compute with a number of threads, and restore the number before at the end.

    Args:
        option: Number of threads; 0 for that of OMP_NUM_THREADS or MKL_NUM_THREADS, else as many
            as the process may use CPUs.
        n_processes: Number of processes that share these CPUs.
    """
    before, variable = torch.get_num_threads(), os.environ.get(OMP)
    threads = _choose(option, n_processes, before)
    torch.set_num_threads(threads.n)
    if n_processes > 1:
        os.environ[OMP] = str(threads.n)  # for the processes that Lightning starts
    try:
        yield threads
    finally:
        torch.set_num_threads(before)
        if n_processes > 1:
            os.environ.pop(OMP)
            os.environ |= {OMP: variable} if variable is not None else {}


def _choose(option: int, n_processes: int, before: int) -> Threads:
    if option:
        return Threads(option, "as given", is_given=True)
    for variable in VARIABLES:
        if os.environ.get(variable):
            return Threads(before, f"by {variable}", is_given=True)
    n = max(1, min(before, cpus.usable() // n_processes))
    return Threads(n, "the CPUs that this process may use" if n < before else "")


# ---------------------------------------------------------------------- comparison


def candidates(most: int) -> list[int]:
    """Return the numbers of threads to compare: `most`, and halves of it down to 1."""
    found = [most]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def compare(
    work: Callable[[], object],
    numbers: Sequence[int],
    *,
    clock: Callable[[], float] = time.perf_counter,
    use: Callable[[int], object] = torch.set_num_threads,
) -> dict[int, float]:
    """Return the median seconds that work takes with each number of threads.

    The numbers take turns, so that a change of the machine's load affects all of them. The first
    round warms up; no round begins after COMPARE_SECONDS.

    Args:
        work: Computation to time.
        numbers: Numbers of threads.
        clock: Returns the time in seconds.
        use: Sets the number of threads; the last of `numbers` stays set.
    """
    seconds: dict[int, list[float]] = {n: [] for n in numbers}
    began = clock()
    for _ in range(MOST_ROUNDS):
        for n in numbers:
            use(n)
            at = clock()
            work()
            seconds[n].append(clock() - at)
        if clock() - began > COMPARE_SECONDS:
            break
    return {n: statistics.median(each[1:] or each) for n, each in seconds.items()}


def fastest(seconds: Mapping[int, float], preferred: int) -> int:
    """Return the number of threads with the least time, or `preferred` if it is about as fast."""
    best = min(seconds, key=lambda n: seconds[n])
    return best if seconds[preferred] > MARGIN * seconds[best] else preferred
