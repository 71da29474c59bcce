"""How a swarm of real peers rests: nobody joins, leaves or asks for anything, and nothing may move."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockswarm.routing.swarm import BlockRange, Coordinate, PeerId
from blockswarm.routing.timing import CLAIM_LIFETIME_SECONDS

from .placed_swarm import BenchFailed, BenchSwarm, Watcher, say, watching

PEERS = 5
SETTLED_SECONDS = CLAIM_LIFETIME_SECONDS
"""A swarm has come to rest when nothing has moved for as long: costs are those of the first minutes by then."""
SETTLE_LIMIT_SECONDS = 600.0
LOOK_SECONDS = 5.0


@dataclass
class Seen:
    """Changes in what peers announce, from look to look."""

    placements: list[Mapping[PeerId, BlockRange]] = field(default_factory=list)
    """Those that differ from the one before."""
    changed_at: float = 0.0
    coordinates: dict[PeerId, list[Coordinate]] = field(default_factory=dict)
    claims: int = 0
    looks: int = 0
    fewest_servers: int = 0

    def take(self, watcher: Watcher, now: float) -> None:
        """Note what the watcher saw at its last look."""
        self.looks += 1
        self.fewest_servers = min(watcher.lasting) if self.looks == 1 else min(self.fewest_servers, *watcher.lasting)
        placement = watcher.placement()
        if not self.placements or placement != self.placements[-1]:
            self.placements.append(placement)
            self.changed_at = now
        for spec in watcher.announced():
            self.claims += spec.claim is not None
            known = self.coordinates.setdefault(spec.id, [])
            if spec.coordinate is not None and (not known or spec.coordinate != known[-1]):
                known.append(spec.coordinate)


async def rest(folder: Path, minutes: float) -> dict[str, Any]:
    """Peers that start together settle; then nothing is done for `minutes`. Raises BenchFailed."""
    swarm = BenchSwarm(folder, "3")
    with contextlib.closing(swarm):
        began = time.perf_counter()
        await swarm.ready(swarm.start())
        others = [swarm.start() for _ in range(PEERS - 1)]
        await asyncio.gather(*(swarm.ready(peer) for peer in others))
        async with watching(swarm) as watcher:
            await watcher.until_covered()
            settled_at = await until_settled(watcher)
            say(f"at rest {settled_at - began:.0f} s after the first start; {minutes:g} minutes of rest begin")
            return {"settled_seconds": settled_at - began, **await watched(swarm, watcher, 60 * minutes)}


async def until_settled(watcher: Watcher) -> float:
    """When the last change was, once nothing has changed for `SETTLED_SECONDS`. Raises BenchFailed."""
    seen, began = Seen(), time.perf_counter()
    while (now := time.perf_counter()) - began < SETTLE_LIMIT_SECONDS:
        await watcher.servers()
        seen.take(watcher, now)
        if now - seen.changed_at >= SETTLED_SECONDS:
            return seen.changed_at
        await asyncio.sleep(LOOK_SECONDS)
    raise BenchFailed(f"the placement changes still after {SETTLE_LIMIT_SECONDS:.0f} s")


async def watched(swarm: BenchSwarm, watcher: Watcher, seconds: float) -> dict[str, Any]:
    """Moves, claims and costs of that time."""
    seen = Seen()
    moves, memory = len(swarm.moved_blocks()), [peer.child.memory_bytes() for peer in swarm.peers]
    cpu, began = swarm.cpu_seconds(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        await asyncio.sleep(LOOK_SECONDS)
        await watcher.servers()
        seen.take(watcher, time.perf_counter())
    cpu, took = swarm.cpu_seconds() - cpu, time.perf_counter() - began
    grown = [peer.child.memory_bytes() - before for peer, before in zip(swarm.peers, memory, strict=True)]
    return {
        "minutes": took / 60,
        "moves": len(swarm.moved_blocks()) - moves,
        "claims_seen": seen.claims,
        "placements_seen": len(seen.placements),
        "fewest_servers_of_a_block": seen.fewest_servers,
        "placement": sorted(map(str, seen.placements[-1].values())),
        "coordinates_announced_per_peer": sorted(map(len, seen.coordinates.values())),
        "cpu_of_a_peer_percent_of_a_core": 100 * cpu / took / len(swarm.peers),
        "memory_of_a_peer_mb": max(memory) / 1e6,
        "most_memory_growth_mb": max(grown) / 1e6,
    }
