"""Prepares a command line for parsing: finds configs, and reads the options of a checkpoint."""

import importlib.resources
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlit.checkpoints import checkpoint
from gptlit.checkpoints.start import Start
from gptlit.cli import saved_options
from gptlit.corpora import inputs
from gptlit.corpora.text_encodings import not_utf8
from gptlit.messages import UsageError, did_you_mean, errors_about
from gptlit.parser import GROUPS, from_environment
from gptlit.yaml_keys import refuse_duplicates

STUDIES = "studies/"  # the folder of configs that are study files
DEFAULT_CONFIG = "small.yaml"
# a comment before YAML, too long for a path: the parser looks for a file of that name first
NO_PATH = f"#{'-' * 5000}\n"
MOST_CHARACTERS = 1 << 17  # of the options in a checkpoint; a run has about 3,000
PRINT_CONFIG = "--print_config"


@dataclass(frozen=True)
class CommandLine:
    """The arguments for Lightning's CLI, and the checkpoint that they start from.

    Args:
        words: Arguments; a checkpoint's options are a config before all others.
        start: The checkpoint, if there is one.
        configs: Paths of the configs that the user gave.
        trusts: Whether to use all options of the checkpoint.
    """

    words: list[str]
    start: Start | None
    configs: list[Path]
    trusts: bool


def take(words: Sequence[str], *names: str) -> tuple[list[str], list[str]]:
    """Return the values of the named options, and the other words."""
    values, others = [], []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name not in names:
            others.append(word)
        elif equals:
            values.append(value)
        elif (following := next(remaining, None)) is not None:
            values.append(following)
        else:
            others.append(word)  # the parser reports the missing value
    return values, others


def shipped_configs() -> dict[str, Path]:
    """Return the configs installed with the package, by their path within its folder."""
    folder = Path(str(importlib.resources.files("gptlit.configs")))
    found = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    configs = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: path for name, path in configs.items() if not name.startswith(STUDIES)}


def shipped_studies() -> dict[str, Path]:
    """Return the study files installed with the package, by name."""
    folder = Path(str(importlib.resources.files("gptlit.configs"))) / STUDIES
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_study(name: str) -> Path:
    """Return the study file at a path, or else the shipped one of that name.

    Raises:
        UsageError: There is no such file.
    """
    inputs.refuse_endless(path := Path(name).expanduser(), "gptlit study")
    if path.is_file():
        return path
    shipped = shipped_studies()
    if found := shipped.get(name) or shipped.get(f"{name}.yaml"):
        return found
    raise UsageError(
        f"{name}: no such file, and not one of the shipped "
        f"{', '.join(Path(each).stem for each in shipped)}.{did_you_mean(name, shipped)}"
    )


def find_config(name: str) -> Path:
    """Return the config at a path, or else the shipped one of that name, with or without .yaml.

    Raises:
        UsageError: There is no such file, or it is not a mapping of options.
    """
    name = inputs.path_or_copy(name, "--config", None, inputs.MAX_TEXT_BYTES)
    if Path(name).is_file():
        _check_config(name)
        return Path(name)
    shipped = shipped_configs()
    by_stem = {path.stem: path for path in shipped.values()}
    if found := shipped.get(name) or by_stem.get(name):
        return found
    short = [each for each in shipped if "/" not in each]
    raise UsageError(
        f"--config {name}: no such file, and not one of the shipped {', '.join(short)} and "
        "sources/*.yaml, which docs/models.md lists." + did_you_mean(name, shipped)
    )


def given_by_user(words: Sequence[str]) -> set[str]:
    """Return the full names of options given by flag, environment or the user's own configs.

    Args:
        words: Arguments as `expand` returns them for a run without a checkpoint.
    """
    shipped = {path.resolve() for path in shipped_configs().values()}
    given: set[str] = set()
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--config" and Path(value).resolve() not in shipped:
            given |= set(_names_in(yaml.safe_load(Path(value).read_text(encoding="utf-8"))))
        elif flag.startswith("--"):
            given.add(flag.removeprefix("--").removesuffix("+"))
    return given


