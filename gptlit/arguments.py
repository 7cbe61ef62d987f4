"""The command line before parsing: config names become paths, checkpoints bring their options."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import yaml

from gptlit import checkpoint
from gptlit.messages import UsageError, did_you_mean

DEFAULT_CONFIG = "small.yaml"


def _values(arguments: Sequence[str], *names: str) -> list[tuple[int, int, str]]:
    """(first index, words, value) of each `--name value` or `--name=value`."""
    found = []
    for index, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name not in names:
            continue
        if equals:
            found.append((index, 1, value))
        elif index + 1 < len(arguments):
            found.append((index, 2, arguments[index + 1]))
    return found


def shipped_configs() -> dict[str, Path]:
    """The configs that are installed with the package, by file name."""
    folder = Path(str(importlib.resources.files("gptlit.configs")))
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """The config at a path, or else the shipped one of that name.

    Raises:
        UsageError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise UsageError(
        f"--config {name}: no such file, and not one of the shipped {', '.join(shipped)}."
        + did_you_mean(name, shipped)
    )


def expand(verb: str, arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """Arguments that Lightning's CLI understands, and the checkpoint they start from.

    Config names become paths. A checkpoint brings its own run's options as a config that
    comes first, so that whatever else is given wins: all of them to go on training, those of
    model and data to evaluate. `fit` with neither config nor checkpoint gets small.yaml.

    Raises:
        UsageError: no such config or checkpoint.
    """
    words = list(arguments)
    for index, length, name in _values(words, "--config", "-c"):
        words[index : index + length] = ["--config=" + str(find_config(name))] + [""] * (length - 1)
    words = [word for word in words if word]
    given = _values(words, "--ckpt_path")
    path = None
    if given:
        path = checkpoint.resolve(given[-1][2])
    elif verb != "fit":
        path = checkpoint.resolve("best")
    if path is None:
        base = [] if _values(words, "--config") else [f"--config={find_config(DEFAULT_CONFIG)}"]
        return base + words, None
    for index, length, _ in reversed(given):
        del words[index : index + length]
    options = yaml.safe_load(checkpoint.read(path)[checkpoint.KEY]["run"])
    if verb != "fit":
        options = {"model": options["model"], "data": options["data"]}
    if _values(words, "--data.corpus") and not _values(words, "--data.path"):
        # the corpus named now is meant, not the file of then, which would win
        options["data"]["path"] = None
    return [f"--config={yaml.safe_dump(options)}", *words, f"--ckpt_path={path}"], path
