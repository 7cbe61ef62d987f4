"""The nearest neighbours of tokens in a model's embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def nearest_neighbours(embedding: Tensor, ids: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the tokens whose embeddings have the highest cosine with those of some tokens.

    Args:
        embedding: (V, C) rows, such as `model.wte.weight`. A row of zeros has cosine 0 with all.
        ids: (k,) token ids.
        n: Number of neighbours, at most V - 1; a token is not its own neighbour.

    Returns:
        (k, n) ids and (k, n) cosines, the highest first.
    """
    rows = F.normalize(embedding.float(), dim=1)  # (V, C)
    cosines = rows[ids] @ rows.T  # (k, V)
    cosines.scatter_(1, ids[:, None], -torch.inf)
    best = cosines.topk(min(n, len(rows) - 1), dim=1)
    return best.indices, best.values
