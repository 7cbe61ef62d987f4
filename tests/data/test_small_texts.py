"""A run on a small text of the user: which options are adapted, reported and kept."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gptlit.data import small_texts
from tests.conftest import Result, made_up_text, read_metrics

Call = Callable[..., Result]
SMALLER = [
    "--model.n_layer=1",
    "--model.n_head=2",
    "--model.n_embd=16",
    "--samples.max_new_tokens=3",
]


@pytest.mark.parametrize(
    ("given", "n_chars", "share"),
    [
        (0.02, 400, 0.1),
        (0.02, 9_999, 0.1),
        (0.02, 20_000, 0.05),
        (0.02, 49_999, 0.03),
        (0.02, 50_000, 0.02),
        (0.01, 100_000, 0.01),
        (0.1, 400, 0.1),
        (0.3, 400, 0.3),
        (0.0, 400, 0.0),
    ],
)
def test_the_share_for_validation(given: float, n_chars: int, share: float) -> None:
    assert small_texts.val_fraction(given, n_chars) == share


@pytest.mark.parametrize(
    ("given", "n_train", "n_val", "least", "size"),
    [
        (64, 2_700, 300, 1, 64),
        (64, 360, 40, 1, 32),  # a window of 64 is longer than the validation split
        (64, 400, None, 1, 32),  # which leaves 11 windows to train on; of 64, 5
        (64, 2_700, 300, 50, 32),  # a step takes 50
        (64, 72, 8, 1, 8),
        (64, 71, 8, 1, None),
        (64, 72, 7, 1, None),
        (4, 72, 7, 1, 4),  # of the config: nothing is made larger
    ],
)
def test_the_block_size(
    given: int, n_train: int, n_val: int | None, least: int, size: int | None
) -> None:
    found = small_texts.block_size(given, lambda size: n_train // size - 1, n_val, least)
    assert found == size


def test_the_batch_size() -> None:
    sizes = [small_texts.batch_size(12, n, batches) for n, batches in ((10, 1), (40, 1), (10, 4))]
    assert sizes == [10, 12, 2]


@pytest.mark.parametrize(
    ("given", "n_steps", "steps_per_epoch", "interval"),
    [
        (850, 3_400, 3, 85),
        (850, 3_400, 85, 850),  # ten passes
        (850, 3_400, 84, 85),
        (100, 300, 1, 6),  # the nearest below a fortieth that divides the run
        (250, 997, 1, 24),  # none does
        (850, -1, 1, 850),
        (20, 3_400, 1, 20),
        (850, 60, 1, 5),  # validations would take longer than the run
        (850, 24, 1, 4),
        (850, 7, 1, 5),
        (850, 1, 1, 1),
    ],
)
def test_the_interval_between_validations(
    given: int, n_steps: int, steps_per_epoch: int, interval: int
) -> None:
    assert small_texts.val_check_interval(given, n_steps, steps_per_epoch) == interval


def test_the_interval_between_samples() -> None:
    found = [small_texts.sample_interval(0, *each) for each in ((3_400, 85), (3_400, 170), (-1, 9))]
    assert found == [340, 0, 0]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("\n \n  ROMEO:\nBut soft", "ROMEO:"),
        ("Nel mezzo del cammin di nostra vita", "Nel mezzo del cammin di"),
        ("x" * 30, "x" * 24),
        ("It is a truth universal ly", "It is a truth universal"),
        (" \n", ""),
    ],
)
def test_a_prompt_from_a_text(text: str, prompt: str) -> None:
    assert small_texts.opening(text) == prompt


def test_what_to_expect_of_a_text() -> None:
    assert small_texts.expectation(2_048, 10.0) == []
    message = small_texts.expectation(2_048, 1_133.3)
    assert message[0] == "2.0 KB of text, seen 1,133 times: the model will memorise it;"
    assert "400 bytes of text, seen without end" in small_texts.expectation(400, None)[0]


# ---------------------------------------------------------------------- runs


def options_of(version: int = 0) -> dict[str, dict[str, object]]:
    return yaml.safe_load(Path(f"lightning_logs/version_{version}/config.yaml").read_text())


def test_a_small_text_trains_with_a_shipped_config(gptlit: Call) -> None:
    """It resumes on the same windows; the characters and all that is saved are the text's."""
    text = "a quiet sea, a grey sky; " * 16  # 400 characters, no capital among them
    Path("my.txt").write_text(text)
    result = gptlit("fit", "gpt2_small", "my.txt", *SMALLER, "--trainer.max_steps=24")
    assert result.code == 0, result.err
    for line in (
        "adapted *data.val_fraction 0.02 -> 0.1",
        "model.block_size 64 -> 32",
        "data.batch_size 12 -> 10",
        "trainer.val_check_interval 850 -> 4",
        r'samples.prompts \["ROMEO:"\] -> \["a quiet sea, a grey sky;"\]',
        "expect *400 bytes of text, seen 24 times: the model will memorise it",
    ):
        assert re.search(line, result.out), line
    saved = options_of()
    assert (saved["data"]["val_fraction"], saved["model"]["block_size"]) == (0.1, 32)
    assert (saved["data"]["batch_size"], saved["trainer"]["val_check_interval"]) == (10, 4)
    samples = Path("lightning_logs/version_0/samples.txt").read_text()
    assert re.findall(r"=== step (\d+)", samples) == [str(step) for step in range(4, 25, 4)]
    assert samples.count("a quiet sea, a grey sky;") == 6
    rows = read_metrics(Path("lightning_logs/version_0"))
    assert sum(bool(row["val/loss"]) for row in rows) == 6
    longer = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=25")
    assert longer.code == 0, longer.err
    assert "adapted" not in longer.out
    assert options_of()["data"] == saved["data"]


