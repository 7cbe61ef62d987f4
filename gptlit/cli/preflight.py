"""`gptlit fit --preflight`: checks a model and its batches before a long run.

Shapes: B batch, T time, V vocabulary.
"""

import copy
import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlit.checkpoints import checkpoint
from gptlit.model.gpt import GPT
from gptlit.optim import optimizers
from gptlit.optim.optimizers import Recipe
from gptlit.runs.build import Run
from gptlit.tokenizers.base import Tokenizer

Batch = tuple[Tensor, Tensor]
N_WINDOWS = 16
N_TOKENS = 4096  # in all windows to memorise, so that a long context takes no longer
GRADIENT_WINDOWS = 4  # for the check of gradients
MEMORISED = 0.01  # nats
MAX_STEPS = 1000
MAX_WARMUP = 100
MIN_LR = 1e-3  # a lower rate would not memorise within MAX_STEPS
MAX_BATCHES = 64  # searched for distinct first tokens


@dataclass(frozen=True)
class Check:
    """The result of a check; `passed` is None where it doesn't apply."""

    name: str
    passed: bool | None
    finding: str

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "skip"}[self.passed]
        return f"{verdict}  {self.name:<12}{self.finding}"


def loss(model: GPT, batch: Batch) -> Tensor:
    """Return the mean cross-entropy in nats; targets of -100 are ignored."""
    inputs, targets = batch  # (B, T), (B, T)
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------------- checks


@torch.no_grad()
def shapes(model: GPT, batch: Batch) -> Check:
    """Check that logits have the shape (B, T, V) and are finite."""
    inputs, _ = batch
    logits = model(inputs)
    wanted = (*inputs.shape, model.config.vocab_size)
    if logits.shape != wanted:
        return Check("shapes", False, f"logits {tuple(logits.shape)}, not {wanted}")
    if n_nonfinite := int((~logits.isfinite()).sum()):
        return Check("shapes", False, f"{n_nonfinite} logits are not finite")
    return Check("shapes", True, f"logits {tuple(logits.shape)}, finite")


def shift(model: GPT, batch: Batch) -> Check:
    """Check that each target is the next input, and that all ids are in the vocabulary."""
    inputs, targets = batch  # (B, T), (B, T)
    scored = targets[:, :-1] >= 0  # (B, T - 1)
    n_scored = int(scored.sum())
    n_wrong = int(((targets[:, :-1] != inputs[:, 1:]) & scored).sum())
    ids = torch.cat([inputs.flatten(), targets[targets >= 0]])
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < model.config.vocab_size:
        finding = f"ids from {ids.min()} to {ids.max()}, vocabulary {model.config.vocab_size}"
        return Check("shift", False, finding)
    if n_wrong:
        finding = f"{n_wrong} of {n_scored} targets are not the input that follows"
        return Check("shift", False, finding)
    return Check("shift", True, f"targets are inputs shifted by one, {n_scored} compared")


@torch.no_grad()
def first_loss(model: GPT, batch: Batch, *, new: bool = True) -> Check:
    """Check that a `new` model's loss is near ln(V), a uniform guess, if its init implies that.

    With `init gpt2` logits are normal with variance 0.02^2 n_embd, which adds half of that to the
    loss; a tenth of ln(V) is allowed in addition for the input in the residual stream.
    """
    config = model.config
    value, uniform = loss(model, batch).item(), math.log(config.vocab_size)
    finding = f"{value:.3f}; ln(V) {uniform:.3f}"
    if not new:
        return Check("first loss", None, f"{finding}; the weights are given")
    if config.zero_init and not config.tie_weights and not config.head_bias:
        return Check("first loss", abs(value - uniform) < 1e-3, finding)
    if config.init != "gpt2" or config.zero_init:
        return Check("first loss", None, f"{finding}; this initialisation does not imply it")
    allowed = 0.1 * uniform + 0.02**2 * config.n_embd / 2
    finding += f", allowed {uniform - allowed:.3f} to {uniform + allowed:.3f}"
    return Check("first loss", abs(value - uniform) <= allowed, finding)


