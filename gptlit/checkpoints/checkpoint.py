"""Checkpoints without Lightning: read and check one, and build its model.

A checkpoint is complete: besides Lightning's own content it has, under the key "gptlit", the
model's config, the tokenizer, the provenance of the text and the run's config as plain data.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from gptlit import plain_data
from gptlit.checkpoints import adapters, run_paths, torch_files
from gptlit.checkpoints.weight_shapes import NotFinite, checked, for_writing
from gptlit.corpora import inputs
from gptlit.devices import accelerators, choice
from gptlit.messages import UsageError, errors_about, is_first_process, note, opt
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.plain_data import in_short
from gptlit.terminal import printable
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import difference, from_state

KEY = "gptlit"
NET_PREFIX = "net."

# versions that can have saved a checkpoint
LIGHTNINGS = r"2(\.\d+){1,3}((a|b|rc|\.dev|\.post)\d+)?(\+\w+)?"

# the part of a checkpoint that gptlit reads; `training.resuming` has what Lightning reads
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
    """The content under `KEY`."""

    config: dict[str, Any]
    tokenizer: dict[str, Any]
    text: _Text
    run: str
    seed: int
    evaluated: NotRequired[dict[str, float]]
    compiled: NotRequired[bool]
    teachers: NotRequired[list[str]]
    epoch_loss: NotRequired[_EpochLoss]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that a command resumes, evaluates or writes with."""

    path: Path
    content: dict[str, Any]

    @property
    def described(self) -> dict[str, Any]:
        """gptlit's own entry: config, tokenizer, text, run, seed."""
        return self.content[KEY]

    @property
    def step(self) -> int:
        """Number of optimizer steps before it was saved."""
        return int(self.content["global_step"])


class Damaged(UsageError):
    """The file isn't a whole checkpoint."""


def read_named(name: str, runs: Path = run_paths.RUNS) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that `--ckpt_path` names, and its content.

    A damaged `last` is replaced by the newest whole checkpoint of its folder, with a warning.

    Raises:
        UsageError: As `run_paths.resolve` and `read`.
    """
    path = run_paths.resolve(name, runs)
    try:
        return path, read(path)
    except Damaged:
        if name != "last" or not (found := newest_whole(path)):
            raise
        whole, content = found
    if is_first_process():
        step = content["global_step"]
        note(f"warning: {path} is damaged; {whole.name} of step {step} is used instead")
    return whole, content


@contextlib.contextmanager
def named_by(option: str) -> Iterator[None]:
    """Name the option that gives a checkpoint, instead of `ckpt_path`, in errors about it."""
    try:
        yield
    except UsageError as error:
        raise error.renamed("ckpt_path", option) from error


def read(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's content after checks of its bytes and types; tensors are mapped.

    Raises:
        Damaged: Not a whole file; the message names a whole checkpoint next to it.
        UsageError: Missing, not a checkpoint of gptlit, or one that could run code.
    """
    path = Path(path)
    try:
        return _read(path)
    except Damaged as error:
        hint = "and there is no whole one next to it"
        if found := newest_whole(path):
            hint = f"{found[0]} of step {found[1]['global_step']} is whole"
        raise Damaged(f"{error.reason}; {hint}", error.option, error.value) from error


def _read(path: Path) -> dict[str, Any]:
    inputs.refuse_endless(path, opt("ckpt_path"))
    try:
        if torch_files.is_damaged(path):
            raise Damaged("torn, altered, or not a checkpoint", "ckpt_path", path)
        content = torch_files.load(path)
        described = content.get(KEY) if isinstance(content, dict) else None
        if not isinstance(described, dict) or not described.keys() >= _Described.__required_keys__:
            raise UsageError("not a checkpoint of gptlit")
        check(content)
    except FileNotFoundError as error:
        raise UsageError("no such file", "ckpt_path", path) from error
    except Damaged:
        raise
    except UsageError as error:
        raise UsageError(str(error), "ckpt_path", path) from error
    return content


def check(content: dict[str, Any]) -> None:
    """Refuse content that no version of gptlit saves.

    Raises:
        UsageError: Names the entry, the option or the weight.
    """
    plain_data.check(_Content, content, "")
    plain_data.check(_Described, content[KEY], KEY)
    plain_data.check(dict[str, Any], content.get("hyper_parameters", {}), "hyper_parameters")
    version = content["pytorch-lightning_version"]
    if content["global_step"] < 0 or not re.fullmatch(LIGHTNINGS, version):
        origin = f"at step {content['global_step']} by Lightning {in_short(version)}"
        raise UsageError(f"saved {origin}, which no version of gptlit does")
    for name, tensor in content[KEY].get("epoch_loss", {}).items():
        if tensor.layout != torch.strided or tensor.shape or tensor.is_complex() or tensor.is_meta:
            raise UsageError(f"{KEY}.epoch_loss.{in_short(name)} is not a number")
    evaluated = content[KEY].get("evaluated", {})
    if evaluated and not isinstance(evaluated.get("step"), int):
        raise UsageError(f"{KEY}.evaluated has no step")
    check_weights(content)


