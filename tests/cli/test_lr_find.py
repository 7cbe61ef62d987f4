"""`gptlit fit --lr_find`: the suggested rate, and a run that the trial did not change."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from gptlit.cli import lr_find
from gptlit.cli.lr_find import Trial, changes
from gptlit.messages import UsageError
from gptlit.optim.muon import Muon
from gptlit.optim.optimizers import Recipe
from tests.conftest import TINY, Result, Run, assert_same_run

Call = Callable[..., Result]
OPTIONS = ["--trainer.max_steps=8", "--trainer.val_check_interval=4", "--model.dropout=0.1"]


def trial(loss: Callable[[float], float], low: float = 1e-5, high: float = 1.0) -> Trial:
    """Return a trial whose loss is a function of the rate's decimal logarithm."""
    found = [low * (high / low) ** (step / 100) for step in range(100)]
    return Trial(found, [loss(math.log10(rate)) for rate in found])


def test_the_rate_of_the_steepest_slope_is_suggested() -> None:
    # steepest at 10 ** -2.5 over the logarithm; over the rate itself it is steepest much lower
    falling = trial(lambda x: 3 - math.tanh(2 * (x + 2.5)))
    assert falling.suggested == pytest.approx(10**-2.5, rel=0.1)
    assert falling.suggested == float(f"{falling.suggested:.2g}")


def test_the_first_steps_and_divergence_are_not_counted() -> None:
    def loss(x: float) -> float:
        if x < -4.6:
            return 9 - 10 * x  # the first steps fall fast
        return math.nan if x > -1 else 3 - math.tanh(x + 2)

    assert trial(loss).suggested == pytest.approx(1e-2, rel=0.1)


def test_a_loss_that_never_falls_suggests_no_rate() -> None:
    for loss in (lambda x: x, lambda _: math.nan):
        assert trial(loss).suggested is None
    assert Trial([1e-5, 1e-4, 1e-3], [3, 2, 1]).suggested is None  # stopped early
    with pytest.raises(UsageError, match="--lr_find true: the loss fell at no rate from 1e-05 to"):
        changes(trial(lambda x: x), "adamw", 1e-3, 0.012, 1e-4)


@pytest.mark.parametrize(
    ("optimizer", "min_lr", "wanted"),
    [
        ("adamw", 1e-4, {"lr": 3.2e-3}),
        ("muon", 1e-4, {"lr": 3.2e-3, "muon_lr": 0.0384}),
        ("adamw", 4e-3, {"lr": 3.2e-3, "min_lr": 3.2e-4}),
        ("sgd", 0.0, {"lr": 3.2e-3}),
    ],
)
def test_other_rates_follow_the_one_found(
    optimizer: str, min_lr: float, wanted: dict[str, float]
) -> None:
    falling = trial(lambda x: 3 - math.tanh(2 * (x + 2.5)))
    assert changes(falling, optimizer, 1e-3, 0.012, min_lr) == wanted


class Watch(Callback):
    """Counts the hooks that are called."""

    called = 0

    def on_train_batch_end(self, *_: Any) -> None:
        Watch.called += 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_run_is_the_one_that_is_given_the_rate(
    gptlit: Call, text_file: Path, optimizer: str, tmp_path: Path
) -> None:
    Watch.called = 0
    options = [*TINY, *OPTIONS, f"--data.path={text_file}", f"--model.optimizer={optimizer}"]
    watched = [*options, "--trainer.callbacks=tests.cli.test_lr_find.Watch"]
    before = {path for path in tmp_path.rglob("*") if "tokens" not in path.parts}
    found = gptlit("fit", *watched, "--lr_find")
    assert found.code == 0
    assert Watch.called == 8
    found_rates = dict(re.findall(r"--model\.(\w+) \S+ -> (\S+?)(?:,|$)", found.err, re.MULTILINE))
    assert set(found_rates) == {"lr"} | ({"muon_lr"} if optimizer == "muon" else set())
    if optimizer == "muon":
        assert float(found_rates["muon_lr"]) == pytest.approx(
            4 * float(found_rates["lr"]), rel=0.01
        )
    given = [f"--model.{name}={value}" for name, value in found_rates.items()]
    assert gptlit("fit", *options, *given).code == 0
    one, other = Path("lightning_logs/version_0"), Path("lightning_logs/version_1")
    assert_same_run(one, other, but="callbacks")
    assert "</svg>" in (one / "lr_find.svg").read_text()
    left = {path for path in tmp_path.rglob("*") if "tokens" not in path.parts} - before
    assert not [path for path in left if "lr_find" in path.name and path.suffix != ".svg"]
    # the run resumes without another trial
    last = f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}"
    more = gptlit("fit", last, "--trainer.max_steps=9", "--trust_checkpoint=true")
    assert (more.code, "lr_find" in more.err) == (0, False)


def test_muon_keeps_its_proportion_within_the_trial() -> None:
    weight, other = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    groups = [
        {"params": [weight], "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9},
        {"params": [other], "lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.9)},
    ]
    optimizer = Muon(groups)
    seen: list[list[float]] = []
    step = optimizer._step_by_muon
    optimizer._step_by_muon = lambda group: (  # type: ignore[method-assign]  # a spy
        seen.append([each["lr"] for each in optimizer.param_groups]),
        step(group),
    )[1]

    weight.grad = other.grad = torch.ones(2, 2)
    with lr_find._in_proportion(Recipe(optimizer="muon", lr=1e-3, muon_lr=4e-3)):
        optimizer.step()
    assert seen == [[pytest.approx(0.4), 0.1]]
    optimizer.step()
    assert seen[1] == [pytest.approx(0.1), 0.1]  # unchanged by the tuner


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["fit", "--preflight"], "--preflight"),
        (["fit", "--trainer.fast_dev_run=true"], "--trainer.fast_dev_run"),
        (["summary"], "a verb other than fit"),
        (["fit", "--trainer.devices=2"], "needs one process"),
    ],
)
def test_options_that_lr_find_does_not_apply_to(
    gptlit: Call, text_file: Path, words: list[str], reason: str
) -> None:
    result = gptlit(
        *words, "--lr_find", *TINY, f"--data.path={text_file}", "--trainer.accelerator=cpu"
    )
    assert (result.code, "--lr_find true" in result.err, reason in result.err) == (2, True, True)
    assert not Path("lightning_logs").exists()


def test_a_resumed_run_has_its_rate(gptlit: Call, run: Run) -> None:
    last = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("fit", "--lr_find", "--ckpt_path", last, "--trainer.max_steps=50")
    assert result.code == 2
    assert "--lr_find true: is not used with --ckpt_path" in result.err
