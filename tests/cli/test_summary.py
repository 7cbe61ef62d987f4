"""`gptlit summary`: the size, memory and time of a run."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from gptlit.cli import summary
from gptlit.model.gpt import GPT
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, Run, made_up_text

Call = Callable[..., Result]


def summarize(gptlit: Call, text: Path, *options: object) -> Result:
    return gptlit("summary", *TINY, f"--data.path={text}", "--trainer.max_steps=50", *options)


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "PROBE_STEPS", 2)


@pytest.mark.parametrize("verb", ["summary", "validate"])
@pytest.mark.parametrize("flag", ["--print_config", "--print_config=skip_default"])
def test_a_printed_config_is_yaml(gptlit: Call, verb: str, flag: str) -> None:
    result = gptlit(verb, flag)
    assert result.code == 0, result.err
    assert isinstance(yaml.safe_load(result.out), dict)
    assert ("takes the options of gptlit fit" in result.err) == (verb == "summary")


def test_the_report(gptlit: Call, text_file: Path) -> None:
    """The model has V = 39, T = 8, C = 16 and one layer; a step has 4 windows."""
    result = summarize(gptlit, text_file)
    assert result.code == 0, result.err
    n_train = int(0.9 * len(made_up_text()))
    for wanted in (
        r"wte +Embedding\(39, 16\) +624$",
        r"lm_head +Linear\(16 -> 39, no bias\) +624  tied$",
        r"embedding \(also the head\) +752   18\.5%$",
        r"attention +1,088   26\.8%$",
        r"mlp +2,128   52\.4%$",
        r"norms +96    2\.4%$",
        r"total +4,064  100\.0%$",
        r"weight decay +3,824   94\.1%$",
        r"no weight decay +240    5\.9%$",
        r"memory on each device \(4 windows of 8 tokens, 32-true\)$",
        r"weights +0\.02 MB$",
        r"optimizer \(AdamW\) +0\.03 MB$",
        # 2 x 3,696 weights of matrices, and 2 x 2 x 8 x 16 of attention
        r"per token, forward +7\.9 kFLOP   \(7\.68 kFLOP without masked scores\)$",
        r"per step +759 kFLOP ",
        rf"tokens in the text +{n_train:,}$",
        r"tokens per step +32$",
        rf"steps per epoch +{(n_train // 8 - 1) // 4:,}$",
        rf"tokens seen +1,600   {50 / ((n_train // 8 - 1) // 4):.2f} epochs$",
        r"tokens per parameter +0\.39   20 would be 81,280 tokens$",
        r"time per step +\S+ ms   median of 2 on cpu, 1 thread$",
        r"whole run +\d+ s   without start-up and validation$",
    ):
        assert re.search(wanted, result.out, re.MULTILINE), wanted
    assert max(map(len, result.out.splitlines())) <= 80


def test_it_trains_nothing_and_leaves_no_run(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(LitGPT, "training_step", trained)
    assert summarize(gptlit, text_file).code == 0
    assert not Path("lightning_logs").exists()


def test_options_are_those_of_fit(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTLIT_FIT__DATA__BATCH_SIZE", "5")
    Path("own.yaml").write_text("model: {n_embd: 12}\n")
    words = [word for word in TINY if "batch_size" not in word and "n_embd" not in word]
    accumulated = ["--trainer.accumulate_grad_batches=3", "--trainer.precision=bf16-mixed"]
    result = gptlit(
        "summary", *words, "--config=own.yaml", f"--data.path={text_file}", *accumulated
    )
    assert result.code == 0, result.err
    assert "5 windows of 8 tokens, bf16-mixed" in result.out
    assert re.search(r"tokens per step +120$", result.out, re.MULTILINE)
    assert "Embedding(39, 12)" in result.out


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # of 4,064 parameters 3,072 are the block's matrices
        (["--model.optimizer=muon"], [r"optimizer \(Muon, AdamW\) +0\.02 MB",
                                      r"weight decay +3,072   75\.6%$"]),
        (["--model.optimizer=sgd", "--model.ema=0.99"], [r"optimizer \(SGD\) +0\.02 MB",
                                                         r"moving average +0\.02 MB"]),
        (["--model.optimizer=adam"], [r"optimizer \(Adam\) +0\.03 MB",
                                      r"weight decay +0    0\.0%$"]),
    ],
)  # fmt: skip
def test_optimizers(gptlit: Call, text_file: Path, options: list[str], wanted: list[str]) -> None:
    result = summarize(gptlit, text_file, *options)
    assert result.code == 0, result.err
    for pattern in wanted:
        assert re.search(pattern, result.out, re.MULTILINE), pattern


def test_half_precision(gptlit: Call, text_file: Path) -> None:
    printed = summarize(gptlit, text_file, "--trainer.precision=bf16-true").out
    assert re.search(r"optimizer \(AdamW\) +0\.02 MB", printed)


def test_a_run_by_epochs_or_without_end(gptlit: Call, text_file: Path) -> None:
    by_epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=2"]
    assert re.search(r"2\.00 epochs$", summarize(gptlit, text_file, *by_epochs).out, re.MULTILINE)
    endless = ["--trainer.max_steps=-1", "--model.decay_steps=10"]
    printed = summarize(gptlit, text_file, *endless).out
    assert re.search(r"steps +no limit$", printed, re.MULTILINE)
    assert "whole run" not in printed


def test_of_a_checkpoint(gptlit: Call, run: Run) -> None:
    """It describes the run that would be resumed."""
    result = gptlit("summary", "--ckpt_path", run.folder / "checkpoints" / "last.ckpt")
    assert result.code == 0, result.err
    assert re.search(r"total +4,064", result.out)
    assert not Path("lightning_logs").exists()


def test_a_missing_text(gptlit: Call) -> None:
    result = summarize(gptlit, Path("nowhere.txt"))
    assert result.code == 2
    assert "--data.path nowhere.txt" in result.err
    assert not result.out


def test_a_wrong_option_is_reported_in_one_line(gptlit: Call, text_file: Path) -> None:
    result = summarize(gptlit, text_file, "--model.n_heads=3")
    assert result.code == 2
    assert "Did you mean --model.n_head" in result.err


def test_help_says_whose_options_it_takes(gptlit: Call) -> None:
    page = gptlit("summary", "--help").out
    assert "\nAll options of gptlit fit are accepted; nothing is trained.\n" in page
    assert "--model.n_layer" in page


@pytest.mark.parametrize(
    ("count", "expected"),
    [(950, "950 "), (7904, "7.9 k"), (5.17e6, "5.17 M"), (3.2e18, "3.2e+03 P")],
)
def test_operations(count: float, expected: str) -> None:
    assert summary.operations(count) == expected


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [(16_256, "0.02 MB"), (27_200_000, "27.2 MB"), (3_240_000_000, "3.24 GB")],
)
def test_sizes(n_bytes: int, expected: str) -> None:
    assert summary.size(n_bytes) == expected


def test_a_slow_machine_takes_fewer_steps(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock advances by 3 seconds at each reading, so that a step of 4 windows is too long."""
    monkeypatch.setattr(summary, "PROBE_STEPS", 20)
    monkeypatch.setattr(summary, "PROBE_SECONDS", 8.0)
    times = iter(range(0, 1000, 3))
    measure = summary.measure
    monkeypatch.setattr(
        summary, "measure", lambda *both: measure(*both, clock=lambda: float(next(times)))
    )
    printed = summarize(gptlit, text_file).out
    # 3 s for one window, so 4 times as much for the step, and 3 s for the optimizer
    assert re.search(r"time per step +15 s   median of 1 on cpu", printed)
    assert re.search(r"measured on +1   of a step's 4 windows, then scaled up$", printed, re.M)


def test_the_probe_counts_accumulated_batches(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = GPT.forward

    def counted(self: GPT, idx: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tuple(idx.shape))
        return forward(self, idx, *rest)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(GPT, "forward", counted)
    summarize(gptlit, text_file, "--trainer.accumulate_grad_batches=2")
    assert seen == [(1, 8)] * 2 + [(4, 8)] * 2 * (3 + 2)
