"""`gptlit predict`: write with a checkpoint alone. No Lightning, no corpus, no config."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, get_args

import torch
from jsonargparse import ActionYesNo, Namespace

from gptlit.checkpoints import checkpoint
from gptlit.cli.shorthand import name_words, option_of_predict
from gptlit.files import write_atomically, writing
from gptlit.generation.beam_search import Found
from gptlit.generation.generate import SAMPLES_AT_ONCE, stream_generate, tell_dropped
from gptlit.generation.jobs import write_jobs
from gptlit.generation.settings import BeamSettings
from gptlit.generation.text_stream import Written
from gptlit.messages import UsageError, note
from gptlit.model.gpt import GPT
from gptlit.parser import OneLineErrors, text_of, with_environment
from gptlit.predict import modes, prompts
from gptlit.predict.modes import Format, Mode
from gptlit.terminal import SEPARATOR, columns, columns_of, in_colour, wrap_words, write_stream
from gptlit.tokenizers.base import Tokenizer, Unknown

FILE_COLUMNS = 100
MOST_STREAMED = 8
ESCAPED = ("--stop", "--ban", "--force")
ENDLESS = (
    "--max_new_tokens null: only one text can be written without an end, and only as it comes; "
    "give a number"
)
Weights = Literal["float32", "int8"]


class Parser(OneLineErrors):
    """A parser that unescapes the strings that a text is compared with."""

    def parse_args(  # type: ignore[override]  # whose other arguments are passed on
        self, args: Sequence[str] | None = None, *others: Any, **options: Any
    ) -> Namespace:
        words = sys.argv[1:] if args is None else args
        return super().parse_args(prompts.with_unescaped(words, ESCAPED), *others, **options)


def parser() -> OneLineErrors:
    """The options of `gptlit predict` on one device."""
    options = Parser(
        prog="gptlit predict",
        description="Write text with a trained model. --trainer.* options (see `gptlit fit "
        "--help`) write through Lightning's Trainer, for instance on several devices.",
        allow_abbrev=False,
    )
    options.add_argument(
        "--ckpt_path",
        action="append",
        type=str,
        help="A checkpoint, or best (the default) or last of the newest run. Given more often, or "
        "as a run's folder, whose checkpoints are meant: a table of them all.",
    )
    options.add_argument(
        "--prompt",
        action="append",
        type=str,
        help="The text to continue, once or more often; an empty one starts from the end "
        "of sequence, else a newline, else the first token, whichever the model has.",
    )
    options.add_argument(
        "--prompt_file", type=str, default=None, help="A file with the prompt; - is standard input."
    )
    options.add_argument(
        "--lines", action=ActionYesNo, nargs="?", default=False, help="Each line is a prompt."
    )
    options.add_class_arguments(BeamSettings, skip={"stop", "ban", "num_samples"})
    for name, about in (
        ("--stop", "A string that ends the text and isn't part of it; once or more often."),
        ("--ban", "A token that is never written; once or more often."),
    ):
        about += r" \n, \t and \\ are a line end, a tab and a backslash."
        options.add_argument(name, action="append", type=str, help=about)
    options.add_argument(
        "--greedy", action=ActionYesNo, nargs="?", default=False, help="As --temperature 0."
    )
    options.add_argument(
        "--num_samples",
        type=int,
        default=1,
        help="How many texts to write for each prompt; of a beam search, the best ones.",
    )
    options.add_argument(
        "--seed",
        type=int,
        default=1337,
        help="Sample i is what --seed seed+i writes alone; a beam search needs none.",
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
        help="text, or jsonl: a line for each text, with each token's log probability and entropy, "
        "and a beam search's score. Tables of --sweep and of several checkpoints also as markdown "
        "or in tensorboard.",
    )
    options.add_argument(
        "--weights",
        type=Weights,
        default="float32",
        help="float32, or int8: one text at a time comes faster on a CPU, of rounded weights.",
    )
    options.add_argument(
        "--output_file", type=str, default=None, help="Write there, after a header of settings."
    )
    options.add_argument(
        "--sweep",
        nargs="+",
        action="append",
        type=str,
        help="A table of the same prompt under all combinations of values, for instance "
        "--sweep temperature=0.5,0.8,1.2 top_k=5,none.",
    )
    options.add_argument(
        "--explain",
        action=ActionYesNo,
        nargs="?",
        default=False,
        help="Write nothing; tell the probability and rank of each token of the prompt.",
    )
    options.add_argument(
        "--interactive",
        action=ActionYesNo,
        nargs="?",
        default=False,
        help="Prompts are typed, one after the other; /help tells how settings change.",
    )
    return options


def sampling(options: Namespace) -> BeamSettings:
    """The settings in parsed options, with --greedy applied; checks them all.

    Raises:
        UsageError: a value that can't work.
    """
    fields = {name: options[name] for name in BeamSettings.__dataclass_fields__}
    fields |= {name: fields[name] or [] for name in ("stop", "ban")}
    for name in ("stop", "ban", "force"):
        text_of(f"--{name}", "".join(fields[name]))
    if options.greedy:
        fields["temperature"] = 0.0
    settings = BeamSettings(**fields)
    if options.num_samples < 1:
        raise UsageError(f"--num_samples {options.num_samples}: must be 1 or more")
    if not 0 <= options.seed < 2**63 - options.num_samples:
        raise UsageError(f"--seed {options.seed}: must be 0 or more, and below 2^63")
    endless = settings.max_new_tokens is None
    if endless and (options.num_samples > 1 or options.format == "jsonl" or options.output_file):
        raise UsageError(ENDLESS)
    return settings


def in_batches(
    model: GPT,
    tokenizer: Tokenizer,
    given: Sequence[tuple[str, int]],
    settings: BeamSettings,
    unknown: Unknown,
    scored: bool,
) -> Iterator[list[Written]]:
    """The texts of each job in turn, in batches that memory can hold, however many there are; a
    beam search is a batch by itself."""
    n = 1 if settings.is_beam_search else SAMPLES_AT_ONCE
    for first in range(0, len(given), n):
        some = given[first : first + n]
        yield from write_jobs(model, tokenizer, some, settings, unknown=unknown, scored=scored)


def put(
    found: Iterable[Sequence[Written]],
    work: Sequence[tuple[str, int]],
    options: Namespace,
    out: IO[str] | None = None,
) -> None:
    """Write the texts of each job, each ended by a newline and parted by a line `---`, or as
    .jsonl."""
    out = out or sys.stdout
    columns = columns_of(out) if options.format == "text" else None
    texts = ((text, seed) for job, (_, seed) in zip(found, work, strict=True) for text in job)
    scores = []
    for index, (text, seed) in enumerate(texts):
        if isinstance(text, Found):
            scores.append(f"{text.score:.4f}")
        if options.format == "jsonl":
            about = {"checkpoint": options.ckpt_path[0]}
            about |= {"seed": seed} if options.num_beams is None else {}
            told = json.dumps(about | dataclasses.asdict(text)) + "\n"
        else:
            shown = text.whole if options.echo else text.text
            told = (SEPARATOR if index else "") + shown + ("" if shown.endswith("\n") else "\n")
        out.write(told if columns is None else wrap_words(told, columns))
        out.flush()
    if scores and options.format == "text" and len(work) == 1:
        note(f"scores, the best first: {', '.join(scores)}")


@contextlib.contextmanager
def output(path: str | None, header: str = "") -> Iterator[IO[str]]:
    """Where texts go: standard output, or a file that takes its place whole, with a header.

    What was written until an error or Ctrl-C is kept beside it, under a name that is told.
    """
    import io

    if path is None:
        yield sys.stdout
        return
    content = io.StringIO()
    content.write(header)
    try:
        yield content
    except BaseException:
        if content.tell() > len(header):
            partial = Path(f"{path}.partial")
            write_atomically(partial, content.getvalue().encode())
            note(f"{partial} holds what was written until then")
        raise
    with writing("--output_file", path):
        write_atomically(Path(path), content.getvalue().encode())


def refuse_output(path: str) -> None:
    """Refuse a file that can't be written, before hours go into what is to stand in it.

    Raises:
        UsageError: it names no file, or one in a folder where none can be made.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        reason = "is a folder; name a file"
    elif Path(path).exists() and not Path(path).is_file():
        reason = "is not a file; without --output_file texts go to standard output"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}; make it first"
    elif not os.access(folder, os.W_OK):
        reason = f"nothing may be written in {folder.absolute()}; name another folder"
    else:
        return
    raise UsageError(f"--output_file {path}: {reason}")


