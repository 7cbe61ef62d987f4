"""The moving average of weights over the steps of a run."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average (EMA) of a net's parameters.

    Update n = 0, 1, ... computes average <- d average + (1 - d) weights, where d is `decay`, at
    most (1 + n) / (10 + n): the average is over at most a tenth of the updates and soon forgets
    the random first weights. Averages are in float32 at least, since half precision loses updates
    of a thousandth.

    Args:
        net: Network whose current parameters are the first average.
        decay: d, above 0 and below 1; the average is over about the last 1 / (1 - d) steps.

    Source: Polyak and Juditsky 1992; the bound is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.is_kept = True  # whether it replaces the weights in samples and checkpoints
        self._net = net
        named = net.named_parameters()
        self._parameters = {name: each for name, each in named if each.requires_grad}
        self._values = {name: _copied(tensor) for name, tensor in self._parameters.items()}
        self._raw: dict[str, Tensor] | None = None  # the weights, while the average is in use

    def update(self, *_: object) -> None:
        """Update the average after a step; the arguments of an optimizer's hook are ignored."""
        self.blend(self.advance())

    def advance(self) -> float:
        """Count an update, and return its share of the current weights, 1 - d."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        return 1 - decay

    @torch.no_grad()
    def blend(self, share: float | Tensor) -> None:
        """Move the average towards the weights by a share of their difference.

        Args:
            share: Number, or a float32 scalar on the weights' device.
        """
        values = list(self._values.values())
        pairs = zip(values, self._parameters.values(), strict=True)
        weights = [parameter.to(value.dtype) for value, parameter in pairs]
        shares = [share] * len(values) if isinstance(share, Tensor) else share
        torch._foreach_lerp_(values, weights, shares)

    def begin(self) -> None:
        """Replace the net's weights by the average."""
        if self._raw is None:
            self._raw = {name: _copied(tensor) for name, tensor in self._parameters.items()}
            self._fill(self._values)

    def end(self) -> None:
        """Restore the net's weights."""
        if self._raw is not None:
            self._fill(self._raw)
            self._raw = None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average as the net's weights within the block, if it is kept.

        It may be in use already.
        """
        was_in_use = self._raw is not None
        if self.is_kept:
            self.begin()
        try:
            yield
        finally:
            if not was_in_use:
                self.end()

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    # ------------------------------------------------------------------ saving and resuming

    def averaged(self) -> dict[str, Tensor]:
        """Return the averages, under all names of the parameters in the net's state dict."""
        return self._by_every_name(self._values)

    def raw(self) -> dict[str, Tensor]:
        """Return the trained weights, under the same names."""
        weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
        return self._by_every_name(self._raw or weights)

    @torch.no_grad()
    def load(self, averaged: dict[str, Tensor], updates: int, is_kept: bool = True) -> None:
        """Restore averages, the number of updates and `is_kept`; not the weights of the net."""
        for name, value in self._values.items():
            value.copy_(averaged[name])
        self.updates, self.is_kept = updates, is_kept

    def _by_every_name(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        first = {id(parameter): name for name, parameter in self._parameters.items()}
        every = self._net.named_parameters(remove_duplicate=False)  # a tied head has two
        return {
            name: values[first[id(each)]] if each.requires_grad else each.detach()
            for name, each in every
        }


def _copied(tensor: Tensor) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(dtype, copy=True)
