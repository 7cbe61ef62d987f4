"""Prepares a command line for parsing: expands short forms, configs and a checkpoint's options."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gptlit.checkpoints import checkpoint, run_paths
from gptlit.checkpoints.checkpoint import LoadedCheckpoint
from gptlit.cli import run_options, saved_options
from gptlit.cli.configs import find_config, shipped_configs
from gptlit.corpora.catalog import CORPORA
from gptlit.messages import UsageError, did_you_mean, is_first_process, note, opt
from gptlit.parser import from_environment

DEFAULT_CONFIG = "small.yaml"
# a comment before YAML, too long for a path: the parser looks for a file of that name first
NOT_A_PATH = f"#{'-' * 5000}\n"
MOST_CHARACTERS = 1 << 17  # of the options in a checkpoint; a run has about 3,000
# values of a switch, including spellings that the parser refuses
BOOLEANS = {"true", "false", "yes", "no", "on", "off", "1", "0", "none", "null"}
# options of which a run takes one value: what the value is, and how to give more
SINGLE_VALUED = {
    "--data.path": "text (a folder, or a glob in quotes, takes many files)",
    "--data.corpus": "text (a folder, or a glob in quotes, takes many files)",
    "--ckpt_path": "checkpoint",
}


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


def take_list(words: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Return the values between an option and the next one, and the other words."""
    if name not in words:
        return [], [*words]
    first = words.index(name) + 1
    ends = [at for at in range(first, len(words)) if words[at].startswith("--")]
    end = min(ends, default=len(words))
    return [*words[first:end]], [*words[: first - 1], *words[end:]]


def prints_config(words: Sequence[str]) -> bool:
    """Whether the words have --print_config, with or without a value."""
    return any(word.partition("=")[0] == "--print_config" for word in words)


def add_option_names(
    words: Sequence[str],
    option_for: Callable[[str], str],
    switches: Collection[str] = (),
    lists: Collection[str] = (),
    one_of: Mapping[str, str] = {},
) -> list[str]:
    """Return the words with an option added to each value that has none.

    Args:
        words: Options and values, as typed.
        option_for: Returns the option, such as --prompt, that a value belongs to.
        switches: Options whose value, true or false, may be omitted.
        lists: Options that take all values up to the next option.
        one_of: Kinds of values, by option, of which a run takes one: a repeated option would
            replace the first value without notice.

    Raises:
        UsageError: There are several values of a kind in `one_of`.
    """
    named: list[str] = []
    values_by_kind: dict[str, list[str]] = {}
    kinds_without_option: set[str] = set()
    waiting = ""  # option whose value may come next

    def add(option: str, value: str) -> None:
        if kind := one_of.get(option):
            values_by_kind.setdefault(kind, []).append(value)

    for word in words:
        if word.startswith("--") or (not waiting and re.match("-[A-Za-z]", word)):
            option, equals, value = word.partition("=")
            waiting = "" if equals else word
            if equals:
                add(option, value)
            named.append(word)
        elif waiting and (waiting not in switches or word.lower() in BOOLEANS):
            add(waiting, word)
            waiting = waiting if waiting in lists else ""
            named.append(word)
        else:
            waiting = ""
            option = option_for(word)
            add(option, word)
            kinds_without_option.add(one_of.get(option, ""))
            named.append(f"{option}={word}")
    for kind, values in values_by_kind.items():
        if len(values) > 1 and kind in kinds_without_option:
            listed = ", ".join(values[:3]) + ", ..." * (len(values) > 3)
            raise UsageError(f"{listed}: are {len(values)} values where a run takes one {kind}")
    return named


def option_of_run(word: str) -> str:
    """Return the option of a value of fit, validate, test and summary: config, checkpoint or text.

    Raises:
        UsageError: The value belongs to none of the options, or to several.
    """
    stems = {Path(name).stem for name in shipped_configs()}
    is_yaml = word.endswith((".yaml", ".yml"))
    is_checkpoint = word in run_paths.ALIASES or word.endswith(".ckpt")
    fits = {
        "--config": is_yaml or word in stems,
        "--ckpt_path": is_checkpoint,
        "--data.path": Path(word).expanduser().exists() and not is_yaml and not is_checkpoint,
        "--data.corpus": word in CORPORA and word not in stems,
    }
    candidates = [option for option, fits_word in fits.items() if fits_word]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        meanings = " or ".join(f"{option} {word}" for option in candidates)
        raise UsageError(f"{word}: may mean {meanings}; give the option's name")
    raise UsageError(
        f"{word}: is not an option, a config, a checkpoint or a text; options are written "
        f"--name value.{did_you_mean(word, sorted(stems | set(CORPORA)))}"
    )


def option_of_predict(word: str) -> str:
    """Return the option of a value of predict: a prompt or a checkpoint.

    Raises:
        UsageError: The value may be either.
    """
    if word in run_paths.ALIASES:
        raise UsageError(
            f"{word}: may mean --prompt {word} or --ckpt_path {word}; give the option's name"
        )
    return "--ckpt_path" if word.endswith(".ckpt") and Path(word).is_file() else "--prompt"


