"""Study files: the runs that follow from them, and invalid files."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlit.cli.configs import find_study, shipped_configs, shipped_studies
from gptlit.messages import UsageError
from gptlit.study.spec import Range, Study
from gptlit.study.study_file import read


def study(tmp_path: Path, text: str, *words: str) -> Study:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read(path, words)


def test_a_grid_is_all_combinations_by_each_seed(tmp_path: Path) -> None:
    text = """
config: tiny.yaml
options: {trainer: {max_steps: 5}, data.corpus: sayings}
grid: {model.lr: [1e-4, 3e-4], model: {n_layer: [1, 2]}}
seeds: [7, 8]
"""
    setups = study(tmp_path, text, "--trainer.max_steps", "9").setups()
    assert [setup.name for setup in setups][:3] == [
        "lr=0.0001,n_layer=1,seed=7",
        "lr=0.0001,n_layer=1,seed=8",
        "lr=0.0001,n_layer=2,seed=7",
    ]
    assert len(setups) == 8
    assert setups[0].settings == {"model.lr": 1e-4, "model.n_layer": 1}
    assert list(setups[-1].arguments) == [
        "--config=tiny.yaml",
        "--trainer.devices=1",
        "--trainer.max_steps=5",
        "--data.corpus=sayings",
        "--trainer.max_steps",
        "9",
        "--model.lr=0.0003",
        "--model.n_layer=2",
        "--seed_everything=8",
    ]


def test_settings_by_name_are_crossed_with_a_grid(tmp_path: Path) -> None:
    text = """
settings:
  - {name: a/b, config: small.yaml}
  - {name: none, model: {n_kv_head: null, dropout_at: [branch]}}
grid: {model.bias: [true, false], data.seed: [1]}
"""
    setups = study(tmp_path, text).setups()
    assert [setup.name for setup in setups] == [
        "a-b,bias=true,seed=1",
        "a-b,bias=false,seed=1",
        "none,bias=true,seed=1",
        "none,bias=false,seed=1",
    ]
    assert "--config=small.yaml" in setups[0].arguments
    assert {"--model.n_kv_head=null", '--model.dropout_at=["branch"]'} <= set(setups[2].arguments)
    assert setups[2].settings == {"setting": "none", "model.bias": True, "data.seed": 1}


def test_options_that_end_alike_keep_their_groups(tmp_path: Path) -> None:
    (setup,) = study(tmp_path, "grid: {samples.seed: [1], data.seed: [2]}").setups()
    assert setup.name == "samples.seed=1,data.seed=2"


@pytest.mark.parametrize(
    "text",
    [
        # seed= is last, where a long name is cut
        "{settings: [{name: " + "a" * 200 + "}], seeds: [1, 2]}",
        "grid: {data.path: [a/b, a b, a-b]}",
        "grid: {model.lr: [0.12345671, 0.12345672, 0.123457]}",
    ],
)
def test_long_or_rounded_names_of_runs_stay_distinct(tmp_path: Path, text: str) -> None:
    names = [setup.name for setup in study(tmp_path, text).setups()]
    assert len(set(names)) == len(names) > 1
    assert all(re.fullmatch(r"[\w=.,-]{1,150}", name) for name in names)
    assert names == [setup.name for setup in study(tmp_path, text).setups()]


def test_a_name_can_not_leave_the_folder(tmp_path: Path) -> None:
    (setup,) = study(tmp_path, "settings: [{name: ..}]").setups()
    assert setup.name == "run"


def test_more_random_runs_begin_with_the_same_ones(tmp_path: Path) -> None:
    def drawn(runs: int) -> list[dict[str, Any]]:
        text = f"""
random:
  runs: {runs}
  seed: 3
  over: {{model.lr: {{from: 1e-4, to: 1e-2, log: true}}, model.n_layer: {{from: 1, to: 3}},
         model.norm: [layer, rms]}}
