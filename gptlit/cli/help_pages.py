"""The pages that `gptlit VERB --help`, `--help all` and `--help GROUP` print.

Names, types, defaults and texts of the options come from help_options.json, so that a page needs
neither torch nor Lightning. `make help-pages` writes that file from the parsers themselves.
"""

import dataclasses
import importlib.resources
import itertools
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from gptlit.files import configs_folder
from gptlit.messages import UsageError, did_you_mean
from gptlit.terminal import columns, folded, format_value

OPTIONS = "help_options.json"
ALL = "all"
WIDEST = 100  # columns of a page
BESIDE = 72  # columns from which a text stands beside its option, rather than below it
INDENT = 28  # columns of an option that has its text beside it
UNBROKEN = "\xa0"  # a space at which no line is broken

# texts of options that replace those of Lightning, which describe its own defaults
TEXTS = {
    "config": "A YAML file of options: a path, or the name of a shipped config such as "
    "small.yaml. Several configs may be given; the later ones win, and options on the command "
    "line win over all of them.",
    "ckpt_path": "A checkpoint to resume: a path, or last or best of the newest run. Its model, "
    "text and options are used; options given alongside it win.",
    "seed_everything": "Seed of the weights, the order of the windows and dropout; true draws one.",
    "print_config": "Print all options as a config, and exit; --print_config=skip_default leaves "
    "out the options that have their default.",
    "trainer.max_steps": "Stop after this many optimizer steps; -1 for no limit.",
    "trainer.max_epochs": "Stop after this many epochs; -1 for no limit.",
    "trainer.max_time": "Stop after this time, as DD:HH:MM:SS.",
    "trainer.val_check_interval": "Optimizer steps between two validations; a fraction such as "
    "0.5 is a share of an epoch.",
    "trainer.check_val_every_n_epoch": "Epochs between two validations; left out, "
    "val_check_interval counts steps across epochs.",
    "trainer.num_sanity_val_steps": "Validation batches to try before training; -1 for all.",
    "trainer.fast_dev_run": "Run this many batches of training and validation, and save nothing; "
    "true for 1.",
    "trainer.log_every_n_steps": "Steps between two rows of the metrics.",
    "trainer.accelerator": "cpu, gpu, mps, tpu, or auto for the best one there is.",
    "trainer.devices": "How many devices to use, a list of their indices, or auto for all GPUs.",
    "trainer.strategy": "How devices share the work: auto, ddp, fsdp and so on, or a class.",
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, bf16-true and so on; left out, mixed on a "
    "CUDA GPU (bf16-mixed if it has bfloat16), else 32-true.",
    "trainer.gradient_clip_val": "Largest norm of the gradient; larger ones are scaled down.",
    "trainer.accumulate_grad_batches": "Batches whose gradients are added up for one step.",
    "trainer.logger": "Loggers in addition to metrics.csv and TensorBoard's event files; false "
    "for none at all.",
    "trainer.callbacks": "Callbacks of Lightning or your own, in addition to gptlit's.",
    "trainer.enable_checkpointing": "Save checkpoints; left out, it is true.",
    "trainer.enable_model_summary": "Print Lightning's table of the model's layers.",
    "trainer.enable_progress_bar": "Show a progress bar; left out, only in a terminal.",
    "trainer.default_root_dir": "Folder in which lightning_logs/version_N is made; the current "
    "one when left out.",
}
EVALUATED = (
    "A checkpoint to evaluate: a path, or best (the default) or last of the newest run. Its "
    "model, text and options are used; options of model and data given alongside it win."
)


@dataclasses.dataclass(frozen=True)
class Page:
    """The contents of a verb's page.

    Args:
        usage: What follows the verb.
        names: Options that the page shows, separated by whitespace.
        example: A command line and what it does.
        notes: Paragraphs below the options.
        of: Verb that has the options, where it isn't this one.
    """

    usage: str
    names: str
    example: str
    notes: tuple[str, ...] = ()
    of: str = ""


