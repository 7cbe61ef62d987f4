"""What a model makes of texts that grow token by token: windows, and a fast step for one token.

A small model spends more time on calling modules and on views than on arithmetic when each row is
one token. So `Decoder` turns the blocks into plain functions once, on (B, C) instead of (B, T, C),
over a cache that is allocated once; whole windows go through the model itself. Rows may differ in
length. `tests/test_decoding.py` holds both to the same logits for every part of a model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptlit.model.gpt import GPT, MLP, Attention, Block, KVCache, TokenShift

Function = Callable[[Tensor], Tensor]
FEW = 4  # rows


def kept_tokens(block_size: int) -> int:
    """Number of tokens that a full window keeps: its last half, at least one."""
    return max(1, block_size // 2)


def window_starts(n_tokens: int, block_size: int) -> Iterator[tuple[int, int]]:
    """The windows from which all tokens of a text but the first are predicted.

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
    """The ids that a model looks at, B rows of up to block_size, and what it makes of them.

    When a row is full, its last block_size // 2 (at least one) are kept and read anew, so that the
    cost per token stays constant however long the text. It is so with and without a cache: both
    give the same.

    Args:
        model: In eval mode; its weights are read, not copied.
        prompts: B times (T,) ids, T >= 1; of more than block_size, the last are used.
        use_cache: Keep keys and values instead of reading the whole window for every token.
    """

    def __init__(
        self, model: GPT, prompts: Sequence[Tensor] | Tensor, use_cache: bool = True
    ) -> None:
        device = model.wte.weight.device
        self._model = model
        self._block_size = model.config.block_size
        self._kept = kept_tokens(self._block_size)
        self._ids = torch.zeros(len(prompts), self._block_size, dtype=torch.long, device=device)
        self._lengths = [min(len(prompt), self._block_size) for prompt in prompts]
        for row, prompt in enumerate(prompts):
            self._ids[row, : self._lengths[row]] = prompt[-self._block_size :]
        self._newest = self._ids[:, 0]  # (B,)
        self._anew = list(range(len(prompts)))  # rows that the cache has nothing of
        self._decoder = Decoder(model, len(prompts)) if use_cache else None

    def logits(self) -> Tensor:
        """(B, V) logits of the next tokens; to be asked for once before each `append`."""
        decoder, n_rows = self._decoder, len(self._lengths)
        anew = list(range(n_rows)) if decoder is None else self._anew
        logits = None
        if decoder is not None and len(anew) < n_rows:
            logits = decoder.step(self._newest, [length - 1 for length in self._lengths])
        for length in sorted({self._lengths[row] for row in anew}):
            rows = [row for row in anew if self._lengths[row] == length]
            if len(rows) == n_rows:
                logits = self._read(self._ids[:, :length], rows)
            else:
                read = self._read(self._ids[rows, :length], rows)
                logits = read.new_empty(n_rows, read.size(1)) if logits is None else logits
                logits[rows] = read
        self._anew = []
        assert logits is not None
        return logits

    def append(self, ids: Tensor) -> None:
        """Put (B,) ids behind the rows."""
        full = [row for row, length in enumerate(self._lengths) if length == self._block_size]
        if full:
            # the new ids are the last of those kept
            kept = self._ids[full, self._block_size - self._kept + 1 :]
            self._ids[full, : self._kept - 1] = kept
            for row in full:
                self._lengths[row] = self._kept - 1
        if len(set(self._lengths)) == 1:
            self._ids[:, self._lengths[0]] = ids
        else:
            places = torch.tensor(self._lengths, device=ids.device)[:, None]
            self._ids.scatter_(1, places, ids[:, None])
        self._lengths = [length + 1 for length in self._lengths]
        self._newest, self._anew = ids, full

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; for beams, some of which go on twice.

        To be called between `logits` and `append`.
        """
        rows = list(rows)
        self._ids = self._ids[rows]
        self._lengths = [self._lengths[row] for row in rows]
        if self._decoder is not None:
            self._decoder.reorder(rows)

    def _read(self, ids: Tensor, rows: list[int]) -> Tensor:
        if self._decoder is None:
            return self._model(ids, last=True)[:, -1]
        return self._decoder.read(ids, rows)


class Decoder:
    """A model's cache, and its step for one new token a row.

    Args:
        model: In eval mode; its weights are read, not copied.
        n_rows: B
    """

    def __init__(self, model: GPT, n_rows: int) -> None:
        self._model = model
        self._cache = KVCache(model.config, n_rows, model.wte.weight)
        self._rows = torch.arange(n_rows, device=model.wte.weight.device)
        self._blocks = [self._block(block) for block in model.h]
        self._norm, self._head = function(model.ln_f), function(model.lm_head)
        # of the step in hand: the tokens' places, where they are kept, and what they see
        self._at: int | Tensor = 0
        self._spot: tuple[slice | Tensor, slice, int | Tensor] = (slice(None), slice(None), 0)
        self._n_keys = 0
        self._mask: Tensor | None = None

    def read(self, ids: Tensor, rows: Sequence[int]) -> Tensor:
        """Begin some rows anew with (n, T) ids, 1 <= T <= block_size.

        Returns:
            (n, V) logits of what comes behind them.
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

    def step(self, ids: Tensor, places: Sequence[int]) -> Tensor:
        """(B, V) logits of what comes behind (B,) ids at these B places, 0 to block_size - 1.

        Every row but those that are read anew before the next step holds what is before its place.
        """
        self._n_keys = max(places) + 1
        if min(places) + 1 == self._n_keys:
            self._at = places[0]
            self._spot = (slice(None), slice(None), self._at)
            self._mask = None
        else:
            self._at = torch.tensor(places, device=ids.device)  # (B,)
            self._spot = (self._rows, slice(None), self._at)
            seen = torch.arange(self._n_keys, device=ids.device) <= self._at[:, None]
            self._mask = seen[:, None, None]  # (B, 1, 1, n_keys)
        # a token shift takes over from the position before, of which there is one
        self._cache.length = self._n_keys
        x = F.embedding(ids, self._model.wte.weight)  # (B, C)
        table = getattr(self._model.wpe, "weight", None)
        if table is not None:
            x = x + table[self._at]
        for block in self._blocks:
            x = block(x)
        return self._model.cap(self._head(self._norm(x)))

    def reorder(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was."""
        n = self._n_keys
        self._cache.store[:, :, :, :n] = self._cache.store[:, list(rows), :, :n]
        for shift, inputs in self._cache.inputs.items():
            self._cache.inputs[shift] = inputs[list(rows)]

    def _block(self, block: nn.Module) -> Function:
        assert isinstance(block, Block)
        branches = [(function(block.ln_2), self._mlp(block.mlp))]
        if block.attn is not None:
            branches.insert(0, (function(block.ln_1), self._attention(block.attn)))

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
        widen, act, narrow = function(mlp.c_fc), function(mlp.act), function(mlp.c_proj)
        if type(mlp.act) is nn.GELU and mlp.act.approximate == "none" and len(self._rows) <= FEW:
            act = gelu_of_few
        return self._after(mlp.shift, lambda x: narrow(act(widen(x))))

    def _attention(self, attn: Attention) -> Function:
        into, out = function(attn.c_attn), function(attn.c_proj)
        n_head, n_kv_head, _ = attn.heads
        shape = (-1, n_head + 2 * n_kv_head, attn.head_size)
        stored = self._cache.layers[attn.layer]  # (B, 2 kv_heads, block_size, head_size)
        keys, values = stored.chunk(2, dim=1)
        is_plain = attn.turn is None and attn.q_norm is None
        attend = partial(F.scaled_dot_product_attention, enable_gqa=n_head != n_kv_head)

        def forward(x: Tensor) -> Tensor:
            heads = into(x).view(shape)  # (B, heads, head_size)
            q, kv = heads[:, :n_head, None], heads[:, n_head:]  # q: (B, n_head, 1, head_size)
            if not is_plain:
                at = self._at
                k, v = kv.chunk(2, dim=1)
                places = slice(at, at + 1) if isinstance(at, int) else at[:, None, None]
                q, k = attn.prepare(q, k[:, :, None], places)
                kv = torch.cat([k[:, :, 0], v], dim=1)
            stored[self._spot] = kv
            k, v = keys.narrow(2, 0, self._n_keys), values.narrow(2, 0, self._n_keys)
            return out(attend(q, k, v, attn_mask=self._mask).reshape(x.shape))

        return self._after(attn.shift, forward)

    def _after(self, shift: TokenShift | None, forward: Function) -> Function:
        """A branch of (B, C) behind its token shift, if it has one."""
        if shift is None:
            return forward
        return lambda x: forward(shift(x[:, None], self._cache)[:, 0])


def gelu_of_few(x: Tensor) -> Tensor:
    """GELU, x times the normal distribution function, for so few values that F.gelu spends most of
    its time on sharing them out among threads."""
    half = 0.5 * x
    return half + half * torch.erf(x * math.sqrt(0.5))


def function(module: nn.Module) -> Function:
    """What a module computes in eval mode, without its hooks and checks."""
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.LayerNorm:
        size, eps, weight, bias = module.normalized_shape, module.eps, module.weight, module.bias
        return lambda x: F.layer_norm(x, size, weight, bias, eps)
    return module.forward
