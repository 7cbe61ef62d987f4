"""The modes of `gptlit predict`, and the options that do not apply to each."""

from pathlib import Path
from typing import Literal, get_args

from jsonargparse import Namespace

from gptlit.checkpoints import checkpoint
from gptlit.messages import UsageError, opt
from gptlit.parser import OneLineErrors

Mode = Literal["write", "compare", "explain", "interactive"]
Format = Literal["text", "jsonl", "markdown"]
FORMATS: dict[Mode, tuple[str, ...]] = {
    "write": ("text", "jsonl"),
    "compare": get_args(Format),
    "explain": ("text", "jsonl"),
    "interactive": ("text",),
}
TYPED = "prompts are typed, or read line by line from standard input"
NOT_INTERACTIVE = {  # and why
    "prompt": TYPED,
    "prompt_file": TYPED,
    "lines": TYPED,
    "output_file": "texts go to standard output",
    "num_beams": "texts are shown as they are drawn",
}


def choose(options: Namespace, parser: OneLineErrors) -> Mode:
    """Choose the mode from parsed options.

    Raises:
        UsageError: two modes at once, or an option that does not apply to the mode.
    """
    if "" in options.ckpt_path:
        raise UsageError("names no file; give a checkpoint, best or last", "ckpt_path", "''")
    flags: list[Mode | Literal["sweep"]] = ["interactive", "explain", "sweep"]
    flags = [name for name in flags if options[name]]
    if len(flags) > 1:
        raise UsageError(f"excludes {opt(flags[1])}; leave one out", flags[0])
    flag = flags[0] if flags else ""
    if flag in ("", "sweep"):
        mode: Mode = "compare" if flag or _is_several(options) else "write"
    elif _is_several(options):
        reason = f"{opt(flag)} takes one checkpoint; name its file"
        raise UsageError(reason, "ckpt_path", options.ckpt_path[-1])
    else:
        mode = flag  # type: ignore[assignment]  # not "" and not "sweep" here
    if mode == "interactive":
        for name, instead in NOT_INTERACTIVE.items():
            if options[name] != parser.get_default(name):
                raise UsageError(f"does not apply to {opt(flag)}, where {instead}", name)
    if options.format not in FORMATS[mode]:
        what = (
            f"not for {opt(flag)}" if flag else f"only for {opt('sweep')} and several checkpoints"
        )
        choices = ", ".join(FORMATS[mode])
        raise UsageError(f"{what}; choose from {choices}", "format", options.format)
    return mode


def refuse_on_devices(options: Namespace, mode: Mode) -> None:
    """Refuse what works on one device alone; called where --trainer options are given.

    Raises:
        UsageError: names the option.
    """
    needs = "needs one device, without --trainer options"
    if options.weights != "float32":
        raise UsageError(needs, "weights", options.weights)
    if options.sweep:
        raise UsageError(needs, "sweep")
    if mode == "compare":
        reason = f"is one of several checkpoints, whose comparison {needs}"
        raise UsageError(reason, "ckpt_path", options.ckpt_path[-1])
    if mode != "write":
        raise UsageError(needs, mode)


def _is_several(options: Namespace) -> bool:
    names = options.ckpt_path
    is_folder = names[0] not in checkpoint.ALIASES and Path(names[0]).expanduser().is_dir()
    return len(names) > 1 or is_folder