def full_names(words: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the words with full option names: --model.lr for --lr if no other name ends in lr.

    Args:
        words: Options and values, as typed.
        known: Full names of all options, such as model.lr.

    Raises:
        UsageError: Several options end in the name; the message lists them.
    """
    full: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").removesuffix("+")
        if not flag.startswith("--") or name in known:
            full.append(word)
            continue
        matches = sorted(each for each in known if each.endswith(f".{name}"))
        if len(matches) > 1:
            matches += sorted(each for each in known if each.startswith(f"{name}_"))
            raise UsageError(f"{flag}: may mean {' or '.join(f'--{each}' for each in matches)}")
        if not matches:
            full.append(word)  # the parser refuses it and suggests another
            continue
        if is_first_process():
            note(f"{flag}: taken as --{matches[0]}")
        full.append(f"--{matches[0]}{'+' * flag.endswith('+')}{equals}{value}")
    return full


# ---------------------------------------------------------------------- the whole line


@dataclass(frozen=True)
class CommandLine:
    """The arguments for Lightning's CLI, and the checkpoint that they start from.

    Args:
        words: Arguments; a checkpoint's options are a config before all others.
        start: The checkpoint, if there is one.
        configs: Paths of the configs that the user gave.
        trusts: Whether to use all options of the checkpoint.
        chosen: Names of a new run's options, such as model.lr, that flags, environment variables
            or the user's own configs set; empty with a checkpoint.
    """

    words: list[str]
    start: LoadedCheckpoint | None
    configs: list[Path]
    trusts: bool = False
    chosen: set[str] = field(default_factory=set)

    def texts(self) -> list[str]:
        """Return the texts in which the user can name classes: values of options, and configs.

        The options of an untrusted checkpoint, which are the first word, are not among them.
        """
        words = self.words[1:] if self.start and not self.trusts else self.words
        values = [word.partition("=")[2] if word.startswith("--") else word for word in words]
        return values + [path.read_text(encoding="utf-8") for path in self.configs]


def expand(
    verb: str,
    arguments: Sequence[str],
    known: Collection[str],
    check: Callable[[dict[str, Any], Path, set[str]], dict[str, Any]],
) -> CommandLine:
    """Return the arguments for Lightning's CLI, and the checkpoint that they start from.

    Later arguments win: configs, then environment variables, then flags. The options of a
    checkpoint's run become a config before all others: all of them to resume training, those of
    model and data to evaluate. `fit` with neither config nor checkpoint uses small.yaml.

    Args:
        verb: Verb of the command.
        arguments: Arguments after the verb.
        known: Full names of the verb's options, such as model.lr.
        check: Returns the usable options of a checkpoint. Its arguments are the options, the
            checkpoint's path, and the names of the options that the user gives.

    Raises:
        UsageError: A config or checkpoint doesn't exist or can't be used.
    """
    together, words = take_list(arguments, "--ensemble")
    words = add_option_names(words, option_of_run, run_options.SWITCHES, one_of=SINGLE_VALUED)
    words = [*from_environment(verb), *full_names(words, known)]
    names, words = take(words, "--config", "-c")
    paths, words = take(words, "--ckpt_path")
    if together and verb == "fit":
        raise UsageError("is an option of validate and test only", "ensemble", " ".join(together))
    if together and paths:
        raise UsageError(f"excludes {opt('ckpt_path')}; leave one out", "ensemble")
    if together:
        # the first one's options are those of the evaluation
        paths = together[:1]
        words.append(f"--ensemble={json.dumps(together)}")
    files = [find_config(name) for name in names]
    if not paths and verb != "fit" and not prints_config(words):
        paths = ["best"]
    if not paths:
        if verb == "fit" and not files:
            files = [find_config(DEFAULT_CONFIG)]
        shipped = {path.resolve() for path in shipped_configs().values()}
        given = _given(words, [path for path in files if path.resolve() not in shipped])
        chosen = {name.removesuffix("+") for name in given}
        words = [*(f"--config={path}" for path in files), *words]
        return CommandLine(words, None, files, chosen=chosen)
    with checkpoint.named_by("ensemble" if together else "ckpt_path"):
        start, trusts = LoadedCheckpoint(*checkpoint.read_named(paths[-1])), _trusts(words)
    options = _options_of(start)
    if verb != "fit":
        options = {"model": options["model"], "data": options["data"]}
    if not trusts:
        options = check(options, start.path, _given(words, files))
    if take(words, "--data.corpus")[0] and not take(words, "--data.path")[0]:
        # the checkpoint's data.path would win over the corpus given now
        options["data"]["path"] = None
    configs = [NOT_A_PATH + yaml.safe_dump(options), *files]
    words = [*(f"--config={each}" for each in configs), *words, f"--ckpt_path={start.path}"]
    return CommandLine(words, start, files, trusts)


def _options_of(start: LoadedCheckpoint) -> dict[str, Any]:
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
    """Return dotted names of the options in flags and configs, as NAME+ where a flag appends."""
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    names = {flag.removeprefix("--").replace(".init_args", "") for flag in flags}
    for path in configs:
        for group, options in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for name, value in options.items() if isinstance(options, dict) else ():
                if isinstance(value, dict) and "class_path" not in value:
                    arguments = value.get("init_args")
                    parts = arguments if isinstance(arguments, dict) else value
                    names |= {f"{group}.{name}.{part}" for part in parts}
                else:
                    names.add(f"{group}.{name}")
    return names
