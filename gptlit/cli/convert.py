"""`gptlit import` and `gptlit merge`: checkpoints of other programs' files, and with adapters."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from gptlit.checkpoints import adapters, checkpoint
from gptlit.checkpoints.init_from import PUBLISHED, Origin, start_from, write_checkpoint
from gptlit.checkpoints.llama2c import read_llama2c
from gptlit.checkpoints.nanochat import read_nanochat
from gptlit.checkpoints.nanogpt import read_nanogpt
from gptlit.files import writing
from gptlit.messages import (
    UsageError,
    did_you_mean,
    errors_about,
    errors_naming,
    naming_flags,
    note,
)
from gptlit.parser import OneLineErrors, from_environment

READERS = {"nanogpt": read_nanogpt, "nanochat": read_nanochat, "llama2c": read_llama2c}
SOURCES = (*READERS, "hugging_face")


def import_parser() -> OneLineErrors:
    """Return the parser of `gptlit import`."""
    parser = OneLineErrors(prog="gptlit import", allow_abbrev=False)
    add = parser.add_argument
    add("source", type=str, help=f"Format of the files: {', '.join(SOURCES)}.")
    weights = (
        "A ckpt.pt of nanoGPT, a model_*.pt of nanochat, a .bin of llama2.c, a folder in Hugging "
        f"Face's format, or {', '.join(PUBLISHED)}."
    )
    add("weights", type=str, help=weights)
    meta = (
        "The meta.pkl of nanoGPT (without it the tokenizer is GPT-2's), the tokenizer.pkl of "
        "nanochat, or the tokenizer.bin of llama2.c (by default next to the weights)."
    )
    add("meta", nargs="?", type=str, default=None, help=meta)
    add("--output", type=str, default=None, help="Checkpoint to write; by default WEIGHTS.ckpt.")
    add("--data_dir", type=str, default="data", help="Folder for fetched files.")
    return parser


@naming_flags()
def import_(argv: Sequence[str]) -> None:
    """Run `gptlit import` with these arguments.

    Raises:
        UsageError: An argument or a file is invalid.
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
    if read := READERS.get(options.source):
        meta = None if options.meta is None else Path(options.meta).expanduser()
        with errors_about(f"gptlit import {options.source}"):
            origin = Origin(weights.name, *read(weights, meta, folder))
    elif options.meta is not None:
        raise UsageError(f"{options.meta}: a folder has its own tokenizer; leave it out")
    else:
        with _naming("model.init_from", "gptlit import hugging_face"):
            origin = start_from(options.weights, folder)
    with writing("--output", output):
        write_checkpoint(origin, output)
    config = origin.config
    n_parameters = sum(
        tensor.numel()
        for name, tensor in origin.state.items()
        if name != "lm_head.weight" or not config.tie_weights
    )
    note(
        f"{output}: {n_parameters:,} parameters, context {config.block_size}, vocabulary "
        f"{config.vocab_size} ({origin.tokenizer.kind}); write with: gptlit predict "
        f"--ckpt_path {output}"
    )


def merge_parser() -> OneLineErrors:
    """Return the parser of `gptlit merge`."""
    parser = OneLineErrors(prog="gptlit merge", allow_abbrev=False)
    add = parser.add_argument
    add("checkpoint", type=str, help="A checkpoint's path, or best or last of the newest run.")
    add("output", type=str, help="Checkpoint to write.")
    adapter = "Folder of a LoRA adapter in peft's format to add; by default the checkpoint's own."
    add("--adapter", type=str, default=None, help=adapter)
    return parser


@naming_flags()
def merge(argv: Sequence[str]) -> None:
    """Run `gptlit merge` with these arguments: add LoRA's changes to the matrices for good.

    Raises:
        UsageError: An argument or a file is invalid, or there is no adapter.
    """
    options = merge_parser().parse_args([*from_environment("merge"), *argv])
    output = Path(options.output).expanduser()
    if os.path.lexists(output):
        raise UsageError(f"gptlit merge: {output} exists already; give another name")
    with _naming("ckpt_path", "gptlit merge"):
        path, content = checkpoint.read_named(options.checkpoint)
        model, tokenizer = checkpoint.build(content)
        if options.adapter is not None:
            adapters.apply(model, Path(options.adapter).expanduser())
        elif not checkpoint.config_of(content).lora_r:
            reason = "was trained without LoRA; name an adapter by --adapter"
            raise UsageError(reason, "ckpt_path", path)
    with writing("gptlit merge:", output):
        write_checkpoint(Origin(str(path), model.config, model.state_dict(), tokenizer), output)
    note(f"{output}: write with: gptlit predict --ckpt_path {output}")


def _naming(option: str, command: str) -> contextlib.AbstractContextManager[None]:
    """Name an option in errors by the command whose positional argument it is."""
    return errors_naming(lambda name: command if name == option else f"--{name}")
