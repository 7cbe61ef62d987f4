"""Each private name of Lightning's that gptlit uses: that it exists, and what it does."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LambdaCallback
from lightning.pytorch.core import saving
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from gptlit.data.datamodule import WITHOUT_INSTANTIATOR
from gptlit.training import loop_state
from gptlit.training.fsdp2 import FSDP2

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, and those of its demo
PACKAGE = Path(loop_state.__file__).parents[1]
Probe = Callable[[L.Trainer], Any]


class Record(Callback):
    """Records the results of functions at the end of each batch."""

    def __init__(self, *probes: Probe) -> None:
        self.probes = probes
        self.seen: list[list[Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.seen.append([probe(trainer) for probe in self.probes])


class Small(BoringModel):
    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(4, 32))

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(2, 32))


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, logger=False, callbacks=[*callbacks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip


@pytest.fixture
def fitted(tmp_path: Path) -> Callable[..., list[list[Any]]]:
    def fit(*probes: Probe, **options: Any) -> list[list[Any]]:
        record = Record(*probes)
        trainer(tmp_path, record, **options).fit(Small())
        return record.seen

    return fit


@pytest.mark.parametrize(
    ("path", "used_by"),
    [
        ("fit_loop._should_accumulate", loop_state.has_stepped),
        ("fit_loop._data_fetcher", loop_state.validation_follows),
        ("fit_loop.epoch_loop._should_check_val_fx", loop_state.validation_follows),
        ("fit_loop.epoch_loop._num_ready_batches_reached", loop_state.ends_epoch),
        ("fit_loop.epoch_progress.current.processed", loop_state.is_over),
        ("fit_loop.epoch_loop._batches_that_stepped", loop_state.log_under_global_step),
        ("fit_loop.epoch_loop.val_loop.batch_progress.total", loop_state.mark_validation_as_begun),
        ("_accelerator_connector.cluster_environment", loop_state.cluster_environment),
        ("_signal_connector.received_sigterm", loop_state.stop_as_by_sigterm),
    ],
)
def test_lightning_has_the_name(path: str, used_by: Callable[..., Any], tmp_path: Path) -> None:
    found: Any = trainer(tmp_path)
    for name in path.split("."):
        assert hasattr(found, name), (
            f"Lightning {L.__version__} has no trainer.{path}: adapt loop_state.{used_by.__name__}"
        )
        found = getattr(found, name)


def test_steps_of_accumulated_batches(fitted: Any) -> None:
    seen = fitted(loop_state.has_stepped, max_steps=2, accumulate_grad_batches=2)
    assert [each for (each,) in seen] == [False, True, False, True]


def test_validations_that_follow(fitted: Any) -> None:
    seen = fitted(loop_state.validation_follows, max_epochs=1, val_check_interval=2)
    assert [each for (each,) in seen] == [False, True, False, True]


def test_ends_of_epochs_and_of_the_run(fitted: Any) -> None:
    probes = (loop_state.ends_epoch, loop_state.is_over)
    seen = fitted(*probes, max_epochs=2)
    assert [bool(each[0]) for each in seen] == [False, False, False, True] * 2
    assert [bool(each[1]) for each in seen] == [False] * 7 + [True]
    assert [bool(each[1]) for each in fitted(*probes, max_steps=3)] == [False, False, True]


def test_metrics_are_logged_under_the_global_step(fitted: Any) -> None:
    def changed(trainer: L.Trainer) -> int:
        trainer.fit_loop.epoch_loop._batches_that_stepped = 17
        loop_state.log_under_global_step(trainer)
        return trainer.fit_loop.epoch_loop._batches_that_stepped

    assert fitted(changed, max_steps=2) == [[1], [2]]


def test_hooks_that_do_nothing_are_left_out(tmp_path: Path) -> None:
    calls: list[str] = []

    class Counting(Small):
        def on_train_batch_end(self, *_: Any) -> None:
            calls.append("module")

    lambdas = LambdaCallback(on_before_zero_grad=lambda *_: calls.append("lambda"))
    record, module = Record(lambda _: None), Counting()
    for owner in (record, lambdas, module):
        loop_state.leave_out_idle_hooks(owner)
    made = trainer(tmp_path, record, lambdas, max_steps=2)
    with mock.patch.object(type(made.profiler), "profile", wraps=made.profiler.profile) as profiled:
        made.fit(module)
    assert calls == ["lambda", "module"] * 2
    assert len(record.seen) == 2
    names = [name for (name,), _ in profiled.call_args_list if not name.startswith("[Strategy]")]
    called = {name for name in names if name.rpartition(".")[2] in loop_state.HOOKS_OF_A_STEP}
    assert called == {
        f"[Callback]{record.state_key}.on_train_batch_end",
        f"[Callback]{lambdas.state_key}.on_before_zero_grad",
        "[LightningModule]Counting.on_train_batch_end",
    }


def test_attributes_that_lightning_sets_at_each_hook(tmp_path: Path) -> None:
    names: set[str] = set()

    class Watched(Small):
        def __setattr__(self, name: str, value: Any) -> None:
            names.add(name)
            super().__setattr__(name, value)

    module = Watched()
    names.clear()
    trainer(tmp_path, max_steps=2).fit(module)
    assert names >= loop_state.SET_AT_EACH_HOOK
    assert {*vars(module)} >= loop_state.SET_AT_EACH_HOOK  # not parameters, modules or properties


def test_a_validation_marked_as_begun(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2)
    made.fit(Small())
    loop_state.mark_validation_as_begun(made)
    progress = made.fit_loop.state_dict()["epoch_loop.val_loop.batch_progress"]
    assert progress["total"] == {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def test_whether_a_module_has_a_trainer(tmp_path: Path) -> None:
    model = Small()
    assert not loop_state.has_trainer(model)
    trainer(tmp_path, max_steps=1).fit(model)
    assert loop_state.has_trainer(model)


def test_a_stop_as_by_sigterm(tmp_path: Path) -> None:
    record = Record(loop_state.stop_as_by_sigterm)
    with pytest.raises(SIGTERMException):
        trainer(tmp_path, record, max_steps=3).fit(Small())
    assert len(record.seen) == 1


def test_the_cluster_environment(tmp_path: Path) -> None:
    found = loop_state.cluster_environment(trainer(tmp_path))
    assert isinstance(found, LightningEnvironment)


def test_how_a_strategy_starts_processes(tmp_path: Path) -> None:
    for name, method in {"ddp_spawn": "spawn", "ddp_fork": "fork", "ddp": None}.items():
        given = trainer(tmp_path, strategy=name)
        given.strategy._configure_launcher()
        assert loop_state.start_method(given.strategy) == method, name
    assert loop_state.start_method(SingleDeviceStrategy()) is None
    assert loop_state.start_method(DDPStrategy()) is None  # without a launcher yet


def test_all_processes_get_data_of_their_own() -> None:
    strategy = FSDP2()
    strategy.num_nodes, strategy.parallel_devices = 2, [torch.device("cpu")] * 3
    loop_state.use_all_processes_for_data(strategy)
    assert strategy._data_parallel_size == 6


def test_the_key_of_a_callbacks_state() -> None:
    key = loop_state.state_key(EarlyStopping("val/loss"), monitor="val/loss")
    assert key == "EarlyStopping{'monitor': 'val/loss'}"


@pytest.mark.parametrize("on_epochs", [True, False])
def test_where_early_stopping_checks(on_epochs: bool) -> None:
    given = EarlyStopping("val/loss", check_on_train_epoch_end=on_epochs)
    assert loop_state.checks_on_epoch_end(given) is on_epochs


def test_the_schema_of_a_checkpoints_loops(tmp_path: Path) -> None:
    made = trainer(tmp_path, max_steps=2)
    made.fit(Small())
    made.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    loop = content["loops"]["fit_loop"]
    counts = {"ready", "started", "processed", "completed"}
    assert {*loop} >= {"epoch_loop.batch_progress", "epoch_loop.state_dict", "state_dict"}
    assert {*loop["epoch_loop.batch_progress"]} == {"total", "current", "is_last_batch"}
    assert {*loop["epoch_loop.batch_progress"]["current"]} >= counts
    assert {*loop["epoch_loop.batch_progress"]["total"]} == counts
    assert "_batches_that_stepped" in loop["epoch_loop.state_dict"]
    # as Lightning would restore it
    loop_state.check_loop(content, "fit_loop", made.fit_loop.state_dict(), has_place=False)


def test_no_other_file_uses_private_names_of_lightning() -> None:
    owner = r"\b(?:trainer|strategy|launcher|callback|module|fit_loop|loop)\._[a-z]"
    names = rf"{owner}|epoch_loop|epoch_progress|batch_progress|_connector\b|_MultiProcessing"
    names += r"|\b_generate_state_key|\b_instantiator|super\(\)\._[a-z]"
    found = {
        path.relative_to(PACKAGE).as_posix(): used
        for path in PACKAGE.rglob("*.py")
        if (used := re.findall(names, path.read_text(encoding="utf-8")))
    }
    assert found.pop("data/datamodule.py") == [*WITHOUT_INSTANTIATOR]
    assert {*found} == {"training/loop_state.py"}, found


def test_lightning_reads_the_instantiator_of_a_checkpoint() -> None:
    (name,) = WITHOUT_INSTANTIATOR
    assert f'.pop("{name}"' in inspect.getsource(saving), (
        f"Lightning has no {name}: adapt TextDataModule"
    )


def test_classes_use_the_listed_private_names_of_their_bases_only() -> None:
    used: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "lightning" in text and path.stem not in ("__main__", "__init__"):
            name = path.relative_to(PACKAGE).as_posix()
            module = importlib.import_module(f"gptlit.{name.removesuffix('.py').replace('/', '.')}")
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef):
                    of_bases = private_names(getattr(module, node.name))
                    used.setdefault(name, set()).update(of_bases & names_in(node))
    assert {name: names for name, names in used.items() if names} == loop_state.OVERRIDDEN


def private_names(owner: type) -> set[str]:
    """Return the private names of the bases of Lightning's that a class has."""
    names = {
        name
        for base in owner.__mro__
        if base.__module__.startswith("lightning")
        for name in [*vars(base), *re.findall(r"\bself\.(_\w+)", inspect.getsource(base))]
    }
    return {name for name in names if re.match("_[a-z]", name)}


def names_in(node: ast.ClassDef) -> set[str]:
    """Return the names of a class's methods, and of the attributes that they use."""
    parts = [*ast.walk(node)]
    methods = {each.name for each in parts if isinstance(each, ast.FunctionDef)}
    return methods | {each.attr for each in parts if isinstance(each, ast.Attribute)}
