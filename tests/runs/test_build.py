"""All of Lightning's callbacks, loggers, plugins and profilers in `gptlit fit`.

Each works for 10 steps and a resume, or is refused in one line before training.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gptlit.checkpoints import checkpoint
from gptlit.runs import user_parts
from gptlit.runs.saving import DurableCheckpointIO
from gptlit.training import logged_metrics
from tests.conftest import TINY, Result, Run, made_up_text, read_metrics

Call = Callable[..., Result]
RUN = Path("lightning_logs/version_0")

# the init_args with which each works, or init_args and a part of the message that refuses it
Expected = dict[str, dict[str, Any] | tuple[dict[str, Any], str]]
CALLBACKS: Expected = {
    "BackboneFinetuning": ({}, "a model with a `backbone`"),
    "BaseFinetuning": ({}, "a base class"),
    "BasePredictionWriter": {},
    "BatchSizeFinder": ({}, "gptlit summary"),
    "Callback": {},
    "Checkpoint": {},
    "DeviceStatsMonitor": {"cpu_stats": False},
    "EarlyStopping": {"monitor": "val/loss"},
    "EMAWeightAveraging": {},
    "GradientAccumulationScheduler": ({"scheduling": {0: 2}}, "--trainer.accumulate_grad_batches"),
    "LambdaCallback": {},
    "LearningRateFinder": ({}, "--lr_find"),
    "LearningRateMonitor": {},
    "ModelCheckpoint": {"monitor": "val/loss", "save_last": True},
    "ModelPruning": ({"pruning_fn": "l1_unstructured"}, "renames the weights"),
    "ModelSummary": {},
    "OnExceptionCheckpoint": ({"dirpath": "mine"}, "last.ckpt"),
    "ProgressBar": ({}, "a base class"),
    "RichModelSummary": {},
    "RichProgressBar": {},
    "SpikeDetection": ({}, "--guard"),
    "StochasticWeightAveraging": ({"swa_lrs": 1e-3, "swa_epoch_start": 1}, "--model.ema"),
    "ThroughputMonitor": {"batch_size_fn": "builtins.len"},
    "Timer": {"duration": "00:01:00:00"},
    "TQDMProgressBar": {},
    "WeightAveraging": {},
}
LOGGERS: Expected = {
    "CometLogger": {},
    "CSVLogger": {"save_dir": "mine"},
    "LitLogger": ({}, "is not a class derived from Logger"),  # but from Fabric's
    "Logger": ({}, "abstract"),
    "MLFlowLogger": {},
    "TensorBoardLogger": {"save_dir": "mine"},
    "WandbLogger": {},
}
PROFILERS: Expected = {
    "AdvancedProfiler": {"filename": "profile"},
    "PassThroughProfiler": {},
    "Profiler": ({}, "abstract"),
    "PyTorchProfiler": {"filename": "profile"},
    "SimpleProfiler": {"filename": "profile"},
    "XLAProfiler": {},
}
PLUGINS: Expected = {
    "AsyncCheckpointIO": {},
    "BitsandbytesPrecision": {"mode": "int8"},
    "CheckpointIO": ({}, "abstract"),
    "DeepSpeedPrecision": ({"precision": "32-true"}, "--trainer.strategy deepspeed"),
    "DoublePrecision": {},
    "FSDPPrecision": {"precision": "32-true"},
    "HalfPrecision": {"precision": "bf16-true"},
    "LayerSync": ({}, "abstract"),
    "MixedPrecision": {"precision": "bf16-mixed", "device": "cpu"},
    "Precision": {},
    "TorchCheckpointIO": {},
    "TorchSyncBatchNorm": {},
    "TransformerEnginePrecision": {"weights_dtype": "torch.bfloat16"},
    "XLACheckpointIO": {},
    "XLAPrecision": {"precision": "32-true"},
}
ENVIRONMENTS: Expected = {
    "ClusterEnvironment": ({}, "abstract"),
    "KubeflowEnvironment": {},
    "LightningEnvironment": {},
    "LSFEnvironment": ({}, "LSB_DJOB_RANKFILE"),
    "MPIEnvironment": {},
    "SLURMEnvironment": {},
    "TorchElasticEnvironment": {},
    "XLAEnvironment": {},
}
# classes that need a package; they are not tried where it is installed
NEEDED = {
    "BitsandbytesPrecision": "bitsandbytes",
    "CometLogger": "comet_ml",
    "MLFlowLogger": "mlflow",
    "MPIEnvironment": "mpi4py",
    "RichModelSummary": "rich",
    "RichProgressBar": "rich",
    "TransformerEnginePrecision": "transformer_engine",
    "WandbLogger": "wandb",
    "XLACheckpointIO": "torch_xla",
    "XLAEnvironment": "torch_xla",
    "XLAPrecision": "torch_xla",
    "XLAProfiler": "torch_xla",
}
KINDS: dict[str, tuple[str, Expected]] = {
    "lightning.pytorch.callbacks": ("callbacks", CALLBACKS),
    "lightning.pytorch.loggers": ("logger", LOGGERS),
    "lightning.pytorch.profilers": ("profiler", PROFILERS),
    "lightning.pytorch.plugins": ("plugins", PLUGINS),
    "lightning.pytorch.plugins.environments": ("plugins", ENVIRONMENTS),
}


def classes_of(module: str) -> list[str]:
    content = importlib.import_module(module)
    names = getattr(content, "__all__", None) or vars(content)
    return sorted(name for name in names if inspect.isclass(getattr(content, name)))


CASES = [(module, name) for module in KINDS for name in classes_of(module)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "speeches.txt"
    path.write_text(made_up_text(), encoding="utf-8")
    return path


OWN_CALLBACKS = """
from lightning.pytorch.callbacks import Callback

