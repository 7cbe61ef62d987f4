"""Going on with a run under other options: what is told, refused, and counted anew."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from gptlit.messages import UsageError, opt
from gptlit.optim import optimizers
from gptlit.plain_data import in_short
from gptlit.tokenizers.base import TokenizerOptions, parse_options

MISSING = object()


def changed(
    before: Mapping[str, Any], now: Mapping[str, Any], with_new: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """The options that differ, as ("model.lr", old, new), in the order of `now`.

    What the version that saved `before` didn't have is passed by, or has MISSING as its old
    value if they come `with_new` ones.
    """
    for name, new in now.items():
        old = before.get(name, MISSING)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from ((f"{name}.{rest}", a, b) for rest, a, b in changed(old, new, with_new))
        elif old != new and (with_new or old is not MISSING):
            yield name, old, new


def check_tokenizer(
    before: Mapping[str, Any], now: Mapping[str, Any], kind: str, given: Collection[str]
) -> None:
    """Refuse options that ask for another tokenizer than a checkpoint's.

    Args:
        before: `--data` of the run that saved it; without these options where it was imported.
        now: `--data` as it is now.
        kind: Of the checkpoint's tokenizer.
        given: The options that stand beside the checkpoint.

    Raises:
        UsageError: names the option and both values.
    """
    for name in ("tokenizer", "eos"):
        old, new = before.get(name), now[name]
        if old == new or (old is None and f"data.{name}" not in given):
            continue
        if name == "tokenizer":
            wanted, was = _options(new), None if old is None else _options(old)
            # weights that a run began from, or that were imported, brought their own
            if was is None or was.kind != kind:
                old, was = kind, None
            if wanted == was or (was is None and wanted.kind == kind):
                continue
        raise UsageError(
            f"the checkpoint's model has {old or False}, which its weights can't do without; leave "
            "the option out, or begin a new run",
            f"data.{name}",
            str(new),
        )


def _options(given: str | Mapping[str, Any]) -> TokenizerOptions:
    options = TokenizerOptions(**given) if isinstance(given, Mapping) else parse_options(given)
    return replace(options, eos=False)  # an option of its own


def same_split(split: str, trained: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a split of a checkpoint's text is that of a text now, both as it describes them."""
    own, other = (text["own_texts"].get(split, [None, None])[1] for text in (trained, now))
    # spans are of tokens in one file: those of a text of its own move with the text before it
    same_text = own == other if own else other is None and trained["sha256"] == now["sha256"]
    return same_text and (own is not None or trained["spans"].get(split) == now["spans"][split])


def was_trained_on(split: str, trained: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether some of a split of a text now was trained on, both as `same_split` has them."""
    if split in now["own_texts"] or trained["sha256"] != now["sha256"]:
        return False
    return any(
        first < end and begin < last
        for first, last in now["spans"][split]
        for begin, end in trained["spans"]["train"]
    )


def forget_scores(content: dict[str, Any], monitor: str) -> None:
    """Let callbacks that compare a figure with earlier ones begin anew."""
    for key in [key for key in content["callbacks"] if f"'monitor': {monitor!r}" in key]:
        del content["callbacks"][key]


def recount(
    content: dict[str, Any], windows_per_step: int, accumulated: int, steps_per_epoch: int
) -> None:
    """Count a run's place in its epoch by batches of another size.

    Lightning counts batches, the loader windows. Where the place isn't a whole number of steps
    now, it is the one before.

    Args:
        content: Of the checkpoint, changed in place.
        windows_per_step: As it is now.
        accumulated: Batches in a step now.
        steps_per_epoch: As it is now.
    """
    if not content["global_step"]:
        return  # as Lightning's tuner saves it, before there is any place
    loops = content["loops"]["fit_loop"]
    batches, loaders = loops["epoch_loop.batch_progress"], loops["state_dict"]["combined_loader"]
    position = loaders[0]["position"]
    if (
        batches["current"]["processed"] * windows_per_step == position * accumulated
        and batches["total"]["processed"] == content["global_step"] * accumulated
    ):
        return
    steps = min(position // windows_per_step, steps_per_epoch)
    for counts, number in (
        (batches["current"], steps * accumulated),
        (batches["total"], content["global_step"] * accumulated),
    ):
        counts |= dict.fromkeys(counts, number)
    loaders[0]["position"] = steps * windows_per_step
    batches["is_last_batch"] = steps >= steps_per_epoch


def complete_batch(content: dict[str, Any]) -> None:
    """Let Lightning take a batch at whose end a checkpoint was saved for one that is over.

    Of an epoch's last batch it would take the epoch for over as well, and leave out what
    follows: the epoch's figures and sample. These are made (again), and told once.
    """
    loops = content["loops"]["fit_loop"]
    batches = loops["epoch_loop.batch_progress"]
    if batches["total"]["completed"] == batches["total"]["processed"] - 1:
        batches["total"]["completed"] += 1
        batches["current"]["completed"] += 1
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = content["global_step"]
        if batches["is_last_batch"]:
            # an epoch that was limited leaves windows over
            loops["state_dict"]["combined_loader"][0]["position"] = sys.maxsize


def check_optimizer(content: Mapping[str, Any], optimizer: str) -> None:
    """Refuse a checkpoint of a run that another optimizer trained.

    Raises:
        UsageError: names both.
    """
    before = content.get("hyper_parameters", {}).get("optimizer", "adamw")
    if before != optimizer:
        raise UsageError(
            f"the run was trained by {in_short(str(before))}, whose state is another; leave the "
            f"option out, or begin a new run from its weights by {opt('model.init_from')}",
            "model.optimizer",
            optimizer,
        )


def take_recipe(
    checkpoint: dict[str, Any], recipe: optimizers.Recipe, factor: Callable[[int], float]
) -> tuple[float, float]:
    """Let a recipe win over the one in a checkpoint's optimizer and schedule.

    Where they are the same, the values are too, bit for bit.

    Args:
        checkpoint: Changed in place.
        recipe: That of the run that goes on.
        factor: Its schedule.

    Returns:
        The learning rates of the next step, by the checkpoint and by the recipe.
    """
    groups = optimizers.group_options(recipe)
    (scheduler,) = checkpoint["lr_schedulers"]
    (optimizer,) = checkpoint["optimizer_states"]
    before = scheduler["_last_lr"][-1]
    rates = [group["lr"] * factor(scheduler["last_epoch"]) for group in groups]
    scheduler |= {"base_lrs": [group["lr"] for group in groups], "_last_lr": rates}
    for old, new, rate in zip(optimizer["param_groups"], groups, rates, strict=True):
        old |= {**new, "initial_lr": new["lr"], "lr": rate}
    return before, rates[-1]
