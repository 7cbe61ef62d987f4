"""Kill runs by SIGKILL at random moments, resume them, and compare with an uninterrupted run.

    python benchmarks/kill_resume.py [--kills 100] [--seed 0]

A small model trains with dropout, with batches of 16 or accumulated 2 x 8, in a process of its own
that is killed some time after its first checkpoint; `gptlit fit --ckpt_path last` completes it.
Then weights, optimizer, schedule, position in the data, metrics.csv, TensorBoard's points and
samples must equal those of an uninterrupted run, bit for bit, except for timings; this implies that
the random numbers were the same.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests, which are not installed

from gptlit.__main__ import main as gptlit
from tests.conftest import GPT2_TINY, assert_same_run, made_up_text, some_time_passes

RUN = Path("lightning_logs", "version_0")
N_STEPS = 60
OPTIONS = [
    f"--config={GPT2_TINY}",
    f"--trainer.max_steps={N_STEPS}",
    "--trainer.val_check_interval=7",
    "--trainer.log_every_n_steps=3",
    "--model.dropout=0.1",
    "--model.n_layer=2",
    "--samples.max_new_tokens=20",
    "--data.val_fraction=0.05",
]
BATCHES = {1: ["--data.batch_size=16"], 2: ["--data.batch_size=8"]}


def start(folder: Path, arguments: list[str]) -> int:
    """Run gptlit in a forked process, which need not import it again; returns the process's id."""
    child = os.fork()
    if not child:
        os.chdir(folder)
        with (folder / "output.txt").open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        code = 1
        with contextlib.suppress(BaseException):
            code = gptlit(arguments)
        os._exit(code)
    return child


def options(text: Path, accumulated: int) -> list[str]:
    more = [f"--data.path={text}", f"--trainer.accumulate_grad_batches={accumulated}"]
    return ["fit", *OPTIONS, *more, *BATCHES[accumulated]]


def wait_until_saved(folder: Path, child: int) -> bool:
    """Wait for the first last.ckpt; returns whether the process still runs."""
    while not (folder / RUN / "checkpoints" / "last.ckpt").exists():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    return True


def whole(folder: Path, text: Path, accumulated: int) -> float:
    """Complete a run; returns its seconds from the first checkpoint on."""
    folder.mkdir()
    child = start(folder, options(text, accumulated))
    wait_until_saved(folder, child)
    began = time.perf_counter()
    if os.waitpid(child, 0)[1]:
        raise SystemExit((folder / "output.txt").read_text())
    return time.perf_counter() - began


def last_step(folder: Path) -> int:
    path = folder / RUN / "checkpoints" / "last.ckpt"
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return int(content["global_step"])


def kill_and_resume(folder: Path, text: Path, accumulated: int, seconds: float) -> str:
    """Kill a run some seconds after its first checkpoint and resume it; returns the outcome."""
    folder.mkdir()
    child = start(folder, options(text, accumulated))
    if not wait_until_saved(folder, child):
        return f"failed: {(folder / 'output.txt').read_text()[-300:]}"
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        return "ended"
    if (step := last_step(folder)) == N_STEPS:
        return "ended"  # killed while it exited; there is nothing to resume
    some_time_passes(folder / RUN)
    if os.waitpid(start(folder, ["fit", "--ckpt_path=last"]), 0)[1]:
        return f"not resumed from step {step}: {(folder / 'output.txt').read_text()[-300:]}"
    return f"step {step}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (text := root / "text.txt").write_text(made_up_text())
        import lightning.pytorch.cli  # noqa: F401  # imported once, before forking

        import gptlit.cli.fit  # noqa: F401

        took = {n: whole(root / f"whole_{n}", text, n) for n in BATCHES}
        n_killed = n_resumed = n_same = 0
        while n_killed < given.kills:
            accumulated = 1 + n_killed % 2
            folder = root / "run"
            seconds = draw.uniform(0, took[accumulated])
            outcome = kill_and_resume(folder, text, accumulated, seconds)
            if outcome != "ended":  # otherwise try another moment
                n_killed += 1
                difference = ""
                if outcome.startswith("step"):
                    n_resumed += 1
                    try:
                        assert_same_run(folder / RUN, root / f"whole_{accumulated}" / RUN)
                        n_same += 1
                    except AssertionError as error:
                        difference = f", differs: {str(error)[:200]}"
                print(
                    f"{n_killed:4} x{accumulated} killed after {seconds:.2f} s, resumed from "
                    f"{outcome}{difference}",
                    flush=True,
                )
            shutil.rmtree(folder)
    print(f"killed {n_killed}, resumed {n_resumed}, identical {n_same}")
    sys.exit(n_same != given.kills)


if __name__ == "__main__":
    main()
