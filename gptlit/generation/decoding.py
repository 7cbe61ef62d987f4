"""Logits of texts that grow token by token: the model's windows, and a fast step for one token.

With one token a row, a small model spends more time on calling modules and on views than on
arithmetic. So `Decoder` turns the blocks into plain functions once, on (B, C) instead of (B, T, C),
with a cache that is allocated once; whole windows go through the model itself. Rows may differ in
length. tests/generation/test_decoding.py compares both for every part of a model.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.devices import accelerators
from gptlit.model.ensemble import Ensemble, log_mean
from gptlit.model.gpt import GPT, MLP, Attention, Block, KVCache, TokenShift
from gptlit.model.positions import Rotary, rotated

Function = Callable[[Tensor], Tensor]
FEW_ROWS = 4


def kept_tokens(block_size: int) -> int:
    """Return the number of tokens that a full window keeps: its last half, at least one."""
    return max(1, block_size // 2)


def window_starts(n_tokens: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Yield the windows from which all tokens of a text but the first are predicted.

    Yields:
        A window's first token, and the first token that is predicted from it; the last one is
        predicted from block_size tokens.
    """
    start, predicted = 0, 1
    while predicted < n_tokens:
        yield start, predicted
        predicted = start + block_size + 1
        start = predicted - kept_tokens(block_size)


class Windows:
    """The ids that a model sees, B rows of up to block_size, and their logits.

    A full row keeps its last block_size // 2 tokens (at least one), which are read again, so that
    the cost per token is constant for any length of text; the same with and without a cache.

    Args:
        model: Model in eval mode; its weights are not copied.
        prompts: B times (T,) ids, T >= 1; the last block_size are used.
        use_cache: Keep keys and values instead of reading the whole window for every token.
        decoder: Decoder of B rows to use for that; a new one if left out.
    """

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Tensor] | Tensor,
        use_cache: bool = True,
        decoder: "Decoder | None" = None,
    ) -> None:
        device = model.wte.weight.device
        self._model = model
        self.block_size = model.config.block_size
        self._kept = kept_tokens(self.block_size)
        self._ids, self.lengths = _ends(prompts, self.block_size, device)
        self._newest = self._ids[:, 0]  # (B,)
        self._to_read = list(range(len(prompts)))  # rows that aren't in the cache
        if use_cache and decoder is None:
            n_rows = len(prompts)
            if isinstance(model, Ensemble):
                decoder = Decoders(model, n_rows)
            else:
                decoder = Decoder(model, n_rows)
        self._decoder = decoder

    def logits(self) -> Tensor:
        """Return (B, V) logits of the next tokens; call it once before each `append`."""
        decoder, n_rows = self._decoder, len(self.lengths)
        to_read = list(range(n_rows)) if decoder is None else self._to_read
        logits = None
        if decoder is not None and len(to_read) < n_rows:
            logits = decoder.step(self._newest, [length - 1 for length in self.lengths])
        for length in sorted({self.lengths[row] for row in to_read}):
            rows = [row for row in to_read if self.lengths[row] == length]
            if len(rows) == n_rows:
                logits = self._read(self._ids[:, :length], rows)
            else:
                read = self._read(self._ids[rows, :length], rows)
                logits = read.new_empty(n_rows, read.size(1)) if logits is None else logits
                logits[rows] = read.to(logits.dtype)
        self._to_read = []
        assert logits is not None
        return logits

    def append(self, ids: Tensor) -> None:
        """Append (B,) ids, one to each row."""
        full = [row for row, length in enumerate(self.lengths) if length == self.block_size]
        if full:
            # the new ids count among those kept; an index that isn't a slice waits for a GPU
            rows = slice(None) if len(full) == len(self.lengths) else full
            kept = self._ids[rows, self.block_size - self._kept + 1 :]
            self._ids[rows, : self._kept - 1] = kept
            for row in full:
                self.lengths[row] = self._kept - 1
        if len(set(self.lengths)) == 1:
            self._ids[:, self.lengths[0]] = ids
        else:
            places = accelerators.placed(torch.tensor(self.lengths), ids.device)[:, None]
            self._ids.scatter_(1, places, ids[:, None])
        self.lengths = [length + 1 for length in self.lengths]
        self._newest, self._to_read = ids, full

    def extend(self, ids: Tensor) -> None:
        """Append (n, B) ids, n to each row; no row may be full before the last of them."""
        n = len(ids) - 1
        if n and len(set(self.lengths)) == 1:
            self._ids[:, self.lengths[0] : self.lengths[0] + n] = ids[:-1].T
        elif n:
            first = accelerators.placed(torch.tensor(self.lengths), ids.device)[:, None]
            places = first + torch.arange(n, device=ids.device)  # (B, n)
            self._ids.scatter_(1, places, ids[:-1].T)
        self.lengths = [length + n for length in self.lengths]
        self.append(ids[-1])

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i a copy of row `rows[i]`; call it between `logits` and `append`."""
        rows = list(rows)
        self._ids = self._ids[rows]
        self.lengths = [self.lengths[row] for row in rows]
        if self._decoder is not None:
            self._decoder.reorder(rows)

    def change(self, rows: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Keep some rows, and add one for each prompt after them; call it before `logits`.

        Args:
            rows: Rows that are kept: row i becomes a copy of row `rows[i]`, and rows[i] >= i.
            prompts: (T,) ids each, T >= 1.
        """
        if list(rows) == list(range(len(self.lengths))) and not prompts:
            return
        ids, lengths = _ends(prompts, self.block_size, self._ids.device)
        to_read = [row for row, before in enumerate(rows) if before in self._to_read]
        n_rows = len(rows) + len(lengths)
        self._to_read = [*to_read, *range(len(rows), n_rows)]
        self._newest = torch.cat([self._newest[list(rows)], ids[:, 0]])
        self._ids = torch.cat([self._ids[list(rows)], ids])
        self.lengths = [*(self.lengths[row] for row in rows), *lengths]
        if self._decoder is not None:
            self._decoder = self._decoder.resized(rows, n_rows)

    def _read(self, ids: Tensor, rows: list[int]) -> Tensor:
        if self._decoder is None:
            return self._model(ids, last=True)[:, -1]
        return self._decoder.read(ids, rows)