STUDY = {
    "STUDY.yaml": "A study file: a path, or the name of a shipped study.",
    "--name NAME": "Write the runs to lightning_logs/NAME; by default the file's name.",
    "--dry_run": "List the runs without training them.",
    "--remake": "Replace runs that were made with other options; without it they are refused.",
}
STUDY_NOTES = (
    "Options of gptlit fit, such as --trainer.max_steps 50, apply to all runs and override the "
    "file's. The same command again resumes a stopped study: complete runs are kept, and an "
    "interrupted run is resumed at its last step.",
    "Shipped studies: {studies}.",
)
NOTE_ON_GROUPS = (
    "A group, such as --trainer or --model, takes a YAML file of its options. "
    "--trainer.callbacks.help NAME shows the options of a class, and so do the other options that "
    "take a CLASS."
)
EVALUATION = """
    ckpt_path config trust_checkpoint
    data.path data.corpus data.val_path data.test_path data.val_fraction data.test_fraction
    data.batch_size data.data_dir
    model.block_size
    trainer.accelerator trainer.devices trainer.precision trainer.enable_progress_bar
"""
PAGES = {
    "fit": Page(
        "[CONFIG|TEXT|CHECKPOINT] [OPTIONS]",
        """
        config ckpt_path preflight lr_find minutes early_stopping.patience
        data.path data.corpus data.tokenizer data.batch_size data.val_fraction
        model.n_layer model.n_head model.n_embd model.block_size model.dropout
        model.init_from model.lr model.optimizer
        trainer.max_steps trainer.val_check_interval trainer.devices
        samples.prompts
        """,
        "gptlit fit --data.path my.txt --model.n_layer 6 --trainer.max_steps 2000",
        ("Without a config, small.yaml is used, and its values replace the defaults.",),
    ),
    "predict": Page(
        "[PROMPT|CHECKPOINT] [OPTIONS]",
        """
        ckpt_path prompt prompt_file lines interactive
        temperature top_k top_p min_p repetition_penalty greedy seed
        max_new_tokens stop num_samples num_beams
        format output_file sweep explain
        """,
        'gptlit predict --prompt "ROMEO:" --temperature 0.8 --num_samples 3',
        (
            "Any --trainer option (gptlit fit --help all lists them) writes through Lightning's "
            "Trainer, for instance on several devices.",
        ),
    ),
    "serve": Page(
        "[CHECKPOINT] [OPTIONS]",
        """
        checkpoint adapter host port max_tokens max_prompt max_requests
        api_key allow_origin allow_host drain weights device threads
        """,
        "gptlit serve best --port 8000",
    ),
    "validate": Page("[CHECKPOINT|TEXT] [OPTIONS]", EVALUATION, "gptlit validate --ckpt_path best"),
    "test": Page(
        "[CHECKPOINT|TEXT] [OPTIONS]",
        EVALUATION,
        "gptlit test --ckpt_path best --data.test_path other.txt",
    ),
    "summary": Page(
        "[CONFIG|TEXT|CHECKPOINT] [OPTIONS]",
        """
        config ckpt_path
        data.path data.corpus data.tokenizer data.batch_size
        model.n_layer model.n_head model.n_kv_head model.n_embd model.block_size model.mlp_ratio
        model.positions model.norm model.activation model.tie_weights model.init_from
        model.optimizer
        trainer.max_steps trainer.accumulate_grad_batches trainer.precision
        """,
        "gptlit summary --config medium.yaml --model.n_embd 512",
        ("All options of gptlit fit are accepted; nothing is trained.",),
        of="fit",
    ),
    "data": Page(
        "[TEXT|list] [OPTIONS]",
        """
        text advise minutes tokenizer tokenize jsonl_field column encoding eos
        cleaning.gutenberg cleaning.collapse_blank_lines cleaning.paragraphs cleaning.min_words
        cleaning.drop_duplicates
        val_fraction test_fraction split_by data_dir
        """,
        'gptlit data my.txt --tokenizer "[char, bpe:1024]"',
    ),
    "study": Page("STUDY.yaml [OPTIONS]", "", "gptlit study sizes", STUDY_NOTES),
    "runs": Page(
        "[FOLDER...] [OPTIONS]",
        "folders sort reverse config format",
        "gptlit runs --sort best",
        (
            "The config of a run is the shipped one from which its options differ least. Minutes "
            "are those of training steps, without validations.",
        ),
    ),
    "plot": Page(
        "[RUN...] [OPTIONS]",
        "runs output x smooth log lr columns theme",
        "gptlit plot version_0 version_1 --output loss.png",
    ),
    "compare": Page(
        "RUN RUN... [OPTIONS]",
        "runs output x prompt max_new_tokens temperature seed theme",
        "gptlit compare version_0 version_1 --output report.html",
        (
            "The sample texts are written by each run's best checkpoint with the same seed; those "
            "of a run without one are the last ones in its samples.txt.",
        ),
    ),
    "look": Page(
        "[CHECKPOINT] [OPTIONS]",
        "checkpoint prompt prompt_file output unknown theme",
        'gptlit look --prompt "To be, or not to be" --output look.html',
        (
            "The page is one file that loads nothing else. It shows a text of up to 256 tokens, "
            "and of fewer where a model has many heads.",
        ),
    ),
    "import": Page(
        "SOURCE WEIGHTS [META] [OPTIONS]",
        "source weights meta output data_dir",
        "gptlit import nanogpt out/ckpt.pt data/meta.pkl --output nano.ckpt",
    ),
    "merge": Page(
        "CHECKPOINT OUTPUT [OPTIONS]",
        "checkpoint output adapter",
        "gptlit merge best merged.ckpt",
    ),
    "export": Page(
        "CHECKPOINT FOLDER [OPTIONS]",
        "checkpoint folder format dtype push public",
        "gptlit export best my-model --format gguf --dtype q8_0",
    ),
}


