"""Parses command lines; reports errors in one line, with the most similar option."""

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from types import NoneType
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser, Namespace

from gptlit import parse_errors
from gptlit.messages import UsageError, closest, did_you_mean

# names of options in other programs
ELSEWHERE = {
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("steps", "iters", "max_iters", "num_steps"), "trainer.max_steps"),
    **dict.fromkeys(("text", "file", "input", "dataset", "train_file"), "data.path"),
    **dict.fromkeys(("context", "context_length", "seq_len", "max_seq_len"), "model.block_size"),
    **dict.fromkeys(("learning_rate", "learning-rate"), "model.lr"),
    **dict.fromkeys(("length", "max_tokens", "max_length"), "max_new_tokens"),
    **dict.fromkeys(("model", "checkpoint", "ckpt"), "ckpt_path"),
}
# groups of the options of fit
GROUPS = {"model", "data", "trainer", "samples", "figures", "guard", "early_stopping"}
OF_FIT = {"config", *GROUPS} - {"trainer"}  # options and groups that only fit has


def from_environment(verb: str) -> list[str]:
    """Return a verb's variables as arguments: GPTLIT_FIT__MODEL__N_EMBD=64 as --model.n_embd=64."""
    prefix = f"GPTLIT_{verb.upper()}__"
    return [
        f"--{name.removeprefix(prefix).lower().replace('__', '.')}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith(prefix)
    ]


