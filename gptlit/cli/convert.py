"""`gptlit import` and `gptlit export`: somebody else's weights in, one's own out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gptlit.checkpoints import checkpoint
from gptlit.checkpoints.init_from import PUBLISHED, Origin, start_from, write_checkpoint
from gptlit.checkpoints.nanogpt import read_nanogpt
from gptlit.checkpoints.weight_files import write_hugging_face, write_safetensors
from gptlit.files import writing
from gptlit.messages import UsageError, did_you_mean, naming_flags, note
from gptlit.parser import OneLineErrors, from_environment

SOURCES = ("nanogpt", "hugging_face")
Format = Literal["hugging_face", "safetensors"]
WRITERS = {"hugging_face": write_hugging_face, "safetensors": write_safetensors}


def import_parser() -> OneLineErrors:
    """The options of `gptlit import`."""
    options = OneLineErrors(
        prog="gptlit import",
        description="Make a checkpoint of somebody else's weights, running none of their code.",
        allow_abbrev=False,
    )
    options.add_argument("source", type=str, help="What the files are: nanogpt or hugging_face.")
    options.add_argument(
        "weights",
        type=str,
        help=f"nanoGPT's ckpt.pt; or a folder in Hugging Face's format, or {', '.join(PUBLISHED)}.",
    )
    options.add_argument(
        "meta",
        nargs="?",
        type=str,
        default=None,
        help="nanoGPT's meta.pkl; without it the tokenizer is GPT-2's.",
    )
    options.add_argument(
        "--output", type=str, default=None, help="The checkpoint to write; WEIGHTS.ckpt by default."
    )
    options.add_argument("--data_dir", type=str, default="data", help="As for fit.")
    return options


@naming_flags()
def import_(argv: Sequence[str]) -> None:
    """Run `gptlit import` with these options.

    Raises:
        UsageError: an option or a file that can't work.
    """
    options = import_parser().parse_args([*from_environment("import"), *argv])
    if options.source not in SOURCES:
        raise UsageError(
            f"gptlit import {options.source}: unknown; choose from {', '.join(SOURCES)}."
            + did_you_mean(options.source, SOURCES)
        )
    weights, folder = Path(options.weights).expanduser(), Path(options.data_dir)
    output = Path(options.output or f"{weights.with_suffix('')}.ckpt").expanduser()
    if os.path.lexists(output):
        raise UsageError(f"--output {output}: exists already; give another name")
    if options.source == "nanogpt":
        meta = None if options.meta is None else Path(options.meta).expanduser()
        try:
            origin = Origin(weights.name, *read_nanogpt(weights, meta, folder))
        except UsageError as error:
            raise UsageError(f"gptlit import nanogpt: {error}") from error
    else:
        if options.meta is not None:
            raise UsageError(f"{options.meta}: of nanogpt only; leave it out")
        try:
            origin = start_from(options.weights, folder)
        except UsageError as error:
            raise _of_command("gptlit import hugging_face", "--model.init_from", error) from error
    with writing("--output", output):
        write_checkpoint(origin, output)
    count = sum(tensor.numel() for name, tensor in origin.state.items() if name != "lm_head.weight")
    if not origin.config.tie_weights:
        count += origin.state["lm_head.weight"].numel()
    note(
        f"{output}: {count:,} parameters, context {origin.config.block_size}, vocabulary "
        f"{origin.config.vocab_size} ({origin.tokenizer.kind}); write with: gptlit predict "
        f"--ckpt_path {output}"
    )


def _of_command(command: str, flag: str, error: UsageError) -> UsageError:
    """An error of what the command names without a flag."""
    return UsageError(str(error).replace(flag, command, 1))


def export_parser() -> OneLineErrors:
    """The options of `gptlit export`."""
    options = OneLineErrors(
        prog="gptlit export",
        description="Write a model for other programs, into a new folder.",
        allow_abbrev=False,
    )
    options.add_argument(
        "checkpoint", type=str, help="A checkpoint, or best or last of the newest run."
    )
    options.add_argument("folder", type=str, help="The folder to write; new, or empty.")
    options.add_argument(
        "--format",
        type=Format,
        default="hugging_face",
        help="hugging_face, for transformers' AutoModelForCausalLM and AutoTokenizer, where GPT-2's"
        " class holds the model; safetensors, plain weights, options and tokenizer of any model.",
    )
    return options


@naming_flags()
def export(argv: Sequence[str]) -> None:
    """Run `gptlit export` with these options.

    Raises:
        UsageError: an option, a checkpoint or a model that can't work.
    """
    options = export_parser().parse_args([*from_environment("export"), *argv])
    try:
        model, tokenizer = checkpoint.load(options.checkpoint)
    except UsageError as error:
        raise _of_command("gptlit export", "--path", error) from error
    folder = Path(options.folder).expanduser()
    with writing("gptlit export:", folder):
        WRITERS[options.format](model, tokenizer, folder)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    note(f"{folder}: {names}")
