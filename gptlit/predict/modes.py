"""The modes of `gptlit predict`, and the options that do not apply to each."""

from pathlib import Path
from typing import Literal, get_args

from jsonargparse import Namespace

from gptlit.checkpoints import run_paths
from gptlit.devices import choice
from gptlit.messages import UsageError, opt
from gptlit.parser import OneLineErrors

Mode = Literal["write", "sweep", "explain", "interactive"]
Format = Literal["text", "jsonl", "markdown"]
FORMATS: dict[Mode, tuple[str, ...]] = {
    "write": ("text", "jsonl"),
    "sweep": get_args(Format),
    "explain": ("text", "jsonl"),
    "interactive": ("text",),
}
TYPED = "prompts are typed, or read line by line from standard input"
# options that do not apply to --interactive, and why
NOT_INTERACTIVE = {
    "prompt": TYPED,
    "prompt_file": TYPED,
    "lines": TYPED,
    "output_file": "texts go to standard output",
    "num_beams": "texts are shown as they are drawn",
}


def choose(options: Namespace, parser: OneLineErrors) -> Mode:
    """Choose the mode from parsed options; several checkpoints are a sweep.

    Raises:
        UsageError: Two modes at once, or an option that does not apply to the mode.
    """
    names: list[str] = options.ckpt_path
    if "" in names:
        raise UsageError("names no file; give a checkpoint, best or last", "ckpt_path", "''")
    is_folder = names[0] not in run_paths.ALIASES and Path(names[0]).expanduser().is_dir()
    are_several = len(names) > 1 or is_folder
    modes: list[Mode] = ["interactive", "explain", "sweep"]
    modes = [mode for mode in modes if options[mode]] or ["sweep" if are_several else "write"]
    mode = modes[0]
    if len(modes) > 1:
        raise UsageError(f"excludes {opt(modes[1])}; leave one out", mode)
    if are_several and mode != "sweep":
        raise UsageError(f"{opt(mode)} takes one checkpoint; name its file", "ckpt_path", names[-1])
    if mode == "interactive":
        if options.chat and options.num_samples > 1:
            reason = f"does not apply to {opt('chat')}, where each question has one answer"
            raise UsageError(reason, "num_samples", options.num_samples)
        for name, instead in NOT_INTERACTIVE.items():
            if options[name] != parser.get_default(name):
                raise UsageError(f"does not apply to {opt(mode)}, where {instead}", name)
    if options.chat and mode in ("explain", "sweep"):
        raise UsageError(f"does not apply to {opt(mode)}; leave one out", "chat")
    if options.ensemble and options.adapter:
        raise UsageError(f"does not apply to {opt('ensemble')}; leave one out", "adapter")
    if options.ensemble and mode == "sweep":
        raise UsageError(f"does not apply to {opt(mode)}; leave one out", "ensemble")
    if options.novelty and (mode != "write" or options.ensemble):
        other = "ensemble" if options.ensemble else mode
        raise UsageError(f"does not apply to {opt(other)}; leave one out", "novelty")
    if options.format not in FORMATS[mode]:
        reason = f"only for {opt('sweep')} and several checkpoints"
        if mode != "write":
            reason = f"not for {opt(mode)}"
        choices = ", ".join(FORMATS[mode])
        raise UsageError(f"{reason}; choose from {choices}", "format", options.format)
    return mode


def refuse_on_devices(options: Namespace, mode: Mode) -> None:
    """Refuse options that work on one device only, where --trainer options are given.

    Raises:
        UsageError: Names the option.
    """
    needs = "needs one device, without --trainer options"
    if options.weights == "int8":
        raise UsageError(needs, "weights", options.weights)
    if options.device != choice.AUTO:
        reason = f"{needs}; use {opt('trainer.accelerator')} and {opt('trainer.devices')}"
        raise UsageError(reason, "device", options.device)
    for name in ("ensemble", "novelty"):
        if options[name]:
            raise UsageError(needs, name)
    if mode == "sweep" and not options.sweep:
        reason = f"is one of several checkpoints, whose comparison {needs}"
        raise UsageError(reason, "ckpt_path", options.ckpt_path[-1])
    if mode != "write":
        raise UsageError(needs, mode)
