"""Checkpoints without Lightning: where they are, what is in them, and a model from one.

A checkpoint is whole: besides what Lightning saves it holds, under the key "gptlit", the
model's config, the tokenizer, the text's provenance and the run's config, all as plain data.
It loads with `weights_only=True`, so that someone else's file can't run code.
"""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import torch

from gptlit import tokenizer as tokenizers
from gptlit.messages import UsageError
from gptlit.model import GPT, GPTConfig
from gptlit.tokenizer import Tokenizer

KEY = "gptlit"
NET_PREFIX = "net."
RUNS = Path("lightning_logs")
ALIASES = ("best", "last")
PARTS = {"config", "tokenizer", "text", "run", "seed"}


def resolve(name: str, runs: Path = RUNS) -> Path:
    """The checkpoint that `--ckpt_path` means: a file, or `best` or `last` of the newest run.

    The newest run is the version_N with the greatest N that has such a checkpoint.

    Raises:
        UsageError: there is no such file.
    """
    if name not in ALIASES:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UsageError(
                f"--ckpt_path {name}: no such file; give a checkpoint's path, "
                "or best or last for the newest run's"
            )
        return path
    found = list(runs.glob(f"version_*/checkpoints/{name}.ckpt"))
    if not found:
        raise UsageError(
            f"--ckpt_path {name}: no run under {runs.absolute()} has a {name}.ckpt; "
            "train one by `gptlit fit`, or give a checkpoint's path"
        )
    return max(found, key=lambda path: version_number(path.parent.parent))


def version_number(run: Path) -> int:
    """N of a folder named version_N, -1 of any other."""
    number = run.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def read(path: str | Path) -> dict[str, Any]:
    """All of a checkpoint, tensors mapped from the file.

    Raises:
        UsageError: missing, torn, or not a checkpoint of gptlit.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UsageError(f"--ckpt_path {path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"--ckpt_path {path}: refused: torn, or not of plain data and tensors only"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--ckpt_path {path}: torn or not a checkpoint ({type(error).__name__}); "
            "use another one of its folder"
        ) from error
    described = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(described, dict) or not set(described) >= PARTS:
        raise UsageError(f"--ckpt_path {path}: not a checkpoint of gptlit")
    known = {field.name for field in dataclasses.fields(GPTConfig)}
    if unknown := set(described["config"]) - known:
        raise UsageError(
            f"--ckpt_path {path}: made by another version of gptlit; this one doesn't know the "
            f"model options {', '.join(sorted(unknown))}"
        )
    return content


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


def build(content: dict[str, Any]) -> tuple[GPT, Tokenizer]:
    """The model, in eval mode, and the tokenizer of what `read` gave."""
    described = content[KEY]
    tokenizer = tokenizers.from_state(described["tokenizer"])
    model = GPT(GPTConfig(**described["config"]))
    weights = {
        name.removeprefix(NET_PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(NET_PREFIX)
    }
    model.load_state_dict(weights)
    return model.eval(), tokenizer


def load(path: str | Path = "best") -> tuple[GPT, Tokenizer]:
    """The model, in eval mode on the CPU, and the tokenizer of a checkpoint.

    Args:
        path: A file, or "best" or "last" for those of the newest run under lightning_logs.

    Raises:
        UsageError: missing, torn, or not a checkpoint of gptlit.
    """
    return build(read(resolve(str(path))))
