"""The device and the ensemble of `gptlit predict`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlit as package
from gptlit.devices import accelerators, choice
from gptlit.messages import UsageError
from gptlit.model.ensemble import Ensemble
from tests.conftest import TINY, Result, Run

Call = Callable[..., Result]


def last(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"


@pytest.fixture
def two(gptlit: Call, run: Run, tmp_path: Path) -> list[Path]:
    """Two checkpoints with the same tokenizer, and different block sizes."""
    options = ["--data.path", run.text, *TINY, "--model.block_size=4", "--trainer.max_steps=2"]
    root = f"--trainer.default_root_dir={tmp_path}"
    result = gptlit("fit", *options, root, "--seed_everything=9")
    assert result.code == 0, result.err
    return [last(run), tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"]


def test_the_device_of_an_option(gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto follows the estimate; a name wins, and one that isn't there is refused."""
    monkeypatch.setattr(choice, "soonest", lambda *_: "meta")
    options = ["predict", "--ckpt_path", last(run), "--max_new_tokens=3"]
    named = gptlit(*options, "--device=cpu")
    assert named.code == 0, named.err
    assert ", device: cpu, weights: " in named.err
    for_int8 = gptlit(*options, "--weights=int8")
    assert ", device: cpu" in for_int8.err
    refused = gptlit(*options, "--device=cuda:1")
    assert refused.code == 2
    assert "error: --device cuda:1: PyTorch finds no GPU" in refused.err
    many = gptlit(*options, "--device=cpu", "--trainer.accelerator=cpu")
    assert many.code == 2
    assert "--device cpu: needs one device, without --trainer options" in many.err


@pytest.mark.parametrize(
    ("options", "n"),
    [
        (["--prompt=a", "--prompt=e", "--num_samples=5", "--max_new_tokens=7"], (10, 7)),
        (["--num_beams=4", "--max_new_tokens=7"], (4, 7)),
        (["--explain", "--prompt=the king"], (8, 1)),
        (["--sweep", "top_k=1,2,3", "--prompt=the", "--max_new_tokens=7"], (3, 7)),
    ],
)
def test_the_estimate_is_of_all_texts(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], n: tuple[int, int]
) -> None:
    asked = []

    def soonest(n_parameters: int, *work: int) -> str:
        asked.append((n_parameters, work))
        return "cpu"

    monkeypatch.setattr(choice, "soonest", soonest)
    result = gptlit("predict", "--ckpt_path", last(run), *options)
    assert result.code == 0, result.err
    model, _ = package.load(last(run))
    assert asked == [(model.num_parameters(), n)]


def test_a_loaded_model_is_on_its_device(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "fastest", lambda: "meta")
    devices = [package.load(last(run), *given)[0].wte.weight.device for given in ((), ("auto",))]
    assert [device.type for device in devices] == ["cpu", "meta"]
    with pytest.raises(UsageError, match="^device gpu: must be auto, cpu"):
        package.load(last(run), device="gpu")


def test_an_ensemble_writes_and_explains(gptlit: Call, two: list[Path]) -> None:
    nets, tokenizers = zip(*map(package.load, two), strict=True)
    ensemble = Ensemble(nets).eval()
    options = ["--prompt=the", "--max_new_tokens=20"]
    result = gptlit("predict", *options, "--ensemble", *two)
    assert result.code == 0, result.err
    assert result.err.count("gptlit: model ") == 2
    wanted = package.generate(ensemble, tokenizers[0], "the", max_new_tokens=20)
    assert result.out.rstrip("\n") == wanted.rstrip("\n")
    assert wanted != package.generate(nets[0], tokenizers[0], "the", max_new_tokens=20)

    explained = gptlit("predict", "--explain", "--prompt=the", "--format=jsonl", "--ensemble", *two)
    (row,) = [json.loads(line) for line in explained.out.splitlines()]
    ids = torch.from_numpy(tokenizers[0].encode("\nthe").astype("int64"))
    mean = sum(net(ids[None, :-1])[0].softmax(-1) for net in nets) / 2
    logs = mean.gather(1, ids[1:, None])[:, 0].log().tolist()
    assert [token["logprob"] for token in row["tokens"]] == pytest.approx(logs, abs=1e-5)

    jsonl = gptlit("predict", *options, "--format=jsonl", "--weights=int8", "--ensemble", *two)
    assert json.loads(jsonl.out)["checkpoint"] == f"{two[0]}, {two[1]}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["last"], "--ensemble last: an ensemble needs two checkpoints or more"),
        (["A", "A", "--ckpt_path=A"], "--ensemble: excludes --ckpt_path; leave one out"),
        (["A", "A", "--sweep", "top_k=1,2"], "--ensemble: does not apply to --sweep"),
        (["A", "A", "--trainer.devices=1"], "--ensemble: needs one device, without --trainer"),
    ],
)
def test_invalid_ensembles_are_refused(
    gptlit: Call, run: Run, options: list[str], message: str
) -> None:
    words: list[Any] = [word.replace("A", str(last(run))) for word in options]
    words = [last(run) if word == "last" else word for word in words]
    result = gptlit("predict", "--ensemble", *words)
    assert result.code == 2
    assert message.replace("last:", f"{last(run)}:") in result.err


def test_another_tokenizer_is_refused(gptlit: Call, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("abc " * 500, encoding="utf-8")
    result = gptlit("fit", "--data.path", other, *TINY, "--trainer.max_steps=1")
    assert result.code == 0, result.err
    found = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    refused = gptlit("predict", "--ensemble", last(run), found)
    assert refused.code == 2
    pattern = rf"--ensemble {found}: has another tokenizer than {last(run)}: char of \d+ tokens"
    assert re.search(pattern, refused.err)
