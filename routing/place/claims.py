"""Claims: one safe decision from many old snapshots.

Every peer decides on its own snapshot, which is old and incomplete.  So a peer announces a move before it makes it (the
claim), waits a refresh, and judges its claim by the records that it has read by then.
"""

from __future__ import annotations

import enum
from dataclasses import replace

from ..perf import FloatArray, IntArray
from ..swarm import BlockRange, PeerId, PeerSpec, PeerState, Swarm
from .moves import ReplanPolicy
from .rule import upcoming
from .windows import hosts_per_block, is_safe_to_leave, lasting_servers, range_rows, window_sums


class Verdict(enum.Enum):
    """The verdict on a claim after its peer has read the records again; all but WAIT and MOVE withdraw it."""

    WAIT = "wait"
    MOVE = "move"
    OUTRANKED = "an older claim adds or drops a common block"
    UNCONFIRMED = "a block that the move drops has found no witness in time"
    UNWANTED = "the move is not worth making any more"

    @property
    def withdraws(self) -> bool:
        """Whether the claim is withdrawn."""
        return self not in (Verdict.WAIT, Verdict.MOVE)


def judge_claim(swarm: Swarm, peer_id: PeerId, policy: ReplanPolicy | None = None, *, loaded: bool = False) -> Verdict:
    """Judge whether the peer may make the move that it has claimed, on its own snapshot at `swarm.now_seconds`.

    The snapshot contains the peer's own record with the claim, which it announces from the claim on until it has moved
    or withdraws.  The peer calls this whenever it has read the records: MOVE allows it to begin loading and, when it
    calls again with `loaded`, to drop its old blocks.

    * Of claims that add or drop a common block the smallest (time, id) wins; the others are withdrawn.
    * Until loading begins the move must still be among the upcoming ones, or it is withdrawn: a single bad snapshot, in
      which a peer is missing, moves nobody.
    * Every dropped block needs a witness: a peer whose record, not expired and issued after the claim was made (by more
      than the clocks may differ), says that it serves the block and claims nothing that drops it.  Peers that are only
      remembered, for up to PEER_MEMORY_SECONDS, are included in plans but are no witnesses.

    The last rule makes moves safe with snapshots of any age and any loss of records, by this argument: if all servers
    of a block dropped it, take the one that claimed last.  Its witness had claimed before, so the witness's record,
    issued later still, carried that claim or no longer the block.  A lost record only delays a move.
    No rule over records can prevent a witness from crashing after its last record.
    Raises ValueError if the peer has no claim, KeyError if it is not in the snapshot.
    """
    me = swarm.peer(peer_id)
    timing = (policy or ReplanPolicy()).timing
    if me.claim is None:
        raise ValueError(f"peer {peer_id} has claimed no move")
    claim, before = me.claim, me.blocks
    others = [peer for peer in swarm.peers if peer.id != peer_id]
    for peer in others:
        rival = peer.claim
        if (
            rival is not None
            and (rival.at_seconds, peer.id) < (claim.at_seconds, peer_id)
            and _conflict((before, claim.blocks), (peer.blocks, rival.blocks))
        ):
            return Verdict.OUTRANKED
    age = swarm.now_seconds - claim.at_seconds
    if age < timing.refresh_seconds:
        return Verdict.WAIT
    oldest = max(claim.at_seconds + timing.clock_tolerance_seconds, swarm.now_seconds - timing.record_lifetime_seconds)
    fresh = [peer for peer in others if peer.issued_seconds > oldest]
    if not is_safe_to_leave(lasting_servers(fresh, swarm.model.num_blocks), before, claim.blocks):
        return Verdict.WAIT if loaded or age < timing.claim_lifetime_seconds else Verdict.UNCONFIRMED
    return Verdict.MOVE if loaded or _is_wanted(swarm, me, policy) else Verdict.UNWANTED


def judge_join(swarm: Swarm, peer_id: PeerId) -> Verdict:
    """Judge the claim of a peer that hosts nothing and loads as soon as it claims: MOVE, or OUTRANKED.

    It drops nothing, so it need not wait for others, and a block that several peers add just has several servers.  But
    it gives up if an older claim takes blocks that it would have been the first to serve, and more such blocks are left
    elsewhere.  Raises ValueError if the peer has no claim, KeyError if it is not in the snapshot.
    """
    me = swarm.peer(peer_id)
    if me.claim is None:
        raise ValueError(f"peer {peer_id} has claimed no move")
    rank, claimed = (me.claim.at_seconds, peer_id), me.claim.blocks
    others = [p for p in swarm.peers if p.id != peer_id and p.state in (PeerState.JOINING, PeerState.SERVING)]
    claims = [(p.claim.at_seconds, p.id, p.claim.blocks) for p in others if p.claim is not None]
    older = [blocks for at, rival, blocks in claims if (at, rival) < rank]

    def first_servers(*hosted: BlockRange | None) -> FloatArray | IntArray:
        """For every window of the peer's size, the number of blocks that are in none of these ranges."""
        return window_sums(hosts_per_block(range_rows(hosted), swarm.model.num_blocks) == 0, len(claimed))

    served = [p.blocks for p in others]
    mine = first_servers(*served, *older)[claimed.start]
    if mine == first_servers(*served)[claimed.start]:
        return Verdict.MOVE
    return Verdict.MOVE if mine >= first_servers(*served, *(c[2] for c in claims)).max() else Verdict.OUTRANKED


# --- a peer that leaves -----------------------------------------------------------------------------------------


def unreplaced(swarm: Swarm, peer_id: PeerId) -> tuple[int, ...]:
    """The blocks of the peer that no other peer serves lastingly, ascending.

    Raises KeyError if the peer is not in the snapshot.
    """
    servers = lasting_servers((peer for peer in swarm.peers if peer.id != peer_id), swarm.model.num_blocks)
    return tuple(block for block in swarm.peer(peer_id).blocks or () if servers[block] == 0)


def is_succeeded(swarm: Swarm, peer_id: PeerId, policy: ReplanPolicy | None = None) -> bool:
    """Whether others have claimed blocks that would have no server without the peer, or would claim them now.

    The peer counts as draining, whatever its state in the snapshot. Raises KeyError if it is not in the snapshot.
    """
    missing = set(unreplaced(swarm, peer_id))
    me = replace(swarm.peer(peer_id), state=PeerState.DRAINING, claim=None)
    peers = tuple(me if peer.id == peer_id else peer for peer in swarm.peers)
    staying = (PeerState.JOINING, PeerState.SERVING)
    claimed = (peer.claim.blocks for peer in peers if peer.claim is not None and peer.state in staying)
    planned = (move.after for move in upcoming(replace(swarm, peers=peers), policy))
    return any(missing.intersection(blocks) for blocks in (*claimed, *planned))


def _is_wanted(swarm: Swarm, me: PeerSpec, policy: ReplanPolicy | None) -> bool:
    """Whether the rule would still make the claimed move if the peer had not claimed it."""
    unclaimed = tuple(replace(peer, claim=None) if peer is me else peer for peer in swarm.peers)
    moves = upcoming(replace(swarm, peers=unclaimed), policy)
    return any(me.claim is not None and (move.peer, move.after) == (me.id, me.claim.blocks) for move in moves)


def _conflict(a: tuple[BlockRange | None, BlockRange], b: tuple[BlockRange | None, BlockRange]) -> bool:
    """Whether two changes (before, after) add or drop a common block."""
    (before_a, after_a), (before_b, after_b) = ((set(before or ()), set(after)) for before, after in (a, b))
    return bool((after_a - before_a) & (after_b - before_b) or (before_a - after_a) & (before_b - after_b))
