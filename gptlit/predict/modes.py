"""What `gptlit predict` does besides writing texts, and which options have no part in it."""

from pathlib import Path
from typing import Literal, get_args

from jsonargparse import Namespace

from gptlit.checkpoints import checkpoint
from gptlit.messages import UsageError
from gptlit.parser import OneLineErrors

Mode = Literal["write", "compare", "explain", "interactive"]
Format = Literal["text", "jsonl", "markdown", "tensorboard"]
FORMATS: dict[Mode, tuple[str, ...]] = {
    "write": ("text", "jsonl"),
    "compare": get_args(Format),
    "explain": ("text", "jsonl"),
    "interactive": ("text",),
}
# options that would be ignored, and what happens instead
REFUSED: dict[Mode, dict[str, str]] = {
    "interactive": {
        "prompt": "prompts are typed, or come line by line from standard input",
        "prompt_file": "prompts are typed, or come line by line from standard input",
        "lines": "prompts are typed, or come line by line from standard input",
        "output_file": "texts go to standard output",
        "num_beams": "texts are told as they are drawn",
    },
}


def chosen(options: Namespace, parser: OneLineErrors) -> Mode:
    """The mode that options ask for.

    Raises:
        UsageError: two at once, or an option that has no part in it.
    """
    if "" in options.ckpt_path:
        raise UsageError("--ckpt_path '': names no file; give a checkpoint, best or last")
    flags = [name for name in ("interactive", "explain", "sweep") if options[name]]
    if len(flags) > 1:
        raise UsageError(f"--{flags[0]}: can't be had together with --{flags[1]}; leave one out")
    flag = flags[0] if flags else ""
    compared = flag == "sweep" or _several(options)
    mode: Mode = "compare" if compared else flag or "write"  # type: ignore[assignment]  # a flag
    if compared and flag not in ("", "sweep"):
        raise UsageError(
            f"--ckpt_path {options.ckpt_path[-1]}: --{flag} takes one checkpoint; name its file"
        )
    for name, instead in REFUSED.get(mode, {}).items():
        if options[name] != parser.get_default(name):
            raise UsageError(f"--{name}: has no part in --{flag}, where {instead}")
    if options.format not in FORMATS[mode]:
        what = f"not for --{flag}" if flag else "only for --sweep and for several checkpoints"
        raise UsageError(
            f"--format {options.format}: {what}; choose from {', '.join(FORMATS[mode])}"
        )
    if options.format == "tensorboard" and options.output_file:
        raise UsageError(
            f"--output_file {options.output_file}: has no part in --format tensorboard, which "
            "makes a folder beside the run's"
        )
    return mode


def refuse_on_devices(options: Namespace, mode: Mode) -> None:
    """Refuse every mode but writing, for whoever has --trainer options.

    Raises:
        UsageError: names the option that asks for it.
    """
    if mode != "write":
        flag = "sweep" if options.sweep else "ckpt_path" if mode == "compare" else mode
        what = f" {options.ckpt_path[-1]}: one file; more than that" if flag == "ckpt_path" else ":"
        raise UsageError(f"--{flag}{what} needs one device, without --trainer options")
    if options.weights != "float32":
        raise UsageError(
            f"--weights {options.weights}: needs one device, without --trainer options"
        )


def _several(options: Namespace) -> bool:
    names = options.ckpt_path
    is_folder = names[0] not in checkpoint.ALIASES and Path(names[0]).expanduser().is_dir()
    return len(names) > 1 or is_folder
