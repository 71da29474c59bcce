"""The turn of a peer's placement agent: a snapshot and the agent's state in, the next action out.

Whenever a peer has read the records it calls `next_action` once, performs the action, and announces itself.  A move
takes several turns:

    Rest ──► Claim ──► Wait … ──► BeginLoading ──► Wait … ──► MoveTo
                          └────────────┴──► Withdraw

Claim: announce the move.  Wait: others read the claim, and its witnesses answer (claims.py).  BeginLoading: load the
new blocks beside the old ones.  MoveTo: drop the old blocks and serve the new ones.  Withdraw: give up the claim and
everything loaded for it.  Only MoveTo changes what the swarm can compute, and it is judged immediately before.

A peer that hosts nothing drops nothing.  If it joins at once, it loads as soon as it claims, is judged by the rule for
joins whenever it has read the records, and serves when everything is loaded.

The simulator and the peers call the same function; it has no state, no clock and no I/O.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..swarm import BlockRange, MoveClaim, PeerId, Swarm
from .claims import Verdict, judge_claim, judge_join
from .moves import Move, ReplanPolicy
from .rule import upcoming


class Loading(enum.Enum):
    """The progress of loading the blocks of a claim."""

    NOT_BEGUN = "not begun"
    UNDER_WAY = "under way"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class AgentState:
    """The state of an agent, which is not in the snapshot."""

    peer: PeerId
    claim: MoveClaim | None = None
    """The move that the peer has announced, and when."""
    loading: Loading = Loading.NOT_BEGUN

    def __post_init__(self) -> None:
        if self.claim is None and self.loading is not Loading.NOT_BEGUN:
            raise ValueError("blocks are loaded for a claim only")


# --- actions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rest:
    """Do nothing until records change."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Announce the intention to host these blocks."""

    blocks: BlockRange
    begin_loading: bool = False
    """Begin to load them at once, without waiting for a judgement."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Call again at `until_seconds` (the snapshot's clock), or with newer records; infinite: once all is loaded."""

    until_seconds: float


@dataclass(frozen=True, slots=True)
class BeginLoading:
    """Load these blocks beside the served ones."""

    blocks: BlockRange


@dataclass(frozen=True, slots=True)
class MoveTo:
    """Drop the old blocks and serve these: they are loaded, and every dropped block has another server."""

    blocks: BlockRange


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Give up the claim, and what was loaded for it; the verdict says why."""

    verdict: Verdict


Action = Rest | Claim | Wait | BeginLoading | MoveTo | Withdraw
Planner = Callable[[Swarm, ReplanPolicy], tuple[Move, ...]]


def next_action(
    state: AgentState, snapshot: Swarm, policy: ReplanPolicy, *, joins_at_once: bool = False, plan: Planner = upcoming
) -> Action:
    """The next action of a peer that is not draining, on its snapshot at `snapshot.now_seconds`.

    The snapshot contains the peer's own record; its claim is taken from `state`.
    `joins_at_once`: a peer that hosts nothing begins to load when it claims.  It then serves a refresh earlier, but
    loads in vain if an older claim wins (`judge_join`).
    `plan`: computes the upcoming moves of a snapshot; a caller with many agents may cache it.

    Raises KeyError if the peer is not in the snapshot.
    """
    me = replace(snapshot.peer(state.peer), claim=state.claim)
    snapshot = replace(snapshot, peers=tuple(me if peer.id == me.id else peer for peer in snapshot.peers))
    if state.claim is None:
        blocks = next((move.after for move in plan(snapshot, policy) if move.peer == me.id), None)
        return Rest() if blocks is None else Claim(blocks, begin_loading=joins_at_once and me.blocks is None)
    loaded = state.loading is Loading.DONE
    if joins_at_once and me.blocks is None:
        verdict = judge_join(snapshot, me.id)
        if verdict.withdraws:
            return Withdraw(verdict)
        return MoveTo(state.claim.blocks) if loaded else Wait(math.inf)
    if state.loading is Loading.UNDER_WAY:
        return Wait(math.inf)
    verdict = judge_claim(snapshot, me.id, policy, loaded=loaded)
    if verdict.withdraws:
        return Withdraw(verdict)
    if loaded and verdict is Verdict.MOVE:
        return MoveTo(state.claim.blocks)
    if verdict is Verdict.MOVE:
        return BeginLoading(state.claim.blocks)
    refreshed_at, timing = state.claim.at_seconds + policy.timing.refresh_seconds, policy.timing
    return Wait(max(refreshed_at, snapshot.now_seconds + timing.clock_tolerance_seconds))  # a witness's record may come
