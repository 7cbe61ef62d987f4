"""When a run is reported to overfit."""

import pytest

from gptlit.messages import naming_flags, with_option_names
from gptlit.training.options import ModelOptions
from gptlit.training.overfitting import LossHistory, advice


def test_a_loss_that_rises_on_both_splits_is_not_overfitting() -> None:
    history = LossHistory()
    losses = [2.0, 9.0, 9.0, 9.0]
    assert not any(history.add(step, loss, -0.3) for step, loss in enumerate(losses))
    assert not history.finding


def test_when_overfitting_is_reported() -> None:
    history = LossHistory()
    assert history.finding == ""
    losses = [3.0, 2.0, 2.11, 2.05, 2.1, 2.1, 2.5]
    assert [history.add(step, loss, 0.5) for step, loss in enumerate(losses)] == [False] * 5 + [
        True,
        False,
    ]
    assert history.finding == (
        "the model overfits: val/loss is 2.5000 (gap +0.5000); best.ckpt keeps step 1, with "
        "val/loss 2.0000"
    )
    assert not history.add(9, 2.05, 0.5)
    assert history.finding == ""
    far = LossHistory()
    assert not far.add(1, 3.0, 1.0)
    assert far.add(2, 2.5, 1.2)
    assert "1.2000 above the loss on the training text" in far.finding


@pytest.mark.parametrize(("growth", "found"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_ten_validations_without_improvement_while_the_gap_grows(
    growth: float, found: bool
) -> None:
    history = LossHistory()
    for step in (100, 200):
        assert not history.add(step, 2.0 - step / 1000, 0.25)
    gaps = [0.25 + growth * count for count in range(1, 12)]
    warned = [history.add(200 + 100 * n, 1.85, gap) for n, gap in enumerate(gaps, start=1)]
    assert warned == [False] * 9 + [found, False]
    assert history.finding == (
        "the model overfits: val/loss has not improved for 11 validations, and the gap grew from "
        "+0.2500 to +0.3600; best.ckpt keeps step 200, with val/loss 1.8000"
        if found
        else ""
    )
    assert not history.add(1400, 1.79, 0.5)
    assert history.finding == ""


def test_a_history_of_an_older_version_waits_for_a_new_lowest_loss() -> None:
    saved = {"lowest": 2.0, "lowest_at": 1, "last": 2.05, "last_gap": 0.1, "n_above": 0}
    history = LossHistory(**saved)
    assert not any(history.add(step, 2.05, 0.2 + step / 100) for step in range(2, 14))
    assert not history.add(14, 1.9, 0.3)
    assert any(history.add(step, 1.95, 0.4) for step in range(15, 25))


def test_the_advice_names_options_and_their_values() -> None:
    options = ModelOptions(vocab_size=0, dropout=0.05, weight_decay=0.1, n_embd=64)
    with naming_flags():
        shown = with_option_names(advice(options))
    assert shown == (
        "raise --model.dropout (0.05), --model.token_dropout (0) or --model.weight_decay (0.1), "
        "or the size of the text; or lower --model.n_embd (64) or --trainer.max_steps; "
        "--early_stopping.patience 10 ends such a run"
    )
