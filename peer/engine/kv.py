"""The attention cache of one row (one sequence) on one peer.

A slab per block, contiguous along the tokens, whose capacity doubles: a token is written in place, never concatenated.
Blocks with a sliding window keep all tokens too, so that a row can always be truncated; the window is in the mask.
Blocks have the index they have in the full model, so a row may serve any part of what its peer hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

from ...proto.errors import OutOfMemory
from ...routing.swarm import BlockRange

_FIRST_CAPACITY_TOKENS = 64


@dataclass(frozen=True)
class BlockKV:
    """The cache of one block for one row, tokens in order. What the two tensors mean is the family's business."""

    keys: torch.Tensor
    """(heads, tokens, key size)"""
    values: torch.Tensor
    """(heads, tokens, value size)"""


class RowKV(Cache):
    """The cache of one row in the blocks of `blocks`, at most `max_tokens` tokens long.

    `length` counts the tokens that every block has; a forward that fails half-way leaves it as it was.
    Not thread-safe.
    """

    is_sliding: Sequence[bool] = ()  # type: ignore[assignment]
    """None of the blocks forgets tokens, whatever its mask hides: transformers sizes its masks by this."""
    is_linear: Sequence[bool] = ()  # type: ignore[assignment]
    is_dummy: Sequence[bool] = ()  # type: ignore[assignment]

    def __init__(self, blocks: BlockRange, max_tokens: int) -> None:
        super().__init__(layers=[])
        self.blocks = blocks
        self.max_tokens = max_tokens
        self.length = 0
        self._keys: list[torch.Tensor | None] = [None] * len(blocks)
        self._values: list[torch.Tensor | None] = [None] * len(blocks)

    @property
    def nbytes(self) -> int:
        """Bytes allocated now, the unused part of the slabs included."""
        return sum(slab.nbytes for slab in (*self._keys, *self._values) if slab is not None)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on. O(1). Raises ValueError if the row is shorter than that."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a row of {self.length} tokens to {length}")
        self.length = length

    def advance(self, count: int) -> None:
        """Keep the `count` tokens that the last forward wrote behind `length`."""
        self.length += count

    def fork(self) -> RowKV:
        """An independent copy. O(tokens)."""
        return RowKV.import_(self.blocks, self.max_tokens, self.export())

    def export(self) -> tuple[BlockKV, ...]:
        """The cached tokens, block by block; views into the slabs, to be read before the row is used again.

        Nothing for an empty row: a block's shapes are not known before its first token.
        """
        if self.length == 0:
            return ()
        return tuple(
            BlockKV(keys[:, : self.length], values[:, : self.length])
            for keys, values in zip(self._keys, self._values, strict=True)
            if keys is not None and values is not None
        )

    @classmethod
    def import_(cls, blocks: BlockRange, max_tokens: int, content: Sequence[BlockKV]) -> RowKV:
        """A new row from what `export` gave; the tensors are copied.

        Raises ValueError if there is not exactly one entry per block (none at all: an empty row), if the entries
        disagree in length, or if they are longer than `max_tokens`.
        """
        row = cls(blocks, max_tokens)
        if not content:
            return row
        tensors = [tensor for block in content for tensor in (block.keys, block.values)]
        lengths = {tensor.shape[1] if tensor.dim() == 3 else -1 for tensor in tensors}
        if len(content) != len(blocks) or len(lengths) != 1 or not 0 < min(lengths) <= max_tokens:
            raise ValueError(f"{len(content)} cached blocks of lengths {sorted(lengths)} do not make a row of {blocks}")
        (length,) = lengths
        for index, block in enumerate(content):
            row._keys[index] = _copy_to_slab(block.keys, row._capacity(length))
            row._values[index] = _copy_to_slab(block.values, row._capacity(length))
        row.length = length
        return row

    # What transformers asks of a cache.

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of a block, (1, heads, count, size); return all its tokens, (1, heads, tokens, size)."""
        index = layer_idx - self.blocks.start
        stop = self.length + key_states.shape[2]
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None or keys.shape[1] < stop:
            keys, values = self._grow(index, key_states, value_states, stop)
        keys[:, self.length : stop] = key_states[0]
        values[:, self.length : stop] = value_states[0]
        return keys[None, :, :stop], values[None, :, :stop]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def is_compileable(self) -> bool:
        return False

    def _grow(
        self, index: int, key_states: torch.Tensor, value_states: torch.Tensor, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make room for `stop` tokens in a block; the tokens before `length` are kept."""
        if stop > self.max_tokens:
            raise OutOfMemory(f"the session reserved {self.max_tokens} tokens, this step needs {stop}")
        capacity = self._capacity(stop)
        slabs = []
        for old, states in ((self._keys[index], key_states), (self._values[index], value_states)):
            slab = states.new_empty((states.shape[1], capacity, states.shape[3]))
            if old is not None:
                slab[:, : self.length] = old[:, : self.length]
            slabs.append(slab)
        self._keys[index], self._values[index] = slabs
        return slabs[0], slabs[1]

    def _capacity(self, tokens: int) -> int:
        """The next power of two, but never more than was reserved."""
        return min(self.max_tokens, max(_FIRST_CAPACITY_TOKENS, 1 << (tokens - 1).bit_length()))


def _copy_to_slab(tensor: torch.Tensor, capacity: int) -> torch.Tensor:
    heads, tokens, size = tensor.shape
    slab = tensor.new_empty((heads, capacity, size))
    slab[:, :tokens] = tensor
    return slab
