"""Direct preference optimization (DPO): a net learns which of two answers to a prompt is better.

Source: Rafailov et al. 2023, equation 7. The implicit reward of an answer y to a prompt x is
beta log(pi(y | x) / ref(y | x)); the loss is the cross-entropy of "chosen is better" under its
difference. A batch has the chosen and the rejected answer of each pair in consecutive windows.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.data.loaders import IGNORED
from gptlit.model import lora
from gptlit.model.gpt import GPT


class Preferred(NamedTuple):
    """Figures of the pairs of a batch, (B,) each.

    Args:
        loss: Loss of each pair in nats.
        margin: Implicit reward of the chosen answer less that of the rejected one.
        is_right: 1 where the chosen answer has the higher reward, else 0.
        is_pair: 1, or 0 for windows that pad a batch.
    """

    loss: Tensor
    margin: Tensor
    is_right: Tensor
    is_pair: Tensor


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the (N,) log-probability of each row's targets that are not IGNORED, in float32.

    Args:
        logits: (N, T, V)
        targets: (N, T) token ids, or IGNORED.
    """
    nats = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return -nats.view_as(targets).sum(dim=1)


def compare(policy: Tensor, reference: Tensor, beta: float, is_pair: Tensor) -> Preferred:
    """Return the loss and the rewards of pairs.

    Args:
        policy: (2 B,) log-probabilities of the answers, chosen and rejected in turn.
        reference: (2 B,) the same by the reference.
        beta: Strength with which the policy is kept near the reference.
        is_pair: (B,) 1, or 0 for windows that pad a batch.
    """
    rewards = beta * (policy - reference).view(-1, 2)
    margin = rewards[:, 0] - rewards[:, 1]
    return Preferred(-F.logsigmoid(margin), margin.detach(), (margin > 0).float(), is_pair)


class Preferences:
    """The objective of DPO, with its frozen reference.

    Args:
        beta: As in `compare`.
        reference: Net that the policy begins as; None if the policy has LoRA, whose base it is.
    """

    def __init__(self, beta: float, reference: GPT | None) -> None:
        self.beta = beta
        self.reference = reference and reference.eval().requires_grad_(False)
        self.margin = torch.zeros(())  # means of the last training batch
        self.accuracy = torch.zeros(())

    def place(self, device: torch.device, convert: Callable[[nn.Module], nn.Module]) -> None:
        """Move the reference to a device, in the precision that a function converts it to."""
        if self.reference is not None:
            convert(self.reference).to(device)  # both in place

    def of_batch(self, net: GPT, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch's pairs, twice: as objective and as plain loss.

        Args:
            net: The policy, in training mode.
            inputs: (2 B, T) token ids, chosen and rejected in turn.
            targets: (2 B, T) token ids, or IGNORED but in answers.
        """
        found = self.compared(net, inputs, targets)
        self.margin, self.accuracy = found.margin.mean(), found.is_right.mean()
        loss = found.loss.mean()
        return loss, loss

    def compared(self, net: GPT, inputs: Tensor, targets: Tensor) -> Preferred:
        """Return the figures of each pair of a batch, with gradients where the net has them."""
        with torch.no_grad(), self._as_reference(net) as reference:
            before = log_probabilities(reference(inputs), targets)
        is_pair = (targets != IGNORED).any(dim=1)[::2].float()
        return compare(log_probabilities(net(inputs), targets), before, self.beta, is_pair)

    @contextlib.contextmanager
    def _as_reference(self, net: GPT) -> Iterator[GPT]:
        """Yield the reference: a net of its own, or the policy without its changes."""
        if self.reference is not None:
            yield self.reference
            return
        was_training = net.training
        with lora.left_out(net.eval()):
            yield net
        net.train(was_training)
