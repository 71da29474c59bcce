"""Facts about the peers of a chain, and what follows from them: pure functions that do not depend on time."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ....proto.errors import NoChainError, PeerBusy, SwarmError
from ....proto.wire.frames import CREDITS
from ....routing.swarm import BlockRange, PeerId
from ..operation import Operation
from .events import HopChoice, HopId, Layout, Rerouted


@dataclass(eq=False, slots=True)
class HopFacts:
    """The machine's knowledge of one hop. A hop that failed stays failed: `error` says why."""

    id: HopId
    choice: HopChoice
    opened: bool = False
    """Whether the peer has admitted the session."""
    queued: tuple[int, float] | None = None
    """The place in its queue and the estimate in seconds that the peer sent last."""
    built: bool = False
    """Whether its cache holds what the session has computed so far."""
    error: SwarmError | None = None
    to_blame: bool = True
    """Whether `error` is the peer's own fault; a peer that failed because of another one is not banned."""
    push_failed_epoch: int = 0
    """The last epoch in which it could not push to its successor; 0: none."""
    credits: int = CREDITS
    held_tokens: tuple[int, ...] = ()
    state: Rerouted | None = None
    """Its latest confirmation of new neighbours."""
    rebuilt_epoch: int = 0
    passed_on_epoch: int = 0
    """The last epoch in which its output was relayed to its successor through this client; 0: none."""

    @property
    def peer(self) -> PeerId:
        return self.choice.peer

    @property
    def blocks(self) -> BlockRange:
        return self.choice.blocks

    @property
    def alive(self) -> bool:
        return self.error is None

    def fail(self, error: SwarmError, *, to_blame: bool = True) -> None:
        """Give the hop up; later calls do not change the reason."""
        if self.error is None:
            self.error, self.to_blame = error, to_blame

    def is_at(self, epoch: int) -> bool:
        """Return whether it has confirmed that epoch or a later one."""
        return self.state is not None and self.state.epoch >= epoch


def layout_of(hops: Sequence[HopFacts]) -> Layout:
    """Return the peers in order, with their blocks."""
    return tuple((hop.peer, hop.blocks) for hop in hops)


def merged(kept: Sequence[HopFacts], choices: Sequence[HopChoice]) -> list[HopFacts | HopChoice]:
    """Return the kept hops and the choices that fill their gaps, in the order of their blocks."""
    return sorted([*kept, *choices], key=lambda hop: hop.blocks.start)


def unproven_of(choices: Sequence[HopChoice]) -> float:
    """Return the `unproven_seconds` of a whole chain, whose parts may have been chosen separately."""
    return max((choice.unproven_seconds for choice in choices), default=0.0)


def wait_seconds(chain: Sequence[HopFacts | HopChoice]) -> float:
    """Return the seconds until every new hop of a chain is expected to have room."""
    return max((hop.wait_seconds for hop in chain if isinstance(hop, HopChoice)), default=0.0)


def only_full(hops: Sequence[HopFacts]) -> bool:
    """Return whether hops have failed, and all of these only because they were full."""
    errors = [hop.error for hop in hops if hop.error is not None]
    return bool(errors) and all(isinstance(error, PeerBusy) for error in errors)


class Prospect(enum.Enum):
    """Is it worth looking again for a chain that there is not now?"""

    MAY_COME = "room becomes free, or peers come back: the session's patience decides"
    MAY_BE_OLD = "what was last seen of the swarm may be old: one more look"
    HOPELESS = "nobody was seen that could help"


def prospect_of(error: SwarmError, *, had_chain: bool, seen_whole: bool, looks: int) -> Prospect:
    """The prospect of a session that gets no chain because of `error`, after some looks at the swarm.

    A session that had a chain waits as one that begins in a swarm which the client has seen whole: blocks that were
    served a moment ago may be served again. A request for which every peer is too small does not wait when it begins.
    """
    if had_chain or not isinstance(error, NoChainError) or (seen_whole and error.missing_blocks):
        return Prospect.MAY_COME
    return Prospect.HOPELESS if looks else Prospect.MAY_BE_OLD


def adoptable(hops: Sequence[HopFacts], rows: int) -> tuple[int, ...]:
    """Return per row how many leading tokens every peer holds from earlier sessions."""
    return tuple(
        min((hop.held_tokens[row] if row < len(hop.held_tokens) else 0 for hop in hops), default=0)
        for row in range(rows)
    )


@dataclass(frozen=True, slots=True)
class RebuildPlan:
    """Hops `first` to `stop` (half-open) are rebuilt from hop `first - 1`, or from the client if `first` is 0."""

    first: int
    stop: int
    recomputed: int
    """How many of these hops have a cache, but not the outputs to rebuild the next hop from."""
    after_permutation: bool
    """Whether the rebuilt state is that after the permutation of the oldest operation's first step, or before it."""


def next_rebuild(hops: Sequence[HopFacts], operations: Sequence[Operation]) -> RebuildPlan | None:
    """Return the first run of hops whose caches must be rebuilt to the start of the oldest operation, or None.

    The hop before a run replays the outputs that it sent.  If these are gone (evicted, or overwritten by a later
    operation), that hop is recomputed as well, and so on back to the client, which has all inputs of block 0.
    """
    first = next((index for index, hop in enumerate(hops) if not hop.built), None)
    if first is None:
        return None
    stop = next((index for index in range(first, len(hops)) if hops[index].built), len(hops))
    source = first - 1
    while source >= 0 and not _can_replay(hops[source], operations):
        source -= 1
    oldest = operations[0]
    applied = _applied_seq(hops[source]) >= oldest.first_seq if source >= 0 else oldest.is_first
    return RebuildPlan(source + 1, stop, first - 1 - source, applied)


def _can_replay(hop: HopFacts, operations: Sequence[Operation]) -> bool:
    oldest = operations[0]
    # Before the first step no peer can replay adopted tokens: they were not computed in this session.
    if oldest.is_first or not hop.built or hop.state is None or not hop.state.buffer_complete:
        return False
    later = (operation for operation in operations[1:] if operation.first_seq <= _applied_seq(hop))
    return all(operation.leaves(oldest.permuted) for operation in later)


def _applied_seq(hop: HopFacts) -> int:
    return hop.state.applied_seq if hop.state is not None else 0


@dataclass(frozen=True, slots=True)
class Status:
    """A peer's progress: the last step that it has received, and the last that it has applied."""

    received_seq: int
    applied_seq: int


def swallowing_link(statuses: Sequence[Status], seq: int) -> int | None:
    """Return the index of the hop whose link has swallowed step `seq`: applied by it, not received by the next."""
    for index, (sender, receiver) in enumerate(itertools.pairwise(statuses)):
        if sender.applied_seq >= seq > receiver.received_seq:
            return index
    return None


def stuck_hop(statuses: Sequence[Status], seq: int) -> int:
    """Return the index of the first hop that has not applied step `seq`; the last one if all have."""
    return next((index for index, status in enumerate(statuses) if status.applied_seq < seq), len(statuses) - 1)