def with_environment(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments, preceded by those from the environment that they don't override."""
    flags = {word.partition("=")[0] for word in arguments}
    added = [word for word in from_environment(verb) if word.partition("=")[0] not in flags]
    return [*added, *arguments]


class OneLineErrors(ArgumentParser):
    """A parser of jsonargparse that raises UsageError instead of printing its usage and exiting."""

    def parse_args(  # type: ignore[override]  # the other arguments are passed on
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Namespace:
        """Parse arguments; `none` means `null`, except for options that take text."""
        words = list(sys.argv[1:] if args is None else args)
        for index, word in enumerate(words):
            name, equals, value = word.rpartition("=")
            name = name if equals else words[index - 1] if index else ""
            if value.lower() == "none" and name in self._may_be_none():
                words[index] = f"{name}=null" if equals else "null"
        return super().parse_args(words, *others, **options)

    def parse_one(self, name: str, value: str, shown: str) -> Namespace:
        """Parse the value of one option, which errors show by another name than its flag."""
        try:
            return self.parse_args([f"--{name}={value}"])
        except UsageError as error:
            if not str(error).startswith(f"--{name}"):
                raise
            raise UsageError(shown + str(error).removeprefix(f"--{name}")) from error

    def _may_be_none(self) -> set[str]:
        """Return the flags of options that may be None but not text."""
        types = {each: get_args(getattr(each, "_typehint", None)) for each in self._actions}
        may_be = [each for each in types if NoneType in types[each] and str not in types[each]]
        return {flag for action in may_be for flag in action.option_strings}

    def instantiate(self, *arguments: Any, **options: Any) -> Namespace:
        """Instantiate the classes of the options; report one that fails in one line."""
        try:
            return super().instantiate(*arguments, **options)
        except UsageError:
            raise
        except ValueError as error:
            report = str(error)
            if by_class := re.search(r"^ +- (--.*)$", report, re.MULTILINE):
                raise UsageError(by_class[1]) from error
            if parse_errors.MARK not in report:
                raise
            parsed: Namespace = options.get("namespace") or arguments[0]
            key = _key_of_class(parsed, parse_errors.class_paths(report))
            raise UsageError(parse_errors.one_line(key, report)) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(self._reworded(message)) from ex

    def option_names(self) -> set[str]:
        """Return the full names of all options, such as model.lr."""
        # a linked option has the flag of the option that it is linked to
        return {each.dest for each in self._actions if f"--{each.dest}" in each.option_strings}

    def options_of_nargs(self, nargs: str) -> set[str]:
        """Return the flags of options with this `nargs`, such as --echo for "?"."""
        actions = [action for action in self._actions if action.nargs == nargs]
        return {name for action in actions for name in action.option_strings}

    def _known_keys(self) -> set[str]:
        keys = {action.dest for action in self._actions if action.option_strings}
        for action in self._actions:
            if isinstance(action.choices, dict):  # the parsers of the verbs
                for parser in action.choices.values():
                    keys |= parser._known_keys()
        return keys

    def _advice_on_unknown(self, key: str, dashes: str = "") -> str:
        keys, group = sorted(self._known_keys()), key.partition(".")[0]
        if group in OF_FIT and not any(each.partition(".")[0] == group for each in keys):
            return " It is an option of gptlit fit; a checkpoint contains the options of its run."
        nearest = ELSEWHERE.get(key, "")
        if nearest not in keys:
            # the group may be missing, or wrong
            by_name = {each.rpartition(".")[2]: each for each in keys} | {
                each: each for each in keys
            }
            similar = closest(key, by_name) or closest(key.rpartition(".")[2], by_name)
            nearest = by_name.get(similar, "")
        return f" Did you mean {dashes}{nearest}?" if nearest else ""

    def _reworded(self, message: str) -> str:
        """Turn a message of jsonargparse into one line without Python's types."""
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            flag = match[1].split("=")[0]
            if not flag.startswith("-"):
                return f"{flag}: not an option; options are written --name value"
            all_options = f" {self.prog.replace(' [options]', '')} --help all lists the options."
            advice = self._advice_on_unknown(flag.lstrip("-"), dashes="--")
            return f"{flag}: unknown option.{advice or all_options}"
        if match := re.match(r"argument (--\w+)/\S+: invalid _boolean_type value: (.*)", message):
            return f"{match[1]} {match[2]}: expected true or false, or nothing at all"
        if match := re.search(r"does not accept option '([^']+)'", message):
            advice = self._advice_on_unknown(match[1])
            return f"{match[1]}: unknown key in a config or an environment variable.{advice}"
        if match := re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL):
            if "Unable to load config" in match[2]:
                return f"--{match[1]}: is a group of options; give them as --{match[1]}.NAME VALUE"
            reason = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", match[2]).replace("typing.", "")
            reason = _one_line(reason).replace("Expected a ", "expected ")
            if parse_errors.MARK in reason:
                return parse_errors.one_line(match[1], match[2])
            reason = re.sub(
                r"Literal\[([^\]]*)\](?=\. Got)",
                lambda literal: "one of " + literal[1].replace("'", ""),
                reason,
            )
            if value := re.fullmatch(r"(expected .*)\. Got value: (.*)", reason):
                if re.fullmatch(r"[-+.]*(nan|inf|infinity)", value[2], re.IGNORECASE):
                    return f"--{match[1]} {value[2]}: must be a finite number"
                choices = value[1].removeprefix("expected one of ").split(", ")
                nearest = did_you_mean(value[2], choices) if len(choices) > 1 else ""
                return f"--{match[1]} {value[2]}: {value[1]}{nearest and '.'}{nearest}"
            return f"--{match[1]}: {reason}"
        return _one_line(message.replace("Problems parsing config: ", "--config: not YAML: "))


def _key_of_class(parsed: Namespace, class_paths: Sequence[str]) -> str:
    """Return the option that has one of the classes, without the verb."""
    verb = parsed.get("subcommand")
    for key, value in parsed.items():
        if any(path in str(value) for path in class_paths):
            return key.removesuffix(".class_path").removeprefix(f"{verb}.")
    return "trainer"


def _one_line(message: str) -> str:
    return textwrap.shorten(message, 1000)


def text_of(name: str, text: str) -> str:
    """Return a text of the command line if it is valid UTF-8.

    Raises:
        UsageError: The text has bytes that aren't UTF-8, which Python passes as surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} {text!r}: not UTF-8 text") from error
    return text
