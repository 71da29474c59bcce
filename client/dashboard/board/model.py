"""All boards of one model, computed once per snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from ..watch.sighting import ModelState
from .coverage import CoverageMap, coverage_map
from .now import ModelCard, PeerTally, StaleAfter, model_card
from .peers import PeerRow, peer_rows


@dataclass(frozen=True, eq=False)
class ModelBoard:
    """Everything that is shown of one model."""

    state: ModelState
    peers: tuple[PeerRow, ...]
    tally: PeerTally
    coverage: CoverageMap | None
    """None before the first look."""

    @property
    def missing_blocks(self) -> tuple[int, ...]:
        """The blocks that no peer serves, as far as is known."""
        return self.coverage.missing if self.coverage is not None else ()

    def card(self, now: float, stale: StaleAfter) -> ModelCard:
        """Return the model at a glance, as of `now` (Unix seconds)."""
        return model_card(self.state, self.tally, self.coverage, now, stale)


def model_board(state: ModelState) -> ModelBoard:
    """Return the boards of a state, computed once per state."""
    return state.once("board", lambda: _made(state))


def _made(state: ModelState) -> ModelBoard:
    peers: tuple[PeerRow, ...] = ()
    coverage = None
    if state.sighting is not None:
        peers = peer_rows(state.facts, state.sighting, state.measured_block_seconds)
        coverage = coverage_map(state.facts.num_blocks, peers)
    return ModelBoard(state, peers, PeerTally.of(peers), coverage)
