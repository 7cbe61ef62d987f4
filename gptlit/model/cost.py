"""Parameters, floating point operations and memory of a GPT, by arithmetic.

Shapes: B batch, T time, V vocabulary, C channels. Memory is in bytes.
"""

from dataclasses import astuple, dataclass

from torch import nn

from gptlit.model.activation_memory import KeptActivations, bytes_of
from gptlit.model.gpt import GPT
from gptlit.optim import optimizers
from gptlit.optim.optimizers import Recipe

ADAMW = Recipe()
COMPONENTS = ("embedding", "attention", "mlp", "norms", "head")
# training tokens per parameter that make the best use of compute (Hoffmann et al. 2022)
RULE_OF_20 = 20


# ---------------------------------------------------------------------- parameters


def component(name: str) -> str:
    """Return a parameter's component, one of COMPONENTS; a tied head belongs to the embedding."""
    parts = name.split(".")
    if any(part.startswith("ln_") or part in ("q_norm", "k_norm") for part in parts):
        return "norms"
    if parts[0] in ("wte", "wpe", "noise"):
        return "embedding"
    if parts[0] == "lm_head":
        return "head"
    return "attention" if "attn" in parts else "mlp"


def parameters(model: GPT) -> dict[str, int]:
    """Return the number of parameters of each component; their sum is `model.num_parameters()`."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        counts[component(name)] += parameter.numel()
    return counts


def trainable(model: GPT) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def decayed(model: GPT, recipe: Recipe = ADAMW) -> tuple[int, int]:
    """Return the numbers of trainable parameters with and without weight decay."""
    counts = {True: 0, False: 0}
    for group in optimizers.groups(model, recipe):
        counts[group["weight_decay"] > 0] += sum(p.numel() for p in group["params"])
    return counts[True], counts[False]


def optimizer_values(model: GPT, recipe: Recipe = ADAMW) -> int:
    """Return the number of values in an optimizer's state: two moments in Adam, one with momentum.

    Muon's second moments have one value for each row or column of the longer side of a matrix.
    """
    values = 0
    for group in optimizers.groups(model, recipe):
        moments = 2 if "betas" in group else group["momentum"] > 0
        values += moments * sum(p.numel() for p in group["params"])
        if group.get("beta2") is not None:
            values += sum(max(p.shape) for p in group["params"])
    return values


def matmul_parameters(model: nn.Module, trained: bool = False) -> int:
    """Return the number of weights that multiply each token, in linear layers and the head.

    Args:
        model: Model or a part of one.
        trained: Count only those that are trained.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [each for layer in linear for each in layer.parameters() if each.dim() == 2]
    return sum(each.numel() for each in weights if each.requires_grad or not trained)


# ---------------------------------------------------------------------- operations


def flops_per_token(model: GPT, *, causal: bool = False) -> int:
    """Floating point operations of the forward pass for one token of a full window.

    They are 2 for each weight of a matrix, and in each layer 2 T C each for queries times keys and
    weights times values. Norms, activations and softmax are left out.

    Args:
        causal: Count only the part of attention that isn't masked, (T + 1) / 2 keys on average.

    Source: Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022 (PaLM), appendix B.
    """
    config = model.config
    attending = 0
    if config.mixer == "attention":
        keys = config.block_size + 1 if causal else 2 * config.block_size
        attending = config.n_layer * 2 * keys * config.n_embd
    return 2 * matmul_parameters(model) + attending


def training_flops_per_token(model: GPT, *, causal: bool = False) -> int:
    """Operations of forward and backward pass: three times the forward pass (same sources).

    The backward pass of a matrix product is two products of the same size, one of them for the
    gradient of its weights if they are trained. Recomputations within kernels, as in
    FlashAttention, are left out.
    """
    frozen = matmul_parameters(model) - matmul_parameters(model, trained=True)
    return 3 * flops_per_token(model, causal=causal) - 2 * frozen


# ---------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes, by use."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    average: int = 0  # moving average of the weights
    text: int = 0  # token ids that are kept on the device
    teachers: int = 0  # nets to learn from, and the probabilities that they predict

    @property
    def total(self) -> int:
        """The sum, an upper bound: not all are in use at the same time."""
        return sum(astuple(self))


def memory(
    model: GPT,
    batch_size: int,
    precision: str,
    device: str = "cpu",
    recipe: Recipe = ADAMW,
    averaged: bool = False,
    rows: int | None = None,
) -> Memory:
    """Return the memory that training takes on one device.

    Args:
        batch_size: B, number of windows of block_size tokens in a forward pass.
        precision: Lightning's name of the precision.
        device: cpu or cuda, whose kernels keep different tensors.
        recipe: Recipe with the optimizer; AdamW by default.
        averaged: Whether a moving average of the weights is kept, in float32 at least.
        rows: Rows of logits in a chunk of the loss; None if all logits are computed at once.
    """
    sizes = bytes_of(precision)
    kept = KeptActivations(model.config, batch_size, sizes, device, rows)
    copies = 0
    if sizes.product < sizes.value:  # autocast keeps half-precision copies for the backward pass
        in_chunks = 0 if rows is None else model.lm_head.weight.numel()
        copies = (matmul_parameters(model) - in_chunks) * sizes.product
    n_trainable = trainable(model)
    return Memory(
        weights=model.num_parameters() * sizes.value,
        gradients=n_trainable * sizes.value,
        optimizer=optimizer_values(model, recipe) * sizes.value,
        activations=kept.peak() + copies,
        average=n_trainable * max(4, sizes.value) if averaged else 0,
    )
