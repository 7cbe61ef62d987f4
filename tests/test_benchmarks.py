"""The scripts that time training run, and report correct numbers."""

import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import advice, gpu, host, train_step
from gptlit.data.advice import TextSize, advise
from gptlit.devices import peaks
from gptlit.runs.sample_text import SampleText
from tests.conftest import TINY, made_up_text


def test_medians_and_ratios_leave_the_first_round_out() -> None:
    ms = {"Trainer": [9.0, 2.0, 6.0, 4.0], "bare": [1.0, 1.0, 4.0, 2.0], "plain": [1.0] * 4}
    head, *rows = train_step.report({name: [x / 1e3 for x in each] for name, each in ms.items()})
    assert head.split() == ["ms", "a", "step", "range", "x", "bare", "x", "plain"]
    assert [row.split() for row in rows] == [
        ["Trainer", "4.00", "2.00", "to", "6.00", "2.000", "4.000"],
        ["bare", "2.00", "1.00", "to", "4.00", "1.000", "2.000"],
        ["plain", "1.00", "1.00", "to", "1.00", "0.500", "1.000"],
    ]


def test_the_bare_loop_makes_the_trainers_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_step, "MEASURED", {})
    arguments = ["--config=gpt2_small.yaml", "--rounds=2", "--steps=3", "--loops=eager"]
    train_step.main([*arguments, *TINY[1:], "--model.warmup_steps=2", "--trainer.accelerator=cpu"])
    names = ["Trainer", "bare", *train_step.CHOICES["eager"]]
    assert {name: len(seconds) for name, seconds in train_step.MEASURED.items()} == dict.fromkeys(
        names, 3
    )
    # sums over memory of another layout can differ in their last bits
    assert len(train_step.DIFFERENCES) == 3
    assert max(train_step.DIFFERENCES) < 1e-5
    assert "2 rounds of 3 steps" in capsys.readouterr().out


def test_each_loop_can_have_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_step, "MEASURED", {})
    arguments = ["--apart", "--config=gpt2_small.yaml", "--rounds=1", "--steps=3", *TINY[1:]]
    train_step.main([*arguments, "--trainer.accelerator=cpu"])
    assert {name: len(seconds) for name, seconds in train_step.MEASURED.items()} == {
        "Trainer": 2,
        "bare": 2,
    }
    assert min(min(seconds) for seconds in train_step.MEASURED.values()) > 0
    head, _, trainer, bare = capsys.readouterr().out.splitlines()
    assert head.startswith("gpt2_small.yaml: 1 rounds of 3 steps")
    assert "cpu, 32-true" in head
    assert trainer.startswith("Trainer")
    assert bare.startswith("bare")


def test_the_hosts_part_of_a_step_launches_and_reads_nothing() -> None:
    """Where nothing is logged, no hook and no metric launches a kernel or waits for the device."""
    steps = host.launches([])
    # Lightning divides and copies the loss, of which a copy is kept; a batch is cut on the device
    assert steps[:9] == [Counter(div=1, clone=2, add=1, index=1, _to_copy=1)] * 9
    assert steps[10:19] == steps[:9]
    assert steps[9] == steps[19]
    assert steps[9].total() < 55
    assert steps[9]["_local_scalar_dense"] == 7  # of which each waits


def test_the_hosts_microseconds_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    host.main(["--steps=10", "--rounds=1", "--parts"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("host: ")
    assert any("lightning/pytorch/trainer/call.py" in line for line in lines)


def test_the_search_around_an_advice_scores_the_best_once() -> None:
    advised = advise(TextSize((40_000,), 5_000, 60), 0.3)
    searched = dict(advice.alternatives(advised))
    assert [*searched] == [
        *("advised", "half the parameters", "twice the parameters", "half the block"),
        *("twice the block", "less regularisation", "more regularisation"),
    ]
    described = [advice.described(each) for each in searched.values()]
    assert len({*described}) == 7
    assert described[0] == "2 x 64, 3 of 256, dropout 0.1, token_dropout 0.1, decay 0.5"
    assert described[2:4] == [
        described[0].replace("2 x", "4 x"),
        described[0].replace("3 of 256", "6 of 128"),
    ]
    # the validation loss chooses, and the test loss gives the regret
    losses = {
        "advised": (1.5, 1.6),
        "half the block": (1.4, 1.55),
        "more regularisation": (1.45, 1),
    }
    runs = {
        label: (searched[label], {"val": [2.0, val, 1.9], "test": test, "passes": 3.0})
        for label, (val, test) in losses.items()
    }
    assert advice.row("a text", 50_000, runs) == (
        f"| a text | 50,000 | {described[0]} | 3.0 | 1.5000 | 1.6000 | half the block | 1.4000 | "
        "1.5500 | +0.0500 |"
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert peaks.tflops(name) == peak


def test_a_gpus_figures() -> None:
    run = gpu.Measured("H", 5.0, in_all=4.0, n_steps=10, tokens_per_step=1000)
    run.flops_per_token, run.steps = 1e9, [0.3, 0.1, 0.3, 0.1, 0.3, 0.1]
    run.losses = [(4, 1.5, 1.5), (7, 1.4, 3.0), (10, 1.41, 4.0)]
    assert list(gpu.report(run, 1.45, 10.0))[1:] == [
        "compiling: 5.0 s",
        "val/loss 1.45: reached at step 7 (1.4000), 3.0 s in all, 1.4 s training",
        "best val/loss: 1.4000 at step 7, 3.0 s in all",
        "speed: 5,000 tokens per second, 200.00 ms a step (median of 6; mean 200.00)",
        "MFU: 50.0% of 10 TFLOP/s",
    ]
    _, _, reached, *_, last = gpu.report(run, 1.3, None)
    assert reached == "val/loss 1.3: not reached in 10 steps, 4.0 s in all"
    assert last.startswith("speed")


def test_a_gpus_run_can_be_tried_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(made_up_text(), encoding="utf-8")
    options = ["--data.path=text.txt", "--trainer.max_steps=12", "--trainer.val_check_interval=6"]
    gpu.main([*TINY, *options, "--mode=eager", "--trainer.accelerator=cpu"])
    assert gpu.RUN.n_steps == 12
    assert gpu.RUN.tokens_per_step == 4 * 8
    assert [step for step, *_ in gpu.RUN.losses] == [6, 12]
    # the last step before each validation is not timed, nor are the five of the warmup
    assert len(gpu.RUN.steps) == 5
    assert 0 < gpu.RUN.training(12) < gpu.RUN.in_all
    assert "MFU" not in capsys.readouterr().out


def test_a_gpus_steps_are_timed_without_samples_and_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "RUN", gpu.Measured())
    text = made_up_text()
    Path("text.txt").write_text(text, encoding="utf-8")
    slow = 0.5

    def write(self: SampleText, *_: object) -> None:
        time.sleep(slow)

    monkeypatch.setattr(SampleText, "_write", write)
    # 12 steps in an epoch, at whose ends texts are sampled, as after validations
    options = ["--data.path=text.txt", "--samples.at_epoch_end=true", "--trainer.max_epochs=3"]
    options += ["--trainer.limit_train_batches=12", "--trainer.val_check_interval=6"]
    gpu.main([*TINY, *options, "--mode=fit", "--trainer.max_steps=-1", "--trainer.accelerator=cpu"])
    assert gpu.RUN.n_steps == 36
    # stretches of 6 steps, of which the last is not timed; 5 of the first are the warmup
    assert len(gpu.RUN.steps) == 5 * 5
    assert max(gpu.RUN.steps) < slow
    assert gpu.RUN.in_all > 6 * slow
