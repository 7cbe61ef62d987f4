"""Planning a study's runs before any is made, and comparing them with those that exist."""

import dataclasses
import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from gptlit.checkpoints import checkpoint
from gptlit.cli.fit import build
from gptlit.cli.lightning_warnings import quiet
from gptlit.messages import UsageError, errors_about
from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.runs import run_folder
from gptlit.runs.build import Run
from gptlit.steps import compiling
from gptlit.study.spec import Setup, Study
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import difference
from gptlit.training import resuming
from gptlit.training.logged_metrics import COMPARED_METRICS

RESULT = "result.json"  # in the folder of a complete run
DECISIVE = {"model", "data", "trainer"}  # groups of options that affect a run's results


@dataclass(frozen=True)
class Planned:
    """A run, and what is known of it before training.

    Args:
        setup: Settings and arguments of the run.
        options: All options, as in its config.yaml.
        parameters: Number of parameters of its model.
        tokens_per_step: Tokens per optimizer step.
        flops_per_token: FLOPs of training per token, forward and backward.
        text: Identity of the validation text, in JSON.
        texts: Identity of all texts that the run reads, in JSON.
        tokenizer: Tokenizer of the text.
    """

    setup: Setup
    options: dict[str, Any]
    parameters: int
    tokens_per_step: int
    flops_per_token: float
    text: str
    texts: str
    tokenizer: Tokenizer = field(compare=False)


def plan_all(study: Study, setups: Sequence[Setup]) -> list[Planned]:
    """Plan several runs; parse those that differ in the seed alone once, as parsing takes 0.5 s.

    Raises:
        UsageError: Names the run and the option.
    """
    planned: list[Planned] = []
    by_arguments: dict[Sequence[str], Planned] = {}
    for setup in setups:
        arguments = tuple(setup.arguments if setup.seed is None else setup.arguments[:-1])
        if arguments not in by_arguments:
            by_arguments[arguments] = plan(study, setup)
        first = by_arguments[arguments]
        seed = {} if setup.seed is None else {"seed_everything": setup.seed}
        planned.append(dataclasses.replace(first, setup=setup, options=first.options | seed))
    if study.teachers is not None:
        _check_tokenizers(planned)
    return planned


def _check_tokenizers(planned: Sequence[Planned]) -> None:
    """Check that all runs that learn from the first one have its tokenizer."""
    theirs = planned[0].tokenizer
    for each in planned:
        learns = each.options["model"]["teachers"]
        if learns and (found := difference(theirs, each.tokenizer, "the student")):
            raise UsageError(f"{each.setup.name}: has another tokenizer than its teachers: {found}")


def plan(study: Study, setup: Setup) -> Planned:
    """Parse a run's options and prepare its text, so that invalid ones are refused early.

    Raises:
        UsageError: Names the run and the option.
    """
    with errors_about(setup.name), quiet(), build(setup.arguments, trains=False) as run:
        _check(study, run)
        run.prepare()
        data = run.data
        described = data.describe_text()
        with torch.device("meta"):
            net = GPT(run.model.options.config(data.tokenizer.vocab_size))
        val_text = described["own_texts"].get("val")
        size = described["sizes"]["val"]["bytes"]
        return Planned(
            setup,
            yaml.safe_load(run.plan.config),
            net.num_parameters(),
            data.windows_per_step * data.block_size,
            cost.training_flops_per_token(net),
            json.dumps(val_text[1] if val_text else [described["sha256"], size]),
            _all_texts(described),
            data.tokenizer,
        )


