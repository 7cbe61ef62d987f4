"""The number of usable CPUs, from made-up trees of cgroup files."""

import os
from pathlib import Path

import pytest

from gptlit.devices import cpus
from gptlit.messages import UsageError


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1 = "9:name=systemd:/\n4:memory:/a\n1:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        # version 2: in a container of its own, then in a group below one with a lower limit
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/user/job\n",
                "sys/fs/cgroup/user/job/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/user/cpu.max": "400000 100000\n",
            },
            4,
        ),
        # version 1: the group is the mount's root, then below it, then without a limit
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        # values that can't be used
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, None),
        # another controller's limit is not read
        ({"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/memory/cpu.max": "1 1"}, None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert cpus.quota(tree(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (64.0, 8), (2.0, 2), (1.6, 2), (1.4, 1), (0.1, 1)]
)
def test_usable(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "quota", lambda: quota)
    assert cpus.usable() == expected


def test_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have none."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(cpus, "quota", lambda: None)
    assert cpus.usable() == 5


@pytest.mark.parametrize("option", [-1, 1025])
def test_an_invalid_number_of_threads_is_refused(option: int) -> None:
    with pytest.raises(UsageError, match=f"threads {option}: must be from 0 to 1024"):
        cpus.check_threads(option)