SEEN = set()


class Sees(Callback):
    def look(self, trainer, *_, **__):
        SEEN.update(trainer.callback_metrics)

    on_train_batch_end = on_validation_end = on_train_epoch_end = on_train_end = look


class Logs(Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("own/metric", 1.0)
"""


@pytest.fixture
def own_callbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A user's module with callbacks."""
    (tmp_path / "own_callbacks.py").write_text(OWN_CALLBACKS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("own_callbacks")
    del sys.modules["own_callbacks"]


@pytest.fixture
def fit(gptlit: Call, text: Path) -> Call:
    """Make a run of 10 steps, validated after 5 and 10."""

    def call(*options: object) -> Result:
        steps = ["--trainer.max_steps=10", "--trainer.val_check_interval=5"]
        own = [f"--data.path={text}", f"--data.data_dir={text.parent}"]
        return gptlit("fit", *TINY, *own, *steps, *options)

    return call


def part(kind: str, class_path: str, **init_args: Any) -> str:
    """The flag of an option whose value is a class of Lightning's."""
    one = {"class_path": class_path, **({"init_args": init_args} if init_args else {})}
    several = kind in ("callbacks", "plugins")
    return f"--trainer.{kind}=" + yaml.safe_dump([one] if several else one)


def test_the_refused_callbacks_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    listed = page.partition("refused with the alternative: ")[2].partition(". ")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == {each.__name__ for each in user_parts.REFUSED}


def assert_refused(result: Result, *parts: str) -> None:
    assert result.code == 2, result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("gptlit: error: --trainer")
    assert "Traceback" not in result.err
    for each in parts:
        assert each in last
    assert not list(Path().glob("lightning_logs/*"))


@pytest.mark.parametrize(("module", "name"), CASES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_each_class_works_or_is_refused(fit: Call, gptlit: Call, module: str, name: str) -> None:
    kind, expected = KINDS[module]
    assert name in expected, f"{module}.{name}: state here how it works, or why it does not"
    if (needed := NEEDED.get(name)) and find_spec(needed):
        pytest.skip(f"{needed} is installed")
    stated = expected[name]
    init_args, reason = stated if isinstance(stated, tuple) else (stated, needed)
    result = fit(part(kind, f"{module}.{name}", **init_args))
    if reason:
        assert_refused(result, reason.replace("comet_ml", "comet-ml"), name)
        return
    assert result.code == 0, result.err
    assert [row["step"] for row in read_metrics(RUN) if row["val/loss"]] == ["4", "9"]
    for file in ("best", "last"):
        assert checkpoint.read(RUN / "checkpoints" / f"{file}.ckpt")["global_step"] == 10
    if kind == "profiler" or module.endswith("environments"):
        return  # not in a checkpoint
    trusted = "--trust_checkpoint=true"  # plugins are read from trusted checkpoints only
    resumed = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=12", trusted)
    assert resumed.code == 0, resumed.err
    assert checkpoint.read(RUN / "checkpoints" / "last.ckpt")["global_step"] == 12


def test_every_stated_class_exists() -> None:
    for module, (_, expected) in KINDS.items():
        assert set(expected) <= set(classes_of(module))


# ---------------------------------------------------------------------- next to gptlit's own parts


def test_a_model_checkpoint_works_next_to_gptlits(fit: Call, gptlit: Call) -> None:
    own = {"monitor": "val/loss", "mode": "min", "save_last": True}
    callback = part("callbacks", "ModelCheckpoint", **own)
    result = fit(callback, "--trainer.max_steps=5")
    assert "ModelCheckpoint: saves next to best.ckpt and last.ckpt" in result.err
    names = {path.name for path in (RUN / "checkpoints").iterdir()}
    theirs = {"epoch=0-step=5.ckpt", "epoch=0-step=5-last.ckpt"}
    assert names == {"best.ckpt", "last.ckpt", *theirs}
    assert gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=10").code == 0
    names = {path.name for path in (RUN / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "epoch=0-step=10.ckpt", "epoch=0-step=10-last.ckpt"}


def test_a_model_checkpoint_never_restores_gptlits_state(fit: Call, gptlit: Call) -> None:
    """Older versions saved gptlit's state under the key of the user's."""
    assert fit("--trainer.max_steps=5", "--samples.prompts=[]").code == 0
    best, last = (RUN / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    content = torch.load(last, weights_only=True)
    (key,) = (key for key in content["callbacks"] if key.startswith("BestCheckpoint"))
    earlier = ModelCheckpoint(monitor="val/loss").state_key
    assert key != earlier
    state = content["callbacks"].pop(key)
    content["callbacks"][earlier] = {**state, "best_model_score": torch.tensor(-1.0)}
    torch.save(content, last)
    before = best.read_bytes()
    callback = part("callbacks", "ModelCheckpoint", monitor="val/loss")
    resumed = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=10", callback)
    assert resumed.code == 0, resumed.err
    assert best.read_bytes() == before  # its val/loss of -1 was never reached again
    states = checkpoint.read(last)["callbacks"]
    assert states[key]["best_model_score"] == -1
    assert states[earlier]["best_model_score"] > 0


@pytest.mark.parametrize("name", ["best", "last", "step_5"])
def test_the_names_of_gptlits_checkpoints_are_refused(fit: Call, name: str) -> None:
    callback = part("callbacks", "ModelCheckpoint", monitor="val/loss", filename=name)
    assert_refused(fit(callback), f"--trainer.callbacks.filename {name}")
    elsewhere = part("callbacks", "ModelCheckpoint", filename=name, dirpath="mine")
    assert fit(elsewhere, "--trainer.fast_dev_run=true").code == 0


def test_two_callbacks_of_one_kind_are_refused(fit: Call) -> None:
    twice = [{"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss"}}] * 2
    assert_refused(fit(f"--trainer.callbacks={yaml.safe_dump(twice)}"), "ModelCheckpoint")


def test_a_progress_bar_of_the_users_replaces_gptlits(fit: Call) -> None:
    result = fit(part("callbacks", "TQDMProgressBar"))
    assert "--trainer.callbacks TQDMProgressBar: replaces gptlit's own progress bar" in result.err
    assert "v_num=" in result.out  # gptlit's leaves it out
    off = fit(part("callbacks", "TQDMProgressBar"), "--trainer.enable_progress_bar=false")
    assert off.code == 2
    assert "enable_progress_bar=False" in off.err


def test_async_saving_is_waited_for(fit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without a validation copies last.ckpt to best.ckpt after it is written."""
    waited = Event()
    save, join = DurableCheckpointIO.save_checkpoint, AsyncCheckpointIO.teardown

    def save_late(*arguments: Any, **options: Any) -> None:
        assert waited.wait(timeout=30)
        save(*arguments, **options)

    def join_then(own: AsyncCheckpointIO) -> None:
        waited.set()
        join(own)

    monkeypatch.setattr(DurableCheckpointIO, "save_checkpoint", save_late)
    monkeypatch.setattr(AsyncCheckpointIO, "teardown", join_then)
    result = fit(part("plugins", "AsyncCheckpointIO"), "--trainer.limit_val_batches=0")
    assert result.code == 0, result.err
    assert "AsyncCheckpointIO: checkpoints are written while the training continues" in result.err
    for name in ("best", "last"):
        assert checkpoint.read(RUN / "checkpoints" / f"{name}.ckpt")["global_step"] == 10


def test_a_checkpoint_plugin_replaces_gptlits(fit: Call) -> None:
    result = fit(part("plugins", "TorchCheckpointIO"))
    assert result.code == 0
    assert "TorchCheckpointIO: replaces gptlit's own plugin" in result.err


def test_a_logger_works_next_to_gptlits(fit: Call) -> None:
    result = fit(part("logger", "CSVLogger", save_dir="mine"))
    assert "CSVLogger: logs next to metrics.csv and TensorBoard" in result.err
    losses = [
        [row["val/loss"] for row in read_metrics(folder) if row["val/loss"]]
        for folder in (RUN, Path("mine/lightning_logs/version_0"))
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    assert list(RUN.glob("events.out.tfevents.*"))
    assert {path.name for path in (RUN / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_logger_into_the_runs_own_folder_is_refused(fit: Call) -> None:
    logger = part("logger", "CSVLogger", save_dir=".", version=0)
    assert_refused(fit(logger), "--trainer.logger CSVLogger", "give another save_dir or version")


def test_logger_false_logs_nothing(fit: Call) -> None:
    assert fit("--trainer.logger=false").code == 0
    names = {"config.yaml", "run.json", "samples.txt", "checkpoints"}
    assert {path.name for path in RUN.iterdir()} == names


def test_barebones_leaves_nothing(fit: Call, gptlit: Call) -> None:
    result = fit("--trainer.barebones=true")
    assert result.code == 0, result.err
    assert result.out == ""
    assert not Path("lightning_logs").exists()
    assert "nothing is logged, saved, sampled" in result.err
    assert "done at step 10" in result.err
    assert_refused(fit("--trainer.barebones=true", "--trainer.profiler=simple"), "profiler")
    stopping = part("callbacks", "EarlyStopping", monitor="val/loss")
    assert_refused(fit("--trainer.barebones=true", stopping), "this run logs nothing")


@pytest.mark.parametrize("off", ["enable_checkpointing=false", "fast_dev_run=true"])
def test_checkpointing_can_be_switched_off(fit: Call, off: str) -> None:
    assert fit(f"--trainer.{off}").code == 0
    assert not list(Path().rglob("*.ckpt"))


# ---------------------------------------------------------------------- Lightning's log messages


def test_lightnings_announcements_are_silent(fit: Call) -> None:
    result = fit()
    assert all(line.startswith(("gptlit: ", "  ")) for line in result.err.splitlines())


@pytest.mark.filterwarnings("ignore:.*default schedule will be overridden")
@pytest.mark.parametrize("name", ["simple", "advanced", "pytorch"])
def test_a_profiler_reports_at_the_end(fit: Call, name: str) -> None:
    result = fit(f"--trainer.profiler={name}", "--trainer.max_steps=2")
    assert result.code == 0
    assert "FIT Profiler Report" in result.err
    assert ("run_training_epoch" if name != "pytorch" else "Self CPU time total") in result.err
    assert result.err.index("Profiler Report") < result.err.index("done at step 2")


def test_a_profilers_file_is_in_the_runs_folder(fit: Call) -> None:
    result = fit(part("profiler", "SimpleProfiler", filename="times"))
    path = RUN / "fit-times.txt"
    assert "FIT Profiler Report" in path.read_text()
    assert f"the profiler's report: {path}" in result.err
    assert "Profiler Report" not in result.err
    elsewhere = fit(part("profiler", "SimpleProfiler", filename="times", dirpath="mine"))
    assert elsewhere.code == 0
    assert Path("mine/fit-times.txt").exists()


def test_messages_of_callbacks_are_shown(fit: Call) -> None:
    stopping = part("callbacks", "EarlyStopping", monitor="val/loss", verbose=True)
    assert "Metric val/loss improved" in fit(stopping).err
    summary = fit(part("callbacks", "ModelSummary"), "--trainer.fast_dev_run=true")
    assert "Total params" in summary.err


def test_announcements_with_a_rank_are_silent_too(
    fit: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's announcements name the rank once a process knows it."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert "Seed set to" not in fit("--trainer.fast_dev_run=true").err


# ---------------------------------------------------------------------- invalid classes


@pytest.mark.parametrize("kind", ["callbacks", "logger", "plugins", "profiler", "strategy"])
def test_an_invalid_class_is_refused_with_its_cause(fit: Call, kind: str) -> None:
    for class_path in ("nomod.Old", "{class_path: nomod.Old}"):
        message = f"--trainer.{kind} nomod.Old: No module named 'nomod'"
        assert_refused(fit(f"--trainer.{kind}={class_path}"), message)
    assert_refused(fit(f"--trainer.{kind}=collections.OrderedDict"), "is not a class derived from")
    forgotten = f"--trainer.{kind}={{class_path: SimpleProfiler, filename: x}}"
    assert_refused(fit(forgotten), "belong under init_args")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("callbacks=EarlyStoping", "EarlyStopping"),
        ("callbacks=lightning.pytorch.callbacks.EarlyStoping", "EarlyStopping"),
        ("logger=CSVLoger", "CSVLogger"),
        ("plugins=AsyncCheckpintIO", "AsyncCheckpointIO"),
        ("profiler=simpel", "simple"),
        ("profiler=SimplePrfiler", "SimpleProfiler"),
        ("strategy=dpp", "ddp"),
        ("strategy=DDPStratgy", "DDPStrategy"),
        ("accelerator=gpuu", "gpu"),
    ],
)
def test_the_nearest_name_is_proposed(fit: Call, typed: str, meant: str) -> None:
    assert_refused(fit(f"--trainer.{typed}"), f"Did you mean {meant}?")


def test_strategy_and_accelerator_may_be_classes(fit: Call) -> None:
    classes = ["--trainer.strategy=DDPStrategy"]
    assert fit(*classes, "--trainer.fast_dev_run=true").code == 0
    for option in ("accelerator=CPUAccelerator", "accelerator=CPU"):
        assert fit(f"--trainer.{option}", "--trainer.fast_dev_run=true").code == 0


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_evaluations_refuse_barebones(gptlit: Call, run: Run, verb: str) -> None:
    ckpt = f"--ckpt_path={run.folder / 'checkpoints' / 'last.ckpt'}"
    result = gptlit(verb, ckpt, "--trainer.barebones=true")
    assert result.code == 2
    assert result.err.startswith("gptlit: error: --trainer.barebones true: logs no metrics")


# ---------------------------------------------------------------------- monitored metrics


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data.val_fraction=0"],
        ["--trainer.limit_val_batches=0"],
        ["--trainer.log_every_n_steps=0"],
        ["--model.ema=0.9", "--model.ema_keep=better"],
    ],
)
def test_the_stated_metrics_are_those_that_a_run_logs(
    fit: Call, own_callbacks: ModuleType, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """4 steps per epoch, so that a run of 10 steps logs every metric."""
    stated: list[list[str]] = []

    def spy(*arguments: Any) -> list[str]:
        stated.append(original(*arguments))
        return stated[-1]

    original = logged_metrics.logged
    monkeypatch.setattr(logged_metrics, "logged", spy)
    result = fit(part("callbacks", "own_callbacks.Sees"), "--data.batch_size=300", *options)
    assert result.code == 0, result.err
    assert set(stated[0]) == own_callbacks.SEEN


@pytest.mark.parametrize("callback", ["EarlyStopping", "ModelCheckpoint"])
def test_a_monitored_metric_that_is_never_logged_is_refused(fit: Call, callback: str) -> None:
    result = fit(part("callbacks", callback, monitor="val_loss"))
    parts = "--trainer.callbacks.monitor val_loss", callback, "Did you mean val/loss?"
    assert_refused(result, *parts)
    assert len(result.err.splitlines()) == 1
    without = fit(part("callbacks", callback, monitor="val/loss"), "--data.val_fraction=0")
    assert_refused(without, "train/loss_eval")


def test_a_monitored_metric_that_is_logged_too_late_is_refused(fit: Call) -> None:
    def stopping(**options: Any) -> str:
        return part("callbacks", "EarlyStopping", monitor="train/loss_epoch", **options)

    assert_refused(fit(stopping()), "at step 5", "first logged at step 345", "monitor val/loss")
    at_its_end = stopping(check_on_train_epoch_end=True)
    assert_refused(fit(at_its_end), "at step 10", "first logged at step 345")
    four_steps = "--data.batch_size=300"
    assert_refused(fit(stopping(), four_steps, "--trainer.val_check_interval=4"), "at step 4")
    assert fit(stopping(), four_steps).code == 0
    assert fit(at_its_end, four_steps).code == 0
    rate = part("callbacks", "EarlyStopping", monitor="optim/lr")
    late = fit(rate, "--trainer.log_every_n_steps=7")
    assert late.code == 2
    assert "at step 5, but it is first logged at step 7" in late.err


def test_an_unknown_metric_is_a_warning_where_a_users_callback_may_log_it(
    fit: Call, own_callbacks: ModuleType
) -> None:
    both = [
        {"class_path": "own_callbacks.Logs"},
        {"class_path": "EarlyStopping", "init_args": {"monitor": "own/metric"}},
    ]
    result = fit(f"--trainer.callbacks={yaml.safe_dump(both)}")
    assert result.code == 0, result.err
    assert "warning: --trainer.callbacks.monitor own/metric" in result.err
