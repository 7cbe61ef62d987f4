"""When a run is reported to overfit."""

from gptlit.training.overfitting import LossHistory


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
    assert (
        "val/loss is 2.5000 (gap +0.5000) and was 2.0000 at step 1 (best.ckpt)" in history.finding
    )
    assert not history.add(9, 2.05, 0.5)
    assert history.finding == ""
    far = LossHistory()
    assert not far.add(1, 3.0, 1.0)
    assert far.add(2, 2.5, 1.2)
    assert "1.2000 above the loss on the training text" in far.finding
