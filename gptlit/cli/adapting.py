"""Adapts options of a new run to its text, where the user did not set them."""

import functools
import math
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from jsonargparse import Namespace

from gptlit.corpora.cleaning import CleaningOptions
from gptlit.data import small_texts
from gptlit.data.datamodule import TextDataModule
from gptlit.messages import UsageError, opt
from gptlit.runs import time_budget
from gptlit.runs.time_budget import Measured
from gptlit.terminal import count_of
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions


@dataclass
class Adapted:
    """The changes to a run's options.

    Args:
        changes: A line for each changed option.
        expectation: Short lines on what a model of such a text can learn.
    """

    changes: list[str] = field(default_factory=list)
    expectation: list[str] = field(default_factory=list)

    def change(self, options: Namespace, name: str, value: Any) -> None:
        """Set an option, such as model.block_size, and add a line if its value is new."""
        self.changes += small_texts.changed(name, options[name], value)
        options[name] = value

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Rows of names and values for the start-up block."""
        groups = {"adapted": self.changes, "expect": self.expectation}
        return [
            ("" if index else name, line)
            for name, lines in groups.items()
            for index, line in enumerate(lines)
        ]


def adapt(options: Namespace, chosen: Collection[str], tokenizer: Tokenizer | None) -> Adapted:
    """Adapt options that the user didn't give to the text, where the user chose the text.

    Prompts that don't occur in the text are replaced by its beginning. For a text of fewer than
    SMALL_CHARS characters, `small_texts` chooses the validation fraction, block size, batch size
    and validation interval.

    Args:
        options: Options of `fit`, changed in place.
        chosen: Names of the options that the user gave; they are not changed.
        tokenizer: Tokenizer of the weights that the run begins from, if any.

    Raises:
        UsageError: The text is too short for any block size, or can't be read.
    """
    adapted = Adapted()
    if not {"data.path", "data.corpus"} & set(chosen):
        return adapted
    text = _data_module(options, tokenizer).load_text()
    head = small_texts.beginning(text)
    if not head.strip():
        return adapted  # preparing the text reports that it is empty
    if len(head) < small_texts.SMALL_CHARS:
        _adapt_sizes(options, chosen, tokenizer, head, adapted)
    if "samples.prompts" not in chosen:
        prompts = small_texts.prompts(options.samples.prompts, head)
        adapted.change(options, "samples.prompts", prompts)
    return adapted


def adapt_length(
    options: Namespace, given: Collection[str], adapted: Adapted, measured: Measured
) -> str:
    """Set the number of steps that fits `minutes`, and scale what is stated for another number.

    The warmup gets shorter with the run, but not longer.

    Args:
        options: Options of `fit`, changed in place.
        given: Names of the options on the command line, which are not changed.
        adapted: Takes the changes.
        measured: Seconds that parts of the run take.

    Returns:
        A line that describes the choice.

    Raises:
        UsageError: The time is too short for one step.
    """
    trainer, change = options.trainer, functools.partial(adapted.change, options)
    before, interval = max(0, trainer.max_steps), trainer.val_check_interval
    by_steps = isinstance(interval, int) and trainer.check_val_every_n_epoch is None
    if not by_steps:
        epochs = trainer.check_val_every_n_epoch or 1
        share = interval if isinstance(interval, float) else 1
        interval = max(1, round(epochs * share * measured.steps_per_epoch))
    keeps = not by_steps or "trainer.val_check_interval" in given
    length = time_budget.fitting(options.minutes, measured, before, interval, keeps_interval=keeps)
    change("trainer.max_steps", length.n_steps)
    change("trainer.max_epochs", -1)
    if not keeps:
        change("trainer.val_check_interval", length.interval)
    ratio = length.n_steps / (before or length.n_steps)
    for name, most in (
        ("model.warmup_steps", 1.0),
        ("model.decay_steps", math.inf),
        ("samples.min_interval", math.inf),
    ):
        if name not in given and options[name]:
            change(name, max(1, round(options[name] * min(ratio, most))))
    chosen = f"{count_of(length.n_steps, 'step')} of {measured.step * 1e3:.1f} ms"
    if measured.validation:
        each = f"{measured.validation:.2g} s"
        chosen += f" and {count_of(length.n_validations, 'validation')} of {each}"
    return f"{opt('minutes')} {options.minutes:g}: {chosen}"


def _adapt_sizes(
    options: Namespace,
    chosen: Collection[str],
    tokenizer: Tokenizer | None,
    head: str,
    adapted: Adapted,
) -> None:
    model, data, trainer = options.model, options.data, options.trainer
    change = functools.partial(adapted.change, options)
    if not {"data.val_fraction", "data.val_path"} & set(chosen):
        change("data.val_fraction", small_texts.val_fraction(data.val_fraction, len(head)))
    module = _data_module(options, tokenizer)
    module.setup("validate")  # makes the token file, without notes
    n_val = module.tokens.size("val") if module.has_validation else None
    batches_per_step = _n_processes(trainer) * trainer.accumulate_grad_batches
    min_windows = batches_per_step * (data.batch_size if "data.batch_size" in chosen else 1)
    if "model.block_size" not in chosen:

        def fitting(min_windows: int) -> int | None:
            return small_texts.block_size(
                model.block_size, lambda size: module.order_of(size).n_windows, n_val, min_windows
            )

        # a batch size given by the user that is too large is reported by the data module
        size = fitting(min_windows) or fitting(1)
        if size is None:
            raise _too_short(module, chosen)
        change("model.block_size", size)
        data.block_size = size
    n_windows = module.order_of(model.block_size).n_windows
    if "data.batch_size" not in chosen:
        size = small_texts.batch_size(data.batch_size, n_windows, batches_per_step)
        change("data.batch_size", size)
    steps_per_epoch = max(1, n_windows // (batches_per_step * data.batch_size))
    limits = (trainer.max_steps, (trainer.max_epochs or 0) * steps_per_epoch)
    n_steps = min((limit for limit in limits if limit > 0), default=0)
    every = trainer.val_check_interval
    by_steps = isinstance(every, int) and trainer.check_val_every_n_epoch is None
    if by_steps and "trainer.val_check_interval" not in chosen:
        every = small_texts.val_check_interval(every, n_steps, steps_per_epoch)
        change("trainer.val_check_interval", every)
        if "samples.min_interval" not in chosen:
            between = small_texts.sample_interval(options.samples.min_interval, n_steps, every)
            change("samples.min_interval", between)
    n_epochs = n_steps / steps_per_epoch if n_steps else None
    n_bytes = sum(sizes["bytes"] for sizes in module.tokens.provenance["sizes"].values())
    adapted.expectation = small_texts.expectation(n_bytes, n_epochs)


def _too_short(module: TextDataModule, chosen: Collection[str]) -> UsageError:
    name, n_val = module.tokens.provenance["name"], module.tokens.size("val")
    advice = f"give a text of {small_texts.LEAST_CHARS} characters or more"
    if "data.val_path" in chosen:
        advice = "give longer texts"
    elif "data.val_fraction" in chosen:
        advice += f", or leave {opt('data.val_fraction')} out"
    return UsageError(
        f"{module.load_text().option} {name}: is too short, with {module.n_train_tokens} tokens to "
        f"train on and {n_val} for validation; {advice}"
    )


def _data_module(options: Namespace, tokenizer: Tokenizer | None) -> TextDataModule:
    arguments = options.data.as_dict() | {"block_size": options.model.block_size}
    arguments["cleaning"] = CleaningOptions(**arguments["cleaning"])
    if isinstance(arguments["tokenizer"], dict):
        arguments["tokenizer"] = TokenizerOptions(**arguments["tokenizer"])
    module = TextDataModule(**arguments)
    if tokenizer is not None:
        module.use_tokenizer(tokenizer)
    return module


def _n_processes(trainer: Namespace) -> int:
    """Return the number of processes of a run, from its Trainer options and the launcher."""
    if launched := os.environ.get("WORLD_SIZE"):
        return int(launched)
    devices = trainer.devices
    if isinstance(devices, str) and devices.removeprefix("-").isdigit():
        devices = int(devices)
    if isinstance(devices, str) and "," in devices:
        devices = [device for device in devices.split(",") if device]
    if isinstance(devices, list):
        devices = len(devices)
    if not isinstance(devices, int) or devices < 1:
        on_gpu = trainer.accelerator in ("auto", "gpu", "cuda")
        devices = max(1, torch.cuda.device_count()) if on_gpu else 1
    return devices * trainer.num_nodes
