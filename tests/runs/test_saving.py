"""Checkpoints on disk: complete or absent, checked for damage, and never run as code."""

import errno
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlit as package
from gptlit import files
from gptlit.checkpoints import checkpoint, torch_files
from gptlit.messages import UsageError
from tests.conftest import TINY, Result, Run, assert_equal

Call = Callable[..., Result]


def saved_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


# ---------------------------------------------------------------------- damage


@pytest.fixture
def last(run: Run, tmp_path: Path) -> Path:
    """last.ckpt in a copy of the run's folder, for a test to damage."""
    folder = tmp_path / "lightning_logs" / "version_0"
    shutil.copytree(run.folder, folder)
    return folder / "checkpoints" / "last.ckpt"


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def place_of(tensor: torch.Tensor, path: Path) -> int:
    """Offset of a tensor's values in a checkpoint."""
    return path.read_bytes().index(tensor.numpy().tobytes())


def test_a_flipped_bit_of_a_weight_is_detected(last: Path) -> None:
    weight = torch.load(last, weights_only=True)["state_dict"]["net.h.0.attn.c_attn.weight"]
    flip(last, place_of(weight, last) + 5)
    # torch itself doesn't detect it
    altered = torch.load(last, weights_only=True)["state_dict"]["net.h.0.attn.c_attn.weight"]
    assert int((altered != weight).sum()) == 1
    with pytest.raises(UsageError, match="last.ckpt: torn, altered"):
        checkpoint.read(last)


def test_any_flipped_bit_is_detected_or_has_no_effect(last: Path, tmp_path: Path) -> None:
    """A flipped bit anywhere in the file leaves the content as written, or is an error."""
    whole = checkpoint.read(last)
    pick = random.Random(0)
    size = last.stat().st_size
    # half of them in the archive's table, at the end
    places = [pick.randrange(size) for _ in range(40)]
    places += [size - 1 - pick.randrange(3000) for _ in range(40)]
    detected = 0
    for place in places:
        altered = tmp_path / "altered.ckpt"
        altered.write_bytes(last.read_bytes())
        flip(altered, place, pick.randrange(8))
        try:
            content = checkpoint._read(altered)
        except UsageError:
            detected += 1
        else:
            assert_equal(content, whole, f"bit at {place}")
    assert detected > 20


def test_a_damaged_last_is_replaced_by_the_newest_intact_one(
    gptlit: Call, last: Path, run: Run
) -> None:
    """step_40 is damaged too, and best.ckpt missing, so that step_30 is used."""
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    flip(last.with_name("step_40.ckpt"), 2000)
    last.with_name("best.ckpt").unlink()
    path, content = checkpoint.read_named("last")
    assert path.name == "step_30.ckpt"
    assert content["global_step"] == 30
    written = gptlit("predict", "--ckpt_path=last", "--max_new_tokens=5")
    assert written.code == 0
    assert written.err.startswith(
        "gptlit: warning: lightning_logs/version_0/checkpoints/last.ckpt is damaged; "
        "step_30.ckpt of step 30 is used instead\n"
        "gptlit: model lightning_logs/version_0/checkpoints/step_30.ckpt: step 30, "
    )
    resumed = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=32")
    assert resumed.code == 0, resumed.err
    assert "resuming from lightning_logs/version_0/checkpoints/step_30.ckpt at step 30" in (
        resumed.err
    )
    assert checkpoint.read(last)["global_step"] == 32


@pytest.mark.parametrize("name", ["best", "lightning_logs/version_0/checkpoints/step_20.ckpt"])
def test_a_damaged_checkpoint_given_by_name_is_refused(gptlit: Call, last: Path, name: str) -> None:
    damaged = last.with_name("best.ckpt" if name == "best" else "step_20.ckpt")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    for verb in ("fit", "validate", "test", "predict"):
        refused = gptlit(verb, "--ckpt_path", name)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert f"{damaged.name}: torn, altered" in refused.err
        assert "step_40.ckpt of step 40 is whole" in refused.err


def test_a_run_without_an_intact_checkpoint_is_refused(gptlit: Call, last: Path) -> None:
    for path in last.parent.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    refused = gptlit("fit", "--ckpt_path=last")
    assert refused.code == 2
    assert "there is no whole one next to it" in refused.err


# ---------------------------------------------------------------------- code


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made by evil",)


@pytest.mark.parametrize(
    "command",
    [
        "fit --ckpt_path=evil.ckpt",
        "fit --model.init_from=evil.ckpt",
        "summary --ckpt_path=evil.ckpt",
        "validate --ckpt_path=evil.ckpt",
        "test --ckpt_path=evil.ckpt",
        "predict --ckpt_path=evil.ckpt",
        "predict --ckpt_path=evil.ckpt --trainer.devices=1",
        "import nanogpt evil.ckpt",
        "import nanogpt good.pt evil.pkl",
        "import hugging_face evil_folder",
        "export evil.ckpt exported",
    ],
)
@pytest.mark.parametrize("crafted", ["archive", "pickle"])
def test_a_crafted_file_runs_no_code(
    gptlit: Call, run: Run, tmp_path: Path, command: str, crafted: str
) -> None:
    """As an archive of torch.save with one malicious object, or as a bare pickle."""
    content = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["callbacks"] = Evil()
    (tmp_path / "evil_folder").mkdir()
    (tmp_path / "evil_folder" / "config.json").write_text('{"model_type": "gpt2"}')
    torch.save({"model_args": {}, "model": {}}, tmp_path / "good.pt")
    for name in ("evil.ckpt", "evil_folder/pytorch_model.bin"):
        if crafted == "archive":
            torch.save(content, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(content))
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"stoi": Evil()}))
    refused = gptlit(*command.split())
    assert refused.code == 2, refused.err
    assert "evil" in refused.err or "good.pt" in refused.err
    assert not Path("made by evil").exists()
    assert not Path("lightning_logs").exists()


