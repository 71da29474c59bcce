"""Padding of a batch, which may be anywhere: moved to the left for a call, and found behind texts that have ended.

Every text of a batch is computed as it would be alone, so only its visible tokens and their order count.  `generate`
wants them in the last columns.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteriaList

from ....proto.errors import UsageError


def padded_left(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move padding to the left: ids and mask (B, S) -> (B, W), W being the visible tokens of the longest row."""
    visible = mask != 0
    order = visible.long().argsort(dim=1, stable=True)
    width = int(visible.sum(dim=1).max()) if ids.numel() else 0
    kept = order[:, ids.shape[1] - width :]
    # Beam search pads with -1 if the model has no EOS token.
    return ids.gather(1, kept).clamp(min=0), visible.gather(1, kept).to(mask.dtype)


def least_padding(mask: torch.Tensor | None) -> int:
    """Return the number of padding columns of the longest row of a mask (B, S)."""
    return 0 if mask is None else mask.shape[1] - int(mask.sum(dim=1).max())


def refuse_empty_rows(mask: torch.Tensor) -> None:
    """Raise UsageError if a row of a mask (B, S) has no visible token: there is nothing to continue."""
    empty = (mask == 0).all(dim=1).nonzero().flatten().tolist()
    if empty:
        raise UsageError(
            f"row {empty[0]} of the batch has no tokens, only padding",
            hint="Leave the row out, or begin it with the token that begins texts.",
        )


def common_beginnings(
    held: torch.Tensor, held_paddings: torch.Tensor, ids: torch.Tensor, paddings: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find for each row of `ids` (B, S) the row of `held` (R, C) with the longest common prefix.

    The paddings are the numbers of leading padding columns, (B,) and (R,). Returns the indices of the held rows and the
    lengths of the common prefixes in tokens, (B,) each; zeros if there are no held rows. O(B x R x min(S, C)).
    """
    batch, width = len(ids), min(held.shape[1], ids.shape[1])
    if not len(held) or not width:
        return torch.zeros(batch, dtype=torch.long), torch.zeros(batch, dtype=torch.long)
    theirs, ours = _from_the_first(held, held_paddings, -2, width), _from_the_first(ids, paddings, -3, width)
    shared = torch.stack([(theirs == row).int().cumprod(dim=1).sum(dim=1) for row in ours])
    return shared.argmax(dim=1), shared.amax(dim=1)


def _from_the_first(ids: torch.Tensor, paddings: torch.Tensor, filler: int, width: int) -> torch.Tensor:
    """Move each row's tokens to the left: (B, S) -> (B, width), with `filler` behind the last token."""
    columns = torch.arange(width) + paddings[:, None]
    inside = columns < ids.shape[1]
    return torch.where(inside, ids.gather(1, columns.clamp(max=ids.shape[1] - 1)), filler)


class RowEnds(StoppingCriteriaList):
    """The stopping criteria of one call of `generate`, which record the texts that they ended.

    Tokens that `generate` appends to an ended text, while others continue, are padding, whatever their id.
    """

    def __init__(self, criteria: StoppingCriteriaList, num_beams: int) -> None:
        super().__init__(criteria)
        self._pads = num_beams > 1 or any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        """Whether ended rows are padded; without an EOS token sampling continues all rows until the last one ends."""
        self._ended: set[tuple[int, int]] = set()
        """Length and hash of each text that ended."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        done = super().__call__(input_ids, scores, **kwargs)
        if self._pads:
            self._ended.update(_mark(row) for row in input_ids[done.to(input_ids.device)])
        return done

    def mask(self, sequences: torch.Tensor, start: int) -> torch.Tensor:
        """Return the mask of the columns from `start` on, (B, S) -> (B, S - start): 0 behind the end of each text.

        No text ends before column `start` + 1.
        """
        mask = torch.ones_like(sequences[:, start:])
        if len(sequences) > 1 and self._ended:
            for row, text in enumerate(sequences):
                stops = range(start + 1, len(text))
                end = next((stop for stop in stops if _mark(text[:stop]) in self._ended), len(text))
                mask[row, end - start :] = 0
        return mask


def _mark(text: torch.Tensor) -> tuple[int, int]:
    return len(text), hash(text.cpu().contiguous().numpy().tobytes())
