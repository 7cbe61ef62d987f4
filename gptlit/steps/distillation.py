"""Distillation: a student learns from the probabilities that trained nets, its teachers, predict.

Source: Hinton et al. 2015, sections 2 and 2.1. Several teachers are an ensemble, whose prediction
is the mean of their probabilities.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.checkpoints import init_from, run_paths
from gptlit.data.loaders import IGNORED
from gptlit.messages import UsageError
from gptlit.model import cost
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer
from gptlit.tokenizers.state import difference

OPTION = "model.teachers"

# ---------------------------------------------------------------------- the loss


def divergence(logits: Tensor, target: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(target || student), a mean over the targets that are not IGNORED, in nats per token.

    T^2 keeps its gradient at the size of cross-entropy's, since that of the softmax of logits / T
    is about 1 / T^2 of it. KL is the cross-entropy with `target` less the entropy of `target`,
    which no weight affects: both have the same gradient, and KL is 0 where the student agrees.

    Args:
        logits: (B, T, V), the student's.
        target: (B, T, V) probabilities at the same temperature.
        targets: (B, T) token ids, or IGNORED.
        temperature: Divisor of the student's logits.
    """
    student = _divided(logits, temperature).log_softmax(dim=-1)
    nats = F.kl_div(student, target, reduction="none").sum(dim=-1)  # (B, T)
    scored = targets != IGNORED
    return temperature**2 * (nats * scored).sum() / scored.sum()


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


# ---------------------------------------------------------------------- the teachers


class Teachers:
    """Trained nets in eval mode, without gradients, outside of their student's module.

    So they are neither trained nor averaged, and no checkpoint contains them. In several processes
    each has all of them, also where the student's weights are sharded.

    Args:
        nets: Trained nets with the student's vocabulary.
        hashes: sha256 of each net's weights.
        weight: Weight of their probabilities in the objective.
        temperature: Divisor of their logits and the student's.
    """

    def __init__(
        self,
        nets: Sequence[GPT],
        hashes: Sequence[str],
        weight: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        self.nets = [net.eval().requires_grad_(False) for net in nets]
        self.hashes = list(hashes)
        self.weight, self.temperature = weight, temperature
        self.loss = torch.zeros(())  # the last divergence, written in place so that graphs can

    @classmethod
    def read(cls, names: Sequence[str], tokenizer: Tokenizer, folder: Path) -> "Teachers":
        """Read teachers; draws no random numbers, so that a student begins as without them.

        Args:
            names: Checkpoints, or what else `init_from.start_from` reads.
            tokenizer: The student's tokenizer.
            folder: Folder of fetched files.

        Raises:
            UsageError: A teacher can't be read, or has another tokenizer.
        """
        nets, hashes = [], []
        with torch.random.fork_rng(devices=[]):
            for name in names:
                try:
                    origin = init_from.start_from(name, folder)
                except UsageError as error:
                    raise error.renamed("model.init_from", OPTION) from error
                if found := difference(origin.tokenizer, tokenizer, "the student"):
                    reason = f"has another tokenizer than the student: {found}"
                    raise UsageError(reason, OPTION, name)
                net = GPT(origin.config)
                net.load_state_dict(origin.state)
                nets.append(net)
                hashes.append(hash_of(origin.state))
        return cls(nets, hashes)

    def place(self, device: torch.device, convert: Callable[[nn.Module], nn.Module]) -> None:
        """Move the nets to a device, in the precision that a function converts them to."""
        for net in self.nets:
            convert(net).to(device)  # both in place
        self.loss = self.loss.to(device)

    def divergence(self, logits: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """The `divergence` of a student's (B, T, V) logits, also written to `loss`."""
        found = divergence(logits, self.probabilities(inputs), targets, self.temperature)
        self.loss.copy_(found.detach())
        return found

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> Tensor:
        """The mean of the teachers' probabilities of each next token: (B, T, V) for (B, T) ids.

        A teacher with a smaller block than T reads each window in pieces of its block, as it read
        its own text: a position is predicted from the positions of its piece.
        """
        total: Tensor | None = None
        for net in self.nets:
            pieces = inputs.split(net.config.block_size, dim=1)
            logits = torch.cat([net(piece) for piece in pieces], dim=1)  # (B, T, V)
            predicted = _divided(logits, self.temperature).softmax(dim=-1)
            total = predicted if total is None else total.add_(predicted)
        assert total is not None, "there are no teachers"
        return total.div_(len(self.nets))

    def n_bytes(self, n_tokens: int, per_value: int) -> int:
        """Memory of the weights, and of probabilities and gradients beyond those of other runs.

        The latter are five float32 values for each entry of the vocabulary: the target, the
        student's log-probabilities at the temperature, and the gradients of KL and its logits.

        Args:
            n_tokens: B T, of one forward pass.
            per_value: Bytes of a weight.
        """
        weights = sum(net.num_parameters() for net in self.nets) * per_value
        return weights + 5 * 4 * n_tokens * self.nets[0].config.vocab_size

    def flops_per_token(self, *, causal: bool = False) -> int:
        """Floating point operations of all forward passes for one token, as in `cost`."""
        return sum(cost.flops_per_token(net, causal=causal) for net in self.nets)


def hash_of(state: Mapping[str, Tensor]) -> str:
    """The sha256 of weights, with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        weight = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def located(name: str, must_exist: bool) -> str:
    """Return a teacher's absolute path, or the name of a published model.

    Raises:
        UsageError: There is no such file or folder, and there must be.
    """
    if name in init_from.PUBLISHED:
        return name
    try:
        path = run_paths.resolve(name) if name in run_paths.ALIASES else Path(name).expanduser()
    except UsageError as error:
        raise error.renamed("ckpt_path", OPTION) from error
    if must_exist and not path.exists():
        raise UsageError(
            "no such file or folder; training needs its teachers, also when it is resumed",
            OPTION,
            name,
        )
    return str(path.absolute())


def check_same(before: Sequence[str], now: Sequence[str]) -> None:
    """Refuse to resume a run with other teachers; it may do without them.

    Args:
        before: Hashes of the teachers' weights in the run's checkpoint.
        now: Hashes of the present teachers' weights.

    Raises:
        UsageError: The hashes differ.
    """
    if before and now and [*before] != [*now]:
        raise UsageError(
            "the teachers' weights are not those that the run learned from, by their hashes in "
            "its checkpoint; give the same ones in the same order, none ([]), or begin a new run",
            OPTION,
        )
