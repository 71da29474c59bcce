"""The turns of a peer's placement agent among 1,000 peers, on the peer's own path: the records of one look are opened,
the swarm is weighed and planned with, and a claim comes with its forecast.

Real signed records, the real `SwarmWatch` and `PlacementAgent`, and in each run another peer that joins: it claims
blocks, loads nothing, is judged again and serves.  Nobody can be pinged, so no time is spent on that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from blockswarm.peer.placement.agent import PlacementAgent
from blockswarm.peer.placement.watch import SwarmWatch
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.routing.swarm import BlockRange, PeerSpec, PeerState, Swarm

RUNS = 20
DIGEST = "5" * 64


class SilentDialer:
    """Reaches nobody."""

    def dialed_once(self, reach: object) -> Any:
        raise PeerUnavailable("nobody answers here")


class Host:
    """The blocks of a peer that loads nothing."""

    def __init__(self) -> None:
        self.blocks: BlockRange | None = None

    async def load(self, blocks: BlockRange) -> BlockRange:
        return blocks

    async def adopt(self, loaded: BlockRange) -> None:
        self.blocks = loaded


def turns(swarm: Swarm) -> dict[str, Any]:
    """CPU milliseconds of a turn, its look included, in all threads and in that of the event loop."""
    now, model = time.time(), swarm.model
    own_format = {"block_bytes": model.block_bytes, "kv_bytes_per_token": model.kv_bytes_per_token}
    swarm = replace(swarm, peers=tuple(replace(peer, **own_format) for peer in swarm.peers))
    records = [_signed(peer, now) for peer in swarm.peers]
    runs = [asyncio.run(_join(peer, records)) for peer in random.Random(5).sample(swarm.peers, RUNS + 1)]
    both = zip(*runs[1:], strict=True)  # the first one is not counted
    figures: dict[str, Any] = {"runs": RUNS}
    for name, values in zip(("cpu_ms", "loop_cpu_ms"), both, strict=True):
        figures[name] = {"p50": float(np.median(values)), "p99": float(np.quantile(values, 0.99))}
    return figures


def _signed(peer: PeerSpec, now: float) -> SignedRecord:
    identity = Identity.generate()
    assert peer.blocks is not None
    hashes = tuple(block.to_bytes(8, "big") for block in peer.blocks)
    spec = replace(
        peer, id=identity.peer_id, issued_seconds=now, max_blocks=len(peer.blocks), block_hashes=hashes,
        client_centroids=(),
    )  # fmt: skip
    return sign_peer_record(identity, PeerRecord(DIGEST, spec, addresses=("10.0.0.1:1",)), None, now + 3600)


async def _join(peer: PeerSpec, records: Sequence[SignedRecord]) -> tuple[float, float]:
    """A new peer of that shape joins; CPU milliseconds for each of its looks, in all threads and in this one."""
    assert peer.blocks is not None
    rng, host, looks = random.Random(peer.id), Host(), 0
    joining = replace(
        peer, id=Identity.generate().peer_id, blocks=None, state=PeerState.JOINING, max_blocks=len(peer.blocks)
    )

    async def found() -> Sequence[SignedRecord]:
        nonlocal looks
        looks += 1
        return records

    timing = replace(PeerTiming(), join_turn_seconds=0.0)
    watch = SwarmWatch(joining.id, 80, found, None, SilentDialer(), time.time, rng, timing)  # type: ignore[arg-type]

    async def look() -> Swarm:
        return await watch.snapshot(lambda: replace(joining, claim=agent.claim, issued_seconds=time.time()))

    async def announce() -> None:
        pass

    agent: PlacementAgent[BlockRange] = PlacementAgent(joining.id, host, look, announce, timing, time.time, rng)
    process, thread = time.process_time(), time.thread_time()
    await agent.join()
    return (time.process_time() - process) * 1e3 / looks, (time.thread_time() - thread) * 1e3 / looks
