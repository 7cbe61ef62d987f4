"""`gptlit data --advise`: a config that `gptlit fit` takes as it is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptlit.cli.configs import shipped_configs
from gptlit.data.advice import FLOPS_PER_SECOND
from gptlit.runs import time_budget
from gptlit.runs.time_budget import Length
from tests.conftest import Result, made_up_text

Call = Callable[..., Result]
QUICK = ["--samples.max_new_tokens=3", "--trainer.accelerator=cpu"]


def advised(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    found: dict[str, Any] = yaml.safe_load(result.out)
    return found


def run_options() -> dict[str, Any]:
    """Return the options of the newest run."""
    newest = max(Path("lightning_logs").iterdir(), key=lambda path: path.stat().st_mtime)
    options: dict[str, Any] = yaml.safe_load((newest / "config.yaml").read_text(encoding="utf-8"))
    return options


def test_a_fit_takes_the_config_as_it_is(gptlit: Call, text_file: Path) -> None:
    result = gptlit("data", text_file.name, "--advise", "--minutes=0.01")
    config = advised(result)
    Path("my.yaml").write_text(result.out, encoding="utf-8")
    fit = gptlit("fit", "--config=my.yaml", "--trainer.max_steps=2", *QUICK)
    assert fit.code == 0, fit.err
    assert "adapted" not in fit.err
    options = run_options()
    config["data"]["path"] = str(text_file)
    config["trainer"]["max_steps"] = 2
    for group in ("model", "data", "trainer"):
        used = {name: options[group][name] for name in config[group]}
        assert used == config[group]


def test_a_fit_of_some_minutes_keeps_the_sizes(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "fitting", lambda *_, **__: Length(4, 2, 2))
    result = gptlit("data", text_file, "--advise", "--minutes=0.01")
    Path("my.yaml").write_text(result.out, encoding="utf-8")
    fit = gptlit("fit", "--config=my.yaml", "--minutes=5", *QUICK)
    assert fit.code == 0, fit.err
    model = yaml.safe_load(result.out)["model"]
    options = run_options()
    assert options["trainer"]["max_steps"] == 4
    changed = {name for name, each in model.items() if options["model"][name] != each}
    assert changed == {"warmup_steps"}


def test_the_recipe_is_that_of_small_yaml(gptlit: Call, text_file: Path) -> None:
    result = gptlit("data", text_file, "--advise")
    assert result.out.splitlines()[0] == f"# gptlit data {text_file} --advise"
    config = advised(result)
    small = yaml.safe_load(shipped_configs()["small.yaml"].read_text(encoding="utf-8"))
    changed = {name for name in small["model"] if config["model"][name] != small["model"][name]}
    assert changed == {"n_layer", "n_head", "n_embd", "weight_decay"}
    assert {*config["model"]} - {*small["model"]} == {
        *("dropout", "dropout_at", "token_dropout", "embedding_weight_decay"),
    }
    assert config["trainer"]["gradient_clip_val"] == small["trainer"]["gradient_clip_val"]
    assert config["samples"]["prompts"] == ["ROMEO:"]


def test_the_explanation_has_the_configs_numbers(gptlit: Call, text_file: Path) -> None:
    result = gptlit("data", text_file, "--advise", "--minutes=0.02", "--val_fraction=0.2")
    config, text = advised(result), made_up_text()
    model, n_train = config["model"], int(0.8 * len(text))
    assert config["data"]["val_fraction"] == 0.2
    explained = result.err.replace("gptlit: ", "").splitlines()
    assert explained[0].startswith(
        f"{len(text):,} characters: {n_train:,} tokens to train on, {len(text) - n_train:,} for "
    )
    n_steps, batch = config["trainer"]["max_steps"], config["data"]["batch_size"]
    n_passes = n_steps * batch * model["block_size"] / n_train
    assert explained[1].startswith(f"net: n_layer {model['n_layer']}, n_head {model['n_head']}, ")
    assert explained[2].startswith(
        f"run: {n_steps:,} steps of {batch} windows of {model['block_size']} tokens, "
        f"{n_passes:.1f} passes; about 1 s on two CPU cores"
    )
    assert f"dropout {model['dropout']:g}, " in explained[3]
    assert explained[4] == "length: fit --minutes 0.02 adapts the number of steps to the machine"
    longer = gptlit("data", text_file, "--advise", "--minutes=100").err
    assert "leave --minutes out of fit; more than 40 passes gain little" in longer


@pytest.mark.parametrize("n_chars", [100, 1_000, 4_000])
def test_sizes_of_a_small_text_are_those_that_a_fit_adapts(gptlit: Call, n_chars: int) -> None:
    Path("my.txt").write_text(made_up_text()[:n_chars], encoding="utf-8")
    config = advised(gptlit("data", "my.txt", "--advise"))
    adapted = gptlit("summary", "--config=small.yaml", "--data.path=my.txt").err
    size = re.search(r"model\.block_size 256 -> (\d+)", adapted)
    assert config["model"]["block_size"] == (int(size[1]) if size else 256)
    assert "data.val_fraction 0.02 -> 0.1" in adapted
    assert config["data"]["val_fraction"] == 0.1


def test_options_of_the_text_are_in_the_config(gptlit: Call) -> None:
    rows = "".join(f"{index},{line}\n" for index, line in enumerate(made_up_text().split("\n")))
    Path("my.csv").write_text(f"id,review\n{rows}", encoding="utf-8")
    result = gptlit(
        "data", "my.csv", "--column=review", "--tokenizer=[bpe:300]", "--eos=true",
        "--split_by=documents", "--cleaning.min_words=2", "--advise", "--minutes=0.01",
    )  # fmt: skip
    data = advised(result)["data"]
    assert {name: each for name, each in data.items() if name != "batch_size"} == {
        "path": "my.csv",
        "tokenizer": "bpe:300",
        "cleaning": {"min_words": 2},
        "column": "review",
        "eos": True,
        "split_by": "documents",
        "val_fraction": 0.1,
    }
    Path("my.yaml").write_text(result.out, encoding="utf-8")
    assert gptlit("fit", "--config=my.yaml", "--trainer.max_steps=2", *QUICK).code == 0
    assert run_options()["data"]["tokenizer"] == "bpe:300"


def test_a_corpus_is_named(gptlit: Call) -> None:
    data = advised(gptlit("data", "sayings", "--advise"))["data"]
    assert data == {"corpus": "sayings", "val_fraction": 0.1, "batch_size": 9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes=5"], "--minutes 5.0: needs --advise; give that as well"),
        (["--advise", "--minutes=0"], "--minutes 0.0: must be a number above 0, such as 5"),
        (["--advise", "--minutes=nan"], "--minutes nan: expected float or null"),
        (["--advise", "--tokenize=a"], "--tokenize a: is not used with --advise; leave it out"),
        (
            ["--advise", "--tokenizer=[char,word]"],
            "--tokenizer ['char', 'word']: must be one tokenizer with --advise",
        ),
    ],
)
def test_errors(gptlit: Call, text_file: Path, options: list[str], message: str) -> None:
    result = gptlit("data", text_file, *options)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"gptlit: error: {message}\n"


def test_a_text_that_is_too_short(gptlit: Call) -> None:
    Path("my.txt").write_text("To be, or not to be\n", encoding="utf-8")
    result = gptlit("data", "my.txt", "--advise")
    assert (result.code, result.out) == (2, "")
    assert "too short, with 18 tokens to train on and 2 for validation; give 80" in result.err


def test_the_speed_is_that_of_the_recorded_step() -> None:
    step = 3 * (2 * (12 * 4 * 128**2 + 65 * 128) + 4 * 4 * 64 * 128) * 12 * 64
    assert pytest.approx(step / 0.092, rel=0.01) == FLOPS_PER_SECOND
