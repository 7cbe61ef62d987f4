"""Stop a run by two signals at each of its file operations, and check how it ends.

    python benchmarks/stop_everywhere.py [--signals INT TERM HUP] [--first 0] [--every 1]

A small run is made in a process of its own. It receives a signal at its n-th open, rename, removal,
write, flush or sync of a file, and another one at the next operation, or 0.05 s later (in turn).
`tests.operations.judged` describes how it must end and what it may leave.
"""

import collections
import signal
import tempfile
from pathlib import Path

import everywhere
import torch

from tests.operations import FIT, ended, judged, start


def main() -> None:
    parser = everywhere.parser(__doc__.splitlines()[0])
    parser.add_argument("--signals", nargs="*", default=["INT", "TERM", "HUP"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        run = root / "run"
        if ended(start(everywhere.fresh(run), FIT)) != 0:
            raise SystemExit((run / "output.txt").read_text())
        n_operations = int((root / "counted.txt").read_text())
        print(f"{n_operations} operations", flush=True)
        for at in range(given.first, n_operations, given.every):
            for name in given.signals:
                number = signal.Signals[f"SIG{name}"]
                everywhere.fresh(run)
                outcome = judged(run, number, ended(start(run, FIT, number, at)))
                outcomes[outcome.split(":")[0]] += 1
                where = (root / "operation.txt").read_text()
                print(f"{at:4} {name:<5}{where[-60:]:<62}{outcome}", flush=True)
    everywhere.report(outcomes)


if __name__ == "__main__":
    main()
