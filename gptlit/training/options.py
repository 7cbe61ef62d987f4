"""ModelOptions: the options of `LitGPT`, each stated once as a field."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from gptlit.messages import UsageError, opt
from gptlit.model.config import GPTConfig
from gptlit.optim.optimizers import Recipe


@dataclass(frozen=True)
class ModelOptions(Recipe, GPTConfig):
    """The architecture of the net, the optimizer with its schedule, and how both are used.

    Args:
        ema: Decay of a moving average of the weights, such as 0.999: over about the last 1,000
            steps, but at most a tenth of those so far. The averages are validated, sampled from and
            saved in place of the weights. 0 for none.
        ema_keep: average; or better, which validates the trained weights as well, and until the
            next validation samples from and saves those with the lower val/loss.
        label_smoothing: Fraction of the training target that is spread evenly over the
            vocabulary.
        z_loss: Weight of the squared log of the softmax's denominator, in training only; 1e-4 is
            usual (PaLM). Logged losses include neither it nor label smoothing.
        teachers: Checkpoints of trained models with the same tokenizer, such as [a.ckpt, b.ckpt],
            the mean of whose probabilities is learned beside the text (distillation). Resuming the
            run needs them again; other commands don't.
        distill_weight: Weight of the teachers' probabilities in the training target, from 0 to 1;
            the text has the rest.
        distill_temperature: Divisor of the teachers' and the model's logits in that comparison,
            whose loss it multiplies by its square; 4 makes small probabilities count more.
        dpo_beta: Learn which of two answers is better (DPO, Rafailov et al. 2023), from text with
            data.format pairs: how strongly the answers' probabilities are kept near those of the
            weights to begin from; 0.1 is usual. null trains on the text itself.
        init_from: Weights to begin from, with their sizes and tokenizer: gpt2, gpt2-medium,
            gpt2-large, gpt2-xl, a folder in Hugging Face's format, or a checkpoint of gptlit.
        compile: How training steps run; checkpoints stay the same. graph: each step is replayed as
            CUDA graphs, with the net compiled by torch.compile. true: the net is compiled, which on
            a CPU needs a C++ compiler. false: neither. auto: graphs on CUDA, and compiling where
            the run is long enough, by device and size.
    """

    ema: float = 0.0
    ema_keep: Literal["average", "better"] = "average"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    teachers: tuple[str, ...] | str = ()
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    dpo_beta: float | None = None
    init_from: str | None = None
    compile: bool | Literal["auto", "graph"] = "auto"

    def __post_init__(self) -> None:
        GPTConfig(**self._values_of(GPTConfig))  # checks its options
        Recipe.__post_init__(self)
        if not 0 <= self.ema < 1:
            reason = "must be below 1, such as 0.999, or 0 for none"
            raise UsageError(reason, "model.ema", self.ema)
        if self.ema_keep != "average" and not self.ema:
            reason = f"needs an average; give its decay by {opt('model.ema')}, such as 0.999"
            raise UsageError(reason, "model.ema_keep", self.ema_keep)
        if not 0 <= self.label_smoothing < 1:
            reason = "must be at least 0 and below 1; 0.1 is usual"
            raise UsageError(reason, "model.label_smoothing", self.label_smoothing)
        if not 0 <= self.z_loss < math.inf:
            raise UsageError("must be 0 or more; 1e-4 is usual", "model.z_loss", self.z_loss)
        if self.dpo_beta is not None:
            self._check_dpo()
        if self.lora_r and self.init_from is None:
            reason = f"changes given weights; name them by {opt('model.init_from')}"
            raise UsageError(reason, "model.lora_r", self.lora_r)
        names = (self.teachers,) if isinstance(self.teachers, str) else tuple(self.teachers)
        object.__setattr__(self, "teachers", names)
        if not 0 <= self.distill_weight <= 1:
            reason = "must be from 0, the text alone, to 1, the teachers alone"
            raise UsageError(reason, "model.distill_weight", self.distill_weight)
        if not 0 < self.distill_temperature < math.inf:
            reason = "must be above 0; 1 leaves the probabilities as they are"
            raise UsageError(reason, "model.distill_temperature", self.distill_temperature)

    def _check_dpo(self) -> None:
        if not 0 < self.dpo_beta < math.inf:  # type: ignore[operator]  # not None
            raise UsageError("must be above 0; 0.1 is usual", "model.dpo_beta", self.dpo_beta)
        if self.ema_keep != "average":
            reason = f"does not go with {opt('model.dpo_beta')}; leave one out"
            raise UsageError(reason, "model.ema_keep", self.ema_keep)
        if self.init_from is None:
            reason = f"compares with given weights; name them by {opt('model.init_from')}"
            raise UsageError(reason, "model.dpo_beta", self.dpo_beta)
        for name in ("label_smoothing", "z_loss", "teachers", "token_dropout", "token_noise"):
            if value := getattr(self, name):
                reason = f"does not go with {opt('model.dpo_beta')}; leave one out"
                raise UsageError(reason, f"model.{name}", value)

    def config(self, vocab_size: int) -> GPTConfig:
        """Return the net's config for a vocabulary."""
        return GPTConfig(**self._values_of(GPTConfig) | {"vocab_size": vocab_size})

    def training_options(self) -> dict[str, Any]:
        """Return the options that are not in the net's config, by name."""
        net = {field.name for field in dataclasses.fields(GPTConfig)}
        return {name: value for name, value in vars(self).items() if name not in net}

    def _values_of(self, kind: type) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(kind)}
