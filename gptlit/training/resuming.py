"""Resuming a run with other options: which are refused, and how the saved state is adapted."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import lightning as L
from torch import Tensor

from gptlit.checkpoints import checkpoint
from gptlit.data.datamodule import TextDataModule
from gptlit.messages import UsageError, note, opt
from gptlit.model import lora
from gptlit.model.config import GPTConfig
from gptlit.optim import optimizers
from gptlit.optim.ema import Average
from gptlit.plain_data import in_short
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions, parse_options
from gptlit.training import loop_state, run_length
from gptlit.training.saved_state import AVERAGED

MISSING = object()
# options that a checkpoint's weights don't depend on, so that a resumed run may change them
NOT_IN_WEIGHTS = (
    *("vocab_size", "dropout", "dropout_at", "token_dropout", "token_noise", "lora_dropout"),
    *("attention", "activation_checkpointing", "init", "zero_init"),
)

# ---------------------------------------------------------------------- options


def changed(
    before: Mapping[str, Any], now: Mapping[str, Any], with_new: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the options that differ, as ("model.lr", old, new), in the order of `now`.

    Args:
        before: Options of a run, in groups.
        now: Other options, in the same groups.
        with_new: Yield options that `before` doesn't have too, with the old value MISSING.
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
    """Refuse options of another tokenizer than a checkpoint's.

    Args:
        before: Data options of the run that saved it; empty for an imported checkpoint.
        now: Current data options.
        kind: Kind of the checkpoint's tokenizer.
        given: Names of the options given with the checkpoint.

    Raises:
        UsageError: The message names the option and both values.
    """
    for name in ("tokenizer", "eos"):
        old, new = before.get(name), now[name]
        if old == new or (old is None and f"data.{name}" not in given):
            continue
        if name == "tokenizer":
            new_options, old_options = _options(new), None if old is None else _options(old)
            # weights that a run began from, or imported weights, have their own tokenizer
            if old_options is None or old_options.kind != kind:
                old, old_options = kind, None
            if new_options == old_options or (old_options is None and new_options.kind == kind):
                continue
        raise _other_model(f"data.{name}", old or False, new)


def _options(value: str | Mapping[str, Any]) -> TokenizerOptions:
    options = TokenizerOptions(**value) if isinstance(value, Mapping) else parse_options(value)
    return replace(options, eos=False)  # which is checked separately


def _other_model(option: str, saved: object, now: object) -> UsageError:
    return UsageError(
        f"the checkpoint's model has {saved}, and its weights need it; leave the option out, or "
        "begin a new run",
        option,
        str(now),
    )


def check_config(saved: Mapping[str, Any], config: GPTConfig) -> None:
    """Refuse a checkpoint whose config differs from the current one in the weights.

    Raises:
        UsageError: The message names the first option that differs, and both values.
    """
    # checkpoints from before LoRA have none
    without = {name: getattr(GPTConfig, name) for name in lora.OPTIONS}
    for name, value in {**without, **saved}.items():
        if name in lora.OPTIONS and not (config.lora_r or saved.get("lora_r")):
            continue
        if name not in NOT_IN_WEIGHTS and (now := getattr(config, name, None)) != value:
            raise _other_model(f"model.{name}", value, now)
    before, after = saved.get("token_dropout", 0.0), config.token_dropout
    if bool(before) != bool(after):  # one of them has a mask
        raise _other_model("model.token_dropout", before, after)


def check_same_tokenizer(described: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Refuse a checkpoint with another tokenizer than that of the text.

    Args:
        described: The checkpoint's entry `checkpoint.KEY`, with its tokenizer and config.
        tokenizer: Tokenizer of the text.

    Raises:
        UsageError: The message names both tokenizers.
    """
    if tokenizer.state() != described["tokenizer"]:
        raise UsageError(
            "the checkpoint's tokenizer is not that of the text: "
            f"{described['tokenizer']['kind']} of {described['config']['vocab_size']} tokens "
            f"against {tokenizer.kind} of {tokenizer.vocab_size}"
        )


def check_optimizer(content: Mapping[str, Any], recipe: optimizers.Recipe) -> None:
    """Refuse a checkpoint of a run with another optimizer, or other parameter groups.

    Raises:
        UsageError: The message names the option, and what the run was trained with.
    """
    before = content.get("hyper_parameters", {})
    optimizer, decay = before.get("optimizer", "adamw"), before.get("embedding_weight_decay")
    remedy = (
        "which has another state; leave the option out, or begin a new run from its weights by "
        f"{opt('model.init_from')}"
    )
    if optimizer != recipe.optimizer:
        reason = f"the run was trained by {in_short(str(optimizer))}, {remedy}"
        raise UsageError(reason, "model.optimizer", recipe.optimizer)
    if (decay is None) != (recipe.embedding_weight_decay is None):
        value = "null" if decay is None else in_short(str(decay))
        reason = f"the run was trained with {value}, {remedy}"
        raise UsageError(reason, "model.embedding_weight_decay", recipe.embedding_weight_decay)


