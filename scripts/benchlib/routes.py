"""How long the client takes to choose a chain, on the path that a session takes: `ViewRouter` on a view full of peers.

Every request is new: other lengths, other excluded peers.  Times are CPU times of the whole process, threads included,
and of the network loop alone; `prepare` is what each look at the swarm costs on top.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from blockswarm.client.chain.machine.events import HopChoice
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import SwarmView
from blockswarm.proto.errors import SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, KvRelease, PeerId, PeerSpec, RequestSpec

BLOCKS, PER_PEER = 80, 8
MADE_UP_PEERS, MADE_UP_BLOCKS = 30, 40
GAP = BlockRange(30, 50)
NOW = 1_800_000_000.0
CROWDS = {"with room": 0.0, "half full": 0.5, "95 % full": 0.95}

Known = Mapping[PeerId, KnownPeer]
Ask = Callable[[ViewRouter, np.random.Generator, list[PeerId]], Awaitable[tuple[HopChoice, ...]]]


def random_peer(rng: np.random.Generator, number: int, crowded: float) -> PeerSpec:
    """One that hosts 4 to 12 of 80 blocks; of a fraction `crowded` almost all KV room is taken for a while."""
    size = int(rng.integers(PER_PEER // 2, PER_PEER * 3 // 2 + 1))
    start = int(np.clip(rng.integers(-PER_PEER, BLOCKS), 0, BLOCKS - size))
    busy = rng.random() < crowded
    due = sorted((NOW + rng.uniform(1, 60, 8)).tolist())
    return PeerSpec(
        id=PeerId(f"peer{number:04d}"),
        blocks=BlockRange(start, start + size),
        cost=ComputeCost(float(rng.uniform(0.001, 0.02)), prefill_fixed=0.01, prefill_per_token=1e-4),
        kv_tokens_total=12_000,
        kv_tokens_free=int(rng.integers(0, 3)) * 200 if busy else 12_000,
        releases=tuple(KvRelease(at, 1000) for at in due) if busy else (),
        coordinate=Coordinate(tuple(rng.normal(0, 0.03, 3).tolist()), float(rng.uniform(0, 0.01)), 0.1),
    )


def made_up_peer(rng: np.random.Generator, number: int) -> PeerSpec:
    """One that hosts all of 40 blocks, with room for one and soon for a few: the best walks come back to all of them.

    A hostile swarm may announce such peers to keep the clients busy.
    """
    due = np.sort(NOW + rng.uniform(2, 25, 3)).tolist()
    return PeerSpec(
        id=PeerId(f"peer{number:04d}"),
        blocks=BlockRange(0, MADE_UP_BLOCKS),
        cost=ComputeCost(float(rng.uniform(0.001, 0.02))),
        kv_tokens_total=2000,
        kv_tokens_free=500,
        releases=tuple(KvRelease(at, 500) for at in due),
        coordinate=Coordinate(tuple(rng.normal(0, 0.05, 3).tolist()), 0.001, 0.1),
    )


def known_of(peer: PeerSpec) -> KnownPeer:
    """The peer as a client at the origin knows it."""
    assert peer.coordinate is not None
    rtt_seconds = Coordinate((0.0, 0.0, 0.0), 0.005).rtt_seconds(peer.coordinate)
    record = SimpleNamespace(spec=peer, incarnation=1)
    return KnownPeer(record, b"", PeerAddress(peer.id, "h:1"), rtt_seconds, 0.0, None)  # type: ignore[arg-type]


@dataclass
class Times:
    """CPU milliseconds of every request, and how many found no chain or an unproven one."""

    cpu: list[float] = field(default_factory=list)
    loop: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    no_chain: int = 0
    unproven: int = 0

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = {"runs": len(self.cpu), "no_chain": self.no_chain, "unproven": self.unproven}
        for name in ("cpu", "loop", "wall"):
            values = getattr(self, name)
            report |= {f"{name}_p50_ms": float(np.median(values)), f"{name}_p99_ms": float(np.quantile(values, 0.99))}
        return report


async def choose(router: ViewRouter, rng: np.random.Generator, peers: list[PeerId]) -> tuple[HopChoice, ...]:
    """The whole chain of a new session."""
    request = RequestSpec(int(rng.integers(20, 400)), int(rng.integers(32, 128)))
    return await router.choose(BlockRange(0, BLOCKS), few_of(peers, rng), request)


async def fill(router: ViewRouter, rng: np.random.Generator, peers: list[PeerId]) -> tuple[HopChoice, ...]:
    """A gap of 20 blocks, where peers have failed."""
    kept = ((PeerId("before"), BlockRange(0, GAP.start)), (PeerId("behind"), BlockRange(GAP.stop, BLOCKS)))
    return await router.fill(kept, few_of(peers, rng), RequestSpec(int(rng.integers(20, 400)), 64))


async def choose_made_up(router: ViewRouter, rng: np.random.Generator, peers: list[PeerId]) -> tuple[HopChoice, ...]:
    """A request that takes the whole room that a made-up peer has for one block."""
    request = RequestSpec(int(rng.integers(20, 200)), 64, kv_tokens=500)
    return await router.choose(BlockRange(0, MADE_UP_BLOCKS), few_of(peers, rng), request)


def few_of(peers: list[PeerId], rng: np.random.Generator) -> frozenset[PeerId]:
    return frozenset(peers[int(rng.integers(len(peers)))] for _ in range(3))


async def timed_requests(known: Known, num_blocks: int, push: bool, ask: Ask, repeats: int) -> dict[str, Any]:
    """The times of `repeats` requests on one view, after one that is not counted."""
    view = SwarmView(Identity.generate(), None, (), "ab" * 32, num_blocks, None, push, lambda: NOW)  # type: ignore[arg-type]
    began = time.process_time()
    await view.see(known)
    prepared = (time.process_time() - began) * 1e3
    router, rng, times = ViewRouter(view), np.random.default_rng(5), Times()
    for number in range(repeats + 1):
        before = time.process_time(), time.thread_time(), time.perf_counter()
        unproven = no_chain = False
        try:
            unproven = any(choice.unproven_seconds > 0 for choice in await ask(router, rng, list(known)))
        except SwarmError:
            no_chain = True
        after = time.process_time(), time.thread_time(), time.perf_counter()
        if number > 0:
            cpu, loop, wall = ((end - begin) * 1e3 for begin, end in zip(before, after, strict=True))
            times.cpu.append(cpu)
            times.loop.append(loop)
            times.wall.append(wall)
            times.no_chain += no_chain
            times.unproven += unproven
    await view.close()
    return times.report() | {"prepare_ms": prepared}


def routes(repeats: int) -> dict[str, Any]:
    """By number of peers, situation and way of passing on; at the end the made-up swarm and the peak of memory."""
    report: dict[str, Any] = {}
    for peers in (100, 300, 1000):
        for situation, ask in (*((crowd, choose) for crowd in CROWDS), ("gap of 20 blocks", fill)):
            rng = np.random.default_rng(7)
            specs = [random_peer(rng, number, CROWDS.get(situation, 0.5)) for number in range(peers)]
            known = {spec.id: known_of(spec) for spec in specs}
            report |= by_way(f"{peers} peers, {situation}", known, BLOCKS, ask, repeats)
    rng = np.random.default_rng(7)
    known = {spec.id: known_of(spec) for spec in (made_up_peer(rng, number) for number in range(MADE_UP_PEERS))}
    report |= by_way(f"{MADE_UP_PEERS} made-up peers", known, MADE_UP_BLOCKS, choose_made_up, max(repeats // 20, 2))
    return report | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def by_way(name: str, known: Known, num_blocks: int, ask: Ask, repeats: int) -> dict[str, Any]:
    """Hub and push."""
    report = {}
    for way in ("hub", "push"):
        report[f"{name}, {way}"] = asyncio.run(timed_requests(known, num_blocks, way == "push", ask, repeats))
        print(f"{name}, {way}: {report[f'{name}, {way}']}", file=sys.stderr, flush=True)
    return report