"""
        return [setup.settings for setup in study(tmp_path, text).setups()]

    few, many = drawn(5), drawn(40)
    assert many[:5] == few
    assert len({repr(each) for each in many}) == 40
    rates = [each["model.lr"] for each in many]
    assert all(1e-4 <= rate <= 1e-2 and float(f"{rate:.3g}") == rate for rate in rates)
    assert 10 < sum(rate < 1e-3 for rate in rates) < 30  # half of the decades
    assert {each["model.n_layer"] for each in many} == {1, 2, 3}
    assert {each["model.norm"] for each in many} == {"layer", "rms"}


def test_a_rounded_draw_stays_within_its_range() -> None:
    assert Range(0.12345, 0.2).rounded(0.123451) == 0.12345
    assert Range(1, 8, log=True).rounded(7.6) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "not a study"),
        ("grid: [1", "not YAML"),
        ("options: {model.lr: 1}", "varies nothing"),
        ("grids: {model.lr: [1]}", "grids: not a key of a study.*mean grid"),
        ("model: {lr: 1}", "belong under options: {model"),
        ("grid: {model.lr: 1e-4}", "grid: model.lr: 0.0001: must be a list"),
        ("grid: 3", "grid: 3: must be options by name"),
        ("settings: [{model.lr: 1}]", "settings: must be a list of options with a name"),
        ("settings: [{name: a}, {name: a}]", "settings: a: is given twice"),
        ("seeds: 3", "seeds: 3: must be a list"),
        ("seeds: [1, 1]", "a seed is given twice"),
        ("seeds: [0.5, 1]", "seeds: .*must be a list of whole numbers from 0 to 4294967295"),
        ("seeds: [1, a]", "seeds: .*must be a list of whole numbers"),
        ("seeds: [1, -1]", "seeds: .*must be a list of whole numbers"),
        ("seeds: [1, 4294967296]", "seeds: .*must be a list of whole numbers"),
        ("seeds: [null, 1]", "seeds: .*must be a list of whole numbers"),
        ("seeds: [[1]]", "seeds: .*must be a list of whole numbers"),
        ("random: {runs: 1, seed: a, over: {model.lr: [1]}}", "seed: a: must be a whole number"),
        ("random: {runs: 1, seed: -1, over: {model.lr: [1]}}", "seed: -1: must be a whole number"),
        ("{seeds: [1], metric: val/los}", "metric: val/los: choose from.*mean val/loss"),
        ("{seeds: [1], at: start}", "at: start: choose from end, best"),
        ("{seeds: [1], power_law: size}", "power_law: size: choose from parameters"),
        ("{seeds: [1], x: model.lr}", "x: model.lr: choose from parameters"),
        ("grid: {ckpt_path: [a]}", "ckpt_path: does not apply to a study; the same command"),
        (
            "{seeds: [1], options: {trainer: {fast_dev_run: true}}}",
            "fast_dev_run: does not apply to a study",
        ),
        ("{grid: {model.lr: [1, 1]}}", "two runs are the same"),
        ("random: {runs: 3}", "random: needs runs and over"),
        ("random: {runs: 0, over: {model.lr: [1]}}", "runs: 0: must be 1 or more"),
        ("random: {runs: 3, over: {model.n_layer: [1, 2]}}", "fewer distinct settings"),
        ("random: {runs: 1, over: {model.lr: {from: 2, to: 1}}}", "from must be a number below"),
        ("random: {runs: 1, over: {model.lr: {from: 0, to: 1, log: true}}}", "must be above 0"),
        ("random: {runs: 1, by: magic, over: {model.lr: [1]}}", "by: magic: choose from"),
    ],
)
def test_invalid_studies_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"mine.yaml: .*{message}"):
        study(tmp_path, text).setups()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--model.lr=3", "--model.lr: is varied by the study"),
        ("--seed_everything=3", "--seed_everything: is varied by the study"),
        ("--lr_find", "lr_find: does not apply to a study"),
    ],
)
def test_varied_options_are_not_given_as_arguments(tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        study(tmp_path, "{grid: {model.lr: [1, 2]}, seeds: [1]}", word)


def test_shipped_studies_are_found_by_name_and_are_not_configs() -> None:
    assert find_study("contexts.yaml") == find_study("contexts")
    assert not [name for name in shipped_configs() if "studies" in name]
    with pytest.raises(UsageError, match="Did you mean contexts.yaml"):
        find_study("context.yaml")


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_a_shipped_study_says_how_it_is_run_and_how_long_it_takes(name: str) -> None:
    path = shipped_studies()[name]
    head = " ".join(
        line.removeprefix("#").strip()
        for line in path.read_text().splitlines()
        if line.startswith("#")
    )
    assert f"gptlit study {name}" in head
    study = read(path, [])
    runs = len(study.setups())
    stated = (
        f"{len(study.named or {})} settings by 2 seeds"
        if name == "ablations.yaml"
        else f"{runs} runs"
    )
    assert stated in head
    assert "time not measured" in head or "Measured" in head


def test_each_ablation_differs_from_its_config() -> None:
    study = read(find_study("ablations"), [])
    config = yaml.safe_load(shipped_configs()["best_cpu.yaml"].read_text())
    for name, options in (study.named or {}).items():
        assert bool(options) == (name != "all")
        for option, value in options.items():
            group, leaf = option.split(".")
            assert config[group].get(leaf) != value, f"{name}: {option} is {value} already"
