"""An untrusted checkpoint runs no code and writes nothing outside of its folder."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

import gptlit as package
from gptlit.__main__ import VERBS
from gptlit.checkpoints import checkpoint, torch_files
from gptlit.data.datamodule import TextDataModule
from gptlit.messages import UsageError
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, Run

Call = Callable[..., Result]

# leaves a file when it is imported, called or instantiated
EVIL = """
from pathlib import Path
Path("ran").touch()
class Anything:
    def __init__(self, *_, **__): ...
def function(*_, **__): ...
"""
LEAST = {"data": {}, "model": {}}  # the fewest options of a run
MADE = {"class_path": "evilmod.Anything"}
CALLS = {
    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
    "init_args": {"on_fit_start": "builtins.print"},
}


def of_lightning(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.{name}", "init_args": arguments}


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the file that the evil module of the current folder makes."""
    (tmp_path / "evilmod.py").write_text(EVIL)
    (tmp_path / "evil.yaml").write_text("class_path: evilmod.Anything\n")
    # files whose names can replace a number or the text of a config
    config = "callbacks: [{class_path: evilmod.Anything}]\n"
    (tmp_path / "7").write_text(config)
    (tmp_path / "8").write_text(f"trainer: {{{config.strip()}}}\n")
    (tmp_path / yaml.safe_dump(LEAST)).write_text(f"trainer: {{{config.strip()}}}\n")
    (tmp_path.parent / f"{tmp_path.name}-elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ran"


def crafted(run: Run, path: Path, changes: dict[str, Any] | str, **parts: Any) -> Path:
    """Write a run's checkpoint with changed options, by dotted name, or as other YAML."""
    content = checkpoint.read(run.folder / "checkpoints" / "last.ckpt")
    text = changes
    if isinstance(changes, dict):
        options = yaml.safe_load(content[checkpoint.KEY]["run"])
        for name, value in changes.items():
            group, _, own = name.partition(".")
            if own:
                options[group][own] = value
            else:
                options[group] = value
        text = yaml.safe_dump(options)
    described = {**content[checkpoint.KEY], "run": text}
    torch_files.save({**content, checkpoint.KEY: described, **parts}, path)
    return path


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


CODE: dict[str, dict[str, Any]] = {
    "a callback": {"trainer.callbacks": [MADE]},
    "the only callback": {"trainer.callbacks": MADE},
    "a call": {"trainer.callbacks": [CALLS]},
    "behind a listed one": {"trainer.callbacks": [of_lightning("callbacks.Timer"), MADE]},
    "by its bare name": {"trainer.callbacks": ["LambdaCallback"]},
    "a list as text": {"trainer.callbacks": "[{class_path: evilmod.Anything}]"},
    "in a file": {"trainer.callbacks": ["evil.yaml"]},
    "a logger": {"trainer.logger": MADE},
    "loggers": {"trainer.logger": [of_lightning("loggers.CSVLogger", save_dir="."), MADE]},
    "a profiler": {"trainer.profiler": "evilmod.Anything"},
    "a plugin": {"trainer.plugins": [MADE]},
    "a plugin of Lightning": {"trainer.plugins": of_lightning("plugins.io.AsyncCheckpointIO")},
    "a strategy": {"trainer.strategy": "evilmod.Anything"},
    "a strategy as text": {"trainer.strategy": "class_path: evilmod.Anything"},
    "an accelerator's class": {"trainer.accelerator": "evilmod.Anything"},
    "a strategy by class": {"trainer.strategy": MADE},
    "an accelerator": {"trainer.accelerator": "evil.yaml"},
    "the Trainer": {"trainer": "evil.yaml"},
    "no callback": {"trainer.callbacks": of_lightning("Trainer")},
    "what Lightning imports": {"trainer.callbacks": of_lightning("callbacks.timer.Any")},
    "an argument": {
        "trainer.callbacks": of_lightning("callbacks.EarlyStopping", monitor="x", patience=MADE)
    },
    "a function": {
        "trainer.callbacks": of_lightning(
            "callbacks.StochasticWeightAveraging", swa_lrs=0.1, avg_fn="evilmod.function"
        )
    },
    "of any type": {
        "trainer.callbacks": of_lightning("callbacks.ModelSummary", console_kwargs={"a": MADE})
    },
    "more arguments": {
        "trainer.callbacks": {
            **of_lightning("callbacks.ModelSummary"),
            "dict_kwargs": {"a": "evilmod.function"},
        }
    },
    "cleaning": {"data.cleaning": {"class_path": "evilmod.Anything", "init_args": {}}},
    "a tokenizer": {"data.tokenizer": "{class_path: evilmod.Anything}"},
    "a tokenizer's file": {"data.tokenizer": "evil.yaml"},
    "a rate": {"model.lr": MADE},
    "prompts": {"samples.prompts": [MADE]},
    "the seed": {"seed_everything": "evil.yaml"},
    "a config": {"config": "evil.yaml"},
    "a number as a config": {"config": "8"},
    "a number as the Trainer": {"trainer": "7"},
    "a number as a callback": {"trainer.callbacks": ["7"]},
}
ELSEWHERE: dict[str, dict[str, Any]] = {
    "the root": {"trainer.default_root_dir": "/somewhere"},
    "texts": {"data.data_dir": "/somewhere"},
    "checkpoints": {"trainer.callbacks": of_lightning("callbacks.ModelCheckpoint", dirpath="/a")},
    "a name": {"trainer.callbacks": of_lightning("callbacks.ModelCheckpoint", filename="../../a")},
    "a logger": {"trainer.logger": of_lightning("loggers.CSVLogger", save_dir="~/a")},
    "a version": {"trainer.logger": of_lightning("loggers.CSVLogger", save_dir=".", version="/a")},
    "a profiler": {"trainer.profiler": of_lightning("profilers.SimpleProfiler", dirpath="..")},
    "a server": {"trainer.logger": of_lightning("loggers.MLFlowLogger", tracking_uri="http://a")},
    "a link": {"trainer.callbacks": of_lightning("callbacks.ModelCheckpoint", filename="link/a")},
    "no name": {"trainer.callbacks": of_lightning("callbacks.ModelCheckpoint", dirpath="\0")},
    "a long name": {"data.tokenizer": "x/" * 3000},
    "somebody's project": {"trainer.logger": of_lightning("loggers.WandbLogger", entity="a")},
    "another protocol": {
        "trainer.callbacks": of_lightning("callbacks.ModelCheckpoint", dirpath="local::/a")
    },
    "a registry": {"trainer.model_registry": "somebody"},
}


@pytest.mark.parametrize("changes", [*CODE.values(), *ELSEWHERE.values()], ids=[*CODE, *ELSEWHERE])
def test_fit_takes_neither_code_nor_folders(
    gptlit: Call, run: Run, evil: Path, changes: dict[str, Any]
) -> None:
    path = crafted(run, Path("a.ckpt"), changes)
    before = files(evil.parent)
    result = gptlit("fit", f"--ckpt_path={path}", "--trainer.max_steps=41")
    assert result.code == 2
    assert files(evil.parent) == before
    (line,) = result.err.splitlines()
    assert line.startswith("gptlit: error: --ckpt_path a.ckpt: its run's options ")
    assert "--trust_checkpoint true" in line
    assert result.out == ""


def test_options_do_not_name_a_config(gptlit: Call, run: Run, evil: Path) -> None:
    """An unpacked archive may have files of any name."""
    path = crafted(run, Path("a.ckpt"), yaml.safe_dump(LEAST))
    words = [*TINY, f"--data.path={run.text}", "--trainer.max_steps=41"]
    result = gptlit("fit", f"--ckpt_path={path}", *words)
    assert result.code == 0, result.err
    assert not evil.exists()


def test_no_control_character_reaches_the_terminal(gptlit: Call, run: Run, evil: Path) -> None:
    content = checkpoint.read(run.folder / "checkpoints" / "last.ckpt")
    text = {**content[checkpoint.KEY]["text"], "name": "a\x1b]52;c;YQ==\x07\nb"}
    callbacks = [{"class_path": "a\x1b[2Jb.C"}]
    path = crafted(run, Path("a.ckpt"), {"trainer.callbacks": callbacks})
    content = checkpoint.read(path)
    content[checkpoint.KEY]["text"] = text
    torch_files.save(content, path)
    for words in (["predict", "--max_new_tokens=1"], ["fit"]):
        result = gptlit(words[0], f"--ckpt_path={path}", *words[1:])
        assert len(result.err.splitlines()) == 1
        assert result.err.rstrip("\n").isprintable()


def resumable(run: Run, folder: Path, **parts: Any) -> Path:
    """Copy a run with other parts in its last checkpoint, and return that checkpoint."""
    shutil.copytree(run.folder, folder / "lightning_logs" / "version_0")
    last = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    content = checkpoint.read(last)
    options = yaml.safe_load(content[checkpoint.KEY]["run"])
    options["trainer"]["callbacks"] = [
        of_lightning("callbacks.ModelCheckpoint", every_n_train_steps=1)
    ]
    described = {**content[checkpoint.KEY], "run": yaml.safe_dump(options)}
    torch_files.save({**content, checkpoint.KEY: described, **parts}, last)
    return last


@pytest.mark.parametrize("how", ["..", "local://", "a link"])
def test_a_resume_removes_nothing_elsewhere(
    gptlit: Call, run: Run, tmp_path: Path, how: str
) -> None:
    """Lightning removes the previous checkpoint that is named in a ModelCheckpoint's state."""
    mine = tmp_path / "mine"
    (mine / "folder").mkdir(parents=True)
    inside = "lightning_logs/version_0/checkpoints"
    names = {"..": f"{inside}/../../../mine", "local://": f"local://{mine}"}
    path = names.get(how, f"{inside}/link/folder")
    state = {
        "monitor": None, "best_model_score": None, "best_model_path": path, "current_score": None,
        "dirpath": "x", "best_k_models": {}, "kth_best_model_path": "", "last_model_path": "",
        "kth_value": torch.tensor(1.0),
    }  # fmt: skip
    key = ModelCheckpoint(every_n_train_steps=1).state_key
    callbacks = {**torch.load(run.folder / "checkpoints" / "last.ckpt")["callbacks"], key: state}
    last = resumable(run, tmp_path, callbacks=callbacks)
    if how == "a link":
        last.with_name("link").symlink_to(mine)
    words = ["fit", "--ckpt_path=last", "--trainer.max_steps=42", "--trust_checkpoint=true"]
    result = gptlit(*words)
    assert result.code == 2
    assert "leads out of its folder" in result.err.splitlines()[-1]
    assert (mine / "folder").is_dir()


def test_a_resume_follows_no_link_out_of_the_runs_folder(
    gptlit: Call, run: Run, tmp_path: Path
) -> None:
    table = resumable(run, tmp_path).parent.parent / "metrics.csv"
    table.rename(tmp_path / "mine")
    table.symlink_to(tmp_path / "mine")
    before = (tmp_path / "mine").read_bytes()
    words = ["fit", "--ckpt_path=last", "--trainer.max_steps=42"]
    result = gptlit(*words)
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "has the link lightning_logs/version_0/metrics.csv to " in line
    assert (tmp_path / "mine").read_bytes() == before
    assert gptlit(*words, "--trust_checkpoint").code == 0


def test_the_refusal_names_the_class_and_the_folder(gptlit: Call, run: Run, evil: Path) -> None:
    path = crafted(run, Path("a.ckpt"), CODE["behind a listed one"])
    assert "name the class evilmod.Anything (trainer.callbacks)" in (
        gptlit("fit", f"--ckpt_path={path}").err
    )
    path = crafted(run, Path("a.ckpt"), ELSEWHERE["checkpoints"])
    assert "write to /a (trainer.callbacks.dirpath)" in gptlit("fit", f"--ckpt_path={path}").err


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:evilmod.function []",
        "{model: {lr: !!python/name:evilmod.function }, data: {}}",
        "[" * 400,
        # a list that contains itself many times
        "{data: {}, model: {a: &a [" + "0," * 999 + " *a]}}",
        "{data: {}, model: {a: [" + "0," * 10**7 + "]}}",
        # a billion values
        "{data: {}, model: {a: &a [1,1,1,1,1,1,1,1,1,1], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], "
        "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c], "
        "e: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]}}",
    ],
    ids=["an object", "a name", "deep", "recursive", "long", "wide"],
)
def test_unsafe_yaml_is_refused(gptlit: Call, run: Run, evil: Path, text: str) -> None:
    path = crafted(run, Path("a.ckpt"), text)
    for verb in ("fit", "validate"):
        result = gptlit(verb, f"--ckpt_path={path}")
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        assert not evil.exists()


