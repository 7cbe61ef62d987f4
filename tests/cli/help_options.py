"""Writes gptlit/cli/help_options.json from the parsers of the verbs: `make help-pages`."""

import inspect
import json
import re
import types
import typing
from argparse import Action, ArgumentParser
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import yaml
from jsonargparse import ActionYesNo

from gptlit.cli import convert, data, fit, help_pages
from gptlit.cli.configs import shipped_configs
from gptlit.exports import command as export_command
from gptlit.look import command as look
from gptlit.model.config import GPTConfig
from gptlit.predict import options as predict_options
from gptlit.reports import compare, plot, runs
from gptlit.serve import command as serve

FILE = Path(help_pages.__file__).with_name(help_pages.OPTIONS)
WITH_LIGHTNING = ("fit", "validate", "test")
# groups of the verbs whose options have none in their names
GROUPS = {
    "predict": {
        "prompt": "ckpt_path adapter prompt prompt_file lines unknown interactive chat",
        "choosing tokens": "temperature top_k top_p min_p typical_p repetition_penalty "
        "frequency_penalty presence_penalty greedy seed",
        "length": "max_new_tokens min_new_tokens stop ban force",
        "beam search": "num_beams length_penalty early_stopping",
        "output": "num_samples echo format output_file weights threads sweep explain",
    },
    "data": {
        "text": "text format jsonl_field column encoding data_dir advise minutes",
        "tokenizer": "tokenizer tokenize eos",
        "splits": "val_fraction test_fraction val_spans split_by",
    },
    "serve": {
        "server": "checkpoint adapter host port drain weights device threads",
        "limits": "max_tokens max_prompt max_requests api_key allow_origin allow_host",
    },
    "runs": {"options": "folders sort reverse config format"},
    "plot": {"options": "runs output x smooth log lr columns theme"},
    "compare": {"options": "runs output x prompt max_new_tokens temperature seed theme"},
    "look": {"options": "checkpoint prompt prompt_file output unknown theme data_dir"},
    "merge": {"options": "checkpoint output adapter"},
    "import": {"options": "source weights meta output data_dir"},
    "export": {"options": "checkpoint folder format dtype push public"},
}
ORDER = ("run", "data", "model", "learning", "samples", "Trainer")


class _Made(Exception):
    """Ends a command where its parser is complete."""


def parser_of(verb: str) -> ArgumentParser:
    """Return the parser of a verb that has one."""
    if verb not in WITH_LIGHTNING:
        own: dict[str, Callable[[], ArgumentParser]] = {
            "predict": predict_options.parser,
            "data": data.parser,
            "serve": serve.parser,
            "runs": runs.parser,
            "plot": plot.parser,
            "compare": compare.parser,
            "look": look.parser,
            "import": convert.import_parser,
            "merge": convert.merge_parser,
            "export": export_command.parser,
        }
        return own[verb]()

    def stop(cli: fit.GptlitCLI, *others: object) -> None:
        raise _Made(cli._parser(verb))

    with mock.patch.object(fit.GptlitCLI, "parse_arguments", stop):
        try:
            fit.main([verb])
        except _Made as made:
            return made.args[0]
    raise AssertionError(verb)


def actions(parser: ArgumentParser) -> list[Action]:
    """Return a parser's options, except help, whole groups and targets of links."""
    return [
        action
        for action in parser._actions
        if not action.dest.endswith("help")
        and type(action).__name__ not in ("_ActionConfigLoad", "ActionLink")
    ]


def _group(verb: str, name: str) -> str:
    if verb in GROUPS:
        groups = GROUPS[verb]
        return next(
            (group for group, names in groups.items() if name in names.split()),
            name.partition(".")[0],
        )
    group, dot, own = name.partition(".")
    if group == "model":
        return "model" if own in GPTConfig.__dataclass_fields__ else "learning"
    if group == "trainer":
        return "Trainer"
    return group if dot and group in ORDER else "run"


def _is_class(kind: str) -> bool:
    return "CLASS" in kind


def _type(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return ""
    if origin in (typing.Union, types.UnionType):
        kinds = [_type(part) for part in parts if part is not types.NoneType]
        kinds = sorted((kind for kind in kinds if kind not in ("", "PATH")), key=_is_class)
        shown = "|".join(dict.fromkeys(kinds))
        return shown if len(shown) <= 30 else "VALUE"
    if origin is Literal:
        return "|".join(map(str, parts))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"[{_type(parts[0])},...]"
    plain = {bool: "true|false", int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
    plain |= {timedelta: ""}  # is given as a string
    return plain.get(hint, "CLASS" if inspect.isclass(hint) else "")


def _help(text: str) -> str:
    """Return a help text as plain text, without its reStructuredText and Lightning's default."""
    text = re.sub(r"Default: (``.*?``|\d+)\.", "", " ".join((text or "").split()))
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return " ".join(text.replace("``", "").replace("%%", "%").split())


def _described(verb: str, action: Action) -> dict[str, Any]:
    hint = getattr(action, "_typehint", None) or action.type
    name, type_ = action.dest, _type(hint)
    found: dict[str, Any] = {"name": name}
    if not action.option_strings:
        found["flag"], type_ = name, ""
    elif name == "config" and verb in WITH_LIGHTNING:
        found["flag"], type_ = "-c, --config", "NAME"
    elif name == "print_config":
        found["flag"] = "--print_config[=FLAGS]"
    elif isinstance(action, ActionYesNo):
        found["flag"], type_ = f"--[no_]{name}", ""
    elif action.nargs == "?":
        type_ = f"[{type_}]"
    elif action.nargs in ("+", "*") and action.option_strings:
        type_ = f"{type_} ..."
    default = None if action.default == "==SUPPRESS==" else action.default
    default = list(default) if isinstance(default, tuple) else default
    return found | {
        "group": _group(verb, name),
        "type": type_,
        "default": default,
        "help": _help(action.help or ""),
    }


def described(verb: str) -> list[dict[str, Any]]:
    """Return the entries of a verb's options, in order of their groups."""
    found = [_described(verb, action) for action in actions(parser_of(verb))]
    order = list(GROUPS.get(verb, ORDER))
    if verb == "fit":
        small = yaml.safe_load(shipped_configs()["small.yaml"].read_text(encoding="utf-8"))
        for option in found:
            group, _, name = option["name"].partition(".")
            value = small.get(group, {}).get(name)
            if value is not None and value != option["default"]:
                option["small.yaml"] = value
    groups = [*order, *dict.fromkeys(option["group"] for option in found)]
    return sorted(found, key=lambda option: groups.index(option["group"]))


def content() -> str:
    """Return help_options.json: a line for each option, a name alone where it is that of fit."""
    verbs = {verb: described(verb) for verb in (*WITH_LIGHTNING, *GROUPS)}
    shared = verbs["fit"]
    lines = []
    for verb, options in verbs.items():
        items = [
            option["name"] if verb != "fit" and option in shared else option for option in options
        ]
        entries = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        lines.append(f"{json.dumps(verb)}: [\n{entries}\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(content(), encoding="utf-8")
