"""Resuming a run with other options: overrides, their messages, and refusals."""

import functools
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptlit.checkpoints import checkpoint, run_paths
from gptlit.messages import UsageError
from gptlit.training import resuming
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, Run, made_up_text, read_metrics

Call = Callable[..., Result]
LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")


def fit(gptlit: Call, text: Path, *options: object) -> Result:
    return gptlit("fit", *TINY, f"--data.path={text}", "--trainer.max_steps=4", *options)


def resume(gptlit: Call, *options: object, steps: int = 6) -> Result:
    return gptlit("fit", "--ckpt_path=last", f"--trainer.max_steps={steps}", *options)


def rates() -> dict[int, float]:
    """The learning rate of each step, counted from 1."""
    rows = read_metrics(LAST.parent.parent)
    return {int(row["step"]) + 1: float(row["optim/lr"]) for row in rows if row["optim/lr"]}


def planned(step: int, length: int, peak: float, floor: float, warmup: int) -> float:
    """The rate of the n-th step of a run of some length, by the formula in the README."""
    done = step - 1
    if done < warmup:
        return peak * done / warmup
    if done >= length:
        return floor
    progress = (done - warmup) / (length - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


# ---------------------------------------------------------------------- the schedule

RATES = ["--model.lr=1e-2", "--model.min_lr=1e-3", "--model.warmup_steps=2"]
EACH = ["--trainer.log_every_n_steps=1"]


def test_an_extended_run_has_the_learning_rates_of_one_of_that_length(
    gptlit: Call, text_file: Path
) -> None:
    assert fit(gptlit, text_file, *RATES, *EACH).code == 0
    resumed = resume(gptlit, steps=8)
    assert resumed.code == 0
    found = rates()
    for step in range(1, 9):
        length = 4 if step <= 4 else 8
        assert found[step] == pytest.approx(planned(step, length, 1e-2, 1e-3, 2), rel=1e-6), step
    assert "--trainer.max_steps: 4 -> 8\n" in resumed.err
    assert "the learning rate changes at step 4: 0.001 -> 0.00775\n" in resumed.err


def test_decay_steps_keeps_the_schedule_of_an_extended_run(gptlit: Call, text_file: Path) -> None:
    """After decay_steps the learning rate is min_lr."""
    assert fit(gptlit, text_file, *RATES, *EACH, "--model.decay_steps=4").code == 0
    resumed = resume(gptlit)
    assert resumed.code == 0
    assert "the learning rate changes" not in resumed.err
    assert [rates()[step] for step in (5, 6)] == pytest.approx([1e-3, 1e-3])


def test_no_step_is_made_at_learning_rate_zero(gptlit: Call, text_file: Path) -> None:
    zero = [*EACH, "--model.lr=1e-2", "--model.min_lr=0", "--model.warmup_steps=0"]
    assert fit(gptlit, text_file, *zero).code == 0
    assert resume(gptlit, steps=8).code == 0
    assert min(rates().values()) > 0
    message = (
        "--model.decay_steps 4: the run is longer, and would continue at learning rate "
        "--model.min_lr 0 without learning anything"
    )
    for refused in (
        resume(gptlit, "--model.decay_steps=4", steps=12),
        fit(gptlit, text_file, *zero, "--model.decay_steps=4", "--trainer.max_steps=5"),
    ):
        assert refused.code == 2
        assert message in refused.err
    assert resume(gptlit, "--model.decay_steps=4", "--model.min_lr=1e-4", steps=12).code == 0
    assert rates()[12] == pytest.approx(1e-4)


# ---------------------------------------------------------------------- messages


def test_each_override_is_printed_and_applied(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file, "--model.dropout=0.1")
    resumed = resume(
        gptlit, "--model.lr=1e-3", "--model.dropout=0.3", "--data.batch_size=8",
        "--model.betas=[0.8,0.9]", '--samples.prompts=["JULIET:"]', "--model.n_embd=16",
    )  # fmt: skip
    assert resumed.code == 0
    printed = [
        line for line in resumed.err.splitlines() if re.match(r"gptlit: --\S+: .* -> ", line)
    ]
    assert sorted(printed) == [
        "gptlit: --data.batch_size: 4 -> 8",
        "gptlit: --model.betas: [0.9, 0.95] -> [0.8, 0.9]",
        "gptlit: --model.dropout: 0.1 -> 0.3",
        "gptlit: --model.lr: 0.003 -> 0.001",
        'gptlit: --samples.prompts: ["ROMEO:"] -> ["JULIET:"]',
        "gptlit: --trainer.max_steps: 4 -> 6",
    ]
    content = checkpoint.read(LAST)
    described = content[checkpoint.KEY]
    assert described["config"]["dropout"] == 0.3
    assert content["optimizer_states"][0]["param_groups"][0]["betas"] == (0.8, 0.9)
    assert yaml.safe_load(described["run"])["data"]["batch_size"] == 8
    # 4 steps of 4 windows and 2 of 8
    (loader,) = content["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader["position"] == 4 * 4 + 2 * 8
    # unchanged options are not printed
    assert " -> " not in gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=6").err


def test_a_config_next_to_a_checkpoint_overrides_it(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file)
    Path("other.yaml").write_text("model: {weight_decay: 0.5}\n")
    resumed = resume(gptlit, "--config=other.yaml")
    assert resumed.code == 0
    assert "--model.weight_decay: 0.1 -> 0.5" in resumed.err


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("--model.n_layer=2", ["--model.n_layer 2", "has 1"]),
        ("--model.block_size=4", ["--model.block_size 4", "has 8"]),
        ("--model.activation=relu", ["--model.activation relu", "has gelu"]),
        ("--data.tokenizer=bpe:300", ["--data.tokenizer bpe:300", "has char"]),
        ("--data.tokenizer.kind=word", ["--data.tokenizer", "word", "has char"]),
        ("--data.eos=true", ["--data.eos True", "has False"]),
        ("--config=words.yaml", ["--data.tokenizer word", "has char"]),
    ],
)
def test_options_that_the_weights_depend_on_are_refused(
    gptlit: Call, text_file: Path, option: str, parts: list[str]
) -> None:
    fit(gptlit, text_file)
    Path("words.yaml").write_text("data: {tokenizer: word}\n")
    before = LAST.read_bytes()
    refused = resume(gptlit, option)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert all(part in refused.err for part in parts), refused.err
    assert LAST.read_bytes() == before


