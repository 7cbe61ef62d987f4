"""Expands short forms of the command line: values without an option, options without a group."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from gptlit.checkpoints.checkpoint import ALIASES
from gptlit.cli.arguments import shipped_configs
from gptlit.corpora.catalog import CORPORA
from gptlit.messages import UsageError, did_you_mean, is_first_process, note

# values of a switch, including spellings that the parser refuses
BOOLEANS = {"true", "false", "yes", "no", "on", "off", "1", "0", "none", "null"}
# options of which a run takes one value: what the value is, and how to give more
ONE_OF_A_RUN = {
    "--data.path": "text (a folder, or a glob in quotes, takes many files)",
    "--data.corpus": "text (a folder, or a glob in quotes, takes many files)",
    "--ckpt_path": "checkpoint",
}


def name_words(
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
    found: dict[str, list[str]] = {}  # values by kind
    from_words: set[str] = set()
    waiting = ""  # option whose value may come next

    def take(option: str, value: str) -> None:
        if kind := one_of.get(option):
            found.setdefault(kind, []).append(value)

    for word in words:
        if word.startswith("--") or (not waiting and re.match("-[A-Za-z]", word)):
            option, equals, value = word.partition("=")
            waiting = "" if equals else word
            if equals:
                take(option, value)
            named.append(word)
        elif waiting and (waiting not in switches or word.lower() in BOOLEANS):
            take(waiting, word)
            waiting = waiting if waiting in lists else ""
            named.append(word)
        else:
            waiting = ""
            option = option_for(word)
            take(option, word)
            from_words |= {one_of.get(option, "")}
            named.append(f"{option}={word}")
    for kind, values in found.items():
        if len(values) > 1 and kind in from_words:
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
    is_checkpoint = word in ALIASES or word.endswith(".ckpt")
    meant = {
        "--config": is_yaml or word in stems,
        "--ckpt_path": is_checkpoint,
        "--data.path": Path(word).expanduser().exists() and not is_yaml and not is_checkpoint,
        "--data.corpus": word in CORPORA and word not in stems,
    }
    found = [option for option, is_meant in meant.items() if is_meant]
    if len(found) == 1:
        return found[0]
    if found:
        candidates = " or ".join(f"{option} {word}" for option in found)
        raise UsageError(f"{word}: may mean {candidates}; give the option's name")
    raise UsageError(
        f"{word}: is not an option, a config, a checkpoint or a text; options are written "
        f"--name value.{did_you_mean(word, sorted(stems | set(CORPORA)))}"
    )


def option_of_predict(word: str) -> str:
    """Return the option of a value of predict: a prompt or a checkpoint.

    Raises:
        UsageError: The value may be either.
    """
    if word in ALIASES:
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
        found = sorted(each for each in known if each.endswith(f".{name}"))
        if len(found) > 1:
            found += sorted(each for each in known if each.startswith(f"{name}_"))
            raise UsageError(f"{flag}: may mean {' or '.join(f'--{each}' for each in found)}")
        if not found:
            full.append(word)  # the parser refuses it and suggests another
            continue
        if is_first_process():
            note(f"{flag}: taken as --{found[0]}")
        full.append(f"--{found[0]}{'+' * flag.endswith('+')}{equals}{value}")
    return full
