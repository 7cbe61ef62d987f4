"""Checkpoints without Lightning: where they are, what is in them, and a model from one.

A checkpoint is whole: besides what Lightning saves it holds, under the key "gptlit", the
model's config, the tokenizer, the text's provenance and the run's config, all as plain data.
It loads with `weights_only=True`, so that someone else's file can't run code.
"""

import contextlib
import dataclasses
import re
import zipfile
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints import torch_files
from gptlit.checkpoints.weight_shapes import NotFinite, checked
from gptlit.corpora import inputs
from gptlit.files import replacing
from gptlit.messages import UsageError, is_first_process, note, opt
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.plain_data import in_short
from gptlit.terminal import printable
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import from_state

KEY = "gptlit"
NET_PREFIX = "net."
RUNS = Path("lightning_logs")
ALIASES = ("best", "last")
CHECKPOINTS = "checkpoints"  # the folder of a run's
RUN_FILES = ("config.yaml", "metrics.csv", "hparams.yaml")
PARTS = {"config", "tokenizer", "text", "run", "seed"}


LIGHTNINGS = r"2(\.\d+){1,3}((a|b|rc|\.dev|\.post)\d+)?(\+\w+)?"  # versions that can have saved one

# what gptlit reads of a checkpoint; what Lightning reads to go on with a run is in `resuming`
_Content = TypedDict(
    "_Content",
    {"state_dict": dict[str, Any], "global_step": int, "pytorch-lightning_version": str},
)


class _Text(TypedDict):
    name: str
    sha256: str
    own_texts: dict[str, tuple[str, str]]
    spans: dict[str, list[tuple[int, int]]]


class _EpochLoss(TypedDict):
    nats: Tensor
    tokens: Tensor


class _Described(TypedDict):
    """What is under `KEY`."""

    config: dict[str, Any]
    tokenizer: dict[str, Any]
    text: _Text
    run: str
    seed: int
    evaluated: NotRequired[dict[str, float]]
    compiled: NotRequired[bool]
    epoch_loss: NotRequired[_EpochLoss]


def resolve(name: str, runs: Path = RUNS) -> Path:
    """The checkpoint that `--ckpt_path` means: a file, or `best` or `last` of the newest run.

    The newest run is the one that began last, under whatever name, of those that have such a
    checkpoint.

    Raises:
        UsageError: there is no such file.
    """
    if name not in ALIASES:
        path = Path(name).expanduser()
        inputs.refuse_endless(path, opt("ckpt_path"))
        if not path.is_file():
            raise UsageError(
                "no such file; give a checkpoint's path, or best or last for the newest run's",
                "ckpt_path",
                name,
            )
        return path
    found = list(runs.glob(f"*/{CHECKPOINTS}/{name}.ckpt"))
    if not found:
        raise UsageError(
            f"no run under {runs.absolute()} has a {name}.ckpt; train one by `gptlit fit`, or give "
            "a checkpoint's path",
            "ckpt_path",
            name,
        )
    return max(found, key=lambda path: _age(path.parent.parent))


def _age(run: Path) -> tuple[float, int, str]:
    """What orders runs by their beginning: the earliest time that their files tell, in seconds.

    Copies of event files keep it in their names.
    """
    files = [path for path in [*run.iterdir(), *run.glob(f"{CHECKPOINTS}/*")] if path.is_file()]
    times = [int(path.stat().st_mtime) for path in files]
    named = [re.match(r"events\.out\.tfevents\.(\d+)", path.name) for path in files]
    return min(times + [int(match[1]) for match in named if match]), version_number(run), run.name


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, under whatever name: by what is in it."""
    written = any((folder / name).is_file() for name in RUN_FILES)
    # of earlier versions, or where somebody has cleared up
    named = version_number(folder) >= 0
    return (folder / CHECKPOINTS).is_dir() and (written or named)


def version_number(run: Path) -> int:
    """N of a folder named version_N, -1 of any other."""
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


class Damaged(UsageError):
    """A file isn't what was once written under its name."""


