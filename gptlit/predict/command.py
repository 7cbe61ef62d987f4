"""`gptlit predict` on one device; needs a checkpoint alone: no Lightning, corpus or config."""

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from gptlit.checkpoints import checkpoint
from gptlit.devices import accelerators
from gptlit.generation.generate import SAMPLES_AT_ONCE, stream_generate
from gptlit.generation.jobs import write_jobs
from gptlit.generation.prompts import warn_dropped
from gptlit.generation.settings import BeamSettings
from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import UsageError, note
from gptlit.model.gpt import GPT
from gptlit.parser import OneLineErrors
from gptlit.predict import output, prompts
from gptlit.predict.modes import Mode
from gptlit.predict.options import NO_LIMIT, Weights, parse, parser, sampling_settings
from gptlit.terminal import SEPARATOR, in_colour, write_stream
from gptlit.tokenizers.base import Tokenizer, Unknown
from gptlit.training import threads

MOST_STREAMED = 8  # texts


def main(argv: Sequence[str]) -> None:
    """Run `gptlit predict` with these arguments.

    Raises:
        UsageError: An invalid option, checkpoint or prompt.
    """
    option_parser = parser()
    options, mode = parse(option_parser, argv)
    with threads.using(options.threads):
        _run(option_parser, options, mode)


def _run(option_parser: OneLineErrors, options: Namespace, mode: Mode) -> None:
    settings = sampling_settings(options)
    if mode == "sweep":
        _sweep(options, settings, option_parser)
        return
    path, content = checkpoint.read_named(options.ckpt_path[0])
    model, tokenizer = load(content, options.weights)
    options.ckpt_path = [str(path)]
    texts = [] if mode == "interactive" else prompts.read(options)
    note(checkpoint.introduction(path, content))
    if mode == "interactive":
        from gptlit.predict import interactive

        interactive.loop(interactive.Session(model, tokenizer, options, option_parser))
    elif mode == "explain":
        _explain(options, option_parser, texts, model, tokenizer)
    else:
        _write(options, settings, texts, model, tokenizer)


def load(content: dict[str, Any], weights: Weights) -> tuple[GPT, Tokenizer]:
    """Build the model of a checkpoint's content, on the fastest device, and its tokenizer.

    Raises:
        UsageError: The weights are int8 and the device is not a CPU.
    """
    model, tokenizer = checkpoint.build(content)
    model = model.to(accelerators.fastest())
    if weights == "int8":
        from gptlit.generation.int8 import pack_int8

        pack_int8(model)
    return model, tokenizer


def in_batches(
    model: GPT,
    tokenizer: Tokenizer,
    jobs: Sequence[tuple[str, int]],
    settings: BeamSettings,
    unknown: Unknown,
    scored: bool,
) -> Iterator[list[GeneratedText]]:
    """Generate the texts of each job as `write_jobs` does, in batches that fit into memory."""
    n = 1 if settings.is_beam_search else SAMPLES_AT_ONCE
    for first in range(0, len(jobs), n):
        batch = jobs[first : first + n]
        yield from write_jobs(model, tokenizer, batch, settings, unknown=unknown, scored=scored)


def _sweep(options: Namespace, settings: BeamSettings, option_parser: OneLineErrors) -> None:
    from gptlit.predict import sweep, sweep_tables

    plan = sweep.plan(options, settings, prompts.read(options), option_parser)

    def writer(path: Path) -> sweep.Writer:
        model, tokenizer = load(checkpoint.read(path), options.weights)
        if path == plan.checkpoints[0].path:
            size = model.config.block_size
            prompts.warn_about(plan.prompts, options.unknown, tokenizer, size)
        return functools.partial(in_batches, model, tokenizer, unknown=options.unknown, scored=True)

    rows = plan.rows(writer)
    # an invalid prompt is refused with the first row, which is made before any output
    rows = itertools.chain([next(rows)], rows)
    parts = sweep_tables.report(plan, rows, options.format, output.table_width(options))
    with output.opened(options.output_file) as out:
        output.write_parts(parts, out)


def _explain(
    options: Namespace,
    option_parser: OneLineErrors,
    texts: Sequence[str],
    model: GPT,
    tokenizer: Tokenizer,
) -> None:
    from gptlit.predict import explain

    names = [*BeamSettings.__dataclass_fields__, "greedy", "seed", "echo"]
    unused = [f"--{name}" for name in names if options[name] != option_parser.get_default(name)]
    if unused:
        note(f"--explain prints the model's own predictions, without {', '.join(unused)}")
    for text in texts:
        warn_dropped(text, options.unknown, tokenizer)
    explained = (explain.explain(model, tokenizer, text, options.unknown) for text in texts)
    with output.opened(options.output_file) as out:
        if options.format == "jsonl":
            parts = explain.as_jsonl(explained)
        else:
            parts = explain.as_text(explained, output.table_width(options), in_colour(out))
        output.write_parts(parts, out)


def _write(
    options: Namespace,
    settings: BeamSettings,
    texts: Sequence[str],
    model: GPT,
    tokenizer: Tokenizer,
) -> None:
    prompts.warn_about(texts, options.unknown, tokenizer, model.config.block_size)
    jobs = prompts.jobs(texts, prompts.seeds(options))
    if settings.max_new_tokens is None and len(jobs) > 1:
        raise UsageError(NO_LIMIT, "max_new_tokens", None)
    is_plain = options.format == "text" and options.output_file is None
    # streamed texts take longer than a batch, but are visible at once
    most_streamed = MOST_STREAMED if sys.stdout.isatty() else 1
    if is_plain and len(jobs) <= most_streamed and options.num_beams is None:
        streams = [
            stream_generate(model, tokenizer, prompt, settings, seed=seed, unknown=options.unknown)
            for prompt, seed in jobs
        ]
        # an invalid prompt is refused with the first piece, which is made before any output
        begun = [(next(pieces), pieces) for pieces in streams]
        for index, (prompt, pieces) in enumerate(begun):
            sys.stdout.write(SEPARATOR if index else "")
            write_stream(itertools.chain([prompt] if options.echo else [], pieces))
        return
    scored = options.format == "jsonl"
    written = in_batches(model, tokenizer, jobs, settings, options.unknown, scored)
    with output.opened(options.output_file, output.header(options, settings, texts)) as out:
        output.write_texts(written, jobs, options, out)