EVERYTHING = CODE["a callback"] | {"trainer.logger": MADE, "trainer.strategy": "evilmod.Anything"}
KEYS = ("hyper_parameters", "datamodule_hyper_parameters")


@pytest.fixture
def hostile(run: Run, evil: Path) -> Path:
    """Return a checkpoint that names code in every place that can hold it."""
    content = checkpoint.read(run.folder / "checkpoints" / "last.ckpt")
    hyper = {name: content[name] | {"_instantiator": "evilmod.function"} for name in KEYS}
    return crafted(run, Path("hostile.ckpt"), EVERYTHING, **hyper)


COMMANDS = [
    ("fit --ckpt_path CKPT --trainer.max_steps=41", 2),
    ("fit --ckpt_path CKPT --trainer.max_steps=41 --preflight", 2),
    ("summary --ckpt_path CKPT", 2),
    ("import CKPT", 2),
    # these use only its plain values
    ("fit --model.init_from CKPT --data.path TEXT --trainer.max_steps=1", 0),
    ("validate --ckpt_path CKPT", 0),
    ("predict --ckpt_path CKPT --max_new_tokens=2", 0),
    ("predict --ckpt_path CKPT --max_new_tokens=2 --trainer.accelerator=cpu", 0),
    ("export CKPT out --format safetensors", 0),
    ("export CKPT out --format hf", 0),
    ("look CKPT --prompt the --output look.html", 0),
    ("compare RUN OTHER --output report.html", 0),
    # after the checkpoint is read
    ("merge CKPT merged.ckpt", 2),
    ("serve CKPT --adapter nowhere", 2),
]


