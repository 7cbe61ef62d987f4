"""Checks of a model and its batches before a long run; each gives a line, and passes or fails.

Shapes: B batch, T time, V vocabulary.
"""

import copy
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlit.checkpoints import checkpoint
from gptlit.model.gpt import GPT
from gptlit.optim import optimizers
from gptlit.runs.build import Run
from gptlit.tokenizers.base import Tokenizer

Batch = tuple[Tensor, Tensor]
N_WINDOWS = 16
N_TOKENS = 4096  # of the windows to memorise, so that a long context needs no longer
FEW = 4  # windows show whether gradients arrive
MEMORISED = 0.01  # nats
STEPS = 1000
MOST_WARMUP = 100
LEAST_LR = 1e-3
SEARCHED = 64  # batches looked through for distinct first tokens


@dataclass(frozen=True)
class Check:
    """What a check found; `passed` is None where it doesn't apply."""

    name: str
    passed: bool | None
    told: str

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "skip"}[self.passed]
        return f"{verdict}  {self.name:<12}{self.told}"


@dataclass(frozen=True)
class Training:
    """How the model under test is trained, in float32 without dropout.

    Args:
        lr: The run's peak, which is held; at least LEAST_LR is taken, as the checks have only
            STEPS steps.
        warmup_steps: Of a linear rise to it; at most MOST_WARMUP are taken.
        betas: Of AdamW.
        weight_decay: Of AdamW.
    """

    lr: float
    warmup_steps: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warmup = min(self.warmup_steps, MOST_WARMUP)
        return max(self.lr, LEAST_LR) * min(1.0, (step + 1) / (warmup + 1))