@pytest.mark.parametrize(
    ("before", "now", "kind", "given", "fits"),
    [
        ("char", "char", "char", True, True),
        ("bpe:300", {"kind": "bpe", "vocab_size": 300}, "bpe", True, True),
        ("bpe:300", "bpe:301", "bpe", True, False),
        ("word", "word:reversible", "word", True, False),
        # weights that were imported, or that the run began from, have their own tokenizer
        (None, "char", "tiktoken", False, True),
        (None, "char", "tiktoken", True, False),
        (None, "tiktoken:gpt2", "tiktoken", True, True),
        ("char", "tiktoken:gpt2", "tiktoken", True, True),
        ("char", "bpe:300", "tiktoken", True, False),
    ],
)
def test_tokenizers_are_compared_by_their_options(
    before: Any, now: Any, kind: str, given: bool, fits: bool
) -> None:
    saved = {} if before is None else {"tokenizer": before, "eos": False}
    options = {"tokenizer": now, "eos": False}
    names = {"data.tokenizer"} if given else set()
    if fits:
        resuming.check_tokenizer(saved, options, kind, names)
    else:
        with pytest.raises(UsageError, match="^tokenizer"):
            resuming.check_tokenizer(saved, options, kind, names)


# ---------------------------------------------------------------------- texts


def best_score() -> float:
    callbacks = checkpoint.read(LAST)["callbacks"]
    (state,) = (each for name, each in callbacks.items() if name.startswith("BestCheckpoint{"))
    return float(state["best_model_score"])


def test_a_changed_validation_text_is_reported(gptlit: Call, text_file: Path) -> None:
    own = Path("own.txt")
    own.write_text(made_up_text(400, seed=3), encoding="utf-8")
    assert fit(gptlit, text_file, f"--data.val_path={own}").code == 0
    before = best_score()
    own.write_text(made_up_text(400, seed=4), encoding="utf-8")
    refused = resume(gptlit)
    assert refused.code == 2
    assert f"--data.val_path {own.absolute()}: the text has changed" in refused.err
    resumed = resume(gptlit, f"--data.val_path={own}")
    assert resumed.code == 0
    assert "warning: the validation text has changed" in resumed.err
    (scores,) = ([float(r["val/loss"]) for r in read_metrics(LAST.parent.parent) if r["val/loss"]],)
    assert best_score() == pytest.approx(scores[-1])
    assert before == pytest.approx(scores[0])