def test_each_verb_that_reads_a_checkpoint_is_tried() -> None:
    tried = {command.split()[0] for command, _ in COMMANDS}
    # which have tests of their own below, or read none
    assert tried | {"test", "study"} | {"data", "runs", "plot"} == {*VERBS}


@pytest.mark.parametrize(("command", "code"), COMMANDS)
def test_no_verb_runs_code_of_a_checkpoint(
    gptlit: Call, run: Run, evil: Path, hostile: Path, command: str, code: int
) -> None:
    (checkpoints := Path("lightning_logs/version_7/checkpoints")).mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv"):
        shutil.copy(run.folder / name, checkpoints.parent)
    shutil.copy(hostile, checkpoints / "best.ckpt")
    command = command.replace("CKPT", str(hostile)).replace("TEXT", str(run.text))
    shutil.copytree(checkpoints.parent, other := Path("lightning_logs/version_6"))
    command = command.replace("RUN", str(checkpoints.parent)).replace("OTHER", str(other))
    words = command.split()
    base = TINY if "init_from" in command else []
    result = gptlit(words[0], *base, *words[1:])
    assert result.code == code, result.err
    assert not evil.exists()
    assert ("--trust_checkpoint true" in result.err) == (
        code == 2 and words[0] not in ("import", "merge", "serve")
    )


