"""Duplicate keys in YAML are refused wherever YAML is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.messages import UsageError
from gptlit.yaml_keys import refuse_duplicates
from tests.conftest import TINY, Result

Call = Callable[..., Result]

TWICE = {
    "model: {n_layer: 2}\ndata: {}\nmodel: {n_head: 2}": ("model", 1, 3),
    "model:\n  n_layer: 2\n  n_head: 2\n  n_layer: 3": ("model.n_layer", 2, 4),
    "trainer:\n  callbacks:\n  - class_path: A\n    init_args: {a: 1, b: 2,\n a: 3}": (
        "trainer.callbacks.0.init_args.a", 4, 5,
    ),
    'model:\n  n_layer: 2\n"model": {}': ("model", 1, 3),
    "model:\n  n_layer: 2\nmodel.n_layer: 3": ("model.n_layer", 2, 3),
    "seed_everything: 1\nseed_everything: 1": ("seed_everything", 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("text", TWICE)
def test_a_duplicate_key_is_refused(gptlit: Call, text: str) -> None:
    name, first, second = TWICE[text]
    Path("mine.yaml").write_text(text)
    result = gptlit("fit", "--config=mine.yaml")
    assert result.code == 2
    assert result.err == (
        f"gptlit: error: --config mine.yaml: {name}: occurs twice, in lines {first} and {second}; "
        "join the two, or remove one\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nb: {a: 1}\nc: [{a: 1}, {a: 1}]",
        "a: &a {b: 1}\nc: *a\nd: {<<: *a, b: 2}",
        "1: a\n'2': b",
        "a: [",  # not YAML, which the loader reports
    ],
)
def test_the_same_key_in_other_places_is_accepted(text: str) -> None:
    refuse_duplicates(text)


def test_studies_and_files_and_flags_of_options_are_checked(gptlit: Call, text_file: Path) -> None:
    Path("study.yaml").write_text("config: tiny.yaml\nseeds: [1, 2]\nseeds: [3]")
    Path("logger.yaml").write_text(
        "class_path: lightning.pytorch.loggers.CSVLogger\ninit_args: {save_dir: a, save_dir: b}"
    )
    run = ["fit", *TINY, f"--data.path={text_file}", "--trainer.max_steps=1"]
    for words, message in (
        (["study", "study.yaml"], "study.yaml: seeds: occurs twice, in lines 2 and 3"),
        ([*run, "--trainer.logger=logger.yaml"], "init_args.save_dir: occurs twice"),
        ([*run, "--data.cleaning={min_words: 1, min_words: 2}"], "min_words: occurs twice"),
    ):
        result = gptlit(*words)
        assert result.code == 2
        assert message in result.err
        assert len(result.err.splitlines()) == 1
    assert not Path("lightning_logs").exists()


def test_keys_are_named_without_a_file() -> None:
    with pytest.raises(UsageError, match=r"^a\.b: occurs twice, in lines 2 and 3"):
        refuse_duplicates("a:\n  b: 1\n  b: 2")