# ---------------------------------------------------------------------- writing


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Limit the size of files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    path = tmp_path / "a.ckpt"
    torch_files.save({"a": torch.zeros(10)}, path)
    before = path.read_bytes()
    for n_bytes in (100, 5_000, 1_000_000):
        small_files(n_bytes)
        with pytest.raises(OSError, match="File too large") as raised:
            torch_files.save({"a": torch.ones(300_000)}, path)
        assert raised.value.filename == str(path)
        assert raised.value.errno == errno.EFBIG
        assert [each.name for each in tmp_path.iterdir()] == ["a.ckpt"]
        assert path.read_bytes() == before


def fit(gptlit: Call, text: Path, *options: object) -> Result:
    defaults = ["--trainer.max_steps=6", "--trainer.val_check_interval=2"]
    return gptlit("fit", *TINY, f"--data.path={text}", *defaults, *options)


def test_a_full_disk_ends_a_run_with_one_line(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from step 4 on; the run resumes from step 2 when there is room."""
    real, full = os.fsync, OSError(errno.ENOSPC, "No space left on device")
    writes: list[int] = []

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        writes.extend([1] * ("/.last.ckpt." in name))
        if len(writes) > 1:
            raise full
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    failed = fit(gptlit, text_file)
    folder = Path("lightning_logs/version_0")
    last = folder / "checkpoints" / "last.ckpt"
    assert failed.code == 1
    assert failed.err == (
        f"gptlit: error: No space left on device: {last}; gptlit fit --ckpt_path {last} resumes "
        "from step 2\n"
    )
    assert saved_in(folder) == {"best.ckpt", "last.ckpt"}
    monkeypatch.setattr(os, "fsync", real)
    assert gptlit("fit", "--ckpt_path", last).code == 0
    assert checkpoint.read(last)["global_step"] == 6


def test_a_folder_without_permission_ends_a_run_with_one_line(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.tempfile.mkstemp

    def mkstemp(**options: Any) -> Any:
        if ".ckpt" in options["prefix"]:
            raise PermissionError(errno.EACCES, "Permission denied", "a folder")
        return real(**options)

    monkeypatch.setattr(files.tempfile, "mkstemp", mkstemp)
    failed = fit(gptlit, text_file)
    assert failed.code == 1
    assert failed.err == "gptlit: error: Permission denied: a folder; nothing was saved\n"


def test_a_rename_is_synced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced before the rename, and its folder after it."""
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        steps.append("folder" if name == tmp_path else "file")
        real_fsync(descriptor)

    def replace(source: Any, target: Any) -> None:
        assert Path(source).parent == Path(target).parent
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    torch_files.save({}, tmp_path / "a.ckpt")
    assert steps == ["file", "rename", "folder"]


def test_temporary_files_of_a_killed_process_are_removed(gptlit: Call, text_file: Path) -> None:
    fit(gptlit, text_file)
    folder = Path("lightning_logs/version_0")
    (folder / "checkpoints" / ".last.ckpt.a1b2c3d4").touch()
    (folder / "checkpoints" / "mine.ckpt").touch()
    assert gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=7").code == 0
    assert saved_in(folder) == {"best.ckpt", "last.ckpt", "mine.ckpt"}


# ---------------------------------------------------------------------- kept snapshots


def test_the_newest_snapshots_are_kept(gptlit: Call, text_file: Path) -> None:
    assert fit(gptlit, text_file, "--snapshot_every=1", "--keep_snapshots=2").code == 0
    folder = Path("lightning_logs/version_0")
    assert saved_in(folder) == {"best.ckpt", "last.ckpt", "step_5.ckpt", "step_6.ckpt"}
    for step in (5, 6):
        path = folder / "checkpoints" / f"step_{step}.ckpt"
        assert checkpoint.read(path)["global_step"] == step
    # resumed from step 5, the snapshot of step 6 belongs to another run and isn't counted
    assert gptlit("fit", "--ckpt_path", folder / "checkpoints/step_5.ckpt", "--keep_snapshots=1",
                  "--trainer.max_steps=8").code == 0  # fmt: skip
    assert saved_in(folder) == {"best.ckpt", "last.ckpt", "step_8.ckpt"}


def test_a_snapshot_is_saved_after_its_validation(gptlit: Call, text_file: Path) -> None:
    """Steps 2, 4, ... are validated."""
    fit(gptlit, text_file, "--snapshot_every=2", "--trainer.max_steps=4")
    content = checkpoint.read("lightning_logs/version_0/checkpoints/step_2.ckpt")
    assert content[checkpoint.KEY]["evaluated"]["step"] == 2


def test_a_run_that_was_moved_keeps_its_best_checkpoint(gptlit: Call, text_file: Path) -> None:
    assert fit(gptlit, text_file).code == 0
    moved = Path("elsewhere/version_7")
    shutil.copytree("lightning_logs/version_0", moved)
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    worse = ["--model.lr=1.0", "--model.min_lr=1.0", "--trainer.max_steps=8"]
    assert gptlit("fit", "--ckpt_path", moved / "checkpoints/last.ckpt", *worse).code == 0
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == best


def test_a_checkpoint_of_an_older_version_is_read(last: Path) -> None:
    """Older versions saved no evaluation."""
    content = torch.load(last, weights_only=True)
    del content[checkpoint.KEY]["evaluated"]
    torch.save(content, last)
    assert package.load(last)[0].config.n_embd == 16