@pytest.mark.parametrize("verb", ["validate", "test"])
@pytest.mark.parametrize("name", ["cleaning", "a tokenizer", "a rate"])
def test_evaluations_run_no_code(gptlit: Call, run: Run, evil: Path, verb: str, name: str) -> None:
    path = crafted(run, Path("a.ckpt"), CODE[name])
    result = gptlit(verb, f"--ckpt_path={path}")
    assert result.code == 2
    assert "--trust_checkpoint true" in result.err
    assert not evil.exists()


def test_a_study_resumes_only_its_own_runs(gptlit: Call, text_file: Path, evil: Path) -> None:
    study = {"config": "tiny.yaml", "grid": {"seed_everything": [1]}}
    options = [word.removeprefix("--").split("=") for word in TINY[1:]]
    study["options"] = {name: yaml.safe_load(value) for name, value in options} | {
        "data.path": str(text_file), "trainer.max_steps": 4, "trainer.val_check_interval": 2,
    }  # fmt: skip
    Path("mine.yaml").write_text(yaml.safe_dump(study))
    assert gptlit("study", "mine.yaml").code == 0
    (last,) = Path("lightning_logs/mine").glob("*/checkpoints/last.ckpt")
    made = Run(evil.parent, last.parent.parent, text_file)
    crafted(made, last.with_name("new.ckpt"), CODE["a callback"], global_step=2)
    last.with_name("new.ckpt").rename(last)
    (made.folder / "result.json").unlink()
    result = gptlit("study", "mine.yaml")
    assert result.code == 1
    assert "evilmod.Anything" in result.out + result.err
    assert not evil.exists()


