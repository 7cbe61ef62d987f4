"""`gptlit.cli.fit.build`: a run for Python, and for verbs that only inspect it."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from gptlit.checkpoints import checkpoint
from gptlit.cli.fit import GptlitCLI, build
from gptlit.cli.lightning_warnings import quiet
from gptlit.messages import UsageError
from gptlit.training.module import LitGPT
from tests.conftest import TINY

OPTIONS = [*TINY, "--trainer.max_steps=4", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_is_trained_from_python(text_file: Path) -> None:
    arguments = [*OPTIONS, f"--data.path={text_file}"]
    with quiet(), build(arguments) as run:
        assert run.folder is not None
        assert run.folder.path == Path("lightning_logs/version_0")
        run.trainer.fit(run.model, run.data)
    assert run.trainer.global_step == 4
    last = run.folder.path / "checkpoints" / "last.ckpt"
    assert checkpoint.read(last)["global_step"] == 4
    more = [f"--ckpt_path={last}", "--trainer.max_steps=6"]
    with quiet(), build(more) as resumed:
        resumed.trainer.fit(resumed.model, resumed.data, ckpt_path=str(last))
    assert resumed.trainer.global_step == 6


def test_a_run_that_is_only_inspected_has_no_folder(text_file: Path) -> None:
    with quiet(), build([*OPTIONS, f"--data.path={text_file}"], trains=False) as run:
        run.prepare()
        run.model.configure_model()
        assert run.model.net.num_parameters() > 0
    assert (run.folder, run.stopping, run.trainer.loggers) == (None, None, [])
    assert not Path("lightning_logs").exists()


def test_an_error_unlocks_and_removes_the_folder(text_file: Path) -> None:
    wrong = [*OPTIONS, f"--data.path={text_file}", "--trainer.accumulate_grad_batches=-1"]
    with quiet(), pytest.raises(UsageError, match="^accumulate_grad_batches -1: must be 1 or more"):
        build(wrong)
    assert not Path("lightning_logs").exists()


def test_lightning_has_the_methods_that_the_cli_overrides() -> None:
    for name in ("_parse_ckpt_path", "subcommands", "add_arguments_to_parser", "parse_arguments"):
        assert hasattr(LightningCLI, name), f"LightningCLI has no {name}: adapt {GptlitCLI}"


def test_options_are_attributes_of_the_model_and_hyperparameters() -> None:
    model = LitGPT(n_layer=2, lr=1e-2)
    assert (model.options.n_layer, model.options.lr, model.options.optimizer) == (2, 1e-2, "adamw")
    assert model.hparams["n_layer"] == 2
    assert model.hparams["lr"] == 1e-2
    learning = {"lr", "min_lr", "betas", "optimizer", "schedule", "ema", "init_from", "compile"}
    assert learning < {*model.hparams}
    assert not any(isinstance(value, torch.Tensor) for value in model.hparams.values())


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="learning_rate"):
        LitGPT(learning_rate=1e-2)