def test_another_split_is_reported_and_resets_the_best_loss(gptlit: Call, text_file: Path) -> None:
    assert fit(gptlit, text_file).code == 0
    resumed = resume(gptlit, "--data.val_fraction=0.2")
    assert resumed.code == 0
    assert "--data.val_fraction: 0.1 -> 0.2" in resumed.err
    assert "warning: the validation text has changed" in resumed.err
    assert "warning: the val split overlaps the text that the model was trained on" in resumed.err
    same = resume(gptlit, steps=8)
    assert "warning" not in same.err


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("before", "after", "position"),
    [((4, 1), (8, 1), 24), ((8, 1), (4, 1), 24), ((4, 1), (4, 2), 24), ((4, 2), (8, 1), 24)],
)
def test_an_epoch_continues_with_batches_of_another_size(
    gptlit: Call,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[int, int],
    after: tuple[int, int],
    position: int,
) -> None:
    """Each window of an epoch is seen once, and validations follow whole steps."""

    def sizes(size: int, accumulated: int) -> list[str]:
        accumulation = f"--trainer.accumulate_grad_batches={accumulated}"
        return [f"--data.batch_size={size}", accumulation, "--trainer.val_check_interval=3"]

    seen: list[torch.Tensor] = []
    original = LitGPT.training_step

    def training_step(self: LitGPT, batch: Any, batch_idx: int) -> torch.Tensor:
        seen.extend(batch[0])
        return original(self, batch, batch_idx)

    monkeypatch.setattr(LitGPT, "training_step", training_step)
    # an epoch of 172 windows
    epochs = ["--model.block_size=64", "--trainer.max_steps=-1", "--trainer.max_epochs=1"]
    epochs += ["--model.decay_steps=100"]
    first = position // (before[0] * before[1])
    fit(gptlit, text_file, "--model.block_size=64", *sizes(*before), f"--trainer.max_steps={first}",
        "--model.decay_steps=100")  # fmt: skip
    done = gptlit("fit", "--ckpt_path=last", *sizes(*after), *epochs[1:])
    assert done.code == 0, done.err
    n_windows = 171 // (after[0] * after[1]) * after[0] * after[1]
    assert len(seen) == n_windows
    assert len({tuple(window.tolist()) for window in seen}) == n_windows
    rows = read_metrics(LAST.parent.parent)
    validated = [int(row["step"]) + 1 for row in rows if row["val/loss"]]
    assert validated == list(range(3, validated[-1] + 1, 3))


def test_a_checkpoint_copied_out_of_its_run_resumes_in_a_new_folder(
    gptlit: Call, text_file: Path
) -> None:
    fit(gptlit, text_file)
    shutil.copyfile(LAST, "copy.ckpt")
    assert gptlit("fit", "--ckpt_path=copy.ckpt", "--trainer.max_steps=6").code == 0
    folder = Path("lightning_logs/version_1")
    assert [int(row["step"]) for row in read_metrics(folder) if row["train/loss"]] == [5]
    assert (folder / "checkpoints" / "best.ckpt").exists()


