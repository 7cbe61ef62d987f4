"""The sizes of a step's updates, relative to the weights that they change."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

TINY = 1e-30  # keeps the ratio of two zeros 0


def kind_of(name: str) -> str:
    """Return the kind of a matrix by its parameter's name: attn.c_attn for each block's, or wte."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[2:] if parts[0] == "h" else parts)


class UpdateRatios:
    """Computes |new weights - old weights| / |new weights| of a step, for each kind of matrix.

    The norms are over all layers. Between `begin` and `end` the old weights are kept beside the
    new ones.

    Args:
        named: Names and parameters of a net; those of one dimension or without gradients are left
            out.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        matrices = [(kind_of(name), p) for name, p in named if p.dim() > 1 and p.requires_grad]
        self.kinds = list(dict.fromkeys(kind for kind, _ in matrices))
        self._weights: list[Tensor] = [parameter.detach() for _, parameter in matrices]
        self._of_kind = [self.kinds.index(kind) for kind, _ in matrices]
        self._is_of: Tensor | None = None
        self._before: list[Tensor] = []

    def begin(self) -> None:
        """Keep the weights as they are before a step."""
        self._before = list(torch._foreach_mul(self._weights, 1.0))  # a copy by one kernel

    @torch.no_grad()
    def end(self) -> dict[str, float]:
        """Return the ratio of each kind, and wait for the device; none without `begin`."""
        before, self._before = self._before, []
        if not before:
            return {}
        torch._foreach_sub_(before, self._weights)
        norms = self._norms([*before, *self._weights])  # (2 kinds,)
        changes, sizes = norms.chunk(2)
        ratios = changes / sizes.clamp(min=TINY)
        return dict(zip(self.kinds, ratios.tolist(), strict=True))

    def _norms(self, tensors: list[Tensor]) -> Tensor:
        """Return the norm of the changes of each kind, then of the weights, (2 kinds,)."""
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        norms = torch.stack(torch._foreach_norm(tensors, dtype=dtype))  # (2 matrices,)
        if hasattr(norms, "full_tensor"):  # of shards
            norms = norms.full_tensor()
        if self._is_of is None:
            places = [*self._of_kind, *(len(self.kinds) + kind for kind in self._of_kind)]
            rows = [[place == row for place in places] for row in range(2 * len(self.kinds))]
            self._is_of = torch.tensor(rows, device=norms.device)  # (2 kinds, 2 matrices)
        return (self._is_of * norms.square()).sum(dim=1).sqrt()
