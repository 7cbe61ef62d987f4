"""Tokens that are drawn on the device, many for each time that the host waits for them.

On a GPU a small model waits for the host: most kernels of a token run for less time than their
launch takes, and a host that reads each token stops the device meanwhile. So a token's step reads
and writes tensors of fixed addresses alone, its position included, and is captured as two graphs:
`CapturedDecoder` computes logits, `_Draws` draws from them. With 6 layers of GPT-2's parts they
have about 90 kernels, with best_gpu.yaml's parts about 210; the host launches two graphs for a
token, and reads ids once a chunk, while the device draws the next chunk. Not measured on a GPU.

The lengths of rows don't depend on the ids, so full windows are read again without a value from the
device. Tokens after the end of a text are drawn in vain. The texts are those of the plain step:
tests/generation/test_captured.py compares both.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gptlit.devices import accelerators, graphs
from gptlit.devices.graphs import Captured
from gptlit.generation.decoding import Decoder, Windows
from gptlit.generation.sampling import Rules, Streams, next_token, scores
from gptlit.generation.settings import DRAW_SETTINGS, SamplingSettings
from gptlit.model.ensemble import Ensemble
from gptlit.model.gpt import GPT, TokenShift

CHUNK = 16  # tokens of a text that the host reads at once
FEWEST_KEYS = 64  # that a step attends to, those to come included


class CapturedDecoder(Decoder):
    """A decoder whose step is a function of tensors of fixed addresses.

    A step attends to a power of two of positions, or all, of which a mask hides those to come: a
    graph for each, and short texts don't read the cache of a whole window.

    Args:
        model: Model in eval mode; neither copied nor kept alive.
        n_rows: B
    """

    def __init__(self, model: GPT, n_rows: int) -> None:
        super().__init__(model, n_rows)
        self._model: Any = weakref.proxy(model)
        self._on = _back_end(model.wte.weight.device)
        self._made_for = _signature(model, n_rows)
        like, config = model.wte.weight, model.config
        self.ids = torch.zeros(n_rows, dtype=torch.long, device=like.device)  # the newest
        self.position = torch.zeros_like(self.ids)  # of the newest
        self.logits = like.new_zeros(n_rows, config.vocab_size)  # of the next
        self._positions = torch.arange(config.block_size, device=like.device)
        self._hidden, self._seen = like.new_full((), -torch.inf), like.new_zeros(())
        shifts = [module for module in model.modules() if isinstance(module, TokenShift)]
        size = (n_rows, config.token_shift, config.n_embd)
        self._inputs = {shift: like.new_zeros(size) for shift in shifts}
        self._steps: dict[int, Captured] = {}

    def fits(self, model: GPT, n_rows: int) -> bool:
        """Whether weights and autocast are as when the decoder was made, and B is the same."""
        return self._made_for == _signature(model, n_rows)

    def forget(self) -> None:
        """Forget all texts, also numbers that aren't finite."""
        self._cache.store.zero_()

    def read(self, ids: Tensor, rows: Sequence[int]) -> Tensor:
        logits = super().read(ids, rows)
        self._keep_inputs()
        return logits

    def step(self, ids: Tensor, positions: Sequence[int]) -> Tensor:
        self.ids.copy_(ids)
        self.place(positions)
        self.advance(max(positions) + 1)
        return self.logits

    def place(self, positions: Sequence[int]) -> None:
        """Set the positions of the newest ids, B of them."""
        self.position.copy_(accelerators.placed(torch.tensor(positions), self.position.device))

    def advance(self, n_keys: int) -> None:
        """Compute `logits` from `ids` at `position`, which is below n_keys in each row."""
        n_read = max(FEWEST_KEYS, 1 << (n_keys - 1).bit_length())
        n_read = min(n_read, len(self._positions))
        if n_read not in self._steps:
            step = partial(self._step, n_read)
            self._steps[n_read] = Captured(step, self._on, "the step of a token")
        self._steps[n_read]()

    def _step(self, n_keys: int) -> tuple[Tensor, ...]:
        self._n_keys, self._position = n_keys, self.position
        self._place = (self._rows, slice(None), self.position)
        is_hidden = self._positions[:n_keys] > self.position[:, None]  # (B, n_keys)
        self._mask = torch.where(is_hidden, self._hidden, self._seen)[:, None, None]
        self.logits.copy_(self._logits(self.ids))
        self._keep_inputs()
        return ()

    def _keep_inputs(self) -> None:
        """Move the inputs of token shifts to where the next step reads them."""
        for shift, kept in self._inputs.items():
            kept.copy_(self._cache.inputs[shift])
            self._cache.inputs[shift] = kept


def _back_end(device: torch.device) -> graphs.BackEnd:
    # draws use the numbers of `Streams`, which the host makes
    on = graphs.back_end(device, draws=False)
    assert on is not None
    return on


def _signature(model: GPT, n_rows: int) -> Hashable:
    weights, kind = (*model.parameters(), *model.buffers()), model.wte.weight.device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return n_rows, autocast, tuple((each.data_ptr(), each.dtype) for each in weights)


@dataclass
class Chunk:
    """Tokens that are drawn together.

    Args:
        ids: (n, B) ids in their order, on the CPU.
        scores: (n, B, 2) log probabilities and entropies, as `sampling.scores` has them; None where
            they are not recorded.
        copied: When ids and scores are there; None on a CPU.
    """

    ids: Tensor
    scores: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def waited_for(self) -> "Chunk":
        """Return the chunk when the device has drawn it."""
        if self.copied is not None:
            self.copied.synchronize()
        return self


