"""`gptlit predict` on one device; needs a checkpoint alone: no Lightning, corpus or config."""

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace

from gptlit.checkpoints import adapters, checkpoint
from gptlit.devices import choice
from gptlit.devices.accelerators import name_of
from gptlit.generation import int8
from gptlit.generation.generate import SAMPLES_AT_ONCE, stream_generate
from gptlit.generation.jobs import write_jobs
from gptlit.generation.prompts import warn_dropped
from gptlit.generation.settings import BeamSettings
from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import UsageError, note
from gptlit.model.ensemble import Ensemble
from gptlit.model.gpt import GPT
from gptlit.parser import OneLineErrors
from gptlit.predict import output, prompts
from gptlit.predict.modes import Mode
from gptlit.predict.options import NO_LIMIT, parse, parser, sampling_settings
from gptlit.terminal import SEPARATOR, in_colour, write_stream
from gptlit.tokenizers.base import Tokenizer, Unknown
from gptlit.training import threads

MOST_STREAMED = 8  # texts
# guesses, for the choice of a device
WITHOUT_LIMIT = 10_000  # tokens of a text without a limit
TEXTS_OF_A_SESSION = 10
WEIGHTS = {
    "float32": "float32",
    "int8": "int8 (--weights float32 writes training's samples exactly)",
}


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
    names = options.ensemble or options.ckpt_path
    with checkpoint.named_by("ensemble" if options.ensemble else "ckpt_path"):
        found = [checkpoint.read_named(name) for name in names]
    paths, contents = zip(*found, strict=True)
    if options.ensemble:
        nets, tokenizer = checkpoint.build_several(paths, contents)
    else:
        net, tokenizer = checkpoint.build(contents[0])
        nets = [_adapted(net, options)]
    texts = [] if mode == "interactive" else prompts.read(options)
    model = place(nets, options, work(options, mode, texts))
    options.ckpt_path = [", ".join(map(str, paths))]
    *others, last = [checkpoint.introduction(path, content) for path, content in found]
    for other in others:
        note(other)
    device = name_of(model.wte.weight.device)
    adapter = f", adapter: {options.adapter}" if options.adapter else ""
    note(f"{last}{adapter}, device: {device}, weights: {WEIGHTS[options.weights]}")
    if mode == "interactive":
        from gptlit.predict import interactive

        interactive.loop(interactive.Session(model, tokenizer, options, option_parser))
    elif mode == "explain":
        _explain(options, option_parser, texts, model, tokenizer)
    else:
        _write(options, settings, texts, model, tokenizer)


def work(options: Namespace, mode: Mode, texts: Sequence[str]) -> tuple[int, int]:
    """Return the number of texts that are written, and of tokens in each, to choose a device."""
    n_tokens = options.max_new_tokens or WITHOUT_LIMIT
    if mode == "interactive":
        return 1, TEXTS_OF_A_SESSION * n_tokens
    if mode == "explain":
        return sum(map(len, texts)), 1  # its tokens are read at once
    return len(texts) * max(options.num_samples, options.num_beams or 1), n_tokens


def place(nets: Sequence[GPT], options: Namespace, n: tuple[int, int]) -> GPT:
    """Return the model of one or more nets, on the device of the options and with their weights.

    Where these are auto, the options get the ones that are chosen.

    Args:
        nets: The model, or the nets of an ensemble; changed in place.
        options: Options of `gptlit predict`.
        n: Number of texts, and of tokens in each.

    Raises:
        UsageError: The device isn't there, or the weights are int8 and it is not a CPU.
    """
    device = choice.named(options.device)
    if device is None:
        n_parameters = sum(net.num_parameters() for net in nets)
        is_for_cpu = options.weights == "int8"
        device = torch.device("cpu" if is_for_cpu else choice.soonest(n_parameters, *n))
    for net in nets:
        net.to(device)
    if options.weights == "auto":
        options.weights = "int8" if all(map(int8.pays, nets)) else "float32"
    if options.weights == "int8":
        for net in nets:
            int8.pack_int8(net)
    return nets[0] if len(nets) == 1 else Ensemble(nets).eval()


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


def _adapted(net: GPT, options: Namespace) -> GPT:
    """Return the net, with the changes of the option adapter."""
    if options.adapter is not None:
        adapters.apply(net, Path(options.adapter).expanduser())
    return net


def _sweep(options: Namespace, settings: BeamSettings, option_parser: OneLineErrors) -> None:
    from gptlit.predict import sweep, sweep_tables

    texts = prompts.read(options)
    plan = sweep.plan(options, settings, texts, option_parser)
    n_texts, n_tokens = work(options, "sweep", texts)

    def writer(path: Path) -> sweep.Writer:
        net, tokenizer = checkpoint.build(checkpoint.read(path))
        net = _adapted(net, options)
        model = place([net], options, (n_texts * len(plan.combinations), n_tokens))
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
    from gptlit.insight import passages
    from gptlit.predict import explain

    names = [*BeamSettings.__dataclass_fields__, "greedy", "seed", "echo"]
    unused = [f"--{name}" for name in names if options[name] != option_parser.get_default(name)]
    if unused:
        note(f"--explain prints the model's own predictions, without {', '.join(unused)}")
    for text in texts:
        warn_dropped(text, options.unknown, tokenizer)
    explained = (passages.explain(model, tokenizer, text, options.unknown) for text in texts)
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
    is_plain = options.format == "text" and options.output_file is None and not options.novelty
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
    training_text = None
    if options.novelty:
        from gptlit.data.datamodule import TextDataModule  # imports Lightning

        try:
            data = TextDataModule.load_from_checkpoint(options.ckpt_path[0])
            data.prepare_data()
        except UsageError as error:
            raise UsageError(f"needs the text of the run: {error}", "novelty") from error
        training_text = data.training_text
    scored = options.format == "jsonl"
    written = in_batches(model, tokenizer, jobs, settings, options.unknown, scored)
    with output.opened(options.output_file, output.header(options, settings, texts)) as out:
        output.write_texts(written, jobs, options, out, training_text)
