"""`gptlit study` on the command line."""

import csv
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

from gptlit.checkpoints import checkpoint
from gptlit.cli.configs import shipped_studies
from gptlit.runs import run_folder
from gptlit.study import plots, power_law, run, study_file
from gptlit.study.planning import plan, plan_all
from gptlit.study.spec import Setup, Study
from gptlit.study.tables import Outcome, describe_law, grouped, table, warnings
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, assert_same_run, made_up_text, some_time_passes
from tests.study.conftest import OPTIONS

Call = Callable[..., Result]


def results(name: str = "mine") -> list[dict[str, str]]:
    with (Path("lightning_logs") / name / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_makes_its_runs_and_compares_them(gptlit: Call, mine: Callable[..., Path]) -> None:
    path = mine(grid={"model.lr": [0.01, 0.001]}, seeds=[1, 2])
    done = gptlit("study", path)
    assert done.code == 0
    names = [f"lr={lr},seed={seed}" for lr in ("0.01", "0.001") for seed in (1, 2)]
    lines = re.findall(r"\[(\d)/4\] (\S+): val/loss [\d.]+, \d+ s", done.err)
    assert [(int(number), name) for number, name in lines] == list(enumerate(names, 1))
    found = results()
    assert [row["run"] for row in found] == names
    for row in found:
        last = checkpoint.read(f"lightning_logs/mine/{row['run']}/checkpoints/last.ckpt")
        described = last[checkpoint.KEY]
        assert float(row["val/loss"]) == pytest.approx(described["evaluated"]["val/loss"], rel=1e-6)
        assert row["step"] == "8"
        assert int(row["parameters"]) == sum(
            value.numel() for name, value in last["state_dict"].items() if "lm_head" not in name
        )
        assert int(row["tokens"]) == 8 * 4 * 8
        assert described["seed"] == int(row["seed"])
    # the table has a row per setting, the lower loss first
    shown = re.findall(r"^ *(0\.01|0\.001) +(\d\.\d{4}) +(\d\.\d{4}) +2 ", done.out, re.MULTILINE)
    means = {
        lr: sum(float(row["val/loss"]) for row in found if row["model.lr"] == lr) / 2
        for lr in ("0.01", "0.001")
    }
    assert [lr for lr, _, _ in shown] == sorted(means, key=lambda lr: means[lr])
    for lr, mean, spread in shown:
        assert float(mean) == pytest.approx(means[lr], abs=1e-4)
        one, other = (float(row["val/loss"]) for row in found if row["model.lr"] == lr)
        assert float(spread) == pytest.approx(abs(one - other) / 2**0.5, abs=1e-4)
    assert "model.lr" in Path("lightning_logs/mine/plot.svg").read_text()
    # again: nothing is made, and the same table is printed
    before = {each: each.stat().st_mtime_ns for each in Path().rglob("*.ckpt")}
    again = gptlit("study", path)
    assert (again.code, again.out) == (0, done.out)
    assert "4 of 4 runs are done already" in again.err
    assert {each: each.stat().st_mtime_ns for each in Path().rglob("*.ckpt")} == before


def test_a_run_of_a_study_is_the_run_that_fit_makes(
    gptlit: Call, mine: Callable[..., Path], text_file: Path
) -> None:
    # the second of two runs: the first must not affect it
    path = mine(settings=[{"name": "a"}, {"name": "b", "model.dropout": 0.1}])
    assert gptlit("study", path).code == 0
    alone = ["fit", *TINY, *OPTIONS, f"--data.path={text_file}", "--model.dropout=0.1"]
    # as a study's runs have them
    alone += ["--trainer.devices=1", "--figures.every=250"]
    assert gptlit(*alone).code == 0
    assert_same_run(Path("lightning_logs/mine/b"), Path("lightning_logs/version_0"))


def test_a_study_of_averages_compares_them_with_the_raw_weights(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    path = mine(grid={"model.ema": [0.1, 0.9]}, metric="val/loss_average")
    assert gptlit("study", path, "--model.ema_keep=better").code == 0
    found = results()
    assert float(found[0]["val/loss_raw"]) == float(found[1]["val/loss_raw"])
    averages = [float(row["val/loss_average"]) for row in found]
    assert averages[0] != averages[1]
    for row in found:
        both = row["val/loss_raw"], row["val/loss_average"]
        assert float(row["val/loss"]) == min(map(float, both))


class Interrupt(Callback):
    """Sends SIGINT in a step of the second run."""

    fits = 0

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            Interrupt.fits += 1
            if Interrupt.fits == 2:
                os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_after_a_run_is_over_stops_the_study(
    gptlit: Call, mine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run itself completes; the next one is not begun."""
    validated = LitGPT.on_validation_epoch_end

    def and_asked(self: LitGPT) -> None:
        if self.global_step == 8:
            signal.raise_signal(signal.SIGTERM)
        validated(self)

    path = mine(grid={"model.n_layer": [1, 2]})
    with monkeypatch.context() as patch:
        patch.setattr(LitGPT, "on_validation_epoch_end", and_asked)
        stopped = gptlit("study", path)
    assert stopped.code == 143
    assert "1 of 2 runs are done" in stopped.err
    assert "n_layer=2" not in stopped.err
    done = gptlit("study", path)
    assert re.findall(r"\[(\d)/2\]", done.err) == ["2"]


def test_a_resumed_study_is_the_same_as_an_uninterrupted_one(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    Interrupt.fits = 0
    callbacks = [{"class_path": "tests.study.test_run.Interrupt"}]
    content = yaml.safe_load(mine(grid={"model.n_layer": [1, 2]}).read_text())
    content["options"]["trainer.callbacks"] = callbacks
    path = Path("mine.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    stopped = gptlit("study", path)
    assert stopped.code == 130
    assert "[2/2] n_layer=2: stopped" in stopped.err
    assert "1 of 2 runs are done; resume by gptlit study mine.yaml" in stopped.err
    last = Path("lightning_logs/mine/n_layer=2/checkpoints/last.ckpt")
    assert checkpoint.read(last)["global_step"] == 6
    listed = gptlit("study", path, "--dry_run").out
    assert re.findall(r"(n_layer=\d):.*, (\w[\w ]*)$", listed, re.MULTILINE) == [
        ("n_layer=1", "done"),
        ("n_layer=2", "begun"),
    ]
    done = gptlit("study", path)
    assert done.code == 0
    assert re.findall(r"\[(\d)/2\]", done.err) == ["2"]
    assert "2 of 2 runs are done already" in gptlit("study", path).err
    whole = gptlit("study", path, "--name", "whole")
    assert whole.code == 0
    some_time_passes(Path("lightning_logs/mine/n_layer=2"))
    assert_same_run(*(Path("lightning_logs") / name / "n_layer=2" for name in ("mine", "whole")))
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in results(name)]
        for name in ("mine", "whole")
    ]
    assert timeless[0] == timeless[1]


def test_runs_made_with_other_options_are_refused_or_replaced(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    path = mine(grid={"model.n_layer": [1, 2]})
    assert gptlit("study", path).code == 0
    before = results()
    refused = gptlit("study", path, "--model.lr", "0.02")
    assert refused.code == 2
    assert (
        "n_layer=1 and 1 more: made with other options: --model.lr 0.003, now 0.02" in refused.err
    )
    assert results() == before
    assert gptlit("study", path, "--model.lr", "0.02", "--remake").code == 0
    assert [row["val/loss"] for row in results()] != [row["val/loss"] for row in before]
    # complete runs with the same options are kept
    mine(grid={"model.n_layer": [1, 2, 3]})
    more = gptlit("study", path, "--model.lr", "0.02")
    assert "2 of 3 runs are done already" in more.err
    assert re.findall(r"\[\d/3\] \S+:", more.err) == ["[3/3] n_layer=3:"]


def test_another_text_under_the_same_name_is_noticed(
    gptlit: Call, mine: Callable[..., Path], text_file: Path
) -> None:
    path = mine(grid={"model.n_layer": [1]})
    assert gptlit("study", path).code == 0
    text_file.write_text(made_up_text(seed=5), encoding="utf-8")
    refused = gptlit("study", path)
    assert (refused.code, "another text" in refused.err) == (2, True)


@pytest.mark.parametrize("state", ["done", "done by an earlier version", "begun"])
def test_another_text_to_train_on_is_noticed(
    gptlit: Call, mine: Callable[..., Path], text_file: Path, tmp_path: Path, state: str
) -> None:
    own = tmp_path / "val.txt"
    own.write_text(made_up_text(seed=4)[:2000], encoding="utf-8")
    words = [mine(grid={"model.n_layer": [1]}), f"--data.val_path={own}"]
    assert gptlit("study", *words).code == 0
    found = Path("lightning_logs/mine/n_layer=1/result.json")
    if state == "begun":
        found.unlink()
    elif state != "done":
        facts = json.loads(found.read_text())
        del facts["texts"]
        found.write_text(json.dumps(facts))
    assert gptlit("study", *words).code == 0
    text_file.write_text(made_up_text(seed=5), encoding="utf-8")
    if state == "begun":
        found.unlink()
    refused = gptlit("study", *words)
    assert (refused.code, "another text" in refused.err) == (2, True)
    assert gptlit("study", *words, "--remake").code == 0
    assert "1 of 1 runs are done already" in gptlit("study", *words).err


def test_an_option_that_did_not_exist_then_is_a_difference(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    path = mine(grid={"model.n_layer": [1]})
    assert gptlit("study", path).code == 0
    config = Path("lightning_logs/mine/n_layer=1/config.yaml")
    options = yaml.safe_load(config.read_text())
    without = {**options, "model": {k: v for k, v in options["model"].items() if k != "norm"}}
    config.write_text(yaml.safe_dump(without))
    refused = gptlit("study", path)
    norm = json.dumps(options["model"]["norm"])
    assert (refused.code, f"--model.norm, now {norm}, did not exist then" in refused.err) == (
        2,
        True,
    )
    # options that do not affect results
    del options["samples"]
    config.write_text(yaml.safe_dump(options))
    assert gptlit("study", path).code == 0


def test_a_failed_run_is_reported_and_the_study_continues(
    gptlit: Call, mine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1e30 diverges, which is a result; the second is out of memory, and is tried again
    path = mine(
        settings=[
            {"name": "wild", "model.lr": 1e30, "model.warmup_steps": 0},
            {"name": "big", "model.n_layer": 2},
            {"name": "fine"},
        ]
    )
    fit = run._fit

    def no_room(planned: run.Planned, *rest: Any) -> int:
        if planned.setup.name == "big":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return fit(planned, *rest)

    monkeypatch.setattr(run, "_fit", no_room)
    done = gptlit("study", path)
    assert done.code == 1
    assert re.search(r"\nwild: step \d+: [^:;]* is\snot\sfinite\s\(loss [^;]*\)\n", done.out)
    assert "big: out of memory: lower --data.batch_size" in done.out
    assert "1 of 3 runs" in done.out
    assert [bool(row["failed"]) for row in results()] == [True, True, False]
    monkeypatch.undo()
    monkeypatch.chdir(path.parent)
    again = gptlit("study", path)
    assert again.code == 0
    assert re.findall(r"\[\d/3\] \w+", again.err) == ["[2/3] big"]
    assert "wild: step" in again.out


def test_metrics_without_a_checkpoint_are_kept(gptlit: Call, mine: Callable[..., Path]) -> None:
    words = [str(mine(settings=[{"name": "one"}])), "--trainer.max_steps=2"]
    place = Path("lightning_logs/mine/one")
    assert gptlit("study", *words).code == 0
    shutil.rmtree(place / "checkpoints")  # as if killed before the first one
    (place / "result.json").unlink()
    metrics = (place / "metrics.csv").read_bytes()
    again = gptlit("study", *words)
    assert again.code == 0
    assert f"renamed to {place}.old1, and is made anew\n[1/1] one: " in again.err
    assert Path(f"{place}.old1/metrics.csv").read_bytes() == metrics
    assert json.loads((place / "result.json").read_text())["step"] == 2


def test_make_room_keeps_checkpoints_and_metrics(tmp_path: Path) -> None:
    for content in ({"metrics.csv": "step,val/loss\n0,1.5\n"}, {"checkpoints/torn.ckpt": "x"}, {}):
        place = tmp_path / "one"
        (place / "checkpoints").mkdir(parents=True)
        for name, text in {"config.yaml": "a: 1\n", **content}.items():
            (place / name).write_text(text)
        aside = run_folder.make_room(place)
        assert not place.exists()
        assert (aside is None) == (not content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.old1", "one.old2"]


@pytest.mark.parametrize("options", [{}, {"trainer.max_steps": -1, "trainer.max_epochs": 1}])
def test_a_run_that_lacks_only_its_result_is_done(
    gptlit: Call, mine: Callable[..., Path], options: dict[str, int], text_file: Path
) -> None:
    text_file.write_text(made_up_text()[:400], encoding="utf-8")
    path = mine(settings=[{"name": "a", **options}])
    assert gptlit("study", path).code == 0
    before, found = results(), Path("lightning_logs/mine/a/result.json")
    recorded = found.read_text()
    found.unlink()
    again = gptlit("study", path)
    assert again.code == 0, again.out
    assert (results(), found.read_text()) == (before, recorded)


def test_a_setting_proposed_again_is_one_run(
    gptlit: Call, mine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[float] = []

    class Trials:
        """Stands for optuna's study; proposes the second of two settings repeatedly."""

        def ask(self) -> Any:
            return SimpleNamespace(suggest_categorical=lambda *_: min(len(reported), 1))

        def tell(self, _: Any, value: float) -> None:
            reported.append(value)

    optuna = mock.MagicMock(__spec__=mock.Mock(), create_study=lambda **_: Trials())
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    search = {"runs": 4, "by": "optuna", "over": {"model.lr": [0.01, 0.001]}}
    done = gptlit("study", mine(random=search, seeds=[1, 2]))
    assert done.code == 0
    assert len(reported) == 4
    assert reported[1] == reported[2] == reported[3] != reported[0]
    assert [row["run"] for row in results()] == [
        f"lr={lr},seed={seed}" for lr in (0.01, 0.001) for seed in (1, 2)
    ]
    assert re.findall(r"^ *0\.0?01 .* (\d) +\d+ s$", done.out, re.MULTILINE) == ["2", "2"], done.out


def test_a_resumed_search_by_optuna_makes_the_same_proposals(
    gptlit: Call, mine: Callable[..., Path], tmp_path: Path
) -> None:
    over = {"model.lr": {"from": 1e-3, "to": 1e-1, "log": True}, "model.n_head": [1, 2, 4]}
    search = {"by": "optuna", "seed": 3, "over": over}
    first = gptlit("study", mine(random={**search, "runs": 2}))
    assert first.code == 0
    begun = results()
    assert len({row["model.lr"] for row in begun}) == 2
    assert all(1e-3 <= float(row["model.lr"]) <= 1e-1 for row in begun)
    more = gptlit("study", mine(random={**search, "runs": 4}))
    assert more.code == 0
    assert results()[:2] == begun  # with the same seconds: they were not made again
    whole = [row["run"] for row in results()]
    assert len(whole) == 4
    (tmp_path / "lightning_logs" / "mine").rename(tmp_path / "before")
    assert gptlit("study", mine(random={**search, "runs": 4})).code == 0
    assert [row["run"] for row in results()] == whole


def test_costs_are_counted_up_to_the_best_validation(
    gptlit: Call, mine: Callable[..., Path]
) -> None:
    # with this learning rate the loss soon rises
    path = mine(grid={"model.lr": [0.5]}, at="best")
    assert gptlit("study", path, "--trainer.val_check_interval=1").code == 0
    (best,) = results()
    step = int(best["step"])
    assert step < 8
    assert int(best["tokens"]) == step * 4 * 8
    mine(grid={"model.lr": [0.5]}, at="end")
    assert gptlit("study", path, "--trainer.val_check_interval=1").code == 0
    (end,) = results()
    assert (end["step"], end["tokens"]) == ("8", str(8 * 4 * 8))
    for cost in ("flops", "seconds"):
        assert float(best[cost]) == pytest.approx(float(end[cost]) * step / 8)


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ({"grid": {"model.n_embed": [1]}}, [], "n_embed=1: --model.n_embed: unknown option"),
        (
            {"grid": {"model.n_embd": [16, 15]}},
            [],
            "n_embd=15: --model.n_embd 15: must be a multiple",
        ),
        ({"grid": {"data.path": ["nowhere.txt"]}}, [], "--data.path nowhere.txt"),
        ({"grid": {"model.block_size": [8, 9999]}}, [], "block_size=9999: --model.block_size 9999"),
        ({"seeds": [1]}, ["--trainer.max_steps=7"], "the last validation would be at step 4 of 7"),
        ({"seeds": [1]}, ["--data.val_fraction=0"], "metric: val/loss: there is no validation"),
        ({"seeds": [1], "metric": "val/loss_raw"}, ["--model.ema=0.9"], "--model.ema_keep better"),
        (
            {"seeds": [1]},
            ["--trainer.devices=2"],
            "--trainer.devices 2: a study trains in one process",
        ),
        ({"seeds": [1]}, ["--name", "a/b"], "--name a/b: must be a folder's name"),
        ({"seeds": [1]}, ["--name", "version_3"], "--name version_3: must be a folder's name"),
    ],
)
def test_invalid_options_are_refused_before_any_run(
    gptlit: Call, mine: Callable[..., Path], content: Any, words: list[str], message: str
) -> None:
    refused = gptlit("study", mine(**content), *words)
    assert refused.code == 2
    assert message in refused.err
    assert not Path("lightning_logs").exists()


def test_arguments_without_a_file(gptlit: Call) -> None:
    assert "no study file" in gptlit("study").err
    assert "no study file" in gptlit("study", "--name", "x").err
    assert "nowhere.yaml: no such file" in gptlit("study", "nowhere.yaml").err
    shown = gptlit("study", "--help").out
    assert shown.startswith("usage: gptlit study STUDY.yaml")
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("seed", [1, 4])
def test_seeds_are_planned_as_if_each_were_parsed(
    monkeypatch: pytest.MonkeyPatch, mine: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    study = study_file.read(mine(grid={"model.lr": [0.01, 0.001]}, seeds=[seed, 2, 3]), [])
    setups = study.setups()
    assert plan_all(study, setups) == [plan(study, setup) for setup in setups]


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_a_shipped_study_can_be_planned(gptlit: Call, text_file: Path, name: str) -> None:
    listed = gptlit("study", name, "--dry_run", f"--data.path={text_file}")
    assert listed.code == 0, listed.err
    assert len(listed.out.splitlines()) > 2
    assert not Path("lightning_logs").exists()


def test_a_shipped_study_runs_to_its_table_and_its_law(gptlit: Call, text_file: Path) -> None:
    small = ["--model.n_layer=1", "--model.block_size=8", "--data.batch_size=4", *OPTIONS]
    done = gptlit("study", "scaling.yaml", f"--data.path={text_file}", *small)
    assert done.code == 0, done.err
    assert re.search(r"val/loss = E \+ A / parameters \^ alpha: E [\d.]+, A", done.out)
    found = results("scaling")
    law = power_law.fit(
        [float(r["parameters"]) for r in found], [float(r["val/loss"]) for r in found]
    )
    assert (
        f"alpha {law.alpha:.4g}; root mean square residual {law.residual:.2g}, 5"
        in done.out.replace("\n", " ")
    )
    drawn = Path("lightning_logs/scaling/plot.svg").read_text()
    assert "stroke-dasharray" in drawn


# ---------------------------------------------------------------------- tables


def outcome(name: str, loss: float, **settings: Any) -> Outcome:
    results = {"val/loss": loss, "step": 10, "parameters": 1000, "tokens": 320, "seconds": 3.0}
    return Outcome(Setup(name, settings, None, []), results, {5: loss + 1, 10: loss})


A_STUDY = Study(Path("mine.yaml"), grid={"model.lr": [1, 2]})


def test_a_narrow_terminal_gets_paragraphs() -> None:
    found = [outcome("a", 2.5, lr=0.1, block_size=64), outcome("b", 1.5, lr=0.2, block_size=8)]
    for room in (20, 40, 80):
        assert all(len(line) <= room for line in table(A_STUDY, found, room).splitlines())
    assert "0.2, block_size 8, val/loss 1.5000" in table(A_STUDY, found, 24).replace("\n", " ")


def test_rows_are_sorted_by_their_mean_and_failures_have_none() -> None:
    found = [outcome("a", 3, lr=1), outcome("b", 1, lr=2), outcome("c", 2, lr=1)]
    failed = Outcome(Setup("d", {"lr": 3}, None, []), failed="no")
    made = grouped(A_STUDY, [*found, failed])
    assert [row.settings["lr"] for row in made] == [2, 1]
    assert made[1].mean("val/loss") == 2.5
    assert made[1].spread("val/loss") == pytest.approx(0.5**0.5)
    assert made[0].spread("val/loss") == 0


def test_losses_of_different_tokenizers_are_not_compared_silently() -> None:
    varied = Study(Path("mine.yaml"), named={"c": {"data.tokenizer": "char"}, "w": {}})
    found = [outcome("c", 2.5, setting="c"), outcome("w", 1.5, setting="w")]
    assert "metric: val/bits_per_byte" in next(warnings(varied, found))
    assert not list(warnings(A_STUDY, found))


def test_a_law_of_few_points_is_described_with_a_remark() -> None:
    law = Study(Path("mine.yaml"), power_law="tokens", seeds=[1])
    found = [outcome(str(n), 3 / n**0.5, lr=n) for n in (1, 2, 3)]
    for n, each in enumerate(found, 1):
        each.results["tokens"] = float(n)  # type: ignore[index]  # a dict here
    described = list(describe_law(law, found))
    assert "E 0, A 3, alpha 0.5" in described[0]
    assert "E is assumed to be 0: it cannot be estimated from fewer than 4" in described[1]
    assert "no power law" in next(describe_law(law, found[:1]))


def test_plots_of_nothing_and_of_one_run() -> None:
    assert plots.draw(A_STUDY, [Outcome(Setup("d", {}, None, []), failed="no")]) == {}
    assert set(plots.draw(A_STUDY, [outcome("a", 1.0)])) == {"curves.svg", "plot.svg"}


def test_results_are_plain_json(gptlit: Call, mine: Callable[..., Path]) -> None:
    assert gptlit("study", mine(seeds=[3])).code == 0
    result = json.loads(Path("lightning_logs/mine/seed=3/result.json").read_text())
    assert result["step"] == 8