class _Draws:
    """Draws tokens of B rows, without waiting for the device.

    Args:
        decoder: Decoder of B rows.
        rules: Rules of the prompts.
        settings: How tokens are drawn.
        scored: Record each token's log probability and entropy.
    """

    def __init__(
        self, decoder: CapturedDecoder, rules: Rules, settings: SamplingSettings, scored: bool
    ) -> None:
        self.decoder, self.rules, self._settings = decoder, rules, settings
        self.key = _key_of_draws(rules, settings, scored)
        device = decoder.ids.device
        size = (CHUNK, len(decoder.ids))
        self._u = torch.zeros(size, dtype=accelerators.widest_float(device), device=device)
        self._drawn = [decoder.ids.new_zeros(size)]  # ids, and scores if they are recorded
        if scored:
            self._drawn.append(self._u.new_zeros(*size, 2))
        self._at = decoder.ids.new_zeros(1)  # number of tokens drawn
        # a back end of their own, since other settings replace these graphs alone
        on = _back_end(device)
        # rules change in the first tokens; which token is forced is known to the host alone
        self._by_phase: dict[Hashable, Callable[[], Any]] = {
            phase: Captured(self._draw, on, "the draw of a token") for phase in (False, True)
        } | {None: self._draw}

    def begin(self, windows: Windows, streams: Streams, most: int) -> Chunk:
        """Launch at most `most` tokens; the device fills the tensors of the chunk.

        Args:
            windows: Windows of the texts, whose decoder is `decoder`.
            streams: Random numbers of the texts.
            most: Most tokens of the chunk.
        """
        decoder, lengths = self.decoder, windows.lengths
        # a row that becomes full is read again before its next token
        n = min(most, CHUNK, windows.block_size - max(lengths) + 1)
        self._u[:n] = streams.take(n)
        self._at.zero_()
        logits = windows.logits()
        if logits is not decoder.logits:
            decoder.logits.copy_(logits)
            decoder.place([length - 1 for length in lengths])
        for drawn in range(n):
            if drawn:
                decoder.advance(max(lengths) + drawn)
            self._by_phase[self.rules.phase()]()
            self.rules.n_written += 1
        windows.extend(self._drawn[0][:n])
        ids, *recorded = (each[:n].to("cpu", non_blocking=True, copy=True) for each in self._drawn)
        chunk = Chunk(ids, recorded[0] if recorded else None)
        if self._at.is_cuda:
            chunk.copied = torch.cuda.Event()
            chunk.copied.record(torch.cuda.current_stream(self._at.device))
        return chunk

    def _draw(self) -> tuple[Tensor, ...]:
        """Draw a token of each row from the decoder's logits."""
        decoder, u = self.decoder, self._u.index_select(0, self._at)[0]
        ids = next_token(self.rules.apply(decoder.logits), u, self._settings)  # (B,)
        self.rules.count(ids)
        results = [ids, scores(decoder.logits, ids)] if len(self._drawn) > 1 else [ids]
        for all_drawn, drawn in zip(self._drawn, results, strict=True):
            all_drawn.index_copy_(0, self._at, drawn[None])
        decoder.ids.copy_(ids)
        decoder.position.add_(1)
        self._at.add_(1)
        return ()


def _key_of_draws(rules: Rules, settings: SamplingSettings, scored: bool) -> Hashable:
    return rules.key, scored, *(getattr(settings, name) for name in DRAW_SETTINGS)


# the draws of each model's last texts, whose graphs serve the next ones
_KEPT: "weakref.WeakKeyDictionary[GPT, _Draws]" = weakref.WeakKeyDictionary()


def _draws_for(
    model: GPT, n_rows: int, rules: Rules, settings: SamplingSettings, scored: bool
) -> _Draws:
    """Take what is kept for a model as far as it fits, and make the rest."""
    # taken out, so that texts that are written in turns don't share it
    kept = _KEPT.pop(model, None)
    if kept is None or not kept.decoder.fits(model, n_rows):
        decoder = CapturedDecoder(model, n_rows)
        return _Draws(decoder, rules, settings, scored)
    kept.decoder.forget()
    if kept.key != _key_of_draws(rules, settings, scored):
        return _Draws(kept.decoder, rules, settings, scored)
    kept.rules.restart(rules)
    return kept


def forget(model: GPT) -> None:
    """Free the graphs that are kept for a model's next texts."""
    _KEPT.pop(model, None)


def is_used_for(model: GPT) -> bool:
    """Whether the steps of a model are captured: on a GPU, but not those of an ensemble."""
    return model.wte.weight.device.type in graphs.BACK_ENDS and not isinstance(model, Ensemble)


def chunks(
    model: GPT,
    prompts: Sequence[Tensor] | Tensor,
    rules: Rules,
    streams: Streams,
    settings: SamplingSettings,
    *,
    scored: bool = False,
    most: int = CHUNK,
) -> Iterator[Chunk]:
    """Yield `settings.max_new_tokens` tokens of each prompt, in chunks.

    A chunk is yielded when the next one has been launched.

    Args:
        model: Model in eval mode, for which `is_used_for` is true.
        prompts: B times (T,) ids, T >= 1.
        rules: Rules of the prompts.
        streams: Random numbers of the B texts.
        settings: How tokens are drawn, and how many.
        scored: Also record each token's log probability and entropy.
        most: Most tokens of a chunk, up to CHUNK.
    """
    draws = _draws_for(model, len(prompts), rules, settings, scored)
    windows = Windows(model, prompts, decoder=draws.decoder)
    n_left = math.inf if settings.max_new_tokens is None else settings.max_new_tokens
    launched: deque[Chunk] = deque()
    try:
        while n_left or launched:
            if n_left:
                launched.append(draws.begin(windows, streams, int(min(most, n_left))))
                n_left -= len(launched[-1].ids)
            if len(launched) == 2 or not n_left:
                yield launched.popleft().waited_for()
    finally:
        _KEPT[model] = draws