def take_recipe(
    content: dict[str, Any], recipe: optimizers.Recipe, factor: Callable[[int], float]
) -> tuple[float, float]:
    """Replace the recipe in a checkpoint's optimizer and schedule.

    An unchanged recipe leaves their values as they are, bit for bit.

    Args:
        content: Content of the checkpoint, changed in place.
        recipe: Recipe of the resumed run.
        factor: Schedule of the resumed run.

    Returns:
        Learning rates of the next step, by the checkpoint and by the recipe.
    """
    groups = optimizers.group_options(recipe)
    (scheduler,) = content["lr_schedulers"]
    (optimizer,) = content["optimizer_states"]
    before = scheduler["_last_lr"][-1]
    rates = [group["lr"] * factor(scheduler["last_epoch"]) for group in groups]
    scheduler |= {"base_lrs": [group["lr"] for group in groups], "_last_lr": rates}
    for old, new, rate in zip(optimizer["param_groups"], groups, rates, strict=True):
        old |= {**new, "initial_lr": new["lr"], "lr": rate}
    return before, rates[-1]


# ---------------------------------------------------------------------- texts


def same_split(split: str, trained: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a split is the same in a checkpoint's text and the current one, by provenance."""
    before, after = (text["own_texts"].get(split, [None, None])[1] for text in (trained, now))
    if before or after:  # hashes of a text of the split's own
        return before == after
    if trained["sha256"] != now["sha256"]:
        return False
    return trained["spans"].get(split) == now["spans"][split]


def was_trained_on(split: str, trained: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether part of the current text's split was trained on, by both texts' provenance."""
    if split in now["own_texts"] or trained["sha256"] != now["sha256"]:
        return False
    return any(
        first < end and begin < last
        for first, last in now["spans"][split]
        for begin, end in trained["spans"]["train"]
    )


# ---------------------------------------------------------------------- weights and position


def add_average(content: dict[str, Any], average: Average) -> None:
    """Replace a checkpoint's weights by their averages, and put the raw weights next to them.

    Writing and evaluating use the averages; a resume needs both. If the raw weights are kept
    instead, they change places.
    """
    kept, other = average.averaged(), average.raw()
    saved: dict[str, Any] = {"updates": average.updates}
    if not average.is_kept:
        kept, other = other, kept
        saved["is_kept"] = False
    prefixed = {checkpoint.NET_PREFIX + name: value for name, value in kept.items()}
    content["state_dict"] = {**content["state_dict"], **prefixed}
    content[AVERAGED] = {**saved, "weights": other}


def take_raw_weights(content: dict[str, Any]) -> tuple[dict[str, Tensor], int, bool] | None:
    """Replace a checkpoint's averaged weights by the raw ones, which are trained.

    Returns:
        The averages, their number of updates and whether they are kept; None if the checkpoint
        has no averages.
    """
    if (saved := content.get(AVERAGED)) is None:
        return None
    other, is_kept = saved["weights"], saved.get("is_kept", True)
    prefix, state = checkpoint.NET_PREFIX, content["state_dict"]
    kept = {name: state[prefix + name] for name in other}
    averaged, raw = (kept, other) if is_kept else (other, kept)
    content["state_dict"] = {**state, **{prefix + name: value for name, value in raw.items()}}
    return averaged, saved["updates"], is_kept


def restore_position(content: dict[str, Any], trainer: L.Trainer, text: TextDataModule) -> None:
    """Adapt a checkpoint's position in the text, and its best scores, to the current options."""
    accumulated, steps = trainer.accumulate_grad_batches, run_length.steps_of_epoch(trainer)
    loop_state.recount(content, text.windows_per_step, accumulated, steps)
    loop_state.complete_batch(content)
    trained, now = content[checkpoint.KEY]["text"], text.describe_text()
    if same_split("val", trained, now):
        return
    # callbacks that compare val/loss with its earlier values start anew
    for key in [key for key in content["callbacks"] if "'monitor': 'val/loss'" in key]:
        del content["callbacks"][key]
    if trainer.is_global_zero:
        note(
            "warning: the validation text has changed; the best val/loss and the count of early "
            "stopping start anew"
        )
        if was_trained_on("val", trained, now):
            note("warning: the val split overlaps the text that the model was trained on")
