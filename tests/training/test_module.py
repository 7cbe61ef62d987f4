"""LitGPT under Lightning's Trainer, from Python."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy

from gptlit.checkpoints import checkpoint
from gptlit.cli.lightning_warnings import quiet
from gptlit.data.datamodule import TextDataModule
from gptlit.data.loaders import IGNORED
from gptlit.generation.generate import generate
from gptlit.messages import UsageError
from gptlit.optim import optimizers
from gptlit.runs.report import Throughput
from gptlit.runs.sample_text import SampleText
from gptlit.runs.saving import RunCheckpoint
from gptlit.tokenizers.base import Tokenizer
from gptlit.training import module
from gptlit.training.divergence import Guard
from gptlit.training.module import LitGPT
from tests.conftest import TINY, assert_same_run, made_up_text

SIZES: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}


# an epoch of 7 steps
LONG_MODEL: dict[str, Any] = {"block_size": 64}
LONG_DATA: dict[str, Any] = {"block_size": 64, "batch_size": 24}


@pytest.fixture(autouse=True)
def _no_announcements() -> Any:
    with quiet():
        yield


class Kit:
    """Makes models, texts and trainers in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "text.txt"
        self.path.write_text(made_up_text(), encoding="utf-8")

    def data(self, **options: Any) -> TextDataModule:
        settings = {"block_size": 8, "batch_size": 4, "seed": 1, **options}
        return TextDataModule(path=str(self.path), data_dir=str(self.folder / "data"), **settings)

    def trainer(self, **options: Any) -> L.Trainer:
        settings = {
            "accelerator": "cpu",
            "max_steps": 10,
            "max_epochs": -1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 1.0,
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
            "default_root_dir": str(self.folder),
        }
        return L.Trainer(**{**settings, **options})

    def fit(
        self,
        data: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[LitGPT, L.Trainer]:
        torch.manual_seed(5)
        lit = LitGPT(**{"warmup_steps": 2, **SIZES, **(model or {})})
        trainer = self.trainer(**options)
        trainer.fit(lit, datamodule=self.data(**(data or {})))
        return lit, trainer


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


class Losses(L.Callback):
    """Collects the loss of every batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.callback_metrics["train/loss"].item())


def weights(lit: LitGPT) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in lit.parameters()])


def test_it_learns(kit: Kit) -> None:
    losses = Losses()
    kit.fit(max_steps=150, callbacks=[losses], model={"lr": 1e-2, "min_lr": 0.0})
    assert abs(losses.seen[0] - math.log(39)) < 0.1
    assert sum(losses.seen[-10:]) / 10 < 2.4


def test_the_loop_is_a_plain_pytorch_loop(kit: Kit) -> None:
    """Weights equal those of a loop without Lightning: loss, clipping, decay and schedule."""
    options = {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 3, "weight_decay": 0.3}
    lit, _ = kit.fit(model=options, max_steps=8)

    torch.manual_seed(5)
    plain = LitGPT(**options, **SIZES)
    data = kit.data()
    data.setup("fit")
    plain.use_tokenizer(data.tokenizer)
    net = plain.net
    decayed = [p for p in net.parameters() if p.dim() == 2]
    others = [p for p in net.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    for step, (x, y) in zip(range(8), data.train_dataloader(), strict=False):
        progress = torch.tensor(max(0.0, (step - 3) / 5) * torch.pi)
        factor = step / 3 if step < 3 else 0.1 + 0.9 * 0.5 * (1 + progress.cos().item())
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * factor
        optimizer.zero_grad()
        F.cross_entropy(net(x).flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(weights(lit), weights(plain), atol=5e-5, rtol=1e-4)


def test_validation_is_exact(kit: Kit) -> None:
    """val/* against an independent sum over the whole split, one window at a time."""
    lit, trainer = kit.fit(
        limit_val_batches=1.0, val_check_interval=5, check_val_every_n_epoch=None
    )
    data = kit.data()
    data.setup("fit")
    ids = torch.tensor(data.tokens.ids.astype("int64"))
    ((first, end),) = data.tokens.spans["val"]
    nats, n_bytes = 0.0, 0
    lit.eval()
    for start in range(first, end, 8):
        stop = min(start + 8, end)
        with torch.no_grad():
            logits = lit(ids[None, start - 1 : stop - 1])[0]
        nats += F.cross_entropy(logits, ids[start:stop], reduction="sum").item()
        n_bytes += len(data.tokenizer.decode(ids[start:stop].numpy()).encode())
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    n_tokens = end - first
    assert n_bytes > n_tokens
    assert metrics["val/loss"] == pytest.approx(nats / n_tokens, rel=1e-5)
    assert metrics["val/perplexity"] == pytest.approx(2.718281828 ** (nats / n_tokens), rel=1e-5)
    assert metrics["val/bits_per_byte"] == pytest.approx(nats / 0.69314718 / n_bytes, rel=1e-5)
    x, y = next(iter(data.train_slice()))
    with torch.no_grad():
        on_slice = F.cross_entropy(lit(x).flatten(0, 1), y.flatten(), ignore_index=IGNORED).item()
    assert metrics["train/loss_eval"] == pytest.approx(on_slice, rel=1e-5)
    assert metrics["val/gap"] == pytest.approx(nats / n_tokens - on_slice, abs=1e-5)


def test_evaluation_does_not_change_training(kit: Kit) -> None:
    often = {"limit_val_batches": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
    sampling = SampleText(prompts=["ROMEO:"], max_new_tokens=10)
    model = {"dropout": 0.3}
    callbacks = [sampling, Throughput()]
    watched, _ = kit.fit(model=model, callbacks=callbacks, log_every_n_steps=3, **often)
    alone, _ = kit.fit(model=model)
    assert torch.equal(weights(watched), weights(alone))


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("stop", [3, 7, 8, 14, 15])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    kit: Kit, accumulated: int, stop: int
) -> None:
    """With dropout, stopped within and at the end of an epoch of 7 steps."""
    options: dict[str, Any] = {
        "model": {"dropout": 0.2, "decay_steps": 20, **LONG_MODEL},
        "accumulate_grad_batches": accumulated,
        "data": {"block_size": 64, "batch_size": 24 // accumulated},
    }
    whole, trainer = kit.fit(max_steps=16, **options)
    assert trainer.datamodule.steps_per_epoch == 7
    kit.fit(
        max_steps=stop,
        callbacks=[RunCheckpoint(kit.folder)],
        enable_checkpointing=True,
        **options,
    )
    torch.manual_seed(99)
    resumed = LitGPT(warmup_steps=2, **{**SIZES, **options["model"]})
    trainer = kit.trainer(max_steps=16, accumulate_grad_batches=accumulated)
    data = kit.data(**options["data"])
    trainer.fit(resumed, datamodule=data, ckpt_path=kit.folder / "last.ckpt")
    assert trainer.global_step == 16
    assert torch.equal(weights(whole), weights(resumed))


RECIPES: list[dict[str, Any]] = [
    {
        **{"optimizer": "muon", "schedule": "wsd", "min_lr": 0.0, "ema": 0.8},
        "embedding_weight_decay": 0.5,
    },
    {"optimizer": "sgd", "lr": 0.1, "schedule": "linear", "label_smoothing": 0.1, "z_loss": 1e-3},
    {"optimizer": "adam", "schedule": "constant", "ema": 0.9},
    {"optimizer": "adamw", "ema": 0.9, "ema_keep": "better"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["optimizer"])
def test_recipes_resume_bit_for_bit(kit: Kit, recipe: dict[str, Any]) -> None:
    """Weights, their average, the optimizer's state and the learning rates."""
    often = {"limit_val_batches": 1.0, "val_check_interval": 5, "check_val_every_n_epoch": None}
    model = {"decay_steps": 11, "dropout": 0.1, **recipe}
    saving = {"enable_checkpointing": True, **often}

    def saved(name: str) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(kit.folder / name / "last.ckpt", weights_only=True)
        return content

    def callbacks(name: str) -> list[L.Callback]:
        return [RunCheckpoint(kit.folder / name)]

    kit.fit(model=model, callbacks=callbacks("whole"), **saving)
    kit.fit(model=model, callbacks=callbacks("part"), max_steps=5, **saving)
    torch.manual_seed(99)
    resumed = LitGPT(**{"warmup_steps": 2, **SIZES, **model})
    trainer = kit.trainer(callbacks=callbacks("rest"), **saving)
    trainer.fit(resumed, datamodule=kit.data(), ckpt_path=kit.folder / "part" / "last.ckpt")
    whole, rest = saved("whole"), saved("rest")
    assert ("averaged" in whole) == bool(recipe.get("ema"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "averaged"):
        torch.testing.assert_close(whole.get(part), rest.get(part), atol=0, rtol=0)


class Weights(L.Callback):
    """Collects the weights after every step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitGPT)
        self.seen.append(weights(pl_module).clone())


def test_the_average_is_validated_saved_and_sampled_from(kit: Kit) -> None:
    """Compared with an average computed from the weights after each step."""
    after = Weights()
    sampling = SampleText(prompts=["ROMEO:"], max_new_tokens=40)
    sampling.folder = kit.folder
    model = {"ema": 0.6, "lr": 1e-2}
    lit, trainer = kit.fit(
        model=model,
        callbacks=[after, sampling, RunCheckpoint(kit.folder)],
        enable_checkpointing=True,
        limit_val_batches=1.0,
        val_check_interval=10,
        check_val_every_n_epoch=None,
    )
    torch.manual_seed(5)
    begun = LitGPT(**{"warmup_steps": 2, **SIZES, **model})
    begun.use_tokenizer(kit_tokenizer(kit))
    average = weights(begun)
    for n, step in enumerate(after.seen):
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * step
    assert torch.equal(weights(lit), after.seen[-1])  # training continues from the raw weights
    net, tokenizer = checkpoint.load(kit.folder / "last.ckpt")
    saved = torch.cat([parameter.flatten() for parameter in net.parameters()])
    torch.testing.assert_close(saved, average, atol=1e-6, rtol=1e-5)
    assert (saved - after.seen[-1]).abs().max() > 1e-3
    loss = trainer.callback_metrics["val/loss"]
    again = LitGPT.load_from_checkpoint(kit.folder / "last.ckpt", map_location="cpu")
    evaluated = kit.trainer(limit_val_batches=1.0).validate(again, kit.data(), verbose=False)
    assert evaluated[0]["val/loss"] == pytest.approx(loss.item(), abs=1e-7)
    text = generate(net, tokenizer, "ROMEO:", seed=1337, **sampling.settings.used())
    assert text in (kit.folder / "samples.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("lr", "kept"), [(1e-3, "raw"), (1e-1, "average")])
def test_the_better_of_average_and_weights_is_kept(kit: Kit, lr: float, kept: str) -> None:
    """Weights that still improve are better than their average; those that jump are worse."""
    sampling = SampleText(prompts=["ROMEO:"], max_new_tokens=40)
    sampling.folder = kit.folder
    model = {"ema": 0.9, "ema_keep": "better", "lr": lr, "schedule": "constant"}
    often = {"limit_val_batches": 1.0, "val_check_interval": 5, "check_val_every_n_epoch": None}
    callbacks = [sampling, RunCheckpoint(kit.folder)]
    lit, trainer = kit.fit(model=model, callbacks=callbacks, enable_checkpointing=True, **often)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    both = {name: metrics[f"val/loss_{name}"] for name in ("raw", "average")}
    assert min(both, key=lambda name: both[name]) == kept
    assert metrics["val/loss"] == both[kept]

    assert lit.average is not None
    weights_of = {"raw": lit.average.raw(), "average": lit.average.averaged()}
    content = checkpoint.read(kit.folder / "last.ckpt")
    other = "average" if kept == "raw" else "raw"
    for name in weights_of[kept]:
        assert torch.equal(content["state_dict"][f"net.{name}"], weights_of[kept][name])
        assert torch.equal(content["averaged"]["weights"][name], weights_of[other][name])

    again = LitGPT.load_from_checkpoint(kit.folder / "last.ckpt", map_location="cpu")
    (found,) = kit.trainer(limit_val_batches=1.0).validate(again, kit.data(), verbose=False)
    assert found["val/loss"] == pytest.approx(both[kept], abs=1e-6)
    net, tokenizer = checkpoint.load(kit.folder / "last.ckpt")
    data = kit.data()
    data.setup("fit")
    x, y = next(iter(data.train_slice()))
    with torch.no_grad():
        on_slice = F.cross_entropy(net(x).flatten(0, 1), y.flatten(), ignore_index=IGNORED).item()
    assert metrics["val/gap"] == pytest.approx(both[kept] - on_slice, abs=1e-5)
    text = generate(net, tokenizer, "ROMEO:", seed=1337, **sampling.settings.used())
    assert text in (kit.folder / "samples.txt").read_text(encoding="utf-8")

    # scoring both and keeping one don't change what is trained
    plain, _ = kit.fit(model={**model, "ema": 0.0, "ema_keep": "average"})
    assert torch.equal(weights(lit), weights(plain))

    # a resumed run keeps the same until its next validation, and trains the raw weights
    for option in ("better", "average"):
        resumed = LitGPT(**{"warmup_steps": 2, **SIZES, **model, "ema_keep": option})
        trainer = kit.trainer(max_steps=11)
        trainer.fit(resumed, datamodule=kit.data(), ckpt_path=kit.folder / "last.ckpt")
        trainer.save_checkpoint(kit.folder / "after.ckpt")
        longer, _ = kit.fit(model=model, max_steps=11)
        assert torch.equal(weights(resumed), weights(longer))
        saved = checkpoint.read(kit.folder / "after.ckpt")["averaged"]
        assert saved.get("is_kept", True) == (kept == "average" or option == "average")


def kit_tokenizer(kit: Kit) -> Tokenizer:
    data = kit.data()
    data.setup("fit")
    return data.tokenizer


def test_a_resume_can_begin_or_end_the_average(kit: Kit) -> None:
    """A run with ema resumed without it, and one without it resumed with ema."""
    path = kit.folder / "last.ckpt"
    saving: dict[str, Any] = {"enable_checkpointing": True}
    for before, now in ((0.5, 0.0), (0.0, 0.5)):
        part = kit.fit(
            model={"ema": before}, max_steps=4, callbacks=[RunCheckpoint(kit.folder)], **saving
        )[0]
        resumed = LitGPT(**{"warmup_steps": 2, **SIZES, "ema": now})
        first = Weights()
        trainer = kit.trainer(max_steps=5, callbacks=[first])
        trainer.fit(resumed, datamodule=kit.data(), ckpt_path=path)
        # at step 5 of 5 the schedule has all but ended
        torch.testing.assert_close(weights(part), first.seen[0], atol=2e-3, rtol=0)
        trainer.save_checkpoint(kit.folder / "after.ckpt")
        content = torch.load(kit.folder / "after.ckpt", weights_only=True)
        assert ("averaged" in content) == bool(now)
        if now:
            assert content["averaged"]["updates"] == 1


def test_logged_losses_are_plain_cross_entropy(kit: Kit) -> None:
    """At the first step all options give the same metrics, but different weights after it."""
    seen = []
    for options in ({}, {"label_smoothing": 0.3}, {"z_loss": 0.1}):
        losses = Losses()
        lit, trainer = kit.fit(
            max_steps=1,
            model={"warmup_steps": 0, **options},
            callbacks=[losses],
            limit_val_batches=1.0,
            val_check_interval=1,
            check_val_every_n_epoch=None,
        )
        evaluated = kit.trainer(limit_val_batches=1.0).validate(lit, kit.data(), verbose=False)
        assert evaluated[0]["val/loss"] == pytest.approx(
            trainer.callback_metrics["val/loss"].item(), abs=1e-7
        )
        seen.append((losses.seen[0], weights(lit)))
    plain, *others = seen
    for loss, changed in others:
        assert loss == plain[0]
        assert not torch.equal(changed, plain[1])


def test_a_constant_schedule_needs_no_run_length(kit: Kit) -> None:
    _, trainer = kit.fit(
        max_steps=-1, max_time={"seconds": 1}, model={"schedule": "constant", "lr": 0.01}
    )
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [({"optimizer": "muon"}, "^optimizer muon"), ({"ema": 0.9}, "^ema 0.9")],
)
def test_sharded_weights_are_refused(options: dict[str, Any], message: str) -> None:
    lit = LitGPT(**SIZES, **options)
    lit._trainer = SimpleNamespace(strategy=ModelParallelStrategy())  # type: ignore[assignment]
    with pytest.raises(UsageError, match=f"{message}: needs each process to have all weights"):
        lit.configure_optimizers()


@pytest.mark.parametrize(
    ("option", "value", "before"),
    [("optimizer", "muon", "by adamw"), ("embedding_weight_decay", 0.5, "with null")],
)
def test_a_resume_with_another_optimizer_is_refused(
    kit: Kit, option: str, value: object, before: str
) -> None:
    _, trainer = kit.fit(max_steps=2)
    trainer.save_checkpoint(kit.folder / "a.ckpt")
    other = LitGPT(**SIZES, **{option: value})
    with pytest.raises(UsageError, match=f"^{option} {value}: the run was trained {before}, "):
        kit.trainer().fit(other, datamodule=kit.data(), ckpt_path=str(kit.folder / "a.ckpt"))


def test_accumulation_equals_the_larger_batch(kit: Kit) -> None:
    large, _ = kit.fit(data={"batch_size": 12})
    accumulated, _ = kit.fit(data={"batch_size": 6}, accumulate_grad_batches=2)
    torch.testing.assert_close(weights(large), weights(accumulated), atol=1e-5, rtol=1e-4)


def test_the_mean_of_an_epoch(kit: Kit) -> None:
    losses = Losses()
    _, trainer = kit.fit(data=LONG_DATA, model=LONG_MODEL, max_steps=7, callbacks=[losses])
    assert len(losses.seen) == 7
    mean = sum(losses.seen) / 7
    assert trainer.callback_metrics["train/loss_epoch"].item() == pytest.approx(mean, rel=1e-5)


def test_overfit_batches_repeats_batches(kit: Kit) -> None:
    losses = Losses()
    kit.fit(max_steps=300, overfit_batches=1, callbacks=[losses],
            model={"lr": 1e-2, "min_lr": 1e-2, "n_embd": 32})  # fmt: skip
    assert losses.seen[-1] < 0.5


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 14),
        ({"limit_train_batches": 5, "accumulate_grad_batches": 2}, 6),
        ({"limit_train_batches": 0.5}, 6),
        ({"overfit_batches": 4}, 8),
    ],
)
def test_the_schedule_of_a_run_by_epochs_spans_the_run(
    kit: Kit, options: dict[str, Any], steps: int
) -> None:
    _, trainer = kit.fit(max_steps=-1, max_epochs=2, data=LONG_DATA,
                         model={"lr": 1e-2, "min_lr": 1e-3, **LONG_MODEL}, **options)  # fmt: skip
    assert trainer.global_step == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_a_trainer_fits_a_longer_text_afterwards(kit: Kit) -> None:
    """In whole epochs of each."""
    model = {"warmup_steps": 2, **SIZES, **LONG_MODEL, "decay_steps": 20}
    trainer = kit.trainer(max_steps=-1, max_epochs=1)
    steps = []
    for size in (8, 4):
        trainer.fit(LitGPT(**model), datamodule=kit.data(**{**LONG_DATA, "batch_size": size}))
        steps.append(trainer.global_step)
        trainer.fit_loop.epoch_progress.reset()
    assert steps[1] - steps[0] >= 2 * steps[0]


def test_a_schedule_needs_a_run_length(kit: Kit) -> None:
    with pytest.raises(UsageError, match="^decay_steps"):
        kit.fit(max_steps=-1, max_time={"minutes": 1})


def test_a_resume_with_another_texts_tokenizer_is_refused(kit: Kit) -> None:
    _, trainer = kit.fit(max_steps=2)
    trainer.save_checkpoint(kit.folder / "a.ckpt")
    kit.path.write_text(made_up_text().replace("ROMEO", "RomeO"), encoding="utf-8")
    with pytest.raises(UsageError, match="tokenizer is not that of the text"):
        kit.trainer().fit(
            LitGPT(**SIZES), datamodule=kit.data(), ckpt_path=str(kit.folder / "a.ckpt")
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "^lr 0.0"),
        ({"lr": float("nan")}, "^lr nan"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "^min_lr 0.01: .*lr 0.001"),
        ({"warmup_steps": -1}, "^warmup_steps -1"),
        ({"decay_steps": 0}, "^decay_steps 0"),
        ({"weight_decay": -0.1}, "^weight_decay -0.1"),
        ({"betas": (0.9, 1.0)}, r"^betas \[0.9, 1.0\]"),
        ({"ema": 1.0}, "^ema 1.0"),
        ({"label_smoothing": 1.0}, "^label_smoothing 1.0"),
        ({"z_loss": -1.0}, "^z_loss -1.0"),
        ({"optimizer": "muon", "muon_lr": -1.0}, "^muon_lr -1.0"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LitGPT(**options)


def test_samples_go_to_console_file_and_tensorboard(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sampling = SampleText(prompts=["ROMEO:", "JULIET:\n"], max_new_tokens=30)
    sampling.folder = kit.folder
    logger = L.pytorch.loggers.TensorBoardLogger(kit.folder, default_hp_metric=False)
    kit.fit(max_steps=4, limit_val_batches=1.0, val_check_interval=2, logger=logger,
            check_val_every_n_epoch=None, callbacks=[sampling])  # fmt: skip
    written = (kit.folder / "samples.txt").read_text(encoding="utf-8")
    assert written.count("=== step 2, val/loss 3.") == 2
    assert written.count("=== step 4, val/loss 3.") == 2
    assert written.count("ROMEO:") >= 2
    assert "    ROMEO:" in capsys.readouterr().out
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"sample/0/text_summary", "sample/1/text_summary"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("sample/1/text_summary")] == [1, 3]


def test_metrics_have_the_names_of_the_design(run: Any) -> None:
    with (run.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {
        "epoch", "step", "train/loss", "train/loss_eval", "val/loss",
        "val/perplexity", "val/bits_per_byte", "val/gap", "optim/lr", "optim/grad_norm",
        "speed/tokens_per_s", "speed/step_ms", "train/tokens", "memory/peak_mb",
        *(f"optim/update_ratio/{kind}" for kind in
          ("wte", "wpe", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    }  # fmt: skip
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(1, 40, 2))
    # an evaluation is logged with the step before it
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [19, 39]


@pytest.mark.parametrize("clip", [0.1, None])
def test_the_gradient_norm_is_computed_once_and_clips_as_lightning_does(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, clip: float | None
) -> None:
    computed: list[float] = []
    total_norm = optimizers.total_norm

    def counted(tensors: Any) -> torch.Tensor:
        computed.append(float(norm := total_norm(tensors)))
        return norm

    monkeypatch.setattr(optimizers, "total_norm", counted)
    options: dict[str, Any] = {"max_steps": 3, "log_every_n_steps": 1, "gradient_clip_val": clip}
    model, plain = LitGPT(**SIZES), LitGPT(**SIZES)
    monkeypatch.setattr(plain, "configure_gradient_clipping", plain.clip_gradients)
    for each in (model, plain):
        L.seed_everything(0)
        kit.trainer(**options, callbacks=[Guard()]).fit(each, kit.data())
    # one per step; without its own clipping, `plain` computes a norm once and keeps it
    assert len(computed) == 3 + 1
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_loss_is_logged_only_for_steps_that_read_it(
    gptlit: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[int] = []
    log = LitGPT.log

    def counted(self: LitGPT, name: str, *given: Any, **options: Any) -> None:
        logged.append(self.global_step) if name == "train/loss" else None
        log(self, name, *given, **options)

    monkeypatch.setattr(LitGPT, "log", counted)
    monkeypatch.setattr(module, "LOG_AFTER_SECONDS", 1e9)
    options = [f"--data.path={text_file}", "--data.val_fraction=0", "--trainer.max_steps=14"]
    options += ["--trainer.val_check_interval=5", "--trainer.log_every_n_steps=4"]
    for more in ([], ["--trainer.callbacks=LambdaCallback"]):
        assert gptlit("fit", *TINY, *options, *more).code == 0
    # the first, for the bar; the fourth, eighth and twelfth are logged, 5 and 10 validated
    assert logged[:-14] == [0, 3, 4, 7, 9, 11]
    assert logged[-14:] == list(range(14))
    runs = Path("lightning_logs")
    assert_same_run(runs / "version_0", runs / "version_1", but="callbacks")
