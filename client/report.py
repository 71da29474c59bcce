"""Reports for users: where a request's time went, per hop and per step, and how well guessing ahead did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..routing.swarm import BlockRange, PeerId
from ..routing.trust import Evidence


@dataclass(frozen=True, slots=True)
class HopReport:
    """Mean seconds per step on one hop; `network_seconds` is the trip from the previous node to it."""

    peer: PeerId
    blocks: BlockRange
    network_seconds: float
    queue_seconds: float
    compute_seconds: float
    numeric_format: str = ""
    """The format that the peer announces to compute in."""
    weights: Evidence = Evidence.UNOPPOSED
    """Why the client believes the weights that the peer announces."""


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Mean seconds per step, over the latest steps that went through the whole of the present chain."""

    chain: tuple[tuple[PeerId, BlockRange], ...] = ()
    """The peers in use and the blocks that each computes; after the request has ended, those used last."""
    hops: tuple[HopReport, ...] = ()
    """Empty before the first answer of this chain."""
    return_seconds: float = 0.0
    """The trip from the last hop back to the client."""
    step_seconds: float = 0.0
    """The whole step, as the client measured it."""
    steps: int = 0
    """The number of steps in the means."""
    unproven_seconds: float = 0.0
    """Upper bound on how much faster another chain might have been, as predicted when this one was chosen.

    0: this chain was proven to be the best. Above 0: the search ended with its budget; infinite without any bound.
    """

    @property
    def exact(self) -> bool:
        """Whether the chain was proven to be the best."""
        return self.unproven_seconds == 0.0


@dataclass(frozen=True, slots=True)
class Trip:
    """The times of one step, from the client through all peers and back."""

    tokens: int
    """The number of tokens that were computed."""
    seconds: float
    """The whole trip, as the client measured it."""
    queue_seconds: float
    """Time until the computation began, summed over the peers."""
    compute_seconds: float
    """Summed over the peers."""
    row_seconds: float = 0.0
    """How much one more token lengthens such a step, by the costs that the peers announce."""
    crowded: bool = False
    """Whether a peer said that the texts of other sessions need its time."""
    predicted_seconds: float = math.inf
    """The time of a step of one token, by the pings and by the costs that the peers announce."""

    @property
    def network_seconds(self) -> float:
        """The remaining time: to the first peer, between peers, and back."""
        return max(0.0, self.seconds - self.queue_seconds - self.compute_seconds)


@dataclass(frozen=True, slots=True)
class DraftReport:
    """The guesses of one drafter."""

    drafter: str
    guessed: int
    """Guessed tokens that the peers computed."""
    right: int
    """Guessed tokens that became part of the text."""

    @property
    def acceptance(self) -> float:
        """The share of guesses that were right; 0 if there were none."""
        return self.right / self.guessed if self.guessed else 0.0


@dataclass(frozen=True, slots=True)
class GuessReport:
    """The trips of a text, and how well guessing ahead did."""

    setting: str = "off"
    """"auto", "off", or the number of guesses per trip."""
    trips: int = 0
    """Steps along the chain that carried a token of the text, with or without guesses behind it."""
    tokens: int = 0
    """Confirmed tokens that were fed to the model, including the prompt's."""
    forwards: int = 0
    """Forward passes of the model; without guesses each is a trip."""
    drafts: tuple[DraftReport, ...] = ()
    guess_steps: int = 0
    """Additional steps of guessed tokens only, sent while the text waited for another step or needed none."""

    @property
    def guessed(self) -> int:
        """Guessed tokens that the peers computed, over all drafters."""
        return sum(draft.guessed for draft in self.drafts)

    @property
    def right(self) -> int:
        """Guessed tokens that became part of the text, over all drafters."""
        return sum(draft.right for draft in self.drafts)

    @property
    def forwards_per_trip(self) -> float:
        """Tokens per trip, unless an assistant or prompt look-up is used; 0 before the first trip."""
        return self.forwards / self.trips if self.trips else 0.0

    def tokens_per_trip(self, new_tokens: int) -> float:
        """Return the new tokens per trip of a text with `new_tokens` new tokens; 0 before the first trip."""
        return new_tokens / self.trips if self.trips else 0.0

    def plus(self, other: GuessReport) -> GuessReport:
        """Return the sum of two calls of one request; `other` is the later one, and its setting is kept."""
        names = dict.fromkeys(draft.drafter for report in (self, other) for draft in report.drafts)
        counts = {name: [each for each in (*self.drafts, *other.drafts) if each.drafter == name] for name in names}
        drafts = tuple(
            DraftReport(name, sum(each.guessed for each in found), sum(each.right for each in found))
            for name, found in counts.items()
        )
        return GuessReport(
            other.setting,
            self.trips + other.trips,
            self.tokens + other.tokens,
            self.forwards + other.forwards,
            drafts,
            self.guess_steps + other.guess_steps,
        )

    def as_json(self, new_tokens: int) -> dict[str, Any]:
        """Return the report of a text with `new_tokens` new tokens, as the commands and the endpoint show it."""
        return {
            "setting": self.setting,
            "trips": self.trips,
            "tokens_per_trip": self.tokens_per_trip(new_tokens),
            "guess_steps": self.guess_steps,
            "guessed": self.guessed,
            "right": self.right,
            "drafters": [
                {"name": each.drafter, "guessed": each.guessed, "right": each.right, "acceptance": each.acceptance}
                for each in self.drafts
            ],
        }
