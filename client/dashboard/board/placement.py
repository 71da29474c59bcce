"""The present placement, and the next moves that the placement rule would make on this snapshot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ....routing.outlook import Outlook, outlook_of_view, view_with_peers_at
from ....routing.place.moves import ReplanPolicy
from ....routing.place.rule import moves_of
from ....routing.place.view import PlanningView
from ....routing.swarm import BlockRange, ModelSpec, PeerId, PeerState, Swarm, short_id
from ...survey.survey import counted
from ..watch.sighting import ModelFacts, Sighting
from .peers import pair

MOST_MOVES = 8


@dataclass(frozen=True, slots=True)
class PlacementFigures:
    """The promises of a placement, in seconds; None if no chain is complete."""

    concurrency: int
    """R: the number of concurrent sessions that the placement is planned for."""
    bound_seconds: float | None
    """Theorem 2: with at most R concurrent sessions none waits, and a token takes at most this time."""
    scratch_bound_seconds: float | None
    """The same bound if the peers were placed from scratch."""
    token_seconds: float | None
    """Mean predicted time per token of a session without others."""
    request_seconds: float | None
    """Mean predicted time of a request among R others."""

    @property
    def gap_seconds(self) -> float | None:
        """How much lower the bound would be with a placement from scratch."""
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
    """After the moves below; None if there are none."""
    claimed: tuple[MoveRow, ...] = ()
    """Moves that peers have claimed and not finished."""
    planned: tuple[MoveRow, ...] = ()
    """The next moves of the rule, in order, at most `MOST_MOVES`."""


@dataclass(frozen=True, eq=False)
class Planning:
    """The snapshot with which the boards of placement and joining plan; derived once per look."""

    swarm: Swarm
    """The peers that `swarm-client status` counts."""
    view: PlanningView | None
    """None if no peer stays, like `outlook`."""
    outlook: Outlook | None


def planning_of(facts: ModelFacts, sighting: Sighting) -> Planning:
    """Derive the planning snapshot of a look. Slow with many peers: call it in a thread."""
    joining = [record.spec for record in sighting.silent.values() if record.spec.state is PeerState.JOINING]
    peers = counted(sighting.prepared, joining)
    swarm = Swarm.of_announced(ModelSpec(facts.num_blocks), peers, sighting.at_seconds)
    view = PlanningView.of(swarm, ReplanPolicy())
    outlook = outlook_of_view(view, sighting.prepared.client_rtts) if view is not None else None
    return Planning(swarm, view, outlook)


def placement_board(planning: Planning, sighting: Sighting) -> PlacementBoard:
    """Build the board. Slow with many peers: call it in a thread."""
    view, outlook = planning.view, planning.outlook
    if view is None or outlook is None:
        return PlacementBoard(None)
    names = {peer: known.record.public_name for peer, known in sighting.prepared.known.items()}
    planned = tuple(itertools.islice(moves_of(view, planning.swarm.now_seconds), MOST_MOVES))
    places = [(peer, after) for peer, _, after in outlook.moves] + [(move.peer, move.after) for move in planned]
    then = None
    if places:
        then = outlook_of_view(view_with_peers_at(view, places), sighting.prepared.client_rtts)
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