def _names_in(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in options.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _names_in(value, f"{prefix}{name}.")


def _check_config(name: str) -> None:
    """Refuse errors that the parser would report without naming the file, or not at all."""
    try:
        text = Path(name).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else not_utf8(error)
        raise UsageError(f"--config {name}: {reason}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--config {name}: not YAML: {' '.join(str(error).split())}") from error
    with errors_about(f"--config {name}"):
        refuse_duplicates(text)
    if not isinstance(content, dict):
        raise UsageError(
            f"--config {name}: holds no options by name, such as model: {{n_layer: 4}}"
        )
    for group in GROUPS & set(content):
        if not isinstance(content[group], dict):
            raise UsageError(
                f"--config {name}: {group}: {content[group]}: is a group of options; write "
                f"{group}: {{NAME: VALUE}}, or leave it out"
            )


def _options_of(start: Start) -> dict[str, Any]:
    """Return the options of the run that saved a checkpoint."""
    try:
        if len(start.described["run"]) > MOST_CHARACTERS:
            raise TypeError("no options of a run")
        options = saved_options.read(start.described["run"])
        if isinstance(options["model"], dict) and isinstance(options["data"], dict):
            return options
    except (yaml.YAMLError, TypeError, KeyError, RecursionError):
        pass
    raise UsageError(
        f"--ckpt_path {start.path}: holds no options of its run; write with it by gptlit predict, "
        f"or begin a new run from its weights by --model.init_from {start.path}"
    )


def _trusts(words: Sequence[str]) -> bool:
    """Whether the arguments have `--trust_checkpoint`, alone or with true."""
    trusts = False
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        name, equals, value = word.partition("=")
        if name == "--trust_checkpoint":
            value = value if equals else following
            trusts = value.lower() == "true" or (not equals and value.startswith("--"))
    return trusts


def _given(words: Sequence[str], configs: Sequence[Path]) -> set[str]:
    """Return dotted names of the options that the user sets, without those added to by `+`."""
    found = set()
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and not name.endswith("+"):
            found.add(name.replace(".init_args", ""))
    for path in configs:
        for group, options in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for name, value in options.items() if isinstance(options, dict) else ():
                if isinstance(value, dict) and "class_path" not in value:
                    arguments = value.get("init_args")
                    names = arguments if isinstance(arguments, dict) else value
                    found |= {f"{group}.{name}.{own}" for own in names}
                else:
                    found.add(f"{group}.{name}")
    return found


def expand(
    verb: str,
    arguments: Sequence[str],
    check: Callable[[dict[str, Any], Path, set[str]], dict[str, Any]],
) -> CommandLine:
    """Return the arguments for Lightning's CLI, and the checkpoint that they start from.

    Later arguments win: configs, then environment variables, then flags. The options of a
    checkpoint's run become a config before all others: all of them to resume training, those of
    model and data to evaluate. `fit` with neither config nor checkpoint uses small.yaml.

    Args:
        verb: Verb of the command.
        arguments: Arguments after the verb.
        check: Returns the usable options of a checkpoint. Its arguments are the options, the
            checkpoint's path, and the names of the options that the user gives.

    Raises:
        UsageError: A config or checkpoint doesn't exist or can't be used.
    """
    names, words = take([*from_environment(verb), *arguments], "--config", "-c")
    paths, words = take(words, "--ckpt_path")
    files = [find_config(name) for name in names]
    if not paths and verb != "fit" and PRINT_CONFIG not in words:
        paths = ["best"]
    if not paths:
        if verb == "fit" and not files:
            files = [find_config(DEFAULT_CONFIG)]
        return CommandLine([*(f"--config={path}" for path in files), *words], None, files, False)
    start, trusts = Start(*checkpoint.read_named(paths[-1])), _trusts(words)
    options = _options_of(start)
    if verb != "fit":
        options = {"model": options["model"], "data": options["data"]}
    if not trusts:
        options = check(options, start.path, _given(words, files))
    if take(words, "--data.corpus")[0] and not take(words, "--data.path")[0]:
        # the checkpoint's data.path would win over the corpus given now
        options["data"]["path"] = None
    configs = [NO_PATH + yaml.safe_dump(options), *files]
    own = [*(f"--config={each}" for each in configs), *words, f"--ckpt_path={start.path}"]
    return CommandLine(own, start, files, trusts)
