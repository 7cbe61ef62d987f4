"""The rule by which `gptlit data --advise` chooses sizes, regularisation and length of a run.

1. The compute is FLOPS_PER_SECOND, which two CPU cores reach, for the given time.
2. The block size is LARGEST_BLOCK, or what `small_texts` halves it to.
3. The net is the largest of SIZES that reads TOKENS_PER_PARAMETER tokens or more for each of its
   parameters within the compute, and has at most MOST_PARAMETERS of them for each token of the
   training split.
4. The run takes the whole time, but makes at most MOST_PASSES passes over the training split.
5. The number of passes, times the parameters for each token of the training split, decides on the
   REGULARISATION: how often a net sees a text matters the more, the better it can memorise it.
6. A step has TOKENS_PER_STEP tokens, or twice, four times, ... as many if there were more than
   MOST_STEPS steps otherwise.

Parameters are those of the blocks' matrices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gptlit.data import small_texts
from gptlit.messages import UsageError


class Size(NamedTuple):
    """The size of a net."""

    n_layer: int
    n_head: int
    n_embd: int

    @property
    def n_parameters(self) -> int:
        """Number of weights in the blocks' matrices."""
        return 12 * self.n_layer * self.n_embd**2

    def flops_per_token(self, block_size: int, vocab_size: int) -> int:
        """Return the operations of training on one token of a full window.

        As `gptlit.model.cost.training_flops_per_token`, which needs torch.
        """
        attending = 4 * self.n_layer * block_size * self.n_embd
        return 3 * (2 * (self.n_parameters + vocab_size * self.n_embd) + attending)


class Regularisation(NamedTuple):
    """The options against overfitting."""

    dropout: float
    token_dropout: float
    weight_decay: float
    embedding_weight_decay: float


# each has about twice the parameters of the one before; 2x64 is tiny.yaml, 4x128 small.yaml and
# 6x384 medium.yaml
SIZES = (
    Size(2, 2, 32),
    Size(2, 2, 48),
    Size(2, 2, 64),
    Size(4, 2, 64),
    Size(4, 3, 96),
    Size(4, 4, 128),
    Size(4, 6, 192),
    Size(6, 4, 256),
    Size(6, 6, 384),
)
# best_cpu.yaml with windows of 64, two cores: 4.0e9 operations in 92 ms (BENCHMARKS.md)
FLOPS_PER_SECOND = 4.3e10
TOKENS_PER_PARAMETER = 6  # 4.5 and 18 do equally well, 1.2 does worse (LOG.md)
LARGEST_BLOCK = 256  # small.yaml
VALIDATION_CHARS = 100_000  # small.yaml has 95,772
TOKENS_PER_STEP = 768  # small.yaml
MOST_STEPS = 10_000
MOST_PASSES = 40  # little better than 20 (LOG.md)
MOST_PARAMETERS = 5  # for each token of the training split; 20 are worse (LOG.md)
VALIDATIONS = 5  # small.yaml; more for a text that is seen often
# by the most passes over the training split times parameters per token of it (LOG.md)
REGULARISATION = {
    6: Regularisation(0.0, 0.0, 0.1, 0.0),
    40: Regularisation(0.0, 0.1, 0.5, 0.5),
    80: Regularisation(0.1, 0.1, 0.5, 0.5),
    math.inf: Regularisation(0.2, 0.1, 0.5, 0.5),
}


@dataclass(frozen=True)
class TextSize:
    """The sizes of a text by which the rule decides.

    Args:
        train: Tokens of each contiguous part of the training split.
        n_val: Tokens of the validation split; 0 if there is none.
        vocab_size: Number of distinct tokens.
    """

    train: Sequence[int]
    n_val: int
    vocab_size: int

    @property
    def n_train(self) -> int:
        """Number of tokens of the training split."""
        return sum(self.train)

    def n_windows(self, block_size: int) -> int:
        """Return the number of training windows in an epoch."""
        return sum(max(0, n // block_size - 1) for n in self.train)


@dataclass(frozen=True)
class Advice:
    """Options of `gptlit fit` for a text.

    Args:
        passes: Passes over the training split.
        minutes: Estimated time on two CPU cores.
    """

    size: Size
    regularisation: Regularisation
    block_size: int
    batch_size: int
    max_steps: int
    val_check_interval: int
    passes: float
    minutes: float


def val_fraction(n_chars: int) -> float:
    """Return the share of a text for validation: VALIDATION_CHARS, or that of a small text.

    Args:
        n_chars: Number of characters of the text.
    """
    share = min(small_texts.LARGEST_SHARE, VALIDATION_CHARS / n_chars)
    return small_texts.val_fraction(float(f"{share:.1g}"), n_chars)


def advise(text: TextSize, minutes: float) -> Advice:
    """Return the options that the rule above chooses.

    Args:
        text: Sizes of the text.
        minutes: Time of the run on two CPU cores.

    Raises:
        UsageError: The text is too short, or the time is not a positive number.
    """
    if not 0 < minutes < math.inf:
        raise UsageError("must be a number above 0, such as 5", "minutes", minutes)
    block = small_texts.block_size(LARGEST_BLOCK, text.n_windows, text.n_val or None, 1)
    if block is None:
        raise UsageError(
            f"the text is too short, with {text.n_train} tokens to train on and {text.n_val} for "
            f"validation; give {small_texts.LEAST_CHARS} characters or more"
        )
    flops = 60 * minutes * FLOPS_PER_SECOND

    def tokens(size: Size) -> float:
        return flops / size.flops_per_token(block, text.vocab_size)

    def fits(size: Size) -> bool:
        n = size.n_parameters
        return tokens(size) >= TOKENS_PER_PARAMETER * n and n <= MOST_PARAMETERS * text.n_train

    size = max(filter(fits, SIZES), key=SIZES.index, default=SIZES[0])
    n_tokens = min(tokens(size), MOST_PASSES * text.n_train)
    per_step = TOKENS_PER_STEP
    while n_tokens > MOST_STEPS * per_step:
        per_step *= 2
    n_windows = text.n_windows(block)
    batch = small_texts.batch_size(max(1, per_step // block), n_windows, 1)
    steps = max(1, int(n_tokens / (batch * block)))
    interval = small_texts.val_check_interval(
        max(1, steps // VALIDATIONS), steps, n_windows // batch
    )
    steps -= steps % interval  # the last validation is at the end
    memorising = n_tokens * size.n_parameters / text.n_train**2
    return Advice(
        size,
        next(each for most, each in REGULARISATION.items() if memorising <= most),
        block,
        batch,
        steps,
        interval,
        steps * batch * block / text.n_train,
        steps * batch * block / tokens(size) * minutes,
    )