@torch.no_grad()
def causality(model: GPT, batch: Batch) -> Check:
    """Check that changing the token at position t changes the logits at t and none before.

    A copy of the model gets large random weights, since branches of a new model can be zero.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model)
    for parameter in probe.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=0.2)
    inputs = batch[0][:1]  # (1, T)
    T, before = inputs.size(1), probe(inputs)  # (1, T, V)
    tolerance = 1e-4 * max(1.0, before.abs().max().item())
    positions = sorted({round(share * (T - 1) / 8) for share in range(9)})
    for t in positions:
        changed = inputs.clone()
        changed[0, t] = (int(inputs[0, t]) + 1) % model.config.vocab_size
        moved = (probe(changed) - before).abs().amax(dim=2)[0]  # (T,)
        if t and (leak := moved[:t].max().item()) > tolerance:
            finding = f"a change at position {t} moves logits before it, by up to {leak:.2g}"
            return Check("causality", False, finding)
        if model.config.vocab_size > 1 and moved[t] <= tolerance:
            return Check("causality", False, f"a change at position {t} moves no logit there")
    finding = f"changes at {len(positions)} positions move no logit before them"
    return Check("causality", True, finding)


def gradients(model: GPT, batch: Batch, recipe: Recipe) -> Check:
    """Check that every trainable parameter has a non-zero gradient after three steps."""
    probe = copy.deepcopy(model)
    batch = (batch[0][:GRADIENT_WINDOWS], batch[1][:GRADIENT_WINDOWS])
    for _ in _trained(probe, batch, recipe, steps=3):
        pass
    probe.zero_grad()
    loss(probe, batch).backward()
    named = [(name, p) for name, p in probe.named_parameters() if p.requires_grad]
    missed = [name for name, p in named if p.grad is None or not p.grad.any()]
    if missed:
        others = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        return Check("gradients", False, f"none reaches {missed[0]}{others}")
    return Check("gradients", True, f"reach all {len(named)} parameter tensors")


def memorises(model: GPT, batches: Iterable[Batch], recipe: Recipe) -> Check:
    """Check that a copy trained on one batch reaches a loss below MEMORISED within MAX_STEPS.

    The windows' first tokens are distinct, so that the tokens before a target determine it.
    Without attention a model sees only one token, and can't memorise.
    """
    if model.config.mixer == "none":
        return Check("memorises", None, "can't: without a mixer each token sees only itself")
    wanted = min(N_WINDOWS, max(2, N_TOKENS // model.config.block_size))
    batch = distinct_windows(batches, wanted)
    losses: list[float] = []
    for value in _trained(copy.deepcopy(model), batch, recipe, steps=MAX_STEPS + 1):
        losses.append(value)
        if value < MEMORISED or not math.isfinite(value):
            break
    lr, last = rate(recipe, MAX_STEPS), losses[-1]
    finding = f"{len(batch[0])} windows at lr {lr:g}: loss {last:.4f} after {len(losses) - 1} steps"
    if last < MEMORISED:
        return Check("memorises", True, finding)
    finding += f", lowest {min(losses):.4f}, not {MEMORISED}"
    return Check("memorises", False, finding + ("; lower --model.lr?" if lr > MIN_LR else ""))


def round_trip(model: GPT, batch: Batch, tokenizer: Tokenizer) -> Check:
    """Check that a saved and loaded checkpoint gives the same logits."""
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
    finding = f"saved and loaded, {n_bytes / 1e6:.1f} MB"
    if off:
        return Check("checkpoint", False, f"{finding}: logits differ by up to {off:.2g}")
    return Check("checkpoint", True, f"{finding}: the same logits")


# ---------------------------------------------------------------------- all of them


def check_all(
    model: GPT,
    tokenizer: Tokenizer,
    batches: Iterable[Batch],
    recipe: Recipe,
    *,
    new: bool = True,
    print_line: Callable[[str], None] = print,
) -> bool:
    """Make all checks, print a line for each, and return whether none failed.

    Args:
        model: GPT before training; it is not changed.
        tokenizer: Tokenizer of the text.
        batches: Batches of training windows; the first one is checked.
        recipe: lr, warmup, betas and weight decay of the training in the checks, by AdamW.
        new: Whether the weights come from the initialisation.
        print_line: Prints a line.
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
        lambda: gradients(net, first, recipe),
        lambda: round_trip(net, first, tokenizer),
        lambda: memorises(net, itertools.chain([first], moved), recipe),
    ]
    passed = True
    for check in checks:
        result = check()
        print_line(str(result))
        passed = passed and result.passed is not False
    print_line(f"preflight: {'pass' if passed else 'fail'}")
    return passed


def check_run(run: Run) -> bool:
    """Make all checks of a run whose net is built, and return whether none failed."""
    options = run.model.options
    # the checks train by AdamW, for which SGD's rates are far too high
    recipe = Recipe(
        lr=MIN_LR if options.optimizer == "sgd" else options.lr,
        min_lr=0,
        warmup_steps=options.warmup_steps,
        betas=options.betas,
        weight_decay=options.weight_decay,
    )
    net = run.model.net.to(run.trainer.strategy.root_device)
    batches, new = run.data.train_dataloader(), options.init_from is None
    return check_all(net, run.data.tokenizer, batches, recipe, new=new)


def _in_float32(model: GPT) -> GPT:
    if model.config.attention != "flash":
        return copy.deepcopy(model).float()
    # flash attention refuses float32 on a GPU
    net = GPT(dataclasses.replace(model.config, attention="sdpa"))
    net.load_state_dict(model.state_dict())
    return net


def distinct_windows(batches: Iterable[Batch], wanted: int) -> Batch:
    """Return up to `wanted` windows with distinct first tokens from the first MAX_BATCHES.

    Returns:
        Inputs (B, T) and targets (B, T), B >= 1.
    """
    windows: dict[int, tuple[Tensor, Tensor]] = {}  # by first token
    for inputs, targets in itertools.islice(batches, MAX_BATCHES):
        for x, y in zip(inputs, targets, strict=True):
            if len(windows) < wanted and (y >= 0).any():
                windows.setdefault(int(x[0]), (x, y))
        if len(windows) == wanted:
            break
    xs, ys = zip(*windows.values(), strict=True)
    return torch.stack(xs), torch.stack(ys)


def rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step: MIN_LR or more, after MAX_WARMUP steps or fewer."""
    warmup = min(recipe.warmup_steps, MAX_WARMUP)
    return max(recipe.lr, MIN_LR) * min(1.0, (step + 1) / (warmup + 1))


def _trained(model: GPT, batch: Batch, recipe: Recipe, *, steps: int) -> Iterator[float]:
    """Train on one batch, and yield the loss before each step."""
    optimizer = optimizers.build(model, recipe)
    for step in range(steps):
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        yield value.item()
        optimizer.step()
