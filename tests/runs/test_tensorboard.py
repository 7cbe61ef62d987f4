"""A run in TensorBoard: the tags in its event files, and the page in a real browser."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.browser import Browser
from tests.conftest import Run

KINDS = ["wte", "wpe", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
SCALARS = {
    *("train/loss", "train/loss_eval", "train/tokens"),
    *("val/loss", "val/perplexity", "val/bits_per_byte", "val/gap"),
    *("optim/lr", "optim/grad_norm", *(f"optim/update_ratio/{kind}" for kind in KINDS)),
    *("speed/step_ms", "speed/tokens_per_s", "memory/peak_mb", "epoch"),
    *("best/step", "best/val_loss", "best/val_bits_per_byte"),
    *("final/train_loss", "final/val_loss", "final/parameters", "final/tokens", "final/minutes"),
}


def test_event_files_hold_all_tags(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder)).Reload()
    assert (
        set(events.Tags()["scalars"]) == SCALARS
    )  # samples of 12 characters are too short to compare
    texts = {"sample/0/text_summary", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert set(events.Tags()["tensors"]) == texts
    assert [event.step for event in events.Scalars("val/loss")] == [19, 39]


@contextlib.contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """Run TensorBoard on a free port, and give its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--host=127.0.0.1", "--port=0"]
    # relative, since its pages show the path
    command += ["--load_fast=false", "--reload_interval=1", f"--logdir={runs.name}"]
    with subprocess.Popen(command, cwd=runs.parent, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = (re.search(r"http://\S+:\d+/", line) for line in process.stderr)
            yield next(match[0] for match in found if match)
        finally:
            process.kill()


def test_a_browser_shows_the_scalars_and_options(browser: Browser, run: Run) -> None:
    with tensorboard(run.folder.parent) as address:
        page = browser.open(address)
        page.wait_for("fetch('data/runs').then(r => r.json()).then(runs => runs.length == 1)")
        page.go_to(f"{address}?tagFilter=%5Eval%2Floss#timeseries")
        page.wait_for("document.querySelectorAll('scalar-card').length == 1")
        page.wait_for("/val.loss/.test(document.querySelector('scalar-card').textContent)")
        page.wait_for("/version_0/.test(document.querySelector('runs-table').textContent)")
        page.wait_for("/TEXT.*HPARAMS/s.test(document.body.innerText)")
