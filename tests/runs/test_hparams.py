"""The HParams tab of TensorBoard: a run's options, and the figures to compare runs by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptlit.runs import event_files, loggers
from tests.conftest import Result, Run, curves, read_metrics
from tests.runs.test_loggers import OPTIONS, copied

Call = Callable[..., Result]


def shown(runs: Path) -> tuple[Any, list[Any]]:
    """Return the experiment and its sessions, as TensorBoard's own code reads them."""
    from tensorboard import context
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        get_experiment,
        list_session_groups,
    )

    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(runs))
    events.Reload()
    provider = MultiplexerDataProvider(events, str(runs))
    tensorboard = TBContext(logdir=str(runs), multiplexer=events, data_provider=provider)
    where: tuple[Any, ...] = (context.RequestContext(), backend_context.Context(tensorboard), "")
    request = api_pb2.GetExperimentRequest()
    experiment = get_experiment.Handler(*where, request).run()
    wanted = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=9, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    for each in experiment.metric_infos:
        wanted.col_params.add().metric.CopyFrom(each.name)
    return experiment, [*list_session_groups.Handler(*where, wanted).run().session_groups]


def test_tensorboard_shows_options_and_figures(run: Run) -> None:
    experiment, (session,) = shown(run.folder.parent)
    options = session.hparams
    assert options["model.n_embd"].number_value == 16
    assert options["model.optimizer"].string_value == "adamw"
    assert options["model.tie_weights"].bool_value is True
    assert {"trainer.default_root_dir", "samples.prompts", "ckpt_path"}.isdisjoint(options)
    figures = {each.name.tag: each.value for each in session.metric_values}
    rows = read_metrics(run.folder)
    best = min((row for row in rows if row["val/loss"]), key=lambda row: float(row["val/loss"]))
    for name in ("loss", "bits_per_byte"):
        assert figures[f"best/val_{name}"] == pytest.approx(float(best[f"val/{name}"]))
        assert figures[f"val/{name}"] == pytest.approx(float(rows[-1][f"val/{name}"]))
    assert figures["best/step"] == int(best["step"]) + 1
    assert figures["final/tokens"] == 40 * 4 * 8
    slice_loss = [float(row["train/loss_eval"]) for row in rows if row["train/loss_eval"]]
    assert figures["final/train_loss"] == pytest.approx(slice_loss[-1])
    assert 0 < figures["final/minutes"] < 1
    assert "final/parameters" in {each.name.tag for each in experiment.metric_infos}


def test_a_resume_replaces_options_and_figures(gptlit: Call, run: Run, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    assert gptlit("fit", "--ckpt_path=last", *OPTIONS, "--guard.diverged=7").code == 0
    (session,) = shown(folder.parent)[1]
    assert session.hparams["guard.diverged"].number_value == 7
    values = [v.tag for event in event_files.logged(folder, 99) for v in event.summary.value]
    assert values.count("_hparams_/session_start_info") == 1
    assert values.count("_hparams_/session_end_info") == 1
    assert curves(folder) == curves(run.folder)


def test_options_that_differ_come_first(run: Run, tmp_path: Path) -> None:
    for name, options in (("a", {"x": 1, "y": True, "z": "s"}), ("b", {"x": 1, "y": True, "z": 2})):
        writer = loggers.Curves(tmp_path, 0, options, name="study", version=name)
        writer.log_end({"best/val_loss": 1.5}, 9, is_finished=True)
    experiment, sessions = shown(tmp_path / "study")
    assert [each.name for each in experiment.hparam_infos] == ["z", "x", "y"]
    assert len(sessions) == 2
