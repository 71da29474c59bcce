"""One new token each of several rows as a batch (B, 1, H), for families with attention code of their own.

Shorter rows are padded on the left, which every family of transformers supports: distances to the newest token, and
with them windows and alibi, are those of the row alone.  The caches are copied for each block and step, so rows of
very different lengths are not put into one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....proto.model.cache import LayerlessCache
from .rows import RowSpan

_LENGTH_RATIO = 2
"""A row is padded to at most this many times its length."""


def batches_of_similar_length(rows: Sequence[RowSpan]) -> list[list[int]]:
    """Return batches of indices into `rows`, from the longest row on."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: -rows[index].stop):
        if not batches or rows[index].stop * _LENGTH_RATIO < rows[batches[-1][0]].stop:
            batches.append([])
        batches[-1].append(index)
    return batches


class PaddedRows(LayerlessCache):
    """The caches of rows with one new token each, as one cache of a batch."""

    def __init__(self, rows: Sequence[RowSpan]) -> None:
        super().__init__()
        self._rows = rows
        self._length = max(row.stop for row in rows)
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}

    def mask(self, device: torch.device) -> torch.Tensor:
        """Return the mask (B, longest row): 1 where a row has tokens, 0 where it is padded."""
        padding = torch.tensor([self._length - row.stop for row in self._rows], device=device)
        return (torch.arange(self._length, device=device) >= padding[:, None]).long()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a block's new token of each row, (B, heads, 1, size); return all tokens, (B, heads, longest, size).

        The result is valid until the next block's call.
        """
        padded_keys, padded_values = self._buffer("keys", key_states), self._buffer("values", value_states)
        for index, row in enumerate(self._rows):
            keys, values = row.kv.update(key_states[index, None], value_states[index, None], layer_idx)
            padded_keys[index, :, self._length - row.stop :] = keys[0]
            padded_values[index, :, self._length - row.stop :] = values[0]
        return padded_keys, padded_values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length - 1

    def _buffer(self, name: str, states: torch.Tensor) -> torch.Tensor:
        """Return a buffer with zeros where rows are padded; all blocks reuse it, because fresh memory is slow."""
        batch, heads, _, size = states.shape
        key = name, heads, size, states.dtype
        if key not in self._buffers:
            self._buffers[key] = states.new_zeros((batch, heads, self._length, size))
        return self._buffers[key]
