"""The conditions that every route and placement meets, from whichever algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from blockswarm.routing.swarm import BlockRange, Placement, RequestSpec, Route, Swarm


def validate_route(route: Route, swarm: Swarm, request: RequestSpec | None = None) -> None:
    """Every block once and in order, only at peers that host it, no peer twice, room after the stated wait."""
    peers = {peer.id: peer for peer in swarm.peers}
    validate_chain([(hop.peer, hop.blocks) for hop in route.hops], swarm.model.num_blocks)
    waits = [0.0]
    for hop in route.hops:
        hosted = peers[hop.peer].blocks
        assert hosted is not None, f"{hop.peer} hosts nothing"
        assert hosted.covers(hop.blocks), f"{hop.peer} hosts {hosted}, not {hop.blocks}"
        if request is not None:
            need, peer = len(hop.blocks) * request.kv_tokens_per_block, peers[hop.peer]
            steps = [(0.0, peer.kv_tokens_free)]
            steps += [(max(r.at_seconds - swarm.now_seconds, 0.0), r.tokens) for r in peer.releases]
            due = [at for at, _ in steps if sum(tokens for t, tokens in steps if t <= at) >= need]
            assert due, f"{hop.peer} never has room for {hop.blocks}"
            waits.append(min(due))
    assert route.cost_seconds >= 0
    if request is not None:
        assert route.wait_seconds == max(waits)


def validate_chain(chain: Sequence[tuple[object, BlockRange]], num_blocks: int) -> None:
    """The hops follow each other from block 0 to the last, and no peer occurs twice."""
    assert chain, "a chain has at least one hop"
    assert [blocks.start for _, blocks in chain] == [0, *(blocks.stop for _, blocks in chain[:-1])]
    assert chain[-1][1].stop == num_blocks
    assert len({peer for peer, _ in chain}) == len(chain), "a peer occurs twice"


def validate_placement(placement: Placement, swarm: Swarm, *, session_bytes: float, concurrency: int) -> None:
    """Every block is hosted, and every peer has memory for its blocks and `concurrency` full sessions."""
    peers = {peer.id: peer for peer in swarm.peers}
    assert placement.missing_blocks(swarm.model.num_blocks) == ()
    for peer_id, blocks in placement.ranges.items():
        peer = peers[peer_id]
        assert blocks.stop <= swarm.model.num_blocks
        assert peer.max_blocks is None or len(blocks) <= peer.max_blocks
        used = len(blocks) * (swarm.model.block_bytes + session_bytes * concurrency)
        assert used <= peer.memory_bytes * (1 + 1e-6), f"{peer_id} would need {used} bytes"
