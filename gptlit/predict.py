"""`gptlit predict`: write with a checkpoint alone. No Lightning, no corpus, no config."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import torch
from jsonargparse import ActionYesNo, Namespace

from gptlit import checkpoint
from gptlit.generation import Sampling, generate_samples, stream_generate
from gptlit.messages import UsageError, note
from gptlit.model import GPT
from gptlit.parser import OneLineErrors, from_environment
from gptlit.tokenizer import Tokenizer, Unknown, UnknownPieces

SEPARATOR = "---\n"
SAMPLES_AT_ONCE = 64


def parser() -> OneLineErrors:
    """The options of `gptlit predict` on one device."""
    options = OneLineErrors(
        prog="gptlit predict",
        description="Write text with a trained model. --trainer.* options (see `gptlit fit "
        "--help`) write through Lightning's Trainer, for instance on several devices.",
        allow_abbrev=False,
    )
    options.add_argument(
        "--ckpt_path", default="best", help="A checkpoint, or best or last of the newest run."
    )
    options.add_argument(
        "--prompt", default="", help="The text to continue; an empty one starts from a newline."
    )
    options.add_class_arguments(Sampling)
    options.add_argument(
        "--greedy", action=ActionYesNo, nargs="?", default=False, help="As --temperature 0."
    )
    options.add_argument("--num_samples", type=int, default=1, help="How many texts to write.")
    options.add_argument(
        "--seed", type=int, default=1337, help="Sample i is what --seed seed+i writes alone."
    )
    options.add_argument(
        "--unknown",
        type=Unknown,
        default="error",
        help=f"Characters that the model doesn't know: {' or '.join(get_args(Unknown))} them.",
    )
    return options


def sampling(options: Namespace) -> dict[str, Any]:
    """The fields of `Sampling` in parsed options, --greedy applied; checks them all.

    Raises:
        UsageError: a value that can't work.
    """
    fields = {name: options[name] for name in Sampling.__dataclass_fields__}
    if options.greedy:
        fields["temperature"] = 0.0
    Sampling(**fields)
    if options.num_samples < 1:
        raise UsageError(f"--num_samples {options.num_samples}: must be 1 or more")
    if not 0 <= options.seed < 2**63 - options.num_samples:
        raise UsageError(f"--seed {options.seed}: must be 0 or more, and below 2^63")
    return fields


def tell_about_prompt(options: Namespace, tokenizer: Tokenizer, block_size: int) -> None:
    """Warn of what becomes of the prompt: pieces dropped, or more than the context."""
    try:
        tokenizer.encode(options.prompt)
    except UnknownPieces as unknown:
        if options.unknown == "skip":
            note(f"warning: --prompt: dropped {', '.join(map(repr, unknown.pieces))}")
    n_tokens = len(tokenizer.encode(options.prompt, "skip"))
    if n_tokens > block_size:
        note(
            f"warning: --prompt has {n_tokens} tokens; the model sees its last {block_size} at once"
        )


def put(texts: Iterable[str]) -> None:
    """Write whole texts to standard output, each ended by a newline, parted by a line `---`."""
    ended = (text if text.endswith("\n") else text + "\n" for text in texts)
    for index, text in enumerate(ended):
        sys.stdout.write(SEPARATOR + text if index else text)
    sys.stdout.flush()


def in_batches(
    model: GPT, tokenizer: Tokenizer, prompt: str, seeds: Sequence[int], settings: dict[str, Any]
) -> Iterator[str]:
    """`generate_samples` in batches that memory can hold, however many seeds there are."""
    for first in range(0, len(seeds), SAMPLES_AT_ONCE):
        batch = seeds[first : first + SAMPLES_AT_ONCE]
        yield from generate_samples(model, tokenizer, prompt, seeds=batch, **settings)


def _put_stream(pieces: Iterable[str]) -> None:
    at_once = sys.stdout.isatty()
    last = ""
    for piece in pieces:
        sys.stdout.write(piece)
        last = piece or last
        if at_once:
            sys.stdout.flush()
    if not last.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def main(argv: Sequence[str]) -> None:
    """Run `gptlit predict` with these options.

    Raises:
        UsageError: an option, a checkpoint or a prompt that can't work.
    """
    options = parser().parse_args([*from_environment("predict"), *argv])
    settings = sampling(options)
    model, tokenizer = checkpoint.load(options.ckpt_path)
    model = model.to(_device())
    tell_about_prompt(options, tokenizer, model.config.block_size)
    settings["unknown"] = options.unknown
    if options.num_samples == 1:
        pieces = stream_generate(model, tokenizer, options.prompt, seed=options.seed, **settings)
        _put_stream(pieces)
    else:
        seeds = range(options.seed, options.seed + options.num_samples)
        put(in_batches(model, tokenizer, options.prompt, seeds, settings))
