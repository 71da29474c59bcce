"""The base of the caches that stand in for transformers' own: what their families ask of a cache without layers.

transformers answers from a list of layers, one per block.  Ours keep their tokens elsewhere (slabs of rows, a packed
batch, the peers), so that list is empty, and what would be read from it is answered here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache


class LayerlessCache(Cache, ABC):
    """A cache that the family sees as one run of `get_seq_length()` tokens, the same in every block.

    No block forgets tokens, whatever its mask hides: masks are sized for all of them.  What changes a cache from
    outside (crop, reorder, select, repeat, reset) raises unless a subclass says how; with transformers' own methods it
    would silently do nothing, because there are no layers.
    """

    # transformers sizes its masks by these, block by block; empty, they say "an ordinary block" for all.
    is_sliding: Sequence[bool] = ()  # type: ignore[assignment]
    is_linear: Sequence[bool] = ()  # type: ignore[assignment]
    is_dummy: Sequence[bool] = ()  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(layers=[])

    @abstractmethod
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens that are cached, for a batch its columns."""

    @abstractmethod
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a block's new tokens, (B, heads, count, size), and return what the block attends over."""

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """(columns of the mask, columns hidden before them) for `query_length` new tokens."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: transformers is told of no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        raise _cannot(self, "be cropped")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise _cannot(self, "be reordered")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise _cannot(self, "select rows")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise _cannot(self, "repeat rows")

    def reset(self) -> None:
        raise _cannot(self, "be reset")

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return False


def _cannot(cache: Cache, verb: str) -> NotImplementedError:
    return NotImplementedError(f"a {type(cache).__name__} cannot {verb} through transformers")
