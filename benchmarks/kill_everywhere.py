"""Kill a run by SIGKILL before each of its file operations, resume it, and compare all its files.

    python benchmarks/kill_everywhere.py [--first 0] [--every 1]

Two small runs are made, each in a process of its own: one with batches of 4, one that accumulates
2 x 2 and has an end of an epoch, snapshots, early stopping and an average of the weights. The
process is killed before the n-th open, rename, removal, write, flush or sync of a file; `gptlit fit
--ckpt_path last` completes it. Then every file must equal that of an uninterrupted run, except for
timings and the names of TensorBoard's files: metrics.csv, samples.txt, config.yaml, hparams.yaml,
TensorBoard's points, and everything in each checkpoint.
"""

import collections
import tempfile
from pathlib import Path

import everywhere
import torch

from tests.operations import KILLED, ended, killed, start


def main() -> None:
    given = everywhere.parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name, options in KILLED.items():
            whole = everywhere.fresh(root / name / "whole")
            if ended(start(whole, ["fit", *options])) != 0:
                raise SystemExit((whole / "output.txt").read_text())
            n_operations = int((root / name / "counted.txt").read_text())
            print(f"{name}: {n_operations} operations", flush=True)
            for at in range(given.first, n_operations, given.every):
                run = everywhere.fresh(root / name / "run")
                outcome = killed(run, whole, options, at)
                outcomes[outcome.split(":")[0]] += 1
                where = (root / name / "operation.txt").read_text()[-70:]
                print(f"{at:4} {where:<72}{outcome}", flush=True)
    everywhere.report(outcomes)


if __name__ == "__main__":
    main()
