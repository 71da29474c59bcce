"""Connects a cache's forwards to a guesser: translates a batch of one sequence into what the guesser needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from ..batch.steps import BatchStep
from .front import Front
from .guesser import Feed, Guesser, TripRunner


class Inputs(Protocol):
    """The arguments of a forward, as its cache has them."""

    @property
    def input_ids(self) -> torch.Tensor | None:
        """(B, T)"""

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """(B, columns so far + T)"""

    @property
    def position_ids(self) -> torch.Tensor | None:
        """(B or 1, T)"""


@dataclass(frozen=True, slots=True)
class GuessedForwards:
    """Computes the steps of a cache, with guesses where the batch is one sequence."""

    guesser: Guesser
    model: PreTrainedModel
    most_columns: int
    """The text ends at this many columns, so no guess goes beyond them."""

    def compute(
        self,
        runner: TripRunner,
        step: BatchStep,
        packed: torch.Tensor,
        inputs: Inputs,
        room: int,
        before: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """Compute a step, with guesses if possible: `packed` (plan.tokens, H) -> (plan.answers, H).

        `room`: the number of tokens that still fit into the session after the step; `before` returns the ids of the
        columns before it, (B, columns), -1 where unknown. Raises what the session raises.
        """
        plan = step.plan
        assert plan is not None
        feed = self._feed(step, inputs, room, before) if len(step.receivers) == 1 else None
        first = all(piece.start == 0 for piece in plan.rows)
        return self.guesser.compute(runner, plan, packed, feed, first=first)

    def _feed(self, step: BatchStep, inputs: Inputs, room: int, before: Callable[[], torch.Tensor]) -> Feed:
        assert step.plan is not None
        (piece,) = step.plan.rows

        def tokens_before() -> Sequence[int]:
            known: list[int] = before()[0].tolist()
            return known[len(known) - piece.start :]  # without padding

        tokens = [-1] * piece.count
        if inputs.input_ids is not None:
            tokens = inputs.input_ids[0, -piece.count :].tolist()
        columns = step.after.columns
        positions_given = inputs.position_ids is not None
        front = Front(self.model, columns, piece.stop, inputs.attention_mask, positions_given)
        vocabulary = self.model.get_input_embeddings().num_embeddings
        return Feed(tokens, tokens_before, min(room, self.most_columns - columns), vocabulary, front.hidden)
