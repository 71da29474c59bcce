"""The present placement beside the moves that the rule would make: the rule itself, on the snapshot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....routing.outlook import Outlook, outlook_of, with_peer_at
from ....routing.place.moves import after_move
from ....routing.place.rule import upcoming
from ....routing.swarm import BlockRange, ModelSpec, PeerId, PeerSpec, PeerState, Swarm, short_id
from ...survey.survey import counted
from ..watch.sighting import ModelFacts, Sighting
from .peers import pair

MOST_MOVES = 8


@dataclass(frozen=True, slots=True)
class PlacementFigures:
    """Promises of a placement, in seconds; None where no chain is complete."""

    concurrency: int
    """R: how many sessions at once are planned for."""
    bound_seconds: float | None
    """Theorem 2: with at most R sessions at once none waits, and a token takes no longer."""
    scratch_bound_seconds: float | None
    """The same if the peers were placed from scratch."""
    token_seconds: float | None
    """Mean predicted time of a token of a lone session."""
    request_seconds: float | None
    """Mean predicted time of a request among R others."""

    @property
    def gap_seconds(self) -> float | None:
        """How much the bound would fall with a placement from scratch."""
        if self.bound_seconds is None or self.scratch_bound_seconds is None:
            return None
        return self.bound_seconds - self.scratch_bound_seconds


@dataclass(frozen=True, slots=True)
class MoveRow:
    """A move that a peer has claimed, or that the rule would make next."""

    peer: PeerId
    short_id: str
    name: str
    before: tuple[int, int] | None
    after: tuple[int, int]
    reason: str
    """"claimed", or the rule's: "join", "repair", "improve"."""


@dataclass(frozen=True, slots=True)
class PlacementBoard:
    """The placement of one model."""

    now: PlacementFigures | None
    """None if no peer stays."""
    then: PlacementFigures | None = None
    """Once the moves below are made; None without any."""
    claimed: tuple[MoveRow, ...] = ()
    """Moves in flight."""
    planned: tuple[MoveRow, ...] = ()
    """The moves that the rule would make next, at most `MOST_MOVES`, one after the other."""


def planning_swarm(facts: ModelFacts, sighting: Sighting, further: Sequence[PeerSpec] = ()) -> Swarm:
    """The snapshot that the rule plans with: the peers that `swarm-client status` counts, and `further` ones."""
    joining = [record.spec for record in sighting.silent.values() if record.spec.state is PeerState.JOINING]
    peers = [*counted(sighting.prepared, joining), *further]
    return Swarm.of_announced(ModelSpec(facts.num_blocks), peers, sighting.at_seconds)


def placement_board(facts: ModelFacts, sighting: Sighting) -> PlacementBoard:
    """Takes long with many peers: for a thread."""
    swarm, rtts = planning_swarm(facts, sighting), sighting.prepared.client_rtts
    outlook = outlook_of(swarm, rtts=rtts)
    if outlook is None:
        return PlacementBoard(None)
    names = {peer: known.record.public_name for peer, known in sighting.prepared.known.items()}
    moved = swarm
    for peer, _, after in outlook.moves:
        moved = with_peer_at(moved, peer, after)
    planned = upcoming(swarm, limit=MOST_MOVES)
    for move in planned:
        moved = after_move(moved, move)
    then = outlook_of(moved, rtts=rtts) if moved is not swarm else None
    return PlacementBoard(
        figures_of(outlook),
        figures_of(then) if then is not None else None,
        tuple(_row(peer, names, before, after, "claimed") for peer, before, after in outlook.moves),
        tuple(_row(move.peer, names, move.before, move.after, move.reason.value) for move in planned),
    )


def figures_of(outlook: Outlook) -> PlacementFigures:
    def finite(seconds: float) -> float | None:
        return seconds if math.isfinite(seconds) else None

    return PlacementFigures(
        outlook.concurrency,
        finite(outlook.bound_seconds),
        finite(outlook.scratch_bound_seconds),
        finite(outlook.token_seconds),
        finite(outlook.request_seconds),
    )


def _row(
    peer: PeerId, names: Mapping[PeerId, str], before: BlockRange | None, after: BlockRange, reason: str
) -> MoveRow:
    return MoveRow(peer, short_id(peer), names.get(peer, ""), pair(before), (after.start, after.stop), reason)