def asked(verb: str, words: Sequence[str]) -> str | None:
    """Return which page the words after a verb ask for.

    Returns:
        "all", a group of options, "" for the short page, or None for no page.

    Raises:
        UsageError: Neither "all" nor a group follows --help.
    """
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in ("-h", "--help"):
            following = itertools.takewhile(lambda each: each[:1] != "-", words[index + 1 :])
            which = value if equals else " ".join(following)
            pages = {each.lower(): each for each in ("", *groups_of(verb), ALL)}
            if which.lower() not in pages:
                listed = ", ".join(filter(None, pages.values()))
                advice = did_you_mean(which, pages.values())
                raise UsageError(f"must be one of {listed}, or nothing.{advice}", "help", which)
            return pages[which.lower()]
    return None


def groups_of(verb: str) -> list[str]:
    """Return the groups of a verb's options, in their order."""
    return list(dict.fromkeys(option["group"] for option in options_of(PAGES[verb].of or verb)))


def options_of(verb: str) -> list[dict[str, Any]]:
    """Return the options of a verb in their order: name, group, type, default and help."""
    if verb == "study":  # has no parser of its own
        option = {"group": "options", "type": "", "default": None}
        return [{"name": flag, "flag": flag, **option, "help": STUDY[flag]} for flag in STUDY]
    file = importlib.resources.files("gptlit.cli") / OPTIONS
    verbs = json.loads(file.read_text(encoding="utf-8"))
    shared = {option["name"]: option for option in verbs["fit"]}
    options = [shared[each] if isinstance(each, str) else each for each in verbs[verb]]
    texts = {**TEXTS, "ckpt_path": TEXTS["ckpt_path"] if verb == "fit" else EVALUATED}
    if "trainer.max_steps" not in {option["name"] for option in options}:
        return options  # none of Lightning's
    return [{**option, "help": texts.get(option["name"], option["help"])} for option in options]


def text(verb: str, about: str, which: str, width: int | None = None) -> str:
    """Return a page.

    Args:
        verb: Verb of `PAGES`.
        about: What the verb does.
        which: "all", a group of options, or "" for the short page.
        width: Columns of the page; by default those of the terminal, 100 at most.
    """
    page, width, is_short = PAGES[verb], width or min(WIDEST, columns() - 1), not which
    options = {option["name"]: option for option in options_of(page.of or verb)}
    names = page.names.split() if is_short and page.names else options
    shown = [options[name] for name in names if which in ("", ALL, options[name]["group"])]
    groups = dict.fromkeys(option["group"] for option in shown)
    parts = [
        f"usage: gptlit {verb} {page.usage}",
        _filled(f"{about[:1].upper()}{about[1:]}.", width),
        *(_group(name, shown, width, not is_short) for name in groups),
        *(_filled(note.format(studies=_studies()), width) for note in page.notes),
        f"example:\n{folded(f'  {page.example}', width)}",
    ]
    if which == ALL and "model.lr" in options:
        parts.append(_filled(NOTE_ON_GROUPS, width))
    elif len(shown) < len(options):
        one_group = f"\nThose of a group: gptlit {verb} --help {next(iter(groups))}"
        parts.append(f"All options: gptlit {verb} --help {ALL}{one_group if is_short else ''}")
    return "\n\n".join(parts)


def _group(name: str, options: Sequence[dict[str, Any]], width: int, whole: bool) -> str:
    entries = (_entry(option, width, whole) for option in options if option["group"] == name)
    return "\n".join([f"{name}:", *itertools.chain.from_iterable(entries)])


def _entry(option: dict[str, Any], width: int, whole: bool) -> list[str]:
    """Return the lines of an option: name and type, and its text beside or below them."""
    flag = option.get("flag", f"--{option['name']}")
    head = f"  {flag} {option['type']}".rstrip()
    heads = [head] if len(head) <= width else [f"  {flag}", f"    {option['type']}"]
    about = option["help"] if whole else re.split(r"(?<=\.) (?=[A-Z`])", option["help"])[0]
    about = " ".join(filter(None, (about, _default(option))))
    if width < BESIDE:
        return [*heads, *_filled(about, width, " " * 6).splitlines()]
    lines = _filled(about, width, " " * INDENT).splitlines()
    if len(head) > INDENT - 2:
        return [*heads, *lines]
    return [head.ljust(INDENT) + lines[0][INDENT:], *lines[1:]]


def _default(option: dict[str, Any]) -> str:
    values = {"default": option["default"], "small.yaml": option.get("small.yaml")}
    shown = [
        f"{name}: " + (format_value(value) or '""')
        for name, value in values.items()
        if value is not None
    ]
    return f"[{', '.join(shown)}]".replace(" ", UNBROKEN) if shown else ""


def _filled(text: str, width: int, indent: str = "") -> str:
    filled = textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(UNBROKEN, " ")


def _studies() -> str:
    return ", ".join(sorted(path.stem for path in (configs_folder() / "studies").glob("*.yaml")))