# ---------------------------------------------------------------------- from Python


@pytest.mark.filterwarnings("ignore")  # Lightning's, of a Trainer without the CLI's settings
def test_python_runs_no_code_of_a_checkpoint(hostile: Path, run: Run, evil: Path) -> None:
    model, tokenizer = package.load(hostile)
    assert package.generate(model, tokenizer, "the", max_new_tokens=1)
    lit = LitGPT.load_from_checkpoint(hostile, map_location="cpu")
    data = TextDataModule.load_from_checkpoint(hostile)
    assert (lit.options.lr, data.options.path) == (0.003, str(run.text))
    trainer = L.Trainer(
        max_steps=41, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, check_val_every_n_epoch=None,
        val_check_interval=100, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(lit, data, ckpt_path=str(hostile))
    assert trainer.global_step == 41
    assert not evil.exists()


def test_lightnings_own_instantiator_imports_nothing(run: Run, evil: Path) -> None:
    """Lightning allows it, and it would parse hyperparameters like a command line."""
    found = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
    data = {**found, "cleaning": MADE, "tokenizer": "{class_path: evilmod.Anything}"}
    parts = {"hyper_parameters": {**found, "lr": MADE}, "datamodule_hyper_parameters": data}
    path = crafted(run, Path("a.ckpt"), {}, **parts)
    with pytest.raises((UsageError, TypeError)):
        LitGPT.load_from_checkpoint(path, map_location="cpu")
    with pytest.raises((UsageError, TypeError)):
        TextDataModule.load_from_checkpoint(path)
    assert not evil.exists()


class Opened:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("open('ran', 'w')",)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_with_code_is_refused(run: Run, evil: Path) -> None:
    content = checkpoint.read(run.folder / "checkpoints" / "last.ckpt")
    torch.save({**content, "more": Opened()}, "a.ckpt")
    with pytest.raises(UsageError, match="run code"):
        package.load("a.ckpt")
    for module in (LitGPT, TextDataModule):
        with pytest.raises((UsageError, pickle.UnpicklingError)):
            module.load_from_checkpoint("a.ckpt")
    data = TextDataModule(path=str(run.text), batch_size=4, block_size=8)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(pickle.UnpicklingError):
        trainer.fit(LitGPT(n_layer=1, n_head=2, n_embd=16, block_size=8), data, ckpt_path="a.ckpt")
    assert not evil.exists()


def test_only_the_user_names_a_folder_for_texts(run: Run, evil: Path, tmp_path: Path) -> None:
    hyper = {"datamodule_hyper_parameters": {"path": str(run.text), "data_dir": "/somewhere"}}
    path = crafted(run, Path("a.ckpt"), {}, **hyper)
    with pytest.raises(UsageError, match="/somewhere.*give data_dir"):
        TextDataModule.load_from_checkpoint(path)
    mine = TextDataModule.load_from_checkpoint(path, data_dir=str(tmp_path / "mine"))
    assert mine.folder == tmp_path / "mine"


# ---------------------------------------------------------------------- own checkpoints


def test_own_classes_need_the_flag(gptlit: Call, run: Run, tmp_path: Path) -> None:
    (tmp_path / "minemod.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Mine(Callback):\n"
        "    def on_train_start(self, trainer, module): print('mine is there')\n"
    )
    changes = {"trainer.callbacks": [{"class_path": "minemod.Mine"}]}
    path = crafted(run, Path("a.ckpt"), changes)
    words = ["fit", f"--ckpt_path={path}", "--trainer.max_steps=41"]
    assert gptlit(*words, "--trust_checkpoint=false").code == 2
    assert gptlit(*words, "--trainer.callbacks+=EarlyStopping").code == 2
    Path("beside.yaml").write_text("trust_checkpoint: true\n")
    assert gptlit(*words, "--config=beside.yaml").code == 2
    trusted = gptlit(*words, "--trust_checkpoint")
    assert trusted.code == 0
    assert "mine is there" in trusted.out
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert "trust_checkpoint" not in saved  # applies to one command


@pytest.mark.parametrize("how", ["flag", "config"])
def test_options_given_by_the_user_are_trusted(
    gptlit: Call, run: Run, evil: Path, tmp_path: Path, how: str
) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "a"}}
    given = {"trainer": {"callbacks": [], "logger": logger}}
    Path("mine.yaml").write_text(yaml.safe_dump(given))
    beside = {
        "flag": ["--trainer.callbacks=[]", "--trainer.logger=CSVLogger",
                 "--trainer.logger.save_dir=a"],
        "config": ["--config=mine.yaml"],
    }[how]  # fmt: skip
    mine = [f"--data.data_dir={tmp_path / 'texts'}", f"--trainer.default_root_dir={tmp_path}"]
    evils = CODE["a callback"] | CODE["a logger"] | ELSEWHERE["the root"] | ELSEWHERE["texts"]
    path = crafted(run, Path("a.ckpt"), evils)
    words = ["fit", f"--ckpt_path={path}", "--trainer.max_steps=41", *beside]
    assert gptlit(*words).code == 2
    result = gptlit(*words, *mine)
    assert result.code == 0, result.err
    assert not evil.exists()
    assert (tmp_path / "a").is_dir()  # the logger's


