"""Small swarms for the tests of placement, moves that are checked, and swarms that are brought to rest."""

from __future__ import annotations

import random
from dataclasses import replace

from blockswarm.routing.place.moves import Move, Reason, ReplanPolicy, after_move
from blockswarm.routing.place.rule import decide
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    Coordinate,
    ModelSpec,
    MoveClaim,
    PeerId,
    PeerSpec,
    PeerState,
    Swarm,
)

GB = 1e9
MODEL = ModelSpec(num_blocks=12, block_bytes=1.0 * GB, kv_bytes_per_token=65536.0)
POLICY = ReplanPolicy()


def peer(
    name: str,
    blocks: str | None = None,
    *,
    gigabytes: float = 4.5,
    decode: float = 0.01,
    x: float = 0.0,
    **fields: object,
) -> PeerSpec:
    spec = PeerSpec(
        PeerId(name),
        BlockRange.parse(blocks) if blocks else None,
        ComputeCost(decode_fixed=decode, prefill_fixed=2 * decode, prefill_per_token=decode / 50),
        PeerState.SERVING if blocks else PeerState.JOINING,
        memory_bytes=gigabytes * GB,
        coordinate=Coordinate((x, 0.0, 0.0), height=0.005, error=0.1),
    )
    return replace(spec, **fields)


def swarm(*peers: PeerSpec, model: ModelSpec = MODEL, now: float = 0.0) -> Swarm:
    return Swarm(model, tuple(sorted(peers, key=lambda peer: peer.id)), now_seconds=now)


def served_elsewhere(snapshot: Swarm, move: Move) -> set[int]:
    """Blocks that some other serving peer hosts: what the moving peer may drop."""
    return {
        block
        for peer in snapshot.peers
        if peer.id != move.peer and peer.state is PeerState.SERVING and peer.blocks is not None
        for block in peer.blocks
    }


def validate_move(snapshot: Swarm, move: Move) -> None:
    """A move is of a peer that may move, to a range that it has memory for, and drops nobody's last server."""
    mover = snapshot.peer(move.peer)
    assert move.before == mover.blocks
    assert move.after != move.before
    assert move.after.stop <= snapshot.model.num_blocks
    assert not mover.blocks_fixed
    assert mover.claim is None
    assert len(move.after) * snapshot.model.block_bytes < mover.memory_bytes
    assert len(move.after) <= (mover.max_blocks or snapshot.model.num_blocks)
    dropped = set(move.before or ()) - set(move.after)
    assert dropped <= served_elsewhere(snapshot, move)


def settle(snapshot: Swarm) -> tuple[Swarm, list[Move]]:
    """Carry out decisions until there is none.

    Every joining peer is placed once; then a swarm whose blocks are all served rests within one move per peer, one with
    uncovered blocks within two.
    """
    moves: list[Move] = []
    limit = 0
    while (move := decide(snapshot, POLICY)) is not None:
        validate_move(snapshot, move)
        moves.append(move)
        if limit == 0 and move.reason is not Reason.JOIN:
            uncovered = len(hosted(snapshot)) < snapshot.model.num_blocks
            limit = len(moves) - 1 + len(snapshot.peers) * (2 if uncovered else 1)
        assert sum(move.reason is Reason.JOIN for move in moves) <= len(snapshot.peers)
        assert limit == 0 or len(moves) <= limit, f"not at rest after {len(moves)} moves"
        snapshot = after_move(snapshot, move)
    return snapshot, moves


def hosted(snapshot: Swarm) -> set[int]:
    staying = (PeerState.JOINING, PeerState.SERVING)
    return {block for peer in snapshot.peers if peer.state in staying for block in peer.blocks or ()}


def random_swarm(rng: random.Random, count: int, blocks: int = 32) -> Swarm:
    """Peers of which one in five is fast and large, on three continents, none placed."""
    peers = []
    for index in range(count):
        fast = rng.random() < 0.2
        peers.append(
            peer(
                f"p{index:04d}",
                gigabytes=rng.choice([24.0, 40.0]) if fast else rng.choice([8.0, 10.0, 12.0, 16.0]),
                decode=rng.uniform(0.002, 0.005) if fast else rng.uniform(0.005, 0.02),
                x=rng.choice([0.0, 0.04, 0.09]) + rng.gauss(0, 0.005),
            )
        )
    return swarm(*peers, model=ModelSpec(blocks, 1.3 * GB, 57344.0))


def mixed_swarm(rng: random.Random, count: int, blocks: int = 16) -> Swarm:
    """Peers in every state, some placed by chance, some with claims, fixed, of equal speed, or without a place."""
    peers = []
    for member in random_swarm(rng, count, blocks).peers:
        size = rng.randint(1, blocks // 2)
        spans = [BlockRange(start, start + size) for start in (rng.randint(0, blocks - size) for _ in range(2))]
        state = rng.choice([PeerState.SERVING] * 6 + [PeerState.JOINING, PeerState.DRAINING, PeerState.LEAVING])
        placed = state is not PeerState.JOINING
        claim = MoveClaim(rng.uniform(-60, 0), spans[1]) if rng.random() < 0.2 else None
        peers.append(
            replace(
                member, state=state, blocks=spans[0] if placed else None, claim=claim,
                blocks_fixed=rng.random() < 0.1, size_fixed=rng.random() < 0.1, concurrency=rng.choice([0.0, 0.5, 3.0]),
                max_blocks=rng.choice([None, None, size]), coordinate=rng.choice([member.coordinate, None]),
                cost=rng.choice([member.cost, ComputeCost(0.01)]), load_seconds=rng.choice([0.0, rng.uniform(1, 9)]),
            )
        )  # fmt: skip
    return swarm(*peers, model=ModelSpec(blocks, 1.3 * GB, 57344.0))
