"""Runs with LoRA: what they train, save, resume, write and merge."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gptlit as package
from gptlit.checkpoints import checkpoint
from gptlit.model import lora
from tests.conftest import TINY, Result, Run, assert_same_run, some_time_passes

Call = Callable[..., Result]
LORA = [
    "--model.lora_r=2", "--model.lora_alpha=8", "--model.lora_on=[c_attn,c_fc]", "--model.lr=0.05",
    "--trainer.val_check_interval=2", "--model.lora_dropout=0.1",
]  # fmt: skip
RUN = Path("lightning_logs/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def fit(gptlit: Call, run: Run, *more: object) -> Result:
    base = run.folder / "checkpoints" / "last.ckpt"
    words = [*TINY, f"--data.path={run.text}", f"--model.init_from={base}", *LORA, *more]
    done = gptlit("fit", *words)
    assert done.code == 0, done.err
    return done


def test_a_run_trains_changes_and_keeps_the_base(gptlit: Call, run: Run) -> None:
    done = fit(gptlit, run, "--trainer.max_steps=4")
    base, _ = checkpoint.load(run.folder / "checkpoints" / "last.ckpt")
    content = checkpoint.read(LAST)
    n_trained = 2 * (16 + 48) + 2 * (16 + 64)
    assert f"{n_trained:,} of them trained" in done.err + done.out
    for name, before in base.state_dict().items():
        assert torch.equal(content["state_dict"][f"net.{name}"], before)
    changes = {n: each for n, each in content["state_dict"].items() if lora.is_change(n)}
    assert len(changes) == 4
    assert all(bool(each.any()) for each in changes.values())
    [optimizer] = content["optimizer_states"]
    assert len(optimizer["state"]) == 4
    assert sum(state["exp_avg"].numel() for state in optimizer["state"].values()) == n_trained


@pytest.mark.parametrize("more", [[], ["--model.ema=0.5", "--model.optimizer=muon"]])
def test_a_resumed_run_equals_an_uninterrupted_one(gptlit: Call, run: Run, more: list[str]) -> None:
    more = [*more, "--model.decay_steps=4"]
    fit(gptlit, run, *more, "--trainer.max_steps=4")
    fit(gptlit, run, *more, "--trainer.max_steps=2")
    resumed = Path("lightning_logs/version_1")
    some_time_passes(resumed)
    last = resumed / "checkpoints" / "last.ckpt"
    done = gptlit("fit", f"--ckpt_path={last}", "--trainer.max_steps=4")
    assert done.code == 0, done.err
    assert_same_run(RUN, resumed)
    assert (RUN / "adapter" / "adapter_model.safetensors").read_bytes() == (
        resumed / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    for option, reason in (("lora_r=3", "has 2"), ("lora_alpha=1", "has 8.0")):
        refused = gptlit("fit", f"--ckpt_path={last}", f"--model.{option}", "--trainer.max_steps=6")
        assert refused.code == 2
        assert f"--model.{option.replace('=', ' ').split()[0]}" in refused.err
        assert reason in refused.err


def test_base_and_adapter_write_as_the_run_does(gptlit: Call, run: Run) -> None:
    fit(gptlit, run, "--trainer.max_steps=4")
    base = run.folder / "checkpoints" / "last.ckpt"
    best, adapter = RUN / "checkpoints" / "best.ckpt", RUN / "adapter"
    words = ["--prompt=the king", "--max_new_tokens=20", "--seed=3"]
    own = gptlit("predict", f"--ckpt_path={best}", *words).out
    assert own != gptlit("predict", f"--ckpt_path={base}", *words).out
    with_adapter = ["predict", f"--ckpt_path={base}", f"--adapter={adapter}", *words]
    assert gptlit(*with_adapter).out == own
    assert gptlit(*with_adapter, "--trainer.accelerator=cpu").out == own
    assert gptlit(*with_adapter, "--sweep=temperature=1").code == 0

    given = ["merge", base, "given.ckpt", f"--adapter={adapter}"]
    for words in (["merge", best, "own.ckpt"], given):
        done = gptlit(*words)
        assert done.code == 0, done.err
    ids = torch.randint(20, (2, 8))
    logits = [
        model(ids)
        for model, _ in (
            package.load(best), package.load(base, adapter=adapter), package.load("own.ckpt"),
            package.load("given.ckpt"),
        )
    ]  # fmt: skip
    for each in logits[1:]:
        torch.testing.assert_close(each, logits[0], atol=1e-5, rtol=1e-5)
    assert gptlit("validate", "--ckpt_path=own.ckpt", f"--data.path={run.text}").code == 0
    assert gptlit("export", best, "out").code == 0
    assert gptlit("export", best, "again", "--format=peft").code == 0
    for file in adapter.iterdir():
        assert (Path("again") / file.name).read_bytes() == file.read_bytes()


def test_wrong_words(gptlit: Call, run: Run, tmp_path: Path) -> None:
    base = run.folder / "checkpoints" / "last.ckpt"
    for words, reason in (
        (["merge", base, "x.ckpt"], f"gptlit merge {base}: was trained without LoRA"),
        (["merge", base, base, "--adapter=a"], "exists already"),
        (["export", base, "x.ckpt", "--format=peft"], "trained without LoRA, so that it has no"),
        (["export", base, "x.ckpt", "--format=peft", "--dtype=f16"], "--format peft has f32 only"),
        (["merge", base, "x.ckpt", "--adapter=a"], "--adapter a: no adapter_config.json in it"),
        (["predict", f"--ckpt_path={base}", "--adapter=a"], "--adapter a: no adapter_config.json"),
        (["predict", "--ensemble", base, base, "--adapter=a"], "--adapter: does not apply"),
        (
            ["fit", *TINY, f"--data.path={run.text}", "--model.lora_r=2"],
            "--model.lora_r 2: changes given weights; name them",
        ),
        (["fit", f"--ckpt_path={base}", "--model.lora_r=2", "--trainer.max_steps=50"], "lora_r"),
    ):
        refused = gptlit(*words)
        assert refused.code == 2, words
        assert reason in refused.err
        assert len(refused.err.strip().splitlines()) == 1
    assert not (tmp_path / "x.ckpt").exists()


def test_summary_counts_what_is_trained(gptlit: Call, run: Run) -> None:
    base = run.folder / "checkpoints" / "last.ckpt"
    words = [*TINY, f"--data.path={run.text}", f"--model.init_from={base}", *LORA]
    done = gptlit("summary", *words)
    assert done.code == 0, done.err
    rows = dict(line.split()[:2] for line in done.out.splitlines() if line.startswith("  t"))
    assert rows["trainable"] == "288"
