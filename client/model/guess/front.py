"""Runs the model's front part on guessed tokens: computes what the first block would be fed if they came.

The family's forward is run up to the blocks (embedding, positions, norms, scaling), after the columns that are computed
already, with a cache that records the hidden states and returns them unchanged.  A hit is decided by comparing bytes,
so a family whose front part depends on anything else never gets a hit, and its results stay right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ....proto.model.cache import LayerlessCache
from ....proto.model.family import BlockList


class FrontCache(LayerlessCache):
    """The cache of a forward that ends at the first block."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.hidden: torch.Tensor | None = None
        """(1, T, H): the input of the first block."""
        self._columns = columns

    def compute(self, hidden: torch.Tensor) -> torch.Tensor:
        """Stand in for the blocks: keep `hidden` (1, T, H) and return it unchanged."""
        self.hidden = hidden
        return hidden

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._columns

    def update(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("there are no blocks that would cache anything")

    @property
    def is_initialized(self) -> bool:
        return True

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True, slots=True)
class Front:
    """The place of guessed tokens: directly behind the forward that is being computed, of one sequence."""

    model: PreTrainedModel
    columns: int
    """Width of the sequence including that forward and padding."""
    position: int
    """The position of the next token, not counting padding."""
    mask: torch.Tensor | None
    """(1, columns): the attention mask of that forward, None if it had none."""
    positions_given: bool
    """Whether that forward was given position_ids, as some families are."""

    @torch.no_grad()
    def hidden(self, tokens: Sequence[int], behind: int = 0) -> torch.Tensor:
        """Return the input of the first block for `tokens`, which come `behind` other tokens after the forward: (T, H).

        Raises what the family's forward raises.
        """
        device = self.model.device
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=device)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        inputs["past_key_values"] = FrontCache(self.columns + behind)
        if self.mask is not None:
            inputs["attention_mask"] = torch.cat([self.mask, self.mask.new_ones((1, behind + len(tokens)))], dim=1)
        if self.positions_given:
            start = self.position + behind
            inputs["position_ids"] = torch.arange(start, start + len(tokens), device=device)[None]
        _body(self.model)(**inputs)
        hidden: torch.Tensor | None = inputs["past_key_values"].hidden
        assert hidden is not None, "the family's forward calls its blocks"
        return hidden[0]


def _body(model: PreTrainedModel) -> Any:
    """Return the model without its head; in families without such a module, the module that calls the blocks."""
    body = model.base_model
    return body if body is not model else BlockList.at(model, model.blocks_path).owner
