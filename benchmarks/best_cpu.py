"""The validation loss of a config over several seeds, and when it passes nanoGPT's loss.

    python benchmarks/best_cpu.py
    python benchmarks/best_cpu.py --seeds 1 2 --options --model.optimizer=adamw --model.lr=4e-3

Each run is a plain `gptlit fit`. The loss is that of the whole validation split after the last
step, not of the best checkpoint. Seconds are those of training, without validation, samples and
saving.
"""

import argparse
import csv
import statistics
import tempfile
from pathlib import Path

from gptlit.__main__ import main as gptlit

NANOGPT = 1.874  # with the same text, parameters, block size and tokens


def curve(run: Path) -> tuple[list[tuple[int, float]], float]:
    """Read the (steps, val/loss) pairs of a run, and its median seconds per step."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = [(int(row["step"]) + 1, float(row["val/loss"])) for row in rows if row["val/loss"]]
    times = [float(row["speed/step_ms"]) for row in rows if row["speed/step_ms"]]
    return points, statistics.median(times) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="best_cpu.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--every", type=int, default=200, help="steps between validations")
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="options of gptlit fit"
    )
    args = parser.parse_args()
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            words = ["fit", f"--config={args.config}", f"--seed_everything={seed}"]
            words += [f"--trainer.val_check_interval={args.every}", *args.options]
            code = gptlit([*words, f"--trainer.default_root_dir={folder}/{seed}"])
            if code:
                raise SystemExit(code)
            (run,) = Path(folder, str(seed), "lightning_logs").iterdir()
            points, per_step = curve(run)
            losses.append(points[-1][1])
            passed = next((step for step, loss in points if loss <= NANOGPT), None)
            when = f"step {passed}, {passed * per_step:.0f} s" if passed else "never"
            print(
                f"seed {seed}: val/loss {points[-1][1]:.4f} after {points[-1][0]} steps, "
                f"{1000 * per_step:.1f} ms each; {NANOGPT} passed by {when}",
                flush=True,
            )
    spread = statistics.stdev(losses) if len(losses) > 1 else float("nan")
    print(f"mean {statistics.mean(losses):.4f}, standard deviation {spread:.4f}")


if __name__ == "__main__":
    main()