def _ends(
    prompts: Sequence[Tensor] | Tensor, block_size: int, device: torch.device
) -> tuple[Tensor, list[int]]:
    """Return the last block_size ids of B prompts, filled up with 0, and their lengths."""
    ids = torch.zeros(len(prompts), block_size, dtype=torch.long, device=device)
    lengths = [min(len(prompt), block_size) for prompt in prompts]
    if len(set(lengths)) == 1:
        ids[:, : lengths[0]] = torch.stack([prompt[-block_size:] for prompt in prompts])
    else:
        for row, prompt in enumerate(prompts):
            ids[row, : lengths[row]] = prompt[-block_size:]
    return ids, lengths


class Decoder:
    """A model with a cache, and a fast step for one new token in each row.

    Args:
        model: Model in eval mode; its weights are not copied.
        n_rows: B
        cache: Cache of B rows; a new one if left out.
    """

    def __init__(self, model: GPT, n_rows: int, cache: KVCache | None = None) -> None:
        self._model = model
        self._cache = cache or KVCache(model.config, n_rows, model.wte.weight)
        self._rows = torch.arange(n_rows, device=model.wte.weight.device)
        self._blocks = [self._block(block) for block in model.h]
        self._rotary = next((each for each in model.modules() if isinstance(each, Rotary)), None)
        self._norm, self._head = plain_function(model.ln_f), plain_function(model.lm_head)
        # of the current step: positions of the tokens, places in the cache, number of keys, mask
        self._position: int | Tensor = 0
        self._place: tuple[Any, ...] = ()
        self._n_keys = 0
        self._mask: Tensor | None = None
        self._turn: tuple[Tensor, ...] = ()  # cosines and sines, (1 or B, 1, head_size / 2)

    def read(self, ids: Tensor, rows: Sequence[int]) -> Tensor:
        """Start some rows over with (n, T) ids, 1 <= T <= block_size.

        Returns:
            (n, V) logits of the next tokens.
        """
        n_rows = len(self._rows)
        if len(rows) == n_rows:
            self._cache.length, self._n_keys = 0, ids.size(1)
            return self._model(ids, self._cache, last=True)[:, -1]
        length = ids.size(1)
        self._n_keys = max(self._n_keys, length)
        part = KVCache(self._model.config, len(rows), self._cache.store, length)
        logits = self._model(ids, part, last=True)[:, -1]
        self._cache.store[:, rows, :, :length] = part.store
        for shift, inputs in part.inputs.items():
            everywhere = inputs.new_zeros(n_rows, *inputs.shape[1:])
            self._cache.inputs.setdefault(shift, everywhere)[rows] = inputs
        return logits

    def step(self, ids: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the next tokens' (B, V) logits after (B,) ids at B positions, 0 to block_size - 1.

        The cache must have all earlier positions of a row, unless `read` starts the row over
        before the next step.
        """
        self._n_keys = max(positions) + 1
        if min(positions) + 1 == self._n_keys:
            self._position = positions[0]
            self._place = (slice(None), slice(None), self._position)
            self._mask = None
        else:
            self._position = accelerators.placed(torch.tensor(positions), ids.device)  # (B,)
            self._place = (self._rows, slice(None), self._position)
            seen = torch.arange(self._n_keys, device=ids.device) <= self._position[:, None]
            self._mask = seen[:, None, None]  # (B, 1, 1, n_keys)
        return self._logits(ids)

    def _logits(self, ids: Tensor) -> Tensor:
        """Return (B, V) logits after (B,) ids at the positions, places and mask that are set."""
        # above 0, so that token shifts use the inputs of the positions before
        self._cache.length = self._n_keys
        x = F.embedding(ids, self._model.wte.weight)  # (B, C)
        table = getattr(self._model.wpe, "weight", None)
        if table is not None:
            x = x + table[self._position]
        if self._rotary is not None:
            at = self._position
            places = slice(at, at + 1) if isinstance(at, int) else at[:, None]
            self._turn = (self._rotary.cos[places], self._rotary.sin[places])
        for block in self._blocks:
            x = block(x)
        return self._model.cap(self._head(self._norm(x)))

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row i a copy of row `rows[i]`."""
        n = self._n_keys
        self._cache.store[:, :, :, :n] = self._cache.store[:, list(rows), :, :n]
        for shift, inputs in self._cache.inputs.items():
            self._cache.inputs[shift] = inputs[list(rows)]

    def resized(self, rows: Sequence[int], n_rows: int) -> "Decoder":
        """Return a decoder of n_rows whose first ones are `rows`, as `KVCache.resized` does."""
        cache = self._cache.resized(rows, n_rows, self._n_keys)
        return Decoder(self._model, n_rows, cache)

    def _block(self, block: nn.Module) -> Function:
        assert isinstance(block, Block)
        branches = [(plain_function(block.ln_2), self._mlp(block.mlp))]
        if block.attn is not None:
            branches.insert(0, (plain_function(block.ln_1), self._attention(block.attn)))

        def pre(x: Tensor) -> Tensor:
            for norm, branch in branches:
                x = x + branch(norm(x))
            return x

        def post(x: Tensor) -> Tensor:
            for norm, branch in branches:
                x = norm(x + branch(x))
            return x

        return post if block.is_post else pre

    def _mlp(self, mlp: MLP) -> Function:
        widen, act, narrow = (
            plain_function(mlp.c_fc),
            plain_function(mlp.act),
            plain_function(mlp.c_proj),
        )
        is_gelu = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
        if is_gelu and len(self._rows) <= FEW_ROWS and self._rows.device.type == "cpu":
            act = gelu_of_few_rows
        return self._after(mlp.shift, lambda x: narrow(act(widen(x))))

    def _attention(self, attn: Attention) -> Function:
        into, out = plain_function(attn.c_attn), plain_function(attn.c_proj)
        n_head, n_kv_head, _ = attn.heads
        shape = (-1, n_head + 2 * n_kv_head, attn.head_size)
        # heads that share keys become queries of one head: with one position they see the same
        grouped = (-1, n_kv_head, n_head // n_kv_head, attn.head_size)
        stored = self._cache.layers[attn.layer]  # (B, 2 kv_heads, block_size, head_size)
        keys, values = stored.chunk(2, dim=1)
        norm, is_turned = _norm_of_heads(attn), attn.turn is not None

        def forward(x: Tensor) -> Tensor:
            heads = into(x).view(shape)  # (B, heads, head_size)
            q, kv = heads[:, :n_head], heads[:, n_head:]
            if norm is not None or is_turned:
                qk, v = heads[:, :-n_kv_head], heads[:, -n_kv_head:]
                qk = qk if norm is None else norm(qk)
                qk = rotated(qk, *self._turn) if is_turned else qk
                q, kv = qk[:, :n_head], torch.cat([qk[:, n_head:], v], dim=1)
            stored[self._place] = kv.to(stored.dtype)  # which autocast has made smaller
            k, v = keys.narrow(2, 0, self._n_keys), values.narrow(2, 0, self._n_keys)
            y = F.scaled_dot_product_attention(q.reshape(grouped), k, v, attn_mask=self._mask)
            return out(y.reshape(x.shape))

        return self._after(attn.shift, forward)

    def _after(self, shift: TokenShift | None, forward: Function) -> Function:
        """Return a branch on (B, C), preceded by its token shift if it has one."""
        if shift is None:
            return forward
        return lambda x: forward(shift(x[:, None], self._cache)[:, 0])


class Decoders(Decoder):
    """The decoders of an ensemble's nets, as one.

    Args:
        model: Ensemble in eval mode.
        n_rows: B
    """

    def __init__(self, model: Ensemble, n_rows: int) -> None:
        self._all = [Decoder(net, n_rows) for net in model.nets if isinstance(net, GPT)]

    def read(self, ids: Tensor, rows: Sequence[int]) -> Tensor:
        return log_mean([each.read(ids, rows) for each in self._all])

    def step(self, ids: Tensor, positions: Sequence[int]) -> Tensor:
        return log_mean([each.step(ids, positions) for each in self._all])

    def reorder(self, rows: Sequence[int]) -> None:
        for each in self._all:
            each.reorder(rows)

    def resized(self, rows: Sequence[int], n_rows: int) -> "Decoders":
        other = copy.copy(self)
        other._all = [each.resized(rows, n_rows) for each in self._all]
        return other


def _norm_of_heads(attn: Attention) -> Function | None:
    """Return the norms of (B, n_head + n_kv_head, head_size) queries and keys, if there are any."""
    if attn.q_norm is None or attn.k_norm is None:
        return None
    of_queries, of_keys, n_head = attn.q_norm, attn.k_norm, attn.heads[0]
    if not [*of_queries.parameters()]:
        return of_queries.forward
    return lambda x: torch.cat([of_queries(x[:, :n_head]), of_keys(x[:, n_head:])], dim=1)


def gelu_of_few_rows(x: Tensor) -> Tensor:
    """Compute GELU in plain operations: on few values, F.gelu takes longer to start its threads."""
    half = 0.5 * x
    return half + half * torch.erf(x * math.sqrt(0.5))


def plain_function(module: nn.Module) -> Function:
    """Return the function that a module computes in eval mode, without its hooks and checks."""
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.LayerNorm:
        size, eps, weight, bias = module.normalized_shape, module.eps, module.weight, module.bias
        return lambda x: F.layer_norm(x, size, weight, bias, eps)
    return module.forward