def test_a_renamed_run_is_still_a_run(gptlit: Call, text_file: Path) -> None:
    """Resumed in its folder, read by every verb, and named in tables."""
    assert fit(gptlit, text_file).code == 0
    renamed = Path("lightning_logs/my best run")
    LAST.parent.parent.rename(renamed)
    resumed = resume(gptlit)
    assert resumed.code == 0, resumed.err
    assert checkpoint.read(renamed / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert [int(row["step"]) for row in read_metrics(renamed) if row["train/loss"]] == [1, 3, 5]
    assert [path.name for path in Path("lightning_logs").iterdir()] == [renamed.name]
    assert gptlit("predict", "--max_new_tokens=3").code == 0
    assert f"{renamed}/checkpoints/best.ckpt" in gptlit("validate").out
    # a new run takes a number, and is the newest
    assert fit(gptlit, text_file).code == 0
    assert run_paths.resolve("last").parts[-3] == "version_0"


# ---------------------------------------------------------------------- states of unknown origin

COUNTS = ("loops", "fit_loop", "epoch_loop.batch_progress")
BEST = "BestCheckpoint{'monitor': 'val/loss'}"
ADAM = ("optimizer_states", 0, "state", 0)
MISSING = object()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("loops",), [], "loops of type list: must be a table"),
        (("loops", "fit_loop"), MISSING, "loops.fit_loop has no "),
        ((*COUNTS, "total"), MISSING, "batch_progress has no total"),
        ((*COUNTS, "total", "ready"), "x", "total.ready 'x': must be a whole number"),
        ((*COUNTS, "total", "ready"), -3, "total.ready -3: must be 0 or more"),
        (("loops", "fit_loop", "state_dict"), {}, "loops.fit_loop has no combined_loader"),
        (
            ("loops", "fit_loop", "state_dict", "combined_loader", 0, "position"),
            None,
            "combined_loader[0].position None: must be a whole number",
        ),
        (("optimizer_states",), {}, "optimizer_states of type dict: must be a list"),
        (("optimizer_states",), [], "optimizer_states has 0 entries"),
        ((*ADAM, "exp_avg"), torch.ones(1).expand(10**5, 10**5), "state.0.exp_avg: takes 40,000,"),
        ((*ADAM, "exp_avg"), torch.ones(3), "state.0.exp_avg is of shape (3,), and should be"),
        ((*ADAM, "exp_avg_sq"), "x", "state.0.exp_avg_sq is a str, not a tensor"),
        ((*ADAM, "step"), torch.ones(2), "state.0.step is of shape (2,), and should be ()"),
        ((*ADAM, "step"), MISSING, "state.0 must have exp_avg, exp_avg_sq, step"),
        (("optimizer_states", 0, "param_groups", 1, "params"), [6], "have [6, 1] parameters"),
        (("optimizer_states", 0, "param_groups", 0, "params", 0), 1, "have a parameter twice"),
        (("lr_schedulers", 0, "last_epoch"), 1.5, "last_epoch 1.5: must be a whole number"),
        (("lr_schedulers", 0, "_last_lr"), [], "must have a rate for each group"),
        (("callbacks",), 3, "callbacks 3: must be a table"),
        (("callbacks", "Guard", "losses"), ["x"], "Guard.losses[0] 'x': must be a number"),
        (("callbacks", "Guard", "told"), 1, "callbacks.Guard.told 1: must be true or false"),
        (("callbacks", "SampleText"), {"x": 1}, "callbacks.SampleText has no written_at"),
        (("callbacks", BEST, "best_model_score"), "low", "BestCheckpoint.best_model_score 'low'"),
        (
            ("callbacks", BEST, "kth_value"),
            torch.ones(2),
            "must be a tensor of shape ()",
        ),
        (("gptlit", "epoch_loss", "nats"), torch.ones(2), "epoch_loss.nats is not a number"),
        (("gptlit", "evaluated", "step"), MISSING, "gptlit.evaluated has no step"),
        (("gptlit", "text", "spans"), [], "gptlit.text.spans of type list: must be a table"),
        (("gptlit", "seed"), "x", "gptlit.seed 'x': must be a whole number"),
        (("hyper_parameters",), 5, "hyper_parameters 5: must be a table"),
        (("pytorch-lightning_version",), "1.0", "Lightning 1.0, which no version of gptlit does"),
        (("averaged",), {"updates": 0}, "averaged has no weights"),
        (("averaged",), {"updates": 0, "weights": {}}, "the weights lack averaged.weights.wte.wei"),
    ],
    ids=range(32),
)
def test_invalid_states_are_refused(
    gptlit: Call, run: Run, tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    content = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    part = functools.reduce(lambda data, key: data[key], place[:-1], content)
    if value is MISSING:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    torch.save(content, tmp_path / "x.ckpt")
    result = gptlit("fit", "--ckpt_path=x.ckpt", "--trainer.max_steps=44")
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert last.startswith("gptlit: error: --ckpt_path x.ckpt: ") or "callbacks." in last, last
    assert message in last


def test_additional_entries_of_a_state_are_ignored(gptlit: Call, run: Run, tmp_path: Path) -> None:
    content = torch.load(run.folder / "checkpoints" / "step_30.ckpt", weights_only=True)
    content["lr_schedulers"][0] |= {"step": 5, "optimizer": None, "lr_lambdas": [{"x": 1}, None]}
    content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["reset"] = 5
    groups = content["optimizer_states"][0]["param_groups"]
    groups[0] |= {"foreach": True, "capturable": True, "maximize": True, "differentiable": True}
    torch.save(content, tmp_path / "x.ckpt")
    options = [
        f"--data.path={run.text}",
        "--trainer.max_steps=40",
        "--trainer.val_check_interval=20",
    ]
    assert gptlit("fit", "--ckpt_path=x.ckpt", *options).code == 0
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "lightning_logs" / "version_0", run.folder)
    )
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)


COUNTER = """
import torch
from lightning.pytorch import Callback
class Counter(Callback):
    def __init__(self): self.seen = {"steps": torch.zeros(0), "best": "none"}
    def on_train_batch_end(self, *_): self.seen = {"steps": torch.ones(2), "best": 0.5}
    def state_dict(self): return self.seen
    def load_state_dict(self, state): print(f"restored {state['best']}")
"""


def test_a_users_callback_restores_any_state(
    gptlit: Call, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types and shapes in its state may have changed since the run began."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "countermod.py").write_text(COUNTER)
    own = "--trainer.callbacks=[{class_path: countermod.Counter}]"
    assert fit(gptlit, text_file, own).code == 0
    resumed = resume(gptlit, own)
    assert resumed.code == 0, resumed.err
    assert "restored 0.5" in resumed.out