def test_an_own_run_in_a_parent_folder_resumes(
    gptlit: Call, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    options = ["--trainer.max_steps=2", "--trainer.default_root_dir=../runs"]
    own = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    assert gptlit("fit", *TINY, f"--data.path={text_file}", *options, *own).code == 0
    last = "../runs/lightning_logs/version_0/checkpoints/last.ckpt"
    result = gptlit("fit", f"--ckpt_path={last}", "--trainer.max_steps=3")
    assert result.code == 0, result.err
    names = {path.name for path in Path(last).parent.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "epoch=0-step=3.ckpt"}


def test_an_own_run_resumes_without_a_flag(
    gptlit: Call, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "--trainer.max_steps=2", "--trainer.default_root_dir=out",
        "--data.data_dir=texts",
        "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1",
        "--trainer.callbacks.filename=mine-{step}", "--trainer.profiler=simple",
        "--data.tokenizer.kind=word", "--data.cleaning.drop_lines=^#",
    ]  # fmt: skip
    assert gptlit("fit", *TINY, f"--data.path={text_file}", *options).code == 0
    last = "out/lightning_logs/version_0/checkpoints/last.ckpt"
    for folder in ("out", "texts"):
        shutil.move(tmp_path / folder, tmp_path / "elsewhere" / folder)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "elsewhere")
        there = gptlit("fit", f"--ckpt_path={last}", "--trainer.max_steps=3")
        assert there.code == 0, there.err
    result = gptlit("fit", f"--ckpt_path=elsewhere/{last}", "--trainer.max_steps=4")
    assert result.code == 0, result.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "speeches.txt", "elsewhere"
    }  # fmt: skip