@pytest.mark.parametrize("max_steps", [-1, 3_400])
def test_epochs_end_a_run_as_well(gptlit: Call, max_steps: int) -> None:
    Path("my.txt").write_text("a quiet sea, a grey sky; " * 16)
    ends = ("--trainer.max_epochs=400", f"--trainer.max_steps={max_steps}")
    result = gptlit("summary", "my.txt", *SMALLER, *ends)
    assert "trainer.val_check_interval 500 -> 30" in result.err
    assert "samples.min_interval 0 -> 120" in result.err


@pytest.mark.parametrize("n_chars", [80, 1_000, 3_000])
def test_other_sizes_train_too(gptlit: Call, n_chars: int) -> None:
    Path("my.txt").write_text(made_up_text()[:n_chars].replace("é", "e"))
    result = gptlit("fit", "my.txt", *SMALLER, "--trainer.max_steps=1")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("n_chars", "arguments", "message"),
    [
        (
            79,
            [],
            "--data.path my.txt: is too short, with 71 tokens to train on and 8 for validation",
        ),
        (300, ["--data.val_fraction=0.02"], "or leave --data.val_fraction out"),
        (400, ["--model.block_size=64"], "--model.block_size 64"),
        (400, ["--data.batch_size=500"], "--data.batch_size 500: a step takes 500 windows of 32"),
    ],
)
def test_options_that_the_user_chose_are_kept(
    gptlit: Call, n_chars: int, arguments: list[str], message: str
) -> None:
    Path("my.txt").write_text(("abcdefghi\n" * 40)[:n_chars])
    result = gptlit("fit", "--data.path=my.txt", *SMALLER, *arguments)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert message in line


def test_own_configs_and_larger_texts_are_not_adapted(gptlit: Call) -> None:
    Path("my.txt").write_text("ROMEO:\n" + made_up_text(400))
    Path("own.yaml").write_text(
        "data: {val_fraction: 0.2, batch_size: 2}\nsamples: {prompts: [fool]}\n"
        "model: {block_size: 16}\ntrainer: {val_check_interval: 50}\n"
    )
    chosen = gptlit("summary", "--config=tiny", "--config=own.yaml", "--data.path=my.txt", *SMALLER)
    assert chosen.code == 0
    assert "adapted" not in chosen.err
    shipped = gptlit("summary", "--config=tiny", "--data.path=my.txt", *SMALLER)
    assert shipped.err.splitlines() == [
        f"gptlit: adapted to this text: {change}"
        for change in (
            "data.val_fraction 0.01 -> 0.1",
            "trainer.val_check_interval 100 -> 6",
            "samples.min_interval 0 -> 30",
        )
    ]
    Path("large.txt").write_text("ROMEO:\n" + made_up_text(22_000))
    assert len(Path("large.txt").read_text()) > small_texts.SMALL_CHARS
    large = gptlit("summary", "--config=tiny", "--data.path=large.txt", *SMALLER)
    assert (large.code, large.err) == (0, "")


def test_characters_dropped_from_a_prompt_are_reported(gptlit: Call) -> None:
    Path("my.txt").write_text("a quiet sea, a grey sky; " * 16)
    result = gptlit("fit", "my.txt", *SMALLER, '--samples.prompts=["Sea, a"]', "--max_steps=1")
    assert result.code == 0
    assert "warning: --samples.prompts: dropped 'S'" in result.err


def test_overfitting_is_reported_once_and_at_the_end(gptlit: Call) -> None:
    Path("my.txt").write_text("abcdefgh" * 80 + "hgfedcba" * 35)  # the end is the rest's opposite
    result = gptlit(
        "fit", "my.txt", *SMALLER, "--data.val_fraction=0.3", "--model.lr=0.02",
        "--model.warmup_steps=1", "--max_steps=20", "--trainer.val_check_interval=5",
    )  # fmt: skip
    assert result.code == 0
    assert result.out.count("warning: the model overfits") == 1
    found = r"the model overfits: .*; best\.ckpt keeps step \d+, .*; raise --model\.dropout \(0\)"
    assert re.search(f"warning: {found}", result.out)
    assert re.search(f"note +{found}", result.err)
