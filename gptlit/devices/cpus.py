"""The number of CPUs that this process may use, and the option for its threads."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from gptlit.messages import UsageError

MOST_THREADS = 1024
THREADS_HELP = (
    "Threads of PyTorch on a CPU. 0: OMP_NUM_THREADS or MKL_NUM_THREADS if one is set, else one "
    "for each CPU that the process may use, and in a fit fewer where they are faster."
)


def check_threads(option: int) -> None:
    """Check the option `threads`.

    Raises:
        UsageError: It is not from 0 to MOST_THREADS.
    """
    if not 0 <= option <= MOST_THREADS:
        raise UsageError(f"must be from 0 to {MOST_THREADS}", "threads", option)


def usable() -> int:
    """Return the number of CPUs that this process may use, by its affinity and its quota."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = quota()
    return n if allowed is None else min(n, max(1, round(allowed)))


def quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs that the process's cgroup and its parents allow; None for no limit.

    Reads cpu.max (cgroup v2) or cpu.cfs_quota_us and cpu.cfs_period_us (v1).

    Args:
        root: Folder that contains proc and sys.
    """
    quotas = [each for folder in _cgroups(root) if (each := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders of the process's cgroup and of its parents, which need not exist."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            mount = root / "sys/fs/cgroup" / controllers
            inside = PurePosixPath(path.lstrip("/"))
            # a container may see its own group as the mount's root
            yield from (mount / each for each in (inside, *inside.parents))


def _quota_of(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split() or [
        *_read(folder / "cpu.cfs_quota_us").split(),
        *_read(folder / "cpu.cfs_period_us").split(),
    ]
    try:
        quota_us, period_us = map(int, words)
        return quota_us / period_us if quota_us > 0 else None
    except (ValueError, ZeroDivisionError):
        return None  # "max", or no such file


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
