"""The time that figures and update ratios add to a run, as a share of its training time.

    OMP_NUM_THREADS=1 python -m benchmarks.figures [--config small.yaml] [--rounds 5]

Runs a few steps of a config on its text, then draws a set of figures so many times, logs their
events, and prints the milliseconds of each part, those of a step, and the share of the time between
two sets of figures: `figures.every` steps, rounded up to validations. Update ratios are computed
once in `log_every_n_steps` steps. Other options are passed to `gptlit fit`.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gptlit.cli.fit import build
from gptlit.cli.lightning_warnings import quiet
from gptlit.optim.update_ratios import UpdateRatios
from gptlit.runs import figures
from gptlit.runs.run_end import train
from gptlit.training.module import LitGPT

STEPS = 30  # of which the first ten are not timed


class Timing(Callback):
    """Times the steps, and at their end the figures and the update ratios."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.ms: dict[str, float] = {}
        self._starts: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._starts.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LitGPT)
        spans = [b - a for a, b in zip(self._starts[10:], self._starts[11:], strict=False)]
        self.ms["a step"] = statistics.median(spans) * 1e3
        net, text = pl_module.net, pl_module.text
        curves = figures._curves(trainer)
        assert curves is not None
        ratios = UpdateRatios(net.named_parameters())
        self._time(
            "the text's losses",
            lambda: figures.scored(net, figures.passage(text, net.config.block_size)),
        )
        self._time(
            "figures", lambda: curves.log_figures(*figures.figures_of(net, text), self._step())
        )
        self._time(
            "the projector",
            lambda: figures.write_projector(net, text.tokenizer, Path(curves.log_dir)),
        )

        def both() -> None:
            ratios.begin()
            ratios.end()

        self._time("update ratios", both)

    def _step(self) -> int:
        return int(time.perf_counter() * 1e6)  # another one each time, so that all are logged

    def _time(self, name: str, function: Callable[[], Any]) -> None:
        spans = []
        for _ in range(self.rounds + 1):
            began = time.perf_counter()
            function()
            spans.append(time.perf_counter() - began)
        self.ms[name] = statistics.median(spans[1:]) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", default="small.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    given, rest = parser.parse_known_args()
    timing = Timing(given.rounds)
    with tempfile.TemporaryDirectory() as folder, quiet():
        options = [f"--config={given.config}", f"--trainer.default_root_dir={folder}", *rest]
        with build(
            [*options, f"--trainer.max_steps={STEPS}", "--trainer.limit_val_batches=1"]
        ) as run:
            interval = run.options.trainer.val_check_interval
            every, logged = run.options.figures.options.every, run.options.trainer.log_every_n_steps
            trainer: Any = run.trainer
            trainer.callbacks.append(timing)
            train(run)
    between = math.ceil(every / interval) * interval
    for name, ms in timing.ms.items():
        print(f"{name:<18} {ms:8.1f} ms")
    for name, steps in (("figures", between), ("update ratios", logged)):
        share = timing.ms[name] / steps / timing.ms["a step"]
        print(f"{name}, once in {steps} steps: {share:.2%}")


if __name__ == "__main__":
    main()
