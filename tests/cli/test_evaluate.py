"""`gptlit validate` and `gptlit test` on the command line."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import gptlit as package
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer
from tests.conftest import TINY, Result, Run, made_up_text, read_metrics

Call = Callable[..., Result]


def metrics(result: Result) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in result.out.splitlines())


def test_validate_prints_what_training_logged(gptlit: Call, run: Run) -> None:
    result = gptlit("validate", "--ckpt_path", run.folder / "checkpoints" / "last.ckpt")
    assert result.code == 0
    printed = metrics(result)
    last = next(row for row in reversed(read_metrics(run.folder)) if row["val/loss"])
    for name in ("val/loss", "val/perplexity", "val/bits_per_byte"):
        assert float(printed[name]) == pytest.approx(float(last[name]), abs=1e-5)
    n_tokens = len(made_up_text()) - int(0.9 * len(made_up_text()))
    assert n_tokens >= 1000
    assert printed["tokens"] == f"{n_tokens:,}"
    assert re.fullmatch(r"\d,\d{3}", printed["bytes"])
    assert "val/gap" not in printed


def test_validate_on_another_text(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    Path("other.txt").write_text("the king and thy love\n", encoding="utf-8")
    result = gptlit(
        "validate", "--ckpt_path", path, "--data.path=other.txt", "--data.val_fraction=0.9999"
    )
    assert result.code == 0, result.err
    assert int(metrics(result)["tokens"]) == 22
    assert not result.err


def test_a_split_that_was_trained_on_is_reported(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("validate", "--ckpt_path", path, "--data.val_fraction=0.5")
    assert "warning: the val split overlaps the text that the model was trained on" in result.err


def test_test_needs_a_test_split(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("test", "--ckpt_path", path)
    assert result.code == 2
    assert "--data.test_fraction" in result.err
    Path("other.txt").write_text("the king and thy love\n", encoding="utf-8")
    result = gptlit("test", "--ckpt_path", path, "--data.test_path=other.txt")
    assert result.code == 0
    assert {"test/loss", "test/perplexity", "test/bits_per_byte"} <= set(metrics(result))
    assert metrics(result)["tokens"] == "22"


# ---------------------------------------------------------------------- sliding windows, ensembles


def two_nets(gptlit: Call, run: Run) -> list[Path]:
    """Checkpoints of the same tokenizer, with blocks of 8 and of 4 tokens."""
    options = ["--data.path", run.text, *TINY, "--model.block_size=4", "--trainer.max_steps=2"]
    result = gptlit("fit", *options, "--seed_everything=9")
    assert result.code == 0, result.err
    small = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    return [run.folder / "checkpoints" / "last.ckpt", small]


def slow_loss(
    nets: Sequence[GPT], ids: Sequence[int], before: int, block: int, stride: int
) -> float:
    """Nats per token of the mean of nets, token by token, each from a window of its own."""
    text, nats = [before, *ids], 0.0
    for at in range(1, len(text)):
        # the first window begins with the text, and the n-th one n strides later
        nth = max(0, -(-(at - block) // stride))
        window = torch.tensor([text[nth * stride : at]])
        with torch.no_grad():
            mean = sum(net(window)[0, -1].double().softmax(-1) for net in nets) / len(nets)
        nats -= math.log(mean[text[at]])
    return nats / len(ids)


def val_ids(run: Run, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """Ids of the validation split, and the one before it."""
    ids = tokenizer.encode(made_up_text()).tolist()
    first = int(0.9 * len(ids))
    return ids[first:], ids[first - 1]


@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_sliding_windows(gptlit: Call, run: Run, stride: int) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    printed = metrics(gptlit("validate", f"--stride={stride}", "--ckpt_path", path))
    net, tokenizer = package.load(path)
    wanted = slow_loss([net], *val_ids(run, tokenizer), 8, stride)
    assert float(printed[f"val/loss_stride_{stride}"]) == pytest.approx(wanted, abs=2e-6)
    assert float(printed[f"val/perplexity_stride_{stride}"]) == pytest.approx(
        math.exp(wanted), rel=1e-5
    )
    assert f"val/bits_per_byte_stride_{stride}" in printed
    assert "val/loss" not in printed
    if stride == 8:
        plain = metrics(gptlit("validate", "--ckpt_path", path))
        assert plain["val/loss"] == printed["val/loss_stride_8"]
        assert "windows" not in plain
    else:
        assert printed["windows"] == f"of 8 tokens, each {stride} after the one before"


def test_an_ensemble(gptlit: Call, run: Run) -> None:
    """The mean of probabilities in windows of the smallest block, also with sliding windows."""
    paths = two_nets(gptlit, run)
    nets, tokenizers = zip(*map(package.load, paths), strict=True)
    ids, before = val_ids(run, tokenizers[0])
    plain = gptlit("validate", "--ensemble", *paths, f"--data.path={run.text}")
    assert plain.code == 0, plain.err
    printed = metrics(plain)
    assert float(printed["val/loss"]) == pytest.approx(slow_loss(nets, ids, before, 4, 4), abs=2e-6)
    assert printed["ensemble"] == f"{paths[0]}, {paths[1]}"
    assert "checkpoint" not in printed
    slid = metrics(gptlit("validate", "--stride", 2, "--ensemble", *paths))
    wanted = slow_loss(nets, ids, before, 4, 2)
    assert float(slid["val/loss_stride_2"]) == pytest.approx(wanted, abs=2e-6)


def test_an_ensemble_of_the_same_net_is_the_net(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    alone = metrics(gptlit("validate", "--ckpt_path", path))
    both = metrics(gptlit("validate", "--ensemble", path, path))
    assert float(both["val/loss"]) == pytest.approx(float(alone["val/loss"]), abs=2e-6)


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("validate", ["--stride=9"], "--stride 9: must be from 1 to the block size, 8, or 0"),
        ("validate", ["--stride=-1"], "--stride -1: must be 0 or more"),
        (
            "validate",
            ["--ensemble", "X"],
            "--ensemble X: an ensemble needs two checkpoints or more",
        ),
        ("validate", ["--ensemble", "X", "no.ckpt"], "no.ckpt: no such file"),
        ("validate", ["--ensemble", "X", "X", "--ckpt_path=X"], "--ensemble: excludes --ckpt_path"),
        ("fit", ["--stride=2"], "--stride 2: is an option of validate and test only"),
        ("fit", ["--ensemble", "X", "X"], "--ensemble X X: is an option of validate and test only"),
    ],
)
def test_invalid_options(
    gptlit: Call, run: Run, verb: str, options: list[str], message: str
) -> None:
    path = str(run.folder / "checkpoints" / "last.ckpt")
    given = [] if "--ensemble" in options or verb == "fit" else [f"--ckpt_path={path}"]
    result = gptlit(verb, *given, *(word.replace("X", path) for word in options))
    assert result.code == 2
    assert message.replace("X", path) in result.err


def test_the_tokenizers_of_an_ensemble_are_the_same(gptlit: Call, run: Run) -> None:
    Path("other.txt").write_text("abc " * 500, encoding="utf-8")
    result = gptlit("fit", "--data.path=other.txt", *TINY, "--trainer.max_steps=1")
    assert result.code == 0, result.err
    path = run.folder / "checkpoints" / "last.ckpt"
    other = "lightning_logs/version_0/checkpoints/last.ckpt"
    refused = gptlit("validate", "--ensemble", path, other)
    assert refused.code == 2
    assert f"--ensemble {other}: has another tokenizer than {path}" in refused.err
