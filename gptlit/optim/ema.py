"""A moving average of weights over the steps of a run, and putting it in their place."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average (EMA) of a net's parameters.

    With each update, average <- d average + (1 - d) weights, where d is `decay`, but at most
    (1 + n) / (10 + n) at the n-th update from 0: the first weights, which are random, are forgotten
    soon, whatever the decay. Averages are kept in float32 at least, as steps of a thousandth are
    lost in half precision.

    Args:
        net: Its parameters as they are now begin the average.
        decay: d, above 0 and below 1; the average is of about the last 1 / (1 - d) steps.

    Source: Polyak and Juditsky 1992; the bound is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._net = net
        self._parameters = dict(net.named_parameters())
        self._values = {name: _copied(tensor) for name, tensor in self._parameters.items()}
        self._raw: dict[str, Tensor] | None = None  # the weights, while the average is in use

    @torch.no_grad()
    def update(self, *_: object) -> None:
        """Take in the weights after a step; the arguments of an optimizer's hook are ignored."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        values = list(self._values.values())
        pairs = zip(values, self._parameters.values(), strict=True)
        weights = [parameter.to(value.dtype) for value, parameter in pairs]
        torch._foreach_lerp_(values, weights, 1 - decay)

    def begin(self) -> None:
        """Put the average into the net."""
        if self._raw is None:
            self._raw = {name: _copied(tensor) for name, tensor in self._parameters.items()}
            self._fill(self._values)

    def end(self) -> None:
        """Put the weights back."""
        if self._raw is not None:
            self._fill(self._raw)
            self._raw = None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The net with the average, if it hasn't got it already."""
        if self._raw is not None:
            yield
            return
        self.begin()
        try:
            yield
        finally:
            self.end()

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    # ------------------------------------------------------------------ to save and to go on

    def averaged(self) -> dict[str, Tensor]:
        """The averages, under every name that the net's own state has for its parameters."""
        return self._by_every_name(self._values)

    def state(self) -> dict[str, Any]:
        """What goes on beside `averaged`: the weights themselves, and the number of updates."""
        raw = {name: parameter.detach() for name, parameter in self._parameters.items()}
        return {"updates": self.updates, "weights": self._by_every_name(self._raw or raw)}

    @torch.no_grad()
    def load(self, averaged: dict[str, Tensor], updates: int) -> None:
        """Go on from averages and a number of updates; the weights are the net's own matter."""
        for name, value in self._values.items():
            value.copy_(averaged[name])
        self.updates = updates

    def _by_every_name(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        first = {id(parameter): name for name, parameter in self._parameters.items()}
        every = self._net.named_parameters(remove_duplicate=False)  # a tied head has two
        return {name: values[first[id(parameter)]] for name, parameter in every}


def _copied(tensor: Tensor) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(dtype, copy=True)
