"""`gptlit data --advise`: a config for a text, by the rule in `gptlit.data.advice`.

Imports no torch.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from gptlit.data import advice, small_texts
from gptlit.data.advice import Advice, TextSize
from gptlit.data.token_file import TokenFile
from gptlit.files import configs_folder
from gptlit.terminal import count_of, duration

BASE = "small.yaml"  # has the recipe, whose sizes are replaced
DROPOUT_AT = ["embedding", "branch"]  # in attention it makes a step 0.6 times longer (LOG.md)
MINUTES = 5.0  # by default
ENOUGH = 0.9  # of the minutes: a shorter run needs a reason


def text_size(file: TokenFile) -> TextSize:
    """Return the sizes of a text by which the rule decides."""
    spans = tuple(end - first for first, end in file.spans["train"])
    return TextSize(spans, file.size("val"), file.tokenizer.vocab_size)


def config(advised: Advice, data: Mapping[str, Any], head: str) -> dict[str, dict[str, Any]]:
    """Return the advised options of `gptlit fit` by group.

    Args:
        advised: Values that replace those of BASE.
        data: Options of the text.
        head: The beginning of the text.
    """
    base = (configs_folder() / BASE).read_text(encoding="utf-8")
    options: dict[str, dict[str, Any]] = yaml.safe_load(base)
    model = options["model"]
    model |= advised.size._asdict() | {"block_size": advised.block_size}
    model |= advised.regularisation._asdict()
    if advised.regularisation.dropout:
        model["dropout_at"] = DROPOUT_AT
    model["warmup_steps"] = max(1, min(model["warmup_steps"], advised.max_steps // 10))
    options["data"] = {**data, "batch_size": advised.batch_size}
    interval = advised.val_check_interval
    options["trainer"] |= {"max_steps": advised.max_steps, "val_check_interval": interval}
    samples = options["samples"]
    samples["prompts"] = small_texts.prompts(samples["prompts"], head)
    if between := small_texts.sample_interval(0, advised.max_steps, interval):
        samples["min_interval"] = between
    return options


def explain(advised: Advice, file: TokenFile, minutes: float) -> list[str]:
    """Return lines that explain the advice.

    Args:
        minutes: Time that was given for the run.
    """
    size, text = advised.size, text_size(file)
    n_chars = sum(each["characters"] for each in file.provenance["sizes"].values())
    options = advised.regularisation._asdict().items()
    steps, windows = count_of(advised.max_steps, "step"), count_of(advised.batch_size, "window")
    if advised.minutes < ENOUGH * minutes:
        length = f"leave --minutes out of fit; more than {advice.MOST_PASSES} passes gain little"
    else:
        length = f"fit --minutes {minutes:g} adapts the number of steps to the machine"
    return [
        f"{n_chars:,} characters: {text.n_train:,} tokens to train on, {text.n_val:,} for "
        f"validation, {text.vocab_size:,} distinct ones",
        f"net: {', '.join(f'{name} {value}' for name, value in size._asdict().items())}, about "
        f"{size.n_parameters + 2 * text.vocab_size * size.n_embd:,} parameters",
        f"run: {steps} of {windows} of {advised.block_size} tokens, {advised.passes:.1f} passes; "
        f"about {duration(60 * advised.minutes)} on two CPU cores",
        f"against overfitting: {', '.join(f'{name} {value:g}' for name, value in options)}",
        f"length: {length}",
    ]


def as_yaml(options: dict[str, Any], command: str) -> str:
    """Return options as a config whose first line names the command that made it."""
    dumped = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return f"# {' '.join(command.split())}\n{dumped}"
