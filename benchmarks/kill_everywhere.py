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
import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests, which aren't installed

from tests.conftest import made_up_text
from tests.operations import KILLED, ended, killed, start


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "t.txt").write_text(made_up_text())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name, options in KILLED.items():
            whole = fresh(root / name / "whole")
            if ended(start(whole, ["fit", *options])) != 0:
                raise SystemExit((whole / "told.txt").read_text())
            n_operations = int((root / name / "counted.txt").read_text())
            print(f"{name}: {n_operations} operations", flush=True)
            for at in range(given.first, n_operations, given.every):
                outcome = killed(fresh(root / name / "run"), whole, options, at)
                found[outcome.split(":")[0]] += 1
                where = (root / name / "operation.txt").read_text()[-70:]
                print(f"{at:4} {where:<72}{outcome}", flush=True)
    for outcome, count in found.most_common():
        print(f"{count:5}  {outcome}")
    sys.exit(bool(found["BAD"]))


if __name__ == "__main__":
    main()
