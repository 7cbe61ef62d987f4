"""Kill a run by SIGKILL at each of its file operations, resume it, and compare all that it leaves.

    python benchmarks/kill_everywhere.py [--first 0] [--every 1]

Two small runs are made, each in a process of its own: one by batches of 4, one accumulated 2 x 2
with an end of an epoch, snapshots, early stopping and an average of the weights. Ahead of the n-th
open, rename, removal, write, flush or sync of a file the process is killed; `gptlit fit
--ckpt_path last` finishes it. Then every file has to be that of the run that nobody killed, timings
and TensorBoard's file names aside: metrics.csv, samples.txt, config.yaml, hparams.yaml,
TensorBoard's points, and everything in each checkpoint.
"""

import argparse
import collections
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests, which aren't installed

from gptlit.__main__ import main as gptlit
from tests.conftest import TINY, assert_same_run, made_up_text, some_time_passes
from tests.operations import Operations

RUN = Path("lightning_logs", "version_0")
EACH = [*TINY, "--data.path=t.txt", "--trainer.max_steps=9", "--trainer.val_check_interval=3"]
RUNS = {
    "plain": [*EACH, "--model.dropout=0.1"],
    "rich": [
        *EACH,
        "--data.batch_size=2",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.limit_train_batches=10",  # an epoch of five steps
        "--snapshot_every=2",
        "--keep_snapshots=2",
        "--early_stopping.patience=2",
        "--model.ema=0.9",
        "--model.optimizer=muon",
    ],
}


def ended(folder: Path, arguments: list[str], at: int = -1) -> int:
    """How a process ended that ran gptlit there, killed ahead of its n-th file operation."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        os.chdir(folder)
        with Path("../told.txt").open("a") as told:
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)

        def do(operation: int, name: str) -> None:
            if operation == at:
                Path("../operation.txt").write_text(name)
                os.kill(os.getpid(), signal.SIGKILL)

        counted = Operations(folder, do)
        code = gptlit(arguments)
        Path("../counted.txt").write_text(str(counted.n))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "t.txt").write_text(made_up_text())
    return folder


def became(folder: Path, whole: Path, options: list[str], at: int) -> str:
    """What came of a run that was killed at an operation; begins with BAD where it should not."""
    told = folder.parent / "told.txt"
    told.unlink(missing_ok=True)
    if ended(folder, ["fit", *options], at) != signal.SIGKILL:
        return f"BAD: not killed: {told.read_text()[-500:]}"
    again = ["fit", "--ckpt_path=last"]
    if not (folder / RUN / "checkpoints" / "last.ckpt").exists():
        shutil.rmtree(folder / "lightning_logs", ignore_errors=True)
        again = ["fit", *options]
    elif torch.load(folder / RUN / "checkpoints" / "last.ckpt", mmap=True)["global_step"] == 9:
        again = []
    some_time_passes(folder / RUN)
    if again and ended(folder, again):
        return f"BAD: not resumed: {told.read_text()[-500:]}"
    try:
        assert_same_run(folder / RUN, whole / RUN)
    except AssertionError as error:
        return f"BAD: differs: {' '.join(str(error).split())[:300]}"
    return "the same" if again else "at its end"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        import gptlit.cli  # noqa: F401  # before forking, so that it is paid for once

        for name, options in RUNS.items():
            (root / name).mkdir()
            # of the same name, since checkpoints hold paths
            (whole := root / name / "whole").mkdir()
            if ended(fresh(root / name / "run"), ["fit", *options]):
                raise SystemExit((root / name / "told.txt").read_text())
            n_operations = int((root / name / "counted.txt").read_text())
            (root / name / "run").rename(whole / "run")
            print(f"{name}: {n_operations} operations", flush=True)
            for at in range(given.first, n_operations, given.every):
                folder = fresh(root / name / "run")
                outcome = became(folder, whole / "run", options, at)
                found[outcome.split(":")[0]] += 1
                where = (root / name / "operation.txt").read_text()[-70:]
                print(f"{at:4} {where:<72}{outcome}", flush=True)
    for outcome, count in found.most_common():
        print(f"{count:5}  {outcome}")
    sys.exit(bool(found["BAD"]))


if __name__ == "__main__":
    main()
