"""Train and resume on two nodes, simulated by two launchers, and compare with one process.

    python benchmarks/two_nodes.py

Each node is a `torchrun` with one process. A run is stopped in the middle and resumed, and its
losses are compared with those of one process with the same global batch.
"""

import argparse
import contextlib
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from torch.distributed import TCPStore

STEPS = 50
LIMIT = 120  # seconds for each command


def options(batch_size: int, text: Path) -> list[str]:
    """Options of a tiny model without dropout, with a schedule for all steps."""
    return [
        "--config=gpt2_small.yaml",
        "--model.n_layer=2",
        "--model.n_head=2",
        "--model.n_embd=64",
        "--model.block_size=16",
        "--model.lr=1e-3",
        f"--model.decay_steps={STEPS}",
        f"--data.path={text}",
        f"--data.batch_size={batch_size}",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--trainer.val_check_interval=25",
    ]


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen]) -> Iterator[None]:
    """Kill the processes and their children at the end of the block."""
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(commands: list[list[str]], folder: Path) -> None:
    """Run commands in parallel; exit with their output if one fails or takes too long."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    logs = [folder / f"node_{index}.log" for index in range(len(commands))]
    processes: list[subprocess.Popen] = []
    end = time.monotonic() + LIMIT
    with ended(processes):
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=folder,
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(max(0, end - time.monotonic()))
        codes = [process.poll() for process in processes]
    if codes != [0] * len(codes):
        output = "\n".join(log.read_text() for log in logs)
        sys.exit(f"{output}\nexit codes {codes}; None is that of a process that hung")


def two_nodes(folder: Path, *arguments: str) -> None:
    """Run `gptlit` on two nodes of one process each."""
    # a store that already listens on a free port, which no other process can take
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{store.port}"]
    torchrun += ["--rdzv-conf=is_host=0", "--local-addr=127.0.0.1", "-m", "gptlit"]
    nodes = ["--trainer.num_nodes=2", "--trainer.devices=1"]
    run([[*torchrun, *arguments, *nodes]] * 2, folder)


def losses(folder: Path) -> list[float]:
    """The training loss of each step."""
    with (folder / "lightning_logs/version_0/metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def main() -> None:
    """Print the largest difference under each strategy; exit 1 if it is above 1e-5."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    sentence = "the king and thy love shall speak of night or day\n"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        text = root / "text.txt"
        text.write_text("".join(sentence[index % 40 :] for index in range(400)))
        (root / "one").mkdir()
        fit = [sys.executable, "-m", "gptlit", "fit", *options(12, text)]
        run([[*fit, f"--trainer.max_steps={STEPS}"]], root / "one")
        worst = 0.0
        for strategy in ("ddp", "fsdp2"):
            folder = root / strategy
            folder.mkdir()
            both = f"--trainer.strategy={strategy}"
            half = f"--trainer.max_steps={STEPS // 2}"
            two_nodes(folder, "fit", *options(6, text), both, half)
            two_nodes(folder, "fit", "--ckpt_path=last", f"--trainer.max_steps={STEPS}")
            pairs = zip(losses(root / "one"), losses(folder), strict=True)
            difference = max(abs(ours - theirs) for ours, theirs in pairs)
            print(f"{strategy:<6} {STEPS} steps on two nodes, largest difference {difference:.1e}")
            worst = max(worst, difference)
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()
