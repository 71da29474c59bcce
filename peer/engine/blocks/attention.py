"""Attention for rows of different sessions packed into one sequence, (1, T, H): the tokens of all rows, concatenated.

A family that attends through transformers' registries is given a cache (`PackedRows`) that writes the new tokens of
each row into that row's own cache, a mask that is only the rule by which the family builds one (`CapturedMask`), and an
attention function that applies both, row by row.  Nothing is padded and no cache is copied.  Only the captured rule
knows what a window or a chunk hides, so no family needs to be known here.

Names of axes: T new tokens, Q heads of queries, N heads of keys and values, D head size, L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from ....proto.model.cache import LayerlessCache
from .rows import RowSpan

PACKED_ATTENTION = "blockswarm_packed"
"""The name under which this module's attention and mask are registered with transformers."""

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(row, head, position of the query, position of the key) -> whether the query sees the key, elementwise."""

_KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class PackedRows(LayerlessCache):
    """The caches of a step's rows, as one cache of one sequence.

    It looks empty to the family: positions are passed explicitly, and the mask is evaluated per row.

    Most families attend directly over what the cache returns; some first expand the compressed states that they cache
    (MLA).  The latter need all tokens of all rows, concatenated; the former do not, because the attention function
    finds them here.  The attention function sees which case a block is, and `direct_blocks` remembers it.
    """

    def __init__(self, rows: Sequence[RowSpan], direct_blocks: set[int]) -> None:
        super().__init__()
        self.rows = rows
        self._counts = [row.count for row in rows]
        self._direct_blocks = direct_blocks
        self._block = -1
        self._cached: list[_KeysAndValues] = []
        self._returned: _KeysAndValues | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> _KeysAndValues:
        """Write a block's new tokens, (1, N, T, D), to the rows; return the keys and values for the family."""
        keys, values = self.split(key_states), self.split(value_states)
        self._block = layer_idx
        self._cached = [row.kv.update(k, v, layer_idx) for row, k, v in zip(self.rows, keys, values, strict=True)]
        if layer_idx in self._direct_blocks:
            self._returned = key_states, value_states
        elif len(self._cached) == 1:
            self._returned = self._cached[0]
        else:
            self._returned = torch.cat([k for k, _ in self._cached], 2), torch.cat([v for _, v in self._cached], 2)
        return self._returned

    def split(self, states: torch.Tensor) -> Sequence[torch.Tensor]:
        """(1, heads, T, D) -> (1, heads, count, D) per row."""
        return (states,) if len(self.rows) == 1 else states.split(self._counts, dim=2)

    def take(self, key: torch.Tensor, value: torch.Tensor) -> list[_KeysAndValues]:
        """Return all keys and values of each row, (1, N, L, D); `key` and `value` are what the family passed on."""
        assert self._returned is not None
        cached, (returned_key, returned_value) = self._cached, self._returned
        self._cached, self._returned = [], None
        if key is returned_key and value is returned_value:
            self._direct_blocks.add(self._block)
            return cached
        if self._block in self._direct_blocks:
            raise RuntimeError(f"block {self._block} attended over its cache as it is before, and now does not")
        lengths = [row.stop for row in self.rows]
        return list(zip(key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Sight:
    """The tokens of a row that its new tokens see: none before `first`, and from there on those in `mask`."""

    first: int = 0
    mask: torch.Tensor | None = None
    """(new tokens, L - first), True where seen; None: everything, or with `is_causal`, everything up to each token."""
    is_causal: bool = False


class CapturedMask:
    """A family's rule of visibility, in place of a mask; evaluated once per step and kind of block."""

    def __init__(self, function: MaskFunction) -> None:
        self._function = function
        self._sights: list[Sight] | None = None

    def sights(self, rows: Sequence[RowSpan], device: torch.device, *, as_masks: bool) -> list[Sight]:
        """Return a sight for each row. `as_masks`: never use `is_causal`. Later calls have to be for the same rows."""
        if self._sights is None:
            self._sights = _evaluate(self._function, rows, device, as_masks)
        return self._sights


def _evaluate(function: MaskFunction, rows: Sequence[RowSpan], device: torch.device, as_masks: bool) -> list[Sight]:
    plain = function is causal_mask_function
    single = [] if plain else [row for row in rows if row.count == 1]
    sights_of_single = iter(_sights_of_single_tokens(function, single, device))
    sights = []
    for row in rows:
        if row.count == 1:
            sights.append(Sight() if plain else next(sights_of_single))
        elif plain and row.start == 0 and not as_masks:
            sights.append(Sight(is_causal=True))
        else:
            visible = _visible(function, torch.arange(row.start, row.stop, device=device), row.stop)
            first = 0 if plain else int(visible.any(dim=0).int().argmax())
            sights.append(Sight(first, visible[:, first:]))
    return sights


def _sights_of_single_tokens(function: MaskFunction, rows: Sequence[RowSpan], device: torch.device) -> list[Sight]:
    """Evaluate all rows at once, because there may be many, each from another session."""
    if not rows:
        return []
    queries = torch.tensor([row.start for row in rows], device=device)
    keys = torch.arange(max(row.stop for row in rows), device=device)
    visible = _visible(function, queries, len(keys)) & (keys <= queries[:, None])
    spans = torch.stack([visible.int().argmax(dim=1), visible.sum(dim=1)], dim=1).tolist()
    sights = []
    for row, seen, (first, count) in zip(rows, visible, spans, strict=True):
        whole_rest = first + count == row.stop
        sights.append(Sight(first) if whole_rest else Sight(mask=seen[None, : row.stop]))
    return sights


def _visible(function: MaskFunction, queries: torch.Tensor, length: int) -> torch.Tensor:
    """(queries, length) bool: which of the first `length` tokens are seen from the positions `queries`."""
    zero = queries.new_zeros(())
    keys = torch.arange(length, device=queries.device)
    return function(zero, zero, queries[:, None], keys[None]).expand(len(queries), length)


def _capture_mask(*args: Any, mask_function: MaskFunction = causal_mask_function, **kwargs: Any) -> CapturedMask:
    return CapturedMask(mask_function)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: CapturedMask,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    past_rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with queries (1, Q, T, D) over the rows' caches -> (1, T, Q, size of values). See `AttentionInterface`.

    Raises TypeError if the family did not pass on the rows and the mask; it then cannot be served packed.
    """
    if past_rows is None or not isinstance(attention_mask, CapturedMask):
        raise TypeError(f"{type(module).__name__} passes on neither the packed rows nor the captured mask")
    by_hand = softcap is not None or s_aux is not None
    sights = attention_mask.sights(past_rows.rows, query.device, as_masks=by_hand)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for q, (k, v), sight in zip(past_rows.split(query), past_rows.take(key, value), sights, strict=True):
        if sight.first:
            k, v = k[:, :, sight.first :], v[:, :, sight.first :]
        if by_hand:
            outputs.append(_attend_by_hand(q, k, v, sight, scaling, softcap, s_aux))
        else:
            outputs.append(_attend(q, k, v, sight, scaling))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sight: Sight, scaling: float
) -> torch.Tensor:
    """One row: (1, Q, count, D) over (1, N, L, D) -> (1, count, Q, size of values)."""
    (_, heads, count, size), kv_heads = query.shape, keys.shape[1]
    group = heads // kv_heads
    if count == 1:
        # Treat the queries that share a head of keys like the tokens of a chunk, so that each key is read once.
        grouped = query.view(1, kv_heads, group, size)
        output = scaled_dot_product_attention(grouped, keys, values, attn_mask=sight.mask, scale=scaling)
        return output.reshape(1, 1, heads, -1)
    if group > 1:
        # Make the heads of keys the batch, so that queries share them by a stride of zero and not by a copy.
        query = query.view(kv_heads, group, count, size)
        keys, values = (x[0][:, None].expand(-1, group, -1, -1) for x in (keys, values))
    output = scaled_dot_product_attention(
        query, keys, values, attn_mask=sight.mask, scale=scaling, is_causal=sight.is_causal
    )
    return output.reshape(1, heads, count, -1).transpose(1, 2)


def _attend_by_hand(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sight: Sight,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """As `_attend`, with two things that torch's own function lacks: capped scores, and a sink per head, (Q,)."""
    (_, heads, count, size), kv_heads = query.shape, keys.shape[1]
    scores = query.reshape(1, kv_heads, -1, size) @ keys.transpose(2, 3) * scaling
    scores = scores.view(1, heads, count, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if sight.mask is not None:
        scores = scores.masked_fill(~sight.mask, float("-inf"))
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, heads, 1, 1).expand(-1, -1, count, 1)
        scores = torch.cat([scores, sink], dim=3)
    # In float32, as the families do it: 16 bits are too few for a sum over a long context.
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(values.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    output = weights.reshape(1, kv_heads, -1, keys.shape[2]) @ values
    return output.view(1, heads, count, -1).transpose(1, 2)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _capture_mask)
