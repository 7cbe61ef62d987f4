"""Several GPTs that predict together: the mean of their probabilities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gptlit.model.gpt import GPT, KVCache


class Ensemble(GPT):
    """Computes log probabilities of the next tokens: the logarithm of the mean over several nets.

    They are logits as a GPT's are, and softmax gives the mean. An ensemble can be used in a GPT's
    place for validation and generation, whose decoder keeps a cache for each net. It reads as
    many tokens as the net of the smallest block.

    Args:
        nets: One or more nets with the same vocabulary; not copied.

    Raises:
        ValueError: The sizes of the vocabularies differ, or there is no net.
    """

    def __init__(self, nets: Sequence[GPT]) -> None:
        nn.Module.__init__(self)
        if len({net.config.vocab_size for net in nets}) != 1:
            raise ValueError("an ensemble needs one or more nets, all with the same vocabulary")
        self.nets = nn.ModuleList(nets)
        self.config = min((net.config for net in nets), key=lambda config: config.block_size)
        self.wte, self.lm_head = nets[0].wte, nets[0].lm_head

    def forward(self, idx: Tensor, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """Return the log probabilities of each next token, as `GPT.forward` its logits.

        Args:
            idx: (B, T) token ids.
            cache: None; the nets' caches are the decoder's.
            last: Compute the last position's only.

        Returns:
            (B, T, V), or (B, 1, V) if `last`, in float32 at least.
        """
        assert cache is None, "the nets of an ensemble have a cache each"
        return log_mean([net(idx, last=last) for net in self.nets])


def log_mean(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities that several (..., V) logits give."""
    wide = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in logits]
    logs = torch.stack([each.log_softmax(dim=-1) for each in wide])  # (n, ..., V)
    return logs.logsumexp(dim=0) - math.log(len(logits))