def config_of(content: dict[str, Any]) -> GPTConfig:
    """Return the config of a checkpoint's model.

    Raises:
        UsageError: The config isn't valid.
    """
    with errors_about("the checkpoint's model can't be built"):
        return plain_data.make(GPTConfig, content[KEY]["config"], "config.")


def check_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint's model by its own names, checked against its config.

    Raises:
        UsageError: Names the first weight that is missing, of another shape or not finite.
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


def newest_whole(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the whole checkpoint of the most steps in the folder of another one."""
    steps: dict[Path, int] = {}
    for neighbour in filter(Path.is_file, set(path.parent.glob("*.ckpt")) - {path}):
        with contextlib.suppress(Exception):  # checked by `_read` below
            content = torch_files.load(neighbour)
            if isinstance(content, dict):
                steps[neighbour] = int(content["global_step"])
    for neighbour in sorted(steps, key=lambda each: (steps[each], each.name), reverse=True):
        with contextlib.suppress(UsageError):
            return neighbour, _read(neighbour)
    return None


def describe(
    config: GPTConfig,
    tokenizer: Tokenizer,
    text: dict[str, Any],
    run: str,
    seed: int,
    evaluated: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return the content under `KEY` of a checkpoint, as plain data.

    Args:
        config: Config of the model.
        tokenizer: Tokenizer of the text.
        text: Provenance of the text, and its splits.
        run: Options of the run as YAML; "" for none.
        seed: Seed of the run's random numbers.
        evaluated: Metrics of the run's last validation by name, and its "step".
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
    """Describe a checkpoint: its step, and the metrics of the last validation."""
    step, metrics = content["global_step"], content[KEY].get("evaluated", {})
    shown = [
        f"{name} {metrics[name]:{form}}"
        for name, form in (("val/loss", ".4f"), ("val/gap", "+.4f"), ("train/loss_eval", ".4f"))
        if name in metrics
    ][:2]
    if not shown:
        return f"step {step:,}, not validated"
    when = "" if metrics["step"] == step else f"at step {metrics['step']:,} "
    return f"step {step:,}, {when}{', '.join(shown)}"


def introduction(path: Path, content: dict[str, Any]) -> str:
    """Describe a checkpoint in one line: its file, step, metrics and text."""
    name = printable(content[KEY]["text"].get("name", "unknown"), one_line=True)
    trained = evaluation(content) if content["global_step"] else "imported weights"
    return f"model {path}: {trained}, text: {name}"


def build(content: dict[str, Any]) -> tuple[GPT, Tokenizer]:
    """Return the model, in eval mode and without mask, and the tokenizer of a checkpoint's content.

    Raises:
        UsageError: Its parts don't fit together, or its weights aren't finite.
    """
    config, weights = for_writing(config_of(content), check_weights(content))
    tokenizer = from_state(content[KEY]["tokenizer"], config.vocab_size)
    # a run that starts from them draws the same numbers in one process and in several
    with torch.random.fork_rng(devices=[]):
        model = GPT(config)
    model.load_state_dict(weights)
    return model.eval(), tokenizer


def load(
    path: str | Path = "best", device: str = "cpu", adapter: str | Path | None = None
) -> tuple[GPT, Tokenizer]:
    """Load the model, in eval mode, and the tokenizer of a checkpoint.

    Args:
        path: Path of a checkpoint, or "best" or "last" for the newest run's in lightning_logs.
        device: Device of the model: cpu, cuda, cuda:N, mps, or auto for the machine's fastest.
        adapter: Folder of a LoRA adapter that was trained on the model, to add to it.

    Raises:
        UsageError: Missing, damaged, or not a checkpoint of gptlit; a device that isn't there; or
            another model's adapter.
    """
    place = choice.named(device)
    with named_by("path"):
        model, tokenizer = build(read_named(str(path))[1])
    if adapter is not None:
        adapters.apply(model, Path(adapter))
    return model.to(place or accelerators.fastest()), tokenizer


def build_several(
    paths: Sequence[Path], contents: Sequence[dict[str, Any]]
) -> tuple[list[GPT], Tokenizer]:
    """Return the models of several checkpoints, in eval mode, and their tokenizer.

    Args:
        paths: Their files, for messages.
        contents: Their contents.

    Raises:
        UsageError: Fewer than two, tokenizers that differ, or as `build`.
    """
    if len(paths) < 2:
        given = " ".join(map(str, paths))
        raise UsageError("an ensemble needs two checkpoints or more", "ensemble", given)
    with named_by("ensemble"):
        nets, tokenizers = zip(*map(build, contents), strict=True)
    for path, tokenizer in zip(paths, tokenizers, strict=True):
        if found := difference(tokenizer, tokenizers[0], str(paths[0])):
            reason = f"has another tokenizer than {paths[0]}: {found}"
            raise UsageError(reason, "ensemble", path)
    return list(nets), tokenizers[0]
