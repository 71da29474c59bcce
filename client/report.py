"""Where a request's time went, as users read it: per hop of its chain, and per step; and what guessing brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..routing.swarm import BlockRange, PeerId
from ..routing.trust import Evidence


@dataclass(frozen=True, slots=True)
class HopReport:
    """Mean seconds per step on one hop; `network_seconds` is the way from the node before it."""

    peer: PeerId
    blocks: BlockRange
    network_seconds: float
    queue_seconds: float
    compute_seconds: float
    numeric_format: str = ""
    """The format that the peer announces to compute in."""
    weights: Evidence = Evidence.UNOPPOSED
    """Why the weights that the peer announces are believed."""


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Mean seconds per step, over the last steps that went through the whole of the present chain."""

    chain: tuple[tuple[PeerId, BlockRange], ...] = ()
    """The peers in use, and the blocks each computes; of a request that has ended, those used last."""
    hops: tuple[HopReport, ...] = ()
    """Empty before the first answer of this chain."""
    return_seconds: float = 0.0
    """The way from the last hop back to the client."""
    step_seconds: float = 0.0
    """The whole step, as the client saw it."""
    steps: int = 0
    """The number of steps that the means are of."""
    gap_seconds: float = 0.0
    """How much sooner the request may have been done on another chain, as predicted when this one was chosen.

    0: it was proven to be the best. More: the search for it ended with its budget; infinite if nothing is known.
    """

    @property
    def exact(self) -> bool:
        """Whether the chain was proven to be the best."""
        return self.gap_seconds == 0.0


@dataclass(frozen=True, slots=True)
class Trip:
    """The times of one step, from the client through all peers and back."""

    tokens: int
    """The rows that were computed."""
    seconds: float
    """The whole of it, as the client saw it."""
    queue_seconds: float
    """Summed over the peers: until the computation began."""
    compute_seconds: float
    """Summed over the peers."""
    row_seconds: float = 0.0
    """By which a further row makes such a step longer, as the peers announce."""
    crowded: bool = False
    """Whether a peer said that the texts of other sessions need its time."""

    @property
    def network_seconds(self) -> float:
        """The rest: the way there, from peer to peer, and back."""
        return max(0.0, self.seconds - self.queue_seconds - self.compute_seconds)


@dataclass(frozen=True, slots=True)
class DraftReport:
    """The guesses of one drafter."""

    drafter: str
    guessed: int
    """Tokens that were guessed, and computed by the peers."""
    right: int
    """Those that came."""

    @property
    def acceptance(self) -> float:
        """The share of its guesses that were right; 0 of none."""
        return self.right / self.guessed if self.guessed else 0.0


@dataclass(frozen=True, slots=True)
class GuessReport:
    """The trips of a text, and what guessing ahead brought."""

    setting: str = "off"
    """"auto", "off", or the number of guesses per trip."""
    trips: int = 0
    """Steps along the chain that carried a token of the text; guesses may have travelled in them, too."""
    tokens: int = 0
    """Tokens that were really fed, the prompt's included."""
    forwards: int = 0
    """Forwards of the model; without guesses each is a trip."""
    drafts: tuple[DraftReport, ...] = ()
    guess_steps: int = 0
    """Further steps, with guessed tokens only, sent while the text waited for another one or needed none."""

    @property
    def guessed(self) -> int:
        """Guessed tokens that peers computed."""
        return sum(draft.guessed for draft in self.drafts)

    @property
    def right(self) -> int:
        """Guessed tokens that came."""
        return sum(draft.right for draft in self.drafts)

    @property
    def forwards_per_trip(self) -> float:
        """Without an assistant or prompt look-up the tokens per trip; 0 before the first trip."""
        return self.forwards / self.trips if self.trips else 0.0

    def tokens_per_trip(self, new_tokens: int) -> float:
        """New tokens per trip, of a text that has this many; 0 before the first trip."""
        return new_tokens / self.trips if self.trips else 0.0

    def plus(self, other: GuessReport) -> GuessReport:
        """Both together, of the calls of one request; `other` is the later one, and may have another setting."""
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
        """For a text with this many new tokens, as commands and the endpoint tell it."""
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
