"""`gptlit predict`: write with a checkpoint alone. No Lightning, no corpus, no config."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, get_args

import torch
from jsonargparse import ActionYesNo, Namespace

from gptlit import checkpoint
from gptlit.assets import write_atomically
from gptlit.drafts import Written
from gptlit.generation import Sampling, generate_many, stream_generate
from gptlit.messages import UsageError, note
from gptlit.model import GPT
from gptlit.parser import OneLineErrors, from_environment
from gptlit.tokenizer import Tokenizer, Unknown, UnknownPieces

SEPARATOR = "---\n"
SAMPLES_AT_ONCE = 64
STANDARD_INPUT = "-"
Format = Literal["text", "jsonl"]


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
        "--prompt",
        action="append",
        type=str,
        help="The text to continue, once or more often; an empty one starts from a newline.",
    )
    options.add_argument(
        "--prompt_file", type=str, default=None, help="A file with the prompt; - is standard input."
    )
    options.add_argument(
        "--lines", action=ActionYesNo, nargs="?", default=False, help="Each line is a prompt."
    )
    options.add_class_arguments(Sampling, skip={"stop", "ban"})
    for name, about in (
        ("--stop", "A string that ends the text and isn't part of it; once or more often."),
        ("--ban", "A token that is never written; once or more often."),
    ):
        options.add_argument(name, action="append", type=str, help=about)
    options.add_argument(
        "--greedy", action=ActionYesNo, nargs="?", default=False, help="As --temperature 0."
    )
    options.add_argument(
        "--num_samples", type=int, default=1, help="How many texts to write for each prompt."
    )
    options.add_argument(
        "--seed", type=int, default=1337, help="Sample i is what --seed seed+i writes alone."
    )
    options.add_argument(
        "--unknown",
        type=Unknown,
        default="error",
        help=f"Characters that the model doesn't know: {' or '.join(get_args(Unknown))} them.",
    )
    options.add_argument(
        "--echo", action=ActionYesNo, nargs="?", default=True, help="Write the prompt too."
    )
    options.add_argument(
        "--format",
        type=Format,
        default="text",
        help="text, or jsonl: a line for each text, with each token's log probability and entropy.",
    )
    options.add_argument(
        "--output_file", type=str, default=None, help="Write there, after a header of settings."
    )
    return options


def sampling(options: Namespace) -> dict[str, Any]:
    """The fields of `Sampling` in parsed options, --greedy applied; checks them all.

    Raises:
        UsageError: a value that can't work.
    """
    fields = {name: options[name] for name in Sampling.__dataclass_fields__}
    fields |= {name: fields[name] or [] for name in ("stop", "ban")}
    if options.greedy:
        fields["temperature"] = 0.0
    Sampling(**fields)
    if options.num_samples < 1:
        raise UsageError(f"--num_samples {options.num_samples}: must be 1 or more")
    if not 0 <= options.seed < 2**63 - options.num_samples:
        raise UsageError(f"--seed {options.seed}: must be 0 or more, and below 2^63")
    endless = fields["max_new_tokens"] is None
    if endless and (options.num_samples > 1 or options.format == "jsonl" or options.output_file):
        raise UsageError(
            "--max_new_tokens null: only one text can be written without an end, and only as it "
            "comes; give a number"
        )
    return fields


def prompts(options: Namespace) -> list[str]:
    """The prompts given by options, a file or standard input; an empty one if there is none.

    A file's last line end is not part of a prompt.

    Raises:
        UsageError: a file that can't be read, or nothing in it.
    """
    given = list(options.prompt or [])
    if options.prompt_file is not None:
        try:
            if options.prompt_file == STANDARD_INPUT:
                content = sys.stdin.read()
            else:
                content = Path(options.prompt_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(f"--prompt_file {options.prompt_file}: {reason}") from error
        content = content.removesuffix("\n")
        more = [line for line in content.split("\n") if line] if options.lines else [content]
        if not more:
            raise UsageError(f"--prompt_file {options.prompt_file}: no line in it")
        given += more
    elif options.lines:
        raise UsageError("--lines: needs --prompt_file, whose lines are prompts")
    return given or [""]


def tell_about_prompts(
    given: Sequence[str], unknown: Unknown, tokenizer: Tokenizer, block_size: int
) -> None:
    """Warn of what becomes of prompts: pieces dropped, or more than the context."""
    for prompt in given:
        try:
            tokenizer.encode(prompt)
        except UnknownPieces as error:
            if unknown == "skip":
                note(f"warning: --prompt: dropped {', '.join(map(repr, error.pieces))}")
        n_tokens = len(tokenizer.encode(prompt, "skip"))
        if n_tokens > block_size:
            note(
                f"warning: --prompt has {n_tokens} tokens; the model sees its last {block_size} "
                "at once"
            )


def jobs(given: Sequence[str], seed: int, num_samples: int) -> list[tuple[str, int]]:
    """The prompt and seed of each text, in the order in which they are told."""
    return [(prompt, seed + index) for prompt in given for index in range(num_samples)]


def in_batches(
    model: GPT, tokenizer: Tokenizer, given: Sequence[tuple[str, int]], settings: dict[str, Any]
) -> Iterator[Written]:
    """`generate_many` in batches that memory can hold, however many jobs there are."""
    for first in range(0, len(given), SAMPLES_AT_ONCE):
        texts, seeds = zip(*given[first : first + SAMPLES_AT_ONCE], strict=True)
        yield from generate_many(model, tokenizer, texts, seeds, **settings)


def put(
    texts: Iterable[Written],
    seeds: Iterable[int],
    options: Namespace,
    out: IO[str] | None = None,
) -> None:
    """Write whole texts, each ended by a newline and parted by a line `---`, or as .jsonl."""
    out = out or sys.stdout
    for index, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        if options.format == "jsonl":
            out.write(json.dumps({"seed": seed, **dataclasses.asdict(text)}) + "\n")
            continue
        shown = text.whole if options.echo else text.text
        out.write((SEPARATOR if index else "") + shown + ("" if shown.endswith("\n") else "\n"))
    out.flush()


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


@contextlib.contextmanager
def output(options: Namespace, settings: dict[str, Any], given: Sequence[str]) -> Iterator[IO[str]]:
    """Where texts go: standard output, or a file that takes its place whole, with a header."""
    import io

    if options.output_file is None:
        yield sys.stdout
        return
    content = io.StringIO()
    if options.format == "text":
        rows = {"checkpoint": options.ckpt_path, "seed": options.seed, **settings}
        rows |= {"prompt": given[0] if len(given) == 1 else list(given)}
        content.write("".join(f"# {name}: {value!r}\n" for name, value in rows.items()) + "\n")
    yield content
    write_atomically(Path(options.output_file), content.getvalue().encode())


def device() -> str:
    """The fastest device there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def main(argv: Sequence[str]) -> None:
    """Run `gptlit predict` with these options.

    Raises:
        UsageError: an option, a checkpoint or a prompt that can't work.
    """
    options = parser().parse_args([*from_environment("predict"), *argv])
    settings, given = sampling(options), prompts(options)
    path, content = checkpoint.read_named(options.ckpt_path)
    model, tokenizer = checkpoint.build(content)
    model = model.to(device())
    options.ckpt_path = str(path)
    tell_about_prompts(given, options.unknown, tokenizer, model.config.block_size)
    work = jobs(given, options.seed, options.num_samples)
    plain = options.format == "text" and options.output_file is None
    if plain and len(work) == 1:
        ((prompt, seed),) = work
        pieces = stream_generate(
            model, tokenizer, prompt, seed=seed, unknown=options.unknown, **settings
        )
        if not options.echo:
            next(pieces)
        _put_stream(pieces)
        return
    more = {"unknown": options.unknown, "scored": options.format == "jsonl"}
    with output(options, settings, given) as out:
        written = in_batches(model, tokenizer, work, settings | more)
        put(written, (seed for _, seed in work), options, out)