def loss(model: GPT, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats; targets of -100, cross_entropy's default, aren't scored."""
    inputs, targets = batch  # (B, T), (B, T)
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------------- checks


@torch.no_grad()
def shapes(model: GPT, batch: Batch) -> Check:
    """Logits of shape (B, T, V), all finite."""
    inputs, _ = batch
    logits = model(inputs)
    wanted = (*inputs.shape, model.config.vocab_size)
    told = f"logits {tuple(logits.shape)}, finite"
    if logits.shape != wanted:
        return Check("shapes", False, f"logits {tuple(logits.shape)}, not {wanted}")
    if not logits.isfinite().all():
        return Check("shapes", False, f"{(~logits.isfinite()).sum()} logits are not finite")
    return Check("shapes", True, told)


def shift(model: GPT, batch: Batch) -> Check:
    """Each target is the input that follows, and every id is of the vocabulary."""
    inputs, targets = batch  # (B, T), (B, T)
    scored = targets[:, :-1] >= 0  # (B, T - 1)
    wrong = int(((targets[:, :-1] != inputs[:, 1:]) & scored).sum())
    ids = torch.cat([inputs.flatten(), targets[targets >= 0]])
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < model.config.vocab_size:
        told = f"ids from {ids.min()} to {ids.max()}, vocabulary {model.config.vocab_size}"
        return Check("shift", False, told)
    if wrong:
        told = f"{wrong} of {int(scored.sum())} targets are not the input that follows"
        return Check("shift", False, told)
    return Check("shift", True, f"targets are inputs shifted by one, {int(scored.sum())} compared")


@torch.no_grad()
def first_loss(model: GPT, batch: Batch, *, new: bool = True) -> Check:
    """The loss of a `new` model is near ln(V), a uniform guess, where the initialisation says so.

    By `init gpt2` logits are normal, of variance 0.02^2 n_embd, which adds half of that to the
    loss; a tenth of ln(V) is allowed on top for what the residual stream keeps of the input.
    """
    config = model.config
    value, uniform = loss(model, batch).item(), math.log(config.vocab_size)
    told = f"{value:.3f}; ln(V) {uniform:.3f}"
    if not new:
        return Check("first loss", None, f"{told}; the weights are given")
    if config.zero_init and not config.tie_weights and not config.head_bias:
        return Check("first loss", abs(value - uniform) < 1e-3, told)
    if config.init != "gpt2" or config.zero_init:
        return Check("first loss", None, f"{told}; this initialisation doesn't aim at it")
    allowed = 0.1 * uniform + 0.02**2 * config.n_embd / 2
    told += f", allowed {uniform - allowed:.3f} to {uniform + allowed:.3f}"
    return Check("first loss", abs(value - uniform) <= allowed, told)


@torch.no_grad()
def causality(model: GPT, batch: Batch) -> Check:
    """A change of the token at position t changes logits from t on and none before.

    Weights are drawn anew, all of a size that shows, on a copy: a new model's branches can be
    silent.
    """
    drawn = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model)
    for parameter in probe.parameters():
        noise = torch.randn(parameter.shape, generator=drawn).to(parameter)
        parameter.add_(noise, alpha=0.2)
    inputs = batch[0][:1]  # (1, T)
    T, before = inputs.size(1), probe(inputs)  # (1, T, V)
    tolerance = 1e-4 * max(1.0, before.abs().max().item())
    ids = [(int(inputs[0, t]) + 1) % model.config.vocab_size for t in range(T)]
    at = sorted({round(share * (T - 1) / 8) for share in range(9)})
    for t in at:
        changed = inputs.clone()
        changed[0, t] = ids[t]
        moved = (probe(changed) - before).abs().amax(dim=2)[0]  # (T,)
        if t and (leak := moved[:t].max().item()) > tolerance:
            told = f"a change at position {t} moves logits before it, by up to {leak:.2g}"
            return Check("causality", False, told)
        if model.config.vocab_size > 1 and moved[t] <= tolerance:
            return Check("causality", False, f"a change at position {t} moves no logit there")
    return Check("causality", True, f"changes at {len(at)} positions move no logit before them")


def gradients(model: GPT, batch: Batch, training: Training) -> Check:
    """After three steps every trainable parameter has a gradient that isn't zero."""
    probe = copy.deepcopy(model)
    batch = (batch[0][:FEW], batch[1][:FEW])
    for _ in _trained(probe, batch, training, steps=3):
        pass
    probe.zero_grad()
    loss(probe, batch).backward()
    named = [(name, p) for name, p in probe.named_parameters() if p.requires_grad]
    missed = [name for name, p in named if p.grad is None or not p.grad.any()]
    if missed:
        others = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        return Check("gradients", False, f"none reaches {missed[0]}{others}")
    return Check("gradients", True, f"reach all {len(named)} parameter tensors")


def memorises(model: GPT, batches: Iterable[Batch], training: Training) -> Check:
    """A copy, trained on one batch of windows, gets its loss below MEMORISED within STEPS.

    Their first tokens are distinct, so that every target is a function of what stands before
    it. Without attention a model sees only one token, and can't.
    """
    if model.config.mixer == "none":
        return Check("memorises", None, "can't: without a mixer each token sees only itself")
    wanted = min(N_WINDOWS, max(2, N_TOKENS // model.config.block_size))
    batch = distinct_windows(batches, wanted)
    lr = training.rate(STEPS)
    told = f"{len(batch[0])} windows at lr {lr:g}: loss "
    losses: list[float] = []
    for loss in _trained(copy.deepcopy(model), batch, training, steps=STEPS + 1):
        losses.append(loss)
        if loss < MEMORISED or not math.isfinite(loss):
            break
    now, lowest, taken = losses[-1], min(losses), len(losses) - 1
    if now < MEMORISED:
        return Check("memorises", True, f"{told}{now:.4f} after {taken} steps")
    told += f"{now:.4f} after {taken} steps, lowest {lowest:.4f}, not {MEMORISED}"
    return Check("memorises", False, told + ("; lower --model.lr?" if lr > LEAST_LR else ""))


def round_trip(model: GPT, batch: Batch, tokenizer: Tokenizer) -> Check:
    """A checkpoint, saved to memory and loaded without Lightning, gives the same logits."""
    described = checkpoint.describe(model.config, tokenizer, {}, "", 0)
    weights = {f"{checkpoint.NET_PREFIX}{n}": value for n, value in model.state_dict().items()}
    file = io.BytesIO()
    torch.save({checkpoint.KEY: described, "state_dict": weights}, file)
    n_bytes = file.tell()
    file.seek(0)
    loaded, _ = checkpoint.build(torch.load(file, map_location="cpu", weights_only=True))
    inputs = batch[0]
    with torch.no_grad():
        off = (loaded.to(inputs.device)(inputs) - model(inputs)).abs().max().item()
    told = f"saved and loaded, {n_bytes / 1e6:.1f} MB"
    if off:
        return Check("checkpoint", False, f"{told}: logits differ by up to {off:.2g}")
    return Check("checkpoint", True, f"{told}: the same logits")


# ---------------------------------------------------------------------- all of them


def check_all(
    model: GPT,
    tokenizer: Tokenizer,
    batches: Iterable[Batch],
    training: Training,
    *,
    new: bool = True,
    tell: Callable[[str], None] = print,
) -> bool:
    """Make every check, tell each in a line, and return whether none failed.

    Args:
        model: The GPT as it begins; it is left as it is.
        tokenizer: The text's.
        batches: Of training windows; the first one is checked.
        training: The run's settings.
        new: Whether its weights are those of its initialisation.
        tell: Takes a line.
    """
    device = next(model.parameters()).device
    net = _in_float32(model).to(device).eval()  # no dropout
    moved = ((x.to(device), y.to(device)) for x, y in batches)
    first = next(moved)
    checks: list[Callable[[], Check]] = [
        lambda: shapes(net, first),
        lambda: shift(net, first),
        lambda: first_loss(net, first, new=new),
        lambda: causality(net, first),
        lambda: gradients(net, first, training),
        lambda: round_trip(net, first, tokenizer),
        lambda: memorises(net, _with_first(first, moved), training),
    ]
    passed = True
    for check in checks:
        result = check()
        tell(str(result))
        passed = passed and result.passed is not False
    tell(f"preflight: {'pass' if passed else 'fail'}")
    return passed


def check_run(run: Run) -> bool:
    """Make every check of a run whose net is built; returns whether none failed."""
    options = run.model.options
    # the checks train by AdamW, for which SGD's rates are far too high
    lr = LEAST_LR if options.optimizer == "sgd" else options.lr
    training = Training(lr, options.warmup_steps, options.betas, options.weight_decay)
    net = run.model.net.to(run.trainer.strategy.root_device)
    batches, new = run.data.train_dataloader(), options.init_from is None
    return check_all(net, run.data.tokenizer, batches, training, new=new)


def _in_float32(model: GPT) -> GPT:
    if model.config.attention != "flash":
        return copy.deepcopy(model).float()
    # which on a GPU refuses float32
    net = GPT(dataclasses.replace(model.config, attention="sdpa"))
    net.load_state_dict(model.state_dict())
    return net


def _with_first(first: Batch, others: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from others


def distinct_windows(batches: Iterable[Batch], wanted: int) -> Batch:
    """Up to `wanted` windows whose first tokens are distinct, from the first SEARCHED batches.

    Returns:
        (B, T), (B, T), B >= 1
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for _, (inputs, targets) in zip(range(SEARCHED), batches, strict=False):
        for x, y in zip(inputs, targets, strict=True):
            if len(found) < wanted and (y >= 0).any():
                found.setdefault(int(x[0]), (x, y))
        if len(found) == wanted:
            break
    return (
        torch.stack([x for x, _ in found.values()]),
        torch.stack([y for _, y in found.values()]),
    )


def _trained(model: GPT, batch: Batch, training: Training, *, steps: int) -> Iterator[float]:
    """Train on one batch; gives the loss ahead of each step."""
    recipe = optimizers.Recipe(
        lr=training.rate(0), min_lr=0, betas=training.betas, weight_decay=training.weight_decay
    )
    optimizer = optimizers.build(model, recipe)
    for step in range(steps):
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step)
        yield value.item()
        optimizer.step()
