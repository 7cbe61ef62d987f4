"""Ask a run to stop, twice, at each of its file operations, and look at how it ends.

    python benchmarks/stop_everywhere.py [--signals INT TERM HUP] [--first 0] [--every 1]

A small run is made in a process of its own. At its n-th open, rename, removal, write, flush or sync
of a file it gets a signal, and again at the operation after that, or 0.05 s later (in turn). How it
has to end, and what it may leave, is in `tests.operations.judged`.
"""

import argparse
import collections
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests, which aren't installed

from tests.conftest import made_up_text
from tests.operations import FIT, ended, judged, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signals", nargs="*", default=["INT", "TERM", "HUP"])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)

        def fresh() -> Path:
            shutil.rmtree(root / "run", ignore_errors=True)
            (root / "run").mkdir()
            (root / "run" / "t.txt").write_text(made_up_text())
            return root / "run"

        if ended(start(fresh(), FIT)) != 0:
            raise SystemExit((root / "run" / "told.txt").read_text())
        n_operations = int((root / "counted.txt").read_text())
        print(f"{n_operations} operations", flush=True)
        for at in range(given.first, n_operations, given.every):
            for name in given.signals:
                number = signal.Signals[f"SIG{name}"]
                folder = fresh()
                became = judged(folder, number, ended(start(folder, FIT, number, at)))
                found[became.split(":")[0]] += 1
                where = (root / "operation.txt").read_text()
                print(f"{at:4} {name:<5}{where[-60:]:<62}{became}", flush=True)
    for became, count in found.most_common():
        print(f"{count:5}  {became}")
    sys.exit(bool(found["BAD"]))


if __name__ == "__main__":
    main()