def header(options: Namespace, settings: BeamSettings, given: Sequence[str]) -> str:
    """What stands at the beginning of a file of texts; nothing in .jsonl."""
    if options.format != "text":
        return ""
    rows = {"checkpoint": options.ckpt_path[0], "weights": options.weights}
    if options.num_beams is None:
        rows |= {"seed": options.seed, "num_samples": options.num_samples}
    rows |= {**settings.used(), "unknown": options.unknown}
    rows |= {"prompt": given[0] if len(given) == 1 else list(given)}
    return "".join(f"# {name}: {value!r}\n" for name, value in rows.items()) + "\n"


def device() -> str:
    """The fastest device there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load(content: dict[str, Any], weights: Weights) -> tuple[GPT, Tokenizer]:
    """The model of a checkpoint's content, on the fastest device, and its tokenizer.

    Raises:
        UsageError: int8 on another device than a CPU.
    """
    model, tokenizer = checkpoint.build(content)
    model = model.to(device())
    if weights == "int8":
        from gptlit.generation.int8 import pack_int8

        pack_int8(model)
    return model, tokenizer


def main(argv: Sequence[str]) -> None:
    """Run `gptlit predict` with these options.

    Raises:
        UsageError: an option, a checkpoint or a prompt that can't work.
    """
    known = parser()
    options, mode = understood(known, argv)
    settings = sampling(options)
    if mode == "compare":
        _compare(options, settings, known)
        return
    path, content = checkpoint.read_named(options.ckpt_path[0])
    model, tokenizer = load(content, options.weights)
    options.ckpt_path = [str(path)]
    given = [] if mode == "interactive" else prompts.given(options)
    note(checkpoint.introduction(path, content))
    if mode == "interactive":
        from gptlit.predict import interactive

        interactive.talk(interactive.Session(model, tokenizer, options, known, sampling))
    elif mode == "explain":
        _explain(options, known, given, model, tokenizer)
    else:
        _write(options, settings, given, model, tokenizer)


def understood(known: OneLineErrors, argv: Sequence[str]) -> tuple[Namespace, Mode]:
    """Options parsed, those of the environment among them, and the mode they ask for.

    Raises:
        UsageError: options that can't be had, or not together.
    """
    switches, lists = known.options_of_nargs("?"), known.options_of_nargs("+")
    words = name_words(argv, option_of_predict, switches, lists)
    options = known.parse_args(with_environment("predict", words))
    options.ckpt_path = options.ckpt_path or ["best"]
    mode = modes.chosen(options, known)
    if options.output_file is not None:
        refuse_output(options.output_file)
    return options, mode


def _compare(options: Namespace, settings: BeamSettings, known: OneLineErrors) -> None:
    from gptlit.predict import sweep, sweep_tables

    plan = sweep.plan(options, settings, prompts.given(options), known)

    def writer(path: Path) -> sweep.Writer:
        model, tokenizer = load(checkpoint.read(path), options.weights)
        if path == plan.stages[0].path:
            size = model.config.block_size
            prompts.tell_about(plan.prompts, options.unknown, tokenizer, size)
        return functools.partial(in_batches, model, tokenizer, unknown=options.unknown, scored=True)

    rows = plan.rows(writer)
    # what can't be written is refused before anything is told
    rows = itertools.chain([next(rows)], rows)
    with output(options.output_file) as out:
        _put_parts(sweep_tables.report(plan, rows, options.format, _room(options)), out)


def _explain(
    options: Namespace,
    known: OneLineErrors,
    given: Sequence[str],
    model: GPT,
    tokenizer: Tokenizer,
) -> None:
    from gptlit.predict import explain

    idle = [*BeamSettings.__dataclass_fields__, "greedy", "seed", "echo"]
    if idle := [f"--{name}" for name in idle if options[name] != known.get_default(name)]:
        note(f"--explain tells what the model predicts by itself, without {', '.join(idle)}")
    for prompt in given:
        tell_dropped(prompt, options.unknown, tokenizer)
    texts = (explain.explain(model, tokenizer, prompt, options.unknown) for prompt in given)
    with output(options.output_file) as out:
        if options.format == "jsonl":
            _put_parts(explain.as_jsonl(texts), out)
        else:
            _put_parts(explain.as_text(texts, _room(options), in_colour(out)), out)


def _room(options: Namespace) -> int:
    """The columns of a table; a file is read elsewhere than in the terminal it was made in."""
    return columns() if options.output_file is None else FILE_COLUMNS


def _put_parts(parts: Iterable[str], out: IO[str]) -> None:
    for part in parts:
        out.write(part)
        out.flush()


def _write(
    options: Namespace,
    settings: BeamSettings,
    given: Sequence[str],
    model: GPT,
    tokenizer: Tokenizer,
) -> None:
    prompts.tell_about(given, options.unknown, tokenizer, model.config.block_size)
    work = prompts.jobs(given, prompts.seeds(options))
    if settings.max_new_tokens is None and len(work) > 1:
        raise UsageError(ENDLESS)
    plain = options.format == "text" and options.output_file is None
    # one after the other they take longer than as a batch, but are seen at once
    most = MOST_STREAMED if sys.stdout.isatty() else 1
    if plain and len(work) <= most and options.num_beams is None:
        streams = [
            stream_generate(model, tokenizer, prompt, settings, seed=seed, unknown=options.unknown)
            for prompt, seed in work
        ]
        # a prompt that can't be continued is refused before any text is told
        begun = [(next(pieces), pieces) for pieces in streams]
        for index, (prompt, pieces) in enumerate(begun):
            sys.stdout.write(SEPARATOR if index else "")
            write_stream(itertools.chain([prompt] if options.echo else [], pieces))
        return
    scored = options.format == "jsonl"
    texts = in_batches(model, tokenizer, work, settings, options.unknown, scored)
    with output(options.output_file, header(options, settings, given)) as out:
        put(texts, work, options, out)
