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
import datetime
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gpu_loops import DRY, Sizes
from gpu_parts import Row, failed_row, parts_of

from gptlit.devices.accelerators import name_of

SCRIPT = Path(__file__).resolve()
ROOT = SCRIPT.parent.parent
STOPPED = 124  # exit code of a process that is stopped at its limit


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