def read_named(name: str, runs: Path = RUNS) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `--ckpt_path` means, and all of it.

    A damaged `last` is replaced by the newest whole checkpoint of its folder, which is told.

    Raises:
        UsageError: as `resolve` and `read`.
    """
    path = resolve(name, runs)
    try:
        return path, read(path)
    except Damaged:
        if name != "last" or not (found := newest_whole(path)):
            raise
        whole, content = found
    if is_first_process():
        note(f"warning: {path} is damaged; taking {whole.name} of step {content['global_step']}")
    return whole, content


def read(path: str | Path) -> dict[str, Any]:
    """All of a checkpoint, tensors mapped from the file, each byte of which is compared once.

    Raises:
        Damaged: not what was written; the message names a whole checkpoint beside it.
        UsageError: missing, not a checkpoint of gptlit, or one that would have to run code.
    """
    path = Path(path)
    try:
        return _read(path)
    except Damaged as error:
        found = newest_whole(path)
        hint = (
            f"{found[0]} of step {found[1]['global_step']} is whole"
            if found
            else ("and no whole one lies beside it")
        )
        raise Damaged(f"{error.reason}; {hint}", error.option, error.value) from error


def _read(path: Path) -> dict[str, Any]:
    inputs.refuse_endless(path, "--ckpt_path")
    try:
        damaged = _is_damaged(path)
        if damaged:
            raise Damaged("torn, altered, or not a checkpoint", "ckpt_path", path)
        content = torch_files.load(path)
    except FileNotFoundError as error:
        raise UsageError("no such file", "ckpt_path", path) from error
    except Damaged:
        raise
    except UsageError as error:
        raise UsageError(str(error), "ckpt_path", path) from error
    described = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(described, dict) or not set(described) >= PARTS:
        raise UsageError("not a checkpoint of gptlit", "ckpt_path", path)
    try:
        check(content)
    except UsageError as error:
        raise UsageError(str(error), "ckpt_path", path) from error
    return content


def check(content: dict[str, Any]) -> None:
    """Refuse what no gptlit can have saved, before anything is made of it.

    Raises:
        UsageError: names the part that has another type than gptlit's, the option or the weight.
    """
    plain_data.check(_Content, content, "")
    plain_data.check(_Described, content[KEY], KEY)
    plain_data.check(dict[str, Any], content.get("hyper_parameters", {}), "hyper_parameters")
    version = content["pytorch-lightning_version"]
    if content["global_step"] < 0 or not re.fullmatch(LIGHTNINGS, version):
        raise UsageError(
            f"saved at step {content['global_step']} by Lightning {in_short(version)}, which "
            "no version of gptlit does"
        )
    for name, tensor in content[KEY].get("epoch_loss", {}).items():
        if tensor.layout != torch.strided or tensor.shape or tensor.is_complex() or tensor.is_meta:
            raise UsageError(f"{KEY}.epoch_loss.{in_short(name)} is not a number")
    evaluated = content[KEY].get("evaluated", {})
    if evaluated and not isinstance(evaluated.get("step"), int):
        raise UsageError(f"{KEY}.evaluated has no step")
    check_weights(content)


def config_of(content: dict[str, Any]) -> GPTConfig:
    """The config of a checkpoint's model.

    Raises:
        UsageError: it is none.
    """
    try:
        return plain_data.make(GPTConfig, content[KEY]["config"], "config.")
    except UsageError as error:
        raise UsageError(f"the checkpoint's model can't be built: {error}") from error


def check_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint's model by their own names, compared with its config.

    Raises:
        UsageError: names the first that is missing, of another shape or not of finite numbers.
    """
    weights = {
        name.removeprefix(NET_PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(NET_PREFIX)
    }
    try:
        return checked(weights, config_of(content), NET_PREFIX)
    except NotFinite as error:
        raise UsageError(f"{error}; take an earlier checkpoint") from error


def _is_damaged(path: Path) -> bool:
    """Whether a file isn't what `torch.save` wrote.

    That is a zip archive, which has a CRC-32 of each tensor and of all else in it, and ends by
    its table of contents. Mapped tensors are read without a look at it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            torch_files.check_sizes(archive)  # ahead of the time that unpacking takes
            return archive.testzip() is not None
    except (FileNotFoundError, UsageError):
        raise
    except Exception:  # what a wrong byte in the archive's own tables comes to, and bad disks
        return True


def newest_whole(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The whole checkpoint of the most steps that lies beside another one."""
    steps: dict[Path, int] = {}
    for neighbour in filter(Path.is_file, set(path.parent.glob("*.ckpt")) - {path}):
        with contextlib.suppress(Exception):  # the step alone says little: read below
            content = torch_files.load(neighbour)
            if isinstance(content, dict):
                steps[neighbour] = int(content["global_step"])
    for neighbour in sorted(steps, key=lambda each: (steps[each], each.name), reverse=True):
        with contextlib.suppress(UsageError):
            return neighbour, _read(neighbour)
    return None


def write(content: dict[str, Any], path: Path) -> None:
    """Put a checkpoint under `path`, whole and on the disk, or leave there what there was.

    Raises:
        OSError: no room, or not allowed to.
    """
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's own complaint that fewer bytes were written than it gave
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def describe(
    config: GPTConfig,
    tokenizer: Tokenizer,
    text: dict[str, Any],
    run: str,
    seed: int,
    evaluated: dict[str, float] | None = None,
) -> dict[str, Any]:
    """What goes under `KEY` into a checkpoint, as plain data.

    Args:
        config: The model's.
        tokenizer: The text's.
        text: Where the text came from, and its splits.
        run: The run's options as YAML, "" if it had none.
        seed: Of the run's random numbers.
        evaluated: The figures of the run's last validation by name, and the "step" of it.
    """
    return {
        "config": dataclasses.asdict(config),
        "tokenizer": tokenizer.state(),
        "text": text,
        "run": run,
        "seed": seed,
        "evaluated": evaluated or {},
    }


def evaluation(content: dict[str, Any]) -> str:
    """A checkpoint's step, and the figures of its validation or of the last one before it.

    Args:
        content: As `read` gives it.
    """
    step, figures = content["global_step"], content[KEY].get("evaluated", {})
    known = [
        f"{name} {figures[name]:{form}}"
        for name, form in (("val/loss", ".4f"), ("val/gap", "+.4f"), ("train/loss_eval", ".4f"))
        if name in figures
    ][:2]
    if not known:
        return f"step {step:,}, not validated"
    when = "" if figures["step"] == step else f"at step {figures['step']:,} "
    return f"step {step:,}, {when}{', '.join(known)}"


def introduction(path: Path, content: dict[str, Any]) -> str:
    """Which model a checkpoint holds: its file, how far it was trained, and on which text."""
    name = printable(content[KEY]["text"].get("name", "unknown"), one_line=True)
    trained = evaluation(content) if content["global_step"] else "imported weights"
    return f"model {path}: {trained}, text: {name}"


def build(content: dict[str, Any]) -> tuple[GPT, Tokenizer]:
    """The model, in eval mode, and the tokenizer of what `read` gave.

    Raises:
        UsageError: its parts don't fit each other, or its weights aren't finite.
    """
    config, weights = config_of(content), check_weights(content)
    tokenizer = from_state(content[KEY]["tokenizer"], config.vocab_size)
    model = GPT(config)
    model.load_state_dict(weights)
    return model.eval(), tokenizer


def load(path: str | Path = "best") -> tuple[GPT, Tokenizer]:
    """The model, in eval mode on the CPU, and the tokenizer of a checkpoint.

    Args:
        path: A file, or "best" or "last" for those of the newest run under lightning_logs.

    Raises:
        UsageError: missing, damaged, or not a checkpoint of gptlit.
    """
    try:
        return build(read_named(str(path))[1])
    except UsageError as error:
        raise error.renamed("ckpt_path", "path") from error
