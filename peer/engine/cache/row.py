"""The attention cache of one row (one sequence) on one peer.

Each block has a slab, contiguous along the tokens, whose capacity doubles: a token is written in place, never
concatenated.  Forked rows share their slabs and copy them on write.  Blocks with a sliding window keep all tokens, too,
so that a row can always be truncated; the window is in the mask.  Blocks have their index in the full model, so a row
may serve any part of the blocks that its peer hosts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....proto.errors import OutOfMemory
from ....proto.model.cache import LayerlessCache
from ....routing.swarm import BlockRange

_SPARE_FACTOR = 4
"""A row truncated to less than 1 / _SPARE_FACTOR of its capacity frees memory."""


@dataclass(frozen=True)
class BlockKV:
    """The cache of one block for one row, tokens in order. The family defines what the two tensors mean."""

    keys: torch.Tensor
    """(heads, tokens, key size)"""
    values: torch.Tensor
    """(heads, tokens, value size)"""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass
class KvUsage:
    """Bytes of the slabs of some rows; a slab that rows share counts once."""

    nbytes: int = 0


class _Slab:
    """Room for the tokens of one block, for one row or for several that were forked and not written to since."""

    __slots__ = ("capacity", "keys", "rows", "values")

    def __init__(self, key_states: torch.Tensor, value_states: torch.Tensor, capacity: int) -> None:
        """Make room for `capacity` tokens like these, (1, heads, count, size)."""
        self.keys = key_states.new_empty((1, key_states.shape[1], capacity, key_states.shape[3]))
        self.values = value_states.new_empty((1, value_states.shape[1], capacity, value_states.shape[3]))
        self.capacity = capacity
        self.rows = 1

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write(self, start: int, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Write tokens, (1, heads, count, size), from position `start` on."""
        count = key_states.shape[2]
        self.keys.narrow(2, start, count).copy_(key_states)
        self.values.narrow(2, start, count).copy_(value_states)

    def read(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of the first tokens, (1, heads, length, size)."""
        return self.keys.narrow(2, 0, length), self.values.narrow(2, 0, length)


class RowKV(LayerlessCache):
    """The cache of one row in the blocks of `blocks`, at most `max_tokens` tokens long.

    `length` counts the tokens that every block has; a forward that fails half-way leaves it as it was.
    A slab has room for less than twice the row's tokens when it was made, never for more than `max_tokens`, and after a
    truncation for at most four times the tokens that are left. A row that is no longer needed must be `release`d, for
    the rows that share its slabs and for the count in `usage`. Not thread-safe.
    """

    def __init__(self, blocks: BlockRange, max_tokens: int, usage: KvUsage | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.max_tokens = max_tokens
        self.length = 0
        self._first = blocks.start
        self._slabs: list[_Slab | None] = [None] * len(blocks)
        self._largest_capacity = 0
        self._usage = usage if usage is not None else KvUsage()

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs, including their unused part and slabs shared with other rows."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[torch.Tensor]:
        """The keys and values of every slab, their unused part included; forked rows share them."""
        for slab in self._slabs:
            if slab is not None:
                yield from (slab.keys, slab.values)

    def truncate(self, length: int, may_free: bool = True) -> None:
        """Forget all tokens from position `length` on. Raises ValueError if the row is shorter than that.

        O(1); O(tokens that stay) when memory is freed because few are left of many, amortised over those that went.
        `may_free`: False in the middle of a step, where some blocks have written what the others are about to write.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a row of {self.length} tokens to {length}")
        self.length = length
        if may_free and _SPARE_FACTOR * length < self._largest_capacity:
            self._shrink()

    def advance(self, count: int) -> None:
        """Keep the `count` tokens that the last forward wrote after `length`."""
        self.length += count

    def fork(self) -> RowKV:
        """Return an independent copy. O(blocks); the tokens are copied when one of the two is written to."""
        copy = RowKV(self.blocks, self.max_tokens, self._usage)
        for slab in self._slabs:
            if slab is not None:
                slab.rows += 1
        copy._slabs = list(self._slabs)
        copy._largest_capacity = self._largest_capacity
        copy.length = self.length
        return copy

    def release(self) -> None:
        """Free all memory; the row is empty then."""
        for index in range(len(self._slabs)):
            self._replace(index, None)
        self._largest_capacity = 0
        self.length = 0

    def export(self) -> tuple[BlockKV, ...]:
        """Return the cached tokens, block by block: views into the slabs, to be read before the row is used again.

        Empty for an empty row: a block's shapes are not known before its first token.
        """
        if self.length == 0:
            return ()
        views = (slab.read(self.length) for slab in self._slabs if slab is not None)
        return tuple(BlockKV(keys[0], values[0]) for keys, values in views)

    def read(self, start: int, stop: int) -> tuple[BlockKV, ...]:
        """Return a copy of the tokens from `start` to `stop` (not empty), block by block. Raises ValueError."""
        if not 0 <= start < stop <= self.length:
            raise ValueError(f"a row of {self.length} tokens has no tokens {start}:{stop}")
        return tuple(
            BlockKV(block.keys[:, start:stop].clone(), block.values[:, start:stop].clone()) for block in self.export()
        )

    @classmethod
    def import_(
        cls, blocks: BlockRange, max_tokens: int, content: Sequence[BlockKV], usage: KvUsage | None = None
    ) -> RowKV:
        """Make a new row from the result of `export`; the tensors are copied.

        Raises ValueError if there is not exactly one entry per block (none at all: an empty row), if the entries
        disagree in length, or if they are longer than `max_tokens`.
        """
        row = cls(blocks, max_tokens, usage)
        if content:
            if len(content) != len(blocks):
                raise ValueError(f"{len(content)} cached blocks do not make a row of {blocks}")
            row.append([dict(zip(blocks, content, strict=True))])
        return row

    def append(self, pieces: Sequence[Mapping[int, BlockKV]], room_tokens: int = 0) -> None:
        """Append copies of tokens: consecutive pieces, each a mapping of block -> tokens.

        Makes room for `room_tokens` tokens at once, if more will follow. Raises ValueError, and leaves the row as it
        was, if a piece lacks a block of the row, if its blocks differ in length, or if the row would be longer than
        `max_tokens`.
        """
        stop = self.length + sum(self._length_of(piece) for piece in pieces)
        if stop > self.max_tokens:
            raise ValueError(f"a row of at most {self.max_tokens} tokens cannot have {stop}")
        for index, block in enumerate(self.blocks):
            at = self.length
            for piece in pieces:
                keys, values = piece[block].keys[None], piece[block].values[None]
                self._slab_for(index, keys, values, max(stop, room_tokens)).write(at, keys, values)
                at += keys.shape[2]
        self.length = stop

    @torch.inference_mode()  # as forwards write
    def append_blanks(self, count: int) -> None:
        """Append `count` tokens of zeros, for tokens that were not computed. The row must have others before them."""
        assert self.length, "the shapes of a row's tokens are known from its first one"
        stop = self.length + count
        for index, slab in enumerate(self._slabs):
            assert slab is not None
            keys, values = (_zeros(tensor, count) for tensor in (slab.keys, slab.values))
            self._slab_for(index, keys, values, stop).write(self.length, keys, values)
        self.length = stop

    def _length_of(self, piece: Mapping[int, BlockKV]) -> int:
        tensors = [
            tensor for block in self.blocks if block in piece for tensor in (piece[block].keys, piece[block].values)
        ]
        lengths = {tensor.shape[1] if tensor.dim() == 3 else -1 for tensor in tensors}
        if len(tensors) != 2 * len(self.blocks) or len(lengths) != 1 or min(lengths) < 1:
            raise ValueError(f"cached tensors of lengths {sorted(lengths)} do not make a row of {self.blocks}")
        return lengths.pop()

    # The interface that transformers expects of a cache.

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens of a block, (1, heads, count, size); return all its tokens, (1, heads, tokens, size).

        Called for every row and block of every step. Raises OutOfMemory beyond `max_tokens`.
        """
        start = self.length
        stop = start + key_states.shape[2]
        slab = self._slab_for(layer_idx - self._first, key_states, value_states, stop)
        slab.write(start, key_states, value_states)
        return slab.read(stop)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def __len__(self) -> int:
        return len(self.blocks)

    # Slabs.

    def _slab_for(self, index: int, key_states: torch.Tensor, value_states: torch.Tensor, stop: int) -> _Slab:
        """Return the row's own slab of a block, with room for `stop` tokens like these and with the first `length`."""
        old = self._slabs[index]
        if old is not None and old.rows == 1 and old.capacity >= stop:
            return old
        if stop > self.max_tokens:
            raise OutOfMemory(f"the session reserved {self.max_tokens} tokens, this step needs {stop}")
        slab = _Slab(key_states, value_states, min(self.max_tokens, _power_of_two(stop)))
        if old is not None and self.length:
            slab.write(0, *old.read(self.length))
        self._replace(index, slab)
        self._largest_capacity = max(self._largest_capacity, slab.capacity)
        return slab

    def _shrink(self) -> None:
        """Move the `length` tokens into slabs of about their size."""
        capacity = min(self.max_tokens, _power_of_two(self.length)) if self.length else 0
        for index, old in enumerate(self._slabs):
            if old is not None and old.capacity > capacity:
                slab = None
                if capacity:
                    keys, values = old.read(self.length)
                    slab = _Slab(keys, values, capacity)
                    slab.write(0, keys, values)
                self._replace(index, slab)
        self._largest_capacity = capacity

    def _replace(self, index: int, slab: _Slab | None) -> None:
        old = self._slabs[index]
        if old is not None:
            old.rows -= 1
            if old.rows == 0:
                self._usage.nbytes -= old.nbytes
        if slab is not None:
            self._usage.nbytes += slab.nbytes
        self._slabs[index] = slab


def _zeros(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` tokens for a tensor of a slab, (1, heads, count, size)."""
    return tensor.new_zeros(1, tensor.shape[1], count, tensor.shape[3])


def _power_of_two(tokens: int) -> int:
    """Return the smallest power of two that is not less than `tokens`."""
    return 1 << (tokens - 1).bit_length()
