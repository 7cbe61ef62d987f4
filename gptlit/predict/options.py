"""The options of `gptlit predict`: parser, checks, and the settings that follow from them."""

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from jsonargparse import ActionYesNo, Namespace

from gptlit.cli.arguments import add_option_names, option_of_predict
from gptlit.corpora import examples
from gptlit.devices import choice, cpus
from gptlit.generation.settings import BeamSettings
from gptlit.messages import UsageError, opt
from gptlit.parser import OneLineErrors, text_of, with_environment
from gptlit.predict import modes
from gptlit.predict.modes import Format, Mode
from gptlit.predict.output import check_output_file
from gptlit.tokenizers.base import Unknown

ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
NO_LIMIT = "only a single text, written as it is drawn, may be without a limit; give a number"
Weights = Literal["auto", "float32", "int8"]


def parser() -> OneLineErrors:
    """Make the parser of `gptlit predict` on one device."""
    options = OneLineErrors(
        prog="gptlit predict",
        description="Write text with a trained model. --trainer.* options (see `gptlit fit "
        "--help`) write through Lightning's Trainer, for instance on several devices.",
        allow_abbrev=False,
    )

    def add(name: str, about: str, type_: Any = str, default: Any = None, **how: Any) -> None:
        options.add_argument(name, type=type_, default=default, help=about, **how)

    def add_switch(name: str, about: str, default: bool = False) -> None:
        options.add_argument(name, action=ActionYesNo, nargs="?", default=default, help=about)

    add(
        "--ckpt_path",
        "A checkpoint, or best (the default) or last of the newest run. Given several times, or as "
        "a run's folder, for a table that compares the checkpoints.",
        action="append",
    )
    add(
        "--ensemble",
        "Several checkpoints with the same tokenizer that write together, instead of --ckpt_path: "
        "the mean of their probabilities.",
        nargs="+",
    )
    add("--adapter", "Folder of a LoRA adapter (peft's format) to add to the checkpoint's model.")
    add(
        "--prompt",
        "Text to continue; may be repeated. An empty one starts from the end of sequence, else a "
        "newline, else the first token, whichever the model has.",
        action="append",
    )
    add("--prompt_file", "File with the prompt; - is standard input.")
    add_switch("--lines", "Each line of --prompt_file is a prompt.")
    options.add_class_arguments(BeamSettings, skip={"stop", "ban", "num_samples"})
    escapes = r" \n, \t and \\ are a line break, a tab and a backslash."
    stop = "String that ends the text and is not part of it; may be repeated." + escapes
    add("--stop", stop, action="append")
    ban = "Token that is never written; may be repeated." + escapes
    add("--ban", ban, action="append")
    add_switch("--greedy", "The same as --temperature 0.")
    add(
        "--num_samples",
        "Number of texts for each prompt; for a beam search, the best ones.",
        int,
        1,
    )
    add(
        "--seed",
        "Sample i is the text that --seed seed+i alone writes; a beam search ignores it.",
        int,
        1337,
    )
    unknown = f"Characters that the model does not know: {' or '.join(get_args(Unknown))} them."
    add("--unknown", unknown, Unknown, "error")
    add_switch("--echo", "Also write the prompt.", True)
    add(
        "--format",
        "text, or jsonl: a line for each text, with each token's log probability and entropy, and "
        "a beam search's score. Tables of --sweep and of several checkpoints also as markdown.",
        Format,
        "text",
    )
    add(
        "--weights",
        "float32, as in training; int8, rounded to 8 bits, which a CPU multiplies faster; or auto: "
        "int8 where it is faster, on a CPU with AMX, VNNI or ARM's dot product and for layers of "
        "about 300 channels or more, else float32, as for tables and --explain.",
        Weights,
        "auto",
    )
    add(
        "--device",
        f"{choice.NAMES}. auto: a GPU where it is sooner, by an estimate from the sizes of model "
        "and texts, since starting one takes seconds; else the CPU.",
        str,
        choice.AUTO,
    )
    add("--threads", cpus.THREADS_HELP, int, 0)
    add("--output_file", "File to write to; begins with the settings.")
    add(
        "--sweep",
        "Print a table of the same prompt with all combinations of values, for instance --sweep "
        "temperature=0.5,0.8,1.2 top_k=5,none.",
        nargs="+",
        action="append",
    )
    add_switch(
        "--novelty",
        "Compare the texts with the training text, which must still be there: put copies of 50 and "
        "more characters in [[ ]], and print the share of stretches of 32 characters that are no "
        "copies, and the length of the longest copy.",
    )
    explain = "Print the probability and rank of each token of the prompt; write nothing."
    add_switch("--explain", explain)
    chat = (
        "Prompts are questions: write answers by the template of data.format chat, up to their "
        "end; with --interactive, in a conversation."
    )
    add_switch("--chat", chat)
    add_switch(
        "--interactive", "Type prompts one after another; /help shows how to change settings."
    )
    return options


def parse(option_parser: OneLineErrors, argv: Sequence[str]) -> tuple[Namespace, Mode]:
    """Parse arguments and environment variables, and choose the mode.

    Raises:
        UsageError: An invalid option, or options that exclude each other.
    """
    switches, lists = option_parser.options_of_nargs("?"), option_parser.options_of_nargs("+")
    words = add_option_names(argv, option_of_predict, switches, lists)
    options = option_parser.parse_args(with_environment("predict", words))
    unescape(options)
    cpus.check_threads(options.threads)
    if options.ckpt_path and options.ensemble:
        raise UsageError(f"excludes {opt('ckpt_path')}; leave one out", "ensemble")
    options.ckpt_path = options.ckpt_path or ["best"]
    mode = modes.choose(options, option_parser)
    if options.chat:
        options.stop, options.echo = [*(options.stop or []), examples.STOP], False
    if options.weights == "auto" and mode in ("sweep", "explain"):
        options.weights = "float32"  # figures are those of the model as it was trained
    if options.output_file is not None:
        check_output_file(options.output_file)
    return options, mode


def unescape(options: Namespace) -> None:
    r"""Replace \n, \t and \\ in the strings that texts are compared with."""

    def unescaped(text: str) -> str:
        return re.sub(r"\\([nt\\])", lambda match: ESCAPES[match[1]], text)

    for name in ("stop", "ban"):
        options[name] = options[name] and [unescaped(each) for each in options[name]]
    options.force = unescaped(options.force)


def sampling_settings(options: Namespace) -> BeamSettings:
    """Make and check the settings of sampling or beam search; --greedy sets temperature 0.

    Raises:
        UsageError: An invalid value.
    """
    values = {name: options[name] for name in BeamSettings.__dataclass_fields__}
    values |= {name: values[name] or [] for name in ("stop", "ban")}
    for name in ("stop", "ban", "force"):
        text_of(opt(name), "".join(values[name]))
    if options.greedy:
        values["temperature"] = 0.0
    settings = BeamSettings(**values)
    if options.num_samples < 1:
        raise UsageError("must be 1 or more", "num_samples", options.num_samples)
    if not 0 <= options.seed < 2**63 - options.num_samples:
        raise UsageError("must be 0 or more, and below 2^63", "seed", options.seed)
    if settings.max_new_tokens is None and (
        options.num_samples > 1 or options.format == "jsonl" or options.output_file
    ):
        raise UsageError(NO_LIMIT, "max_new_tokens", None)
    return settings
