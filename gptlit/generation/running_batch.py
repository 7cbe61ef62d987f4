"""A batch that texts join and leave at any token; each is the text that it is alone.

Rows have settings of their own. Those with the same ones are drawn together.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gptlit.devices import accelerators
from gptlit.generation.decoding import Windows
from gptlit.generation.sampling import DRAWS_AT_ONCE, Rules, Streams, next_token
from gptlit.generation.settings import DRAW_SETTINGS, SamplingSettings
from gptlit.model.gpt import GPT


@dataclass(eq=False)
class Row:
    """A text in a batch.

    Args:
        prompt: (T,) ids on the model's device, T >= 1.
        settings: How its tokens are drawn; where it ends is not the batch's concern.
        seed: Seed of its stream of random numbers.
        rules: Ids that `prompts.rule_ids` returns.
        n_best: Number of likeliest tokens to record with each token; None for no scores.
    """

    prompt: Tensor
    settings: SamplingSettings
    seed: int
    rules: dict[str, Any] = field(default_factory=dict)
    n_best: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A token of a row.

    Args:
        id: Its id.
        logprob: Log probability by the model, in nats; None where scores are not recorded.
        best: Ids and log probabilities of the likeliest tokens, in order.
    """

    id: int
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()


class RunningBatch:
    """Rows that grow by one token in each step.

    Args:
        model: Model in eval mode.
    """

    def __init__(self, model: GPT) -> None:
        self._model = model
        self._windows: Windows | None = None
        self.rows: list[Row] = []
        self._numbers: list[Iterator[float]] = []
        self._rules: list[Rules | None] = []
        self._groups: list[tuple[SamplingSettings, list[int]]] = []  # by settings of the draw

    @torch.inference_mode()
    def change(self, leaving: Collection[Row], joining: Sequence[Row]) -> None:
        """Remove rows, and add others, before the next token.

        Raises:
            UsageError: The rules of a row leave no token to write; nothing has changed then.
        """
        rules = [self._rules_of(row) for row in joining]
        kept = _compacted([row not in leaving for row in self.rows])
        prompts = [row.prompt for row in joining]
        if self._windows is None or not kept:
            self._windows = Windows(self._model, prompts) if prompts else None
        else:
            self._windows.change(kept, prompts)
        self.rows = [*(self.rows[row] for row in kept), *joining]
        self._rules = [*(self._rules[row] for row in kept), *rules]
        numbers = (_numbers(row.seed, row.prompt.device) for row in joining)
        self._numbers = [*(self._numbers[row] for row in kept), *numbers]
        groups: dict[tuple[Any, ...], tuple[SamplingSettings, list[int]]] = {}
        for index, row in enumerate(self.rows):
            key = tuple(getattr(row.settings, name) for name in DRAW_SETTINGS)
            groups.setdefault(key, (row.settings, []))[1].append(index)
        self._groups = list(groups.values())

    def _rules_of(self, row: Row) -> Rules | None:
        """Return the rules of a row, or None where they change nothing."""
        size = self._model.config.vocab_size
        rules = Rules(row.settings, [row.prompt], size, **row.rules)
        none = Rules(SamplingSettings(), [row.prompt], size, eos_id=row.rules.get("eos_id"))
        return None if rules.key == none.key else rules

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Draw a token of each row, in the order of `rows`, of which there is at least one."""
        assert self._windows is not None
        logits = self._windows.logits()  # (B, V)
        allowed = logits.clone() if any(self._rules) else logits
        for row, rules in enumerate(self._rules):
            if rules is not None:
                allowed[row] = rules.apply(logits[row : row + 1])[0]
        wide = accelerators.widest_float(logits.device)
        u = torch.tensor([next(each) for each in self._numbers], dtype=torch.float64).to(wide)
        u = accelerators.placed(u, logits.device)  # (B,)
        if len(self._groups) == 1:
            ids = next_token(allowed, u, self._groups[0][0])
        else:
            ids = torch.empty(len(u), dtype=torch.long, device=logits.device)
            for settings, rows in self._groups:
                ids[rows] = next_token(allowed[rows], u[rows], settings)
        for row, rules in enumerate(self._rules):
            if rules is not None:
                rules.add(ids[row : row + 1])
        self._windows.append(ids)
        return self._recorded(logits, ids)

    def _recorded(self, logits: Tensor, ids: Tensor) -> list[Drawn]:
        drawn = [Drawn(id_) for id_ in ids.tolist()]
        rows = [index for index, row in enumerate(self.rows) if row.n_best is not None]
        if not rows:
            return drawn
        logs = logits[rows].float().log_softmax(dim=-1)  # (n, V)
        own = logs.gather(1, ids[rows][:, None])[:, 0].tolist()
        k = max(self.rows[row].n_best or 0 for row in rows)
        best = logs.topk(min(k, logs.size(1)), dim=1)
        columns = zip(rows, own, best.indices.tolist(), best.values.tolist(), strict=True)
        for row, logprob, its_ids, values in columns:
            n = self.rows[row].n_best
            pairs = tuple(zip(its_ids[:n], values[:n], strict=True))
            drawn[row] = Drawn(drawn[row].id, logprob, pairs)
        return drawn


def _compacted(is_kept: Sequence[bool]) -> list[int]:
    """Return the rows that are kept, the last ones in the places of those that leave."""
    n_kept = sum(is_kept)
    from_the_end = (row for row in reversed(range(len(is_kept))) if is_kept[row])
    return [row if is_kept[row] else next(from_the_end) for row in range(n_kept)]


def _numbers(seed: int, device: torch.device) -> Iterator[float]:
    """Yield the numbers of `Streams` for one seed."""
    streams = Streams([seed], "cpu")
    while True:
        yield from streams.take(DRAWS_AT_ONCE)[:, 0].tolist()
