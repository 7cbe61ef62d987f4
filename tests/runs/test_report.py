"""Metrics of the steps of a run: tokens, memory, utilisation and the sizes of updates."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.checkpoints import checkpoint
from gptlit.devices import peaks
from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.runs import metrics_file
from tests.conftest import TINY, Result, read_metrics
from tests.recorded_graphs import RecordedGraphs

Call = Callable[..., Result]
RUN = [*TINY, "--trainer.log_every_n_steps=1", "--samples.prompts=[]"]
FOLDER = Path("lightning_logs/version_0")


def logged(name: str) -> dict[int, float]:
    return metrics_file.by_step(FOLDER / "metrics.csv", name)


def weights(step: int) -> GPT:
    return checkpoint.load(FOLDER / f"checkpoints/step_{step}.ckpt")[0]


@pytest.mark.parametrize("how", ["eager", "captured"])
def test_update_ratios_are_those_between_checkpoints(
    gptlit: Call, text_file: Path, how: str, request: pytest.FixtureRequest
) -> None:
    graphs: list[RecordedGraphs] = []
    if how == "captured":
        graphs = request.getfixturevalue("recorded_graphs")
    options = ["--trainer.max_steps=4", "--snapshot_every=1", "--model.optimizer=muon"]
    options += ["--model.lr=1e-3", "--model.min_lr=1e-4", "--model.muon_lr=5e-3"]
    assert gptlit("fit", *RUN, f"--data.path={text_file}", *options).code == 0
    assert sum(each.replays for each in graphs) > 0 or how == "eager"
    for step in (2, 4):
        before, after = (weights(each).state_dict() for each in (step - 1, step))
        for kind, name in (("wte", "wte.weight"), ("mlp.c_fc", "h.0.mlp.c_fc.weight")):
            ratio = (after[name] - before[name]).norm() / after[name].norm()
            found = logged(f"optim/update_ratio/{kind}")[step]
            assert found == pytest.approx(float(ratio), rel=1e-4)
    rates = [logged("optim/muon_lr")[step] / logged("optim/lr")[step] for step in (2, 4)]
    assert rates == pytest.approx([5.0, 5.0])


def test_tokens_are_counted_also_where_the_batch_grows(gptlit: Call, text_file: Path) -> None:
    data = f"--data.path={text_file}"
    assert gptlit("fit", *RUN, data, "--trainer.max_steps=3", "--model.decay_steps=9").code == 0
    more = ["--trainer.max_steps=5", "--data.batch_size=8"]
    assert gptlit("fit", "--ckpt_path=last", *more).code == 0
    assert logged("train/tokens") == {1: 32, 2: 64, 3: 96, 4: 160, 5: 224}
    peak = logged("memory/peak_mb")
    assert 100 < peak[1] <= peak[5]


def test_utilisation_is_that_of_the_published_peak(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "PEAKS", {"cpu": 0.001})  # 1e9 operations per second
    assert gptlit("fit", *RUN, f"--data.path={text_file}", "--trainer.max_steps=3").code == 0
    per_token = cost.training_flops_per_token(checkpoint.load(FOLDER / "checkpoints/last.ckpt")[0])
    for row in read_metrics(FOLDER)[:3]:
        share = float(row["speed/tokens_per_s"]) * per_token / 1e9
        assert float(row["speed/mfu"]) == pytest.approx(share, rel=1e-5)
