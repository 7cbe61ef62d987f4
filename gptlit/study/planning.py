"""A study's runs before they are made: all that is known of them, and what is there already."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from gptlit.checkpoints import checkpoint
from gptlit.cli.fit import GptlitCLI
from gptlit.cli.lightning_warnings import quiet
from gptlit.messages import UsageError
from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.runs import run_folder
from gptlit.study.spec import Setup, Study
from gptlit.training import compiling, resuming

RESULT = "result.json"  # in the folder of a run that came to its end
DECISIVE = {"model", "data", "trainer"}  # groups of options that change what a run finds


@dataclass(frozen=True)
class Planned:
    """A run of which all is known but what it finds.

    Args:
        setup: The run.
        options: All options of it, as its config.yaml would have them.
        parameters: Of its model.
        tokens_per_step: What an optimizer step sees.
        flops_per_token: Of training, forward and backward.
        text: Which text it is validated on.
        texts: All texts that it reads.
    """

    setup: Setup
    options: dict[str, Any]
    parameters: int
    tokens_per_step: int
    flops_per_token: float
    text: str
    texts: str


def plan_all(study: Study, setups: Sequence[Setup]) -> list[Planned]:
    """`plan` of each; those that differ in the seed alone are parsed once, at half a second each.

    Raises:
        UsageError: names the run and the option.
    """
    planned: list[Planned] = []
    first: dict[Sequence[str], Planned] = {}
    for setup in setups:
        words = tuple(setup.words if setup.seed is None else setup.words[:-1])
        if words not in first:
            first[words] = plan(study, setup)
        options = dict(first[words].options)
        if setup.seed is not None:
            options["seed_everything"] = setup.seed
        planned.append(dataclasses.replace(first[words], setup=setup, options=options))
    return planned


def plan(study: Study, setup: Setup) -> Planned:
    """Parse the options of a run, and read its text, so that what can't work is refused.

    Raises:
        UsageError: names the run and the option.
    """
    found: list[Planned] = []

    def look(cli: GptlitCLI) -> None:
        _check(study, cli)
        cli.prepare()
        text = cli.datamodule
        described = text.describe_text()
        config = {**vars(cli.model.config), "vocab_size": text.tokenizer.vocab_size}
        with torch.device("meta"):
            net = GPT(type(cli.model.config)(**config))
        found.append(
            Planned(
                setup,
                yaml.safe_load(cli.options_as_yaml),
                net.num_parameters(),
                text.windows_per_step * text.block_size,
                cost.training_flops_per_token(net),
                _validated_on(described),
                _texts(described),
            )
        )

    try:
        with quiet(), contextlib.ExitStack() as held:
            GptlitCLI("fit", setup.words, held, look=look)
    except UsageError as error:
        raise UsageError(f"{setup.name}: {error}") from error
    return found[0]


def _check(study: Study, cli: GptlitCLI) -> None:
    trainer, options = cli.trainer, cli.options.trainer
    compiling.check(cli.model.compile_option, trainer.strategy.root_device.type)
    if trainer.world_size > 1:
        raise UsageError(
            f"--trainer.devices {options.devices}: a study's runs are of one process each; give "
            "--trainer.devices 1, or make them one by one by gptlit fit"
        )
    if study.metric.startswith("val/") and not cli.datamodule.has_validation:
        raise UsageError(
            f"metric: {study.metric}: there is no validation; give --data.val_fraction above 0, or "
            "metric: train/loss_eval"
        )
    every, steps = options.val_check_interval, trainer.max_steps
    by_steps = isinstance(every, int) and trainer.check_val_every_n_epoch is None
    if study.at == "end" and by_steps and steps > 0:
        every //= trainer.accumulate_grad_batches  # which is counted in batches by now
        if steps > every and steps % every:
            raise UsageError(
                f"--trainer.val_check_interval {every}: the last validation would be at step "
                f"{steps // every * every} of {steps}, and ends are compared; give a divisor of "
                f"{steps}, or at: best in the study"
            )


def _validated_on(text: dict[str, Any]) -> str:
    own = text["own_texts"].get("val")
    return json.dumps(own[1] if own else [text["sha256"], text["sizes"]["val"]["bytes"]])


def _texts(text: dict[str, Any]) -> str:
    own = {split: sha256 for split, (_, sha256) in text["own_texts"].items()}
    return json.dumps({"": text["sha256"], **own}, sort_keys=True)


# ---------------------------------------------------------------------- what is there


def is_result(place: Path) -> bool:
    return (place / RESULT).is_file()


def result(place: Path) -> dict[str, Any]:
    return json.loads((place / RESULT).read_text(encoding="utf-8"))


def clear_changed(planned: Sequence[Planned], folder: Path, remake: bool) -> None:
    """Refuse, or remove, runs that were made with other options.

    Raises:
        UsageError: names the first, and what differs.
    """
    changed: dict[Path, str] = {}
    for each in planned:
        place = folder / each.setup.name
        if difference := _difference(each, place):
            changed[place] = difference
    if changed and not remake:
        place, difference = next(iter(changed.items()))
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UsageError(
            f"{place}{others}: made with other options: {difference}; --remake makes anew what "
            "differs, --name OTHER keeps both"
        )
    for place in changed:
        shutil.rmtree(place)


def _difference(planned: Planned, place: Path) -> str:
    """What a run that is there, or was begun, was made with otherwise."""
    config = place / run_folder.CONFIG
    if not config.is_file():
        if place.is_dir() and any(place.iterdir()):
            raise UsageError(f"{place}: is there, and is no run; name another study by --name")
        return ""
    before = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    for name, old, new in resuming.changed(before, planned.options, with_new=True):
        if old is not resuming.MISSING:
            return f"--{name} {json.dumps(old)}, now {json.dumps(new)}"
        if name.partition(".")[0] in DECISIVE:
            return f"--{name}, now {json.dumps(new)}, was not there yet"
    if is_result(place) and result(place)["text"] != planned.text:
        return "another text"
    return "another text" if _texts_of(place) not in ("", planned.texts) else ""


def _texts_of(place: Path) -> str:
    """As `Planned.texts` of a run that is there, "" where unknown."""
    if is_result(place) and (texts := result(place).get("texts")):
        return texts
    last = place / "checkpoints" / "last.ckpt"
    try:
        return _texts(checkpoint.read(last)[checkpoint.KEY]["text"]) if last.is_file() else ""
    except UsageError:
        return ""  # damaged: going on with it tells of that
