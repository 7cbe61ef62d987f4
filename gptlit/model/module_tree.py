"""A net's modules as an indented tree with their parameters, for `gptlit summary`."""

import itertools
from collections.abc import Iterator

from torch import nn

from gptlit.model.gpt import GPT
from gptlit.model.input_noise import InputNoise
from gptlit.model.positions import NoPositions

HIDDEN = (nn.Identity, NoPositions)


def lines(net: GPT) -> str:
    """Return the indented modules with their parameters; equal neighbours are shown once."""
    tied = net.config.tie_weights
    return "\n".join(
        f"{line}  tied" if tied and "  lm_head " in line else line for line in _branches(net, 1)
    )


def _branches(module: nn.Module, depth: int, prefix: str = "") -> Iterator[str]:
    for names, child in _runs(module):
        if isinstance(child, nn.ModuleList):
            yield from _branches(child, depth, f"{names}.")
            continue
        name = " to ".join(prefix + part for part in names.split(" to "))
        has_children = any(True for _ in child.children())
        kind = type(child).__name__ if has_children else _short(child)
        size = sum(parameter.numel() for parameter in child.parameters())
        each = " each" if " to " in name and size else ""
        count = f"{size:>13,}{each}" if size else ""
        yield f"{'  ' * depth + name:<22}{kind:<32}{count}".rstrip()
        if has_children:
            yield from _branches(child, depth + 1)


def _runs(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield children by name; of neighbours that print alike the first, as 'first to last'."""
    children = [(name, child) for name, child in module.named_children() if not _is_hidden(child)]
    for _, alike in itertools.groupby(
        children, lambda named: str(named[1]) if named[0].isdigit() else named[0]
    ):
        (first, child), *others = alike
        yield f"{first} to {others[-1][0]}" if others else first, child


def _is_hidden(module: nn.Module) -> bool:
    return isinstance(module, HIDDEN) or (isinstance(module, nn.Dropout) and not module.p)


def _short(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        bias = "" if module.bias is not None else ", no bias"
        return f"{kind}({module.in_features} -> {module.out_features}{bias})"
    if isinstance(module, nn.Embedding):
        return f"{kind}({module.num_embeddings}, {module.embedding_dim})"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return f"{kind}({', '.join(map(str, module.normalized_shape))})"
    if isinstance(module, InputNoise):
        return f"{kind}({module.masked:g}, {module.wrong:g})"
    return f"{kind}({module.p:g})" if isinstance(module, nn.Dropout) else kind