def _check(study: Study, run: Run) -> None:
    trainer, options = run.trainer, run.options.trainer
    compiling.check(run.model.options.compile, trainer.strategy.root_device.type)
    if trainer.world_size > 1:
        raise UsageError(
            f"--trainer.devices {options.devices}: a study trains in one process; give "
            "--trainer.devices 1, or make the runs one by one by gptlit fit"
        )
    if study.metric.startswith("val/") and not run.data.has_validation:
        raise UsageError(
            f"metric: {study.metric}: there is no validation; give --data.val_fraction above 0, or "
            "metric: train/loss_eval"
        )
    if study.metric in COMPARED_METRICS and run.model.options.ema_keep != "better":
        raise UsageError(
            f"metric: {study.metric}: runs log it with --model.ema and --model.ema_keep better only"
        )
    every, steps = options.val_check_interval, trainer.max_steps
    by_steps = isinstance(every, int) and trainer.check_val_every_n_epoch is None
    if study.at == "end" and by_steps and steps > 0:
        every //= trainer.accumulate_grad_batches  # it is in batches here
        if steps > every and steps % every:
            raise UsageError(
                f"--trainer.val_check_interval {every}: the last validation would be at step "
                f"{steps // every * every} of {steps}, and ends are compared; give a divisor of "
                f"{steps}, or at: best in the study"
            )


def _all_texts(text: dict[str, Any]) -> str:
    own_texts = {split: sha256 for split, (_, sha256) in text["own_texts"].items()}
    return json.dumps({"": text["sha256"], **own_texts}, sort_keys=True)


# ---------------------------------------------------------------------- runs that exist


def is_complete(run: Path) -> bool:
    """Whether a run's folder has the result of a complete run."""
    return (run / RESULT).is_file()


def read_result(run: Path) -> dict[str, Any]:
    """Read the result of a complete run from its folder."""
    return json.loads((run / RESULT).read_text(encoding="utf-8"))


def clear_changed(planned: Sequence[Planned], folder: Path, remake: bool) -> None:
    """Refuse, or remove, runs that were made with other options.

    Raises:
        UsageError: Names the first such run, and what differs.
    """
    runs = {folder / each.setup.name: each for each in planned}
    differences = {run: _difference(each, run) for run, each in runs.items()}
    changed = {run: difference for run, difference in differences.items() if difference}
    if changed and not remake:
        run, difference = next(iter(changed.items()))
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UsageError(
            f"{run}{others}: made with other options: {difference}; --remake replaces runs that "
            "differ, --name OTHER keeps both"
        )
    for run, each in runs.items():
        if run in changed or (_learned_from(each, changed) and run.is_dir()):
            shutil.rmtree(run)


def _learned_from(planned: Planned, runs: Collection[Path]) -> bool:
    """Whether one of these runs is a teacher of a planned one."""
    paths = [Path(name) for name in planned.options["model"]["teachers"]]
    return any(path.is_relative_to(run.absolute()) for path in paths for run in runs)


def _difference(planned: Planned, run: Path) -> str:
    """Return the first difference of a planned run from the one that exists; "" for none."""
    config = run / run_folder.CONFIG
    if not config.is_file():
        if run.is_dir() and any(run.iterdir()):
            raise UsageError(f"{run}: exists and is not a run; give the study another --name")
        return ""
    before = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    for name, old, new in resuming.changed(before, planned.options, with_new=True):
        if old is not resuming.MISSING:
            return f"--{name} {json.dumps(old)}, now {json.dumps(new)}"
        if name.partition(".")[0] in DECISIVE:
            return f"--{name}, now {json.dumps(new)}, did not exist then"
    if is_complete(run) and read_result(run)["text"] != planned.text:
        return "another text"
    return "another text" if _texts_of(run) not in ("", planned.texts) else ""


def _texts_of(run: Path) -> str:
    """Return `Planned.texts` of a run that exists, "" where unknown."""
    if is_complete(run) and (texts := read_result(run).get("texts")):
        return texts
    last = run / "checkpoints" / "last.ckpt"
    try:
        return _all_texts(checkpoint.read(last)[checkpoint.KEY]["text"]) if last.is_file() else ""
    except UsageError:
        return ""  # corrupt: resuming from it reports that
