"""The cost of records in swarms of 10 to 10,000 peers: a first session of a client, and the share of a peer.

Some real nodes of the DHT on loopback, which hold the really signed records of a crowd (`crowd.py`) as the peers would
have written them, and have looked as often as peers do in ten minutes.  `first_session`: the first look of a client,
which asks three of these nodes, over a network that takes the crowd's round trips; bytes are those of questions and
answers, without TLS.  All of it runs in one process: `cpu_seconds` are those of the client and of the answers.
`peer`: one look and one announcement, with the CPU time of everything that takes part, the nodes that answer included:
since a peer answers as much as it asks on average, that is its own share.  A rate is that of looks as they are paced.
`near_key`: the share of a node near the key of the name, and of the one that keeps the most shards of all nodes of such
a swarm, which are asked more than the average: measured costs of one question, one step of a walk and one store, the
asking side included, times how many of them come to such a node from all peers.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from blockswarm.client.swarm.view import SwarmView
from blockswarm.peer.offer.lookups import RecentLookups
from blockswarm.peer.session.unary import UnaryCalls
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory import shards as pace
from blockswarm.proto.directory.hivemind.daemon import HivemindTiming
from blockswarm.proto.directory.hivemind.entries import value_of
from blockswarm.proto.directory.hivemind.exchange import REPLICAS, ask, give, node_id_of
from blockswarm.proto.directory.hivemind.node import HivemindDirectory
from blockswarm.proto.directory.hivemind.places import Kept, StorageLimits
from blockswarm.proto.directory.hivemind.shim import PeerID
from blockswarm.proto.directory.reading import FEW_ANSWERS
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.shards import bits_for, in_sample, prefix_of, shard_key
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import swarm_key_name
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.messages.limits import MAX_RECORDS_PER_KEY
from blockswarm.proto.wire.timing import MAX_RECORD_LIFETIME_SECONDS, RECORD_REFRESH_SECONDS
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec

from .crowd import BLOCKS, DIGEST, REGIONS, Crowd, CrowdDialer, place_in
from .processes import command_line, machine, run_program

NODES = 4
CLIENTS = 5
WARM_LOOKS, MEASURED_LOOKS, MEASURED_CALLS = 15, 8, 30
NAME = swarm_key_name(DIGEST, None)
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
TIMING = HivemindTiming(longest_rest_seconds=0.0)
"""Looks follow each other here; the rests between them are counted in."""


class Clock:
    """Unix time, that stands still while the records of a crowd are used: they live for two minutes only."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


async def start_nodes(folder: Path, clock: Clock) -> list[HivemindDirectory]:
    limits = StorageLimits(keys=4000, records=10**6, unreached=10**6)
    nodes: list[HivemindDirectory] = []
    for index in range(NODES):
        known = await nodes[0].visible_maddrs() if nodes else ()
        path = folder / f"identity-{index}"
        nodes.append(await HivemindDirectory.start(path, known, LOOPBACK, clock=clock, limits=limits, timing=TIMING))
    return nodes


def fill(nodes: Sequence[HivemindDirectory], records: Sequence[SignedRecord]) -> None:
    """Have the nodes keep the records under the keys under which their owners write them, until the benchmark is over.

    Not by calls, which would take longer than a record lives.
    """
    bits = bits_for(1.1 * len(records), 0)  # nodes that count a little more must not leave the crowd, which stays
    under = defaultdict[bytes, dict[str, Kept]](dict)
    for record in records:
        kept = Kept(value_of(record), record.expires_at_seconds, math.inf, 0.0, None)
        if in_sample(record.key, record.peer_id, bits) and len(under[record.key]) < MAX_RECORDS_PER_KEY:
            under[record.key][record.peer_id] = kept
        if bits:
            under[shard_key(record.key, bits, prefix_of(record.key, record.peer_id, bits))][record.peer_id] = kept
    for node in nodes:
        node._settings.places._keys.update({key: dict(those) for key, those in under.items()})


def cpu_seconds() -> float:
    """CPU time of this process and of the daemons of the nodes."""
    daemons = psutil.Process().children(recursive=True)
    return time.process_time() + sum(sum(each.cpu_times()[:2]) for each in daemons)


async def peer_share(nodes: Sequence[HivemindDirectory], record: Callable[[], SignedRecord]) -> dict[str, Any]:
    """The cost of looks and of announcements, as rates."""
    reader = nodes[1]
    shards = reader.shards.of(record().key)
    received = shards.received
    counted: list[int] = []
    shards.received = lambda count: (counted.append(count), received(count))[1]  # type: ignore[method-assign]
    looks = []
    for _ in range(MEASURED_LOOKS):
        counted.clear()
        began = cpu_seconds()
        known = await reader.lookup(NAME)
        looks.append((sum(counted), cpu_seconds() - began, len(known)))
    began = cpu_seconds()
    for _ in range(MEASURED_LOOKS):
        await reader.announce(record())
    announce_cpu = (cpu_seconds() - began) / MEASURED_LOOKS
    look_bytes, look_cpu = (statistics.mean(column) for column in list(zip(*looks, strict=True))[:2])
    rest = min(look_bytes / pace.READ_BYTES_PER_SECOND, HivemindTiming().longest_rest_seconds)
    pause = max(rest, PeerTiming().lookup_max_age_seconds)
    share = look_cpu / pause + announce_cpu / RECORD_REFRESH_SECONDS
    return {
        "known": looks[-1][2], "bits": shards.bits, "peers_estimated": shards.peers,
        "look_bytes": round(look_bytes), "look_cpu_ms": round(1e3 * look_cpu, 1),
        "seconds_between_looks": round(pause, 1),
        "announce_cpu_ms": round(1e3 * announce_cpu, 1),
        "read_kB_per_second": round(look_bytes / pause / 1e3, 1), "cpu_share": round(share, 4),
    }  # fmt: skip


async def near_key(
    nodes: Sequence[HivemindDirectory], count: int, peer: dict[str, Any], record: Callable[[], SignedRecord]
) -> dict[str, Any]:
    """The load of the nodes near keys: of one near the key of the name, and of the one that has most of the shards."""
    node, to, base = nodes[1].node, PeerID.from_base58(nodes[2].peer_id), record().key
    assert node is not None
    shards, pause = nodes[1].shards.of(base), peer["seconds_between_looks"]
    writers = count if shards.bits <= pace.SAMPLE_BITS else count / 2 ** (shards.bits - pace.SAMPLE_BITS)
    every = pace.BASE_EVERY * max(count // pace.BASE_PEERS, 1) if shards.bits else 1
    of_base = REPLICAS if shards.has_few(base) else FEW_ANSWERS
    # by key: answers a second of one of its five nodes, owners that write there, and how many such keys it keeps
    loads = {"name": (base, count / pause / every * (1 if shards.bits else of_base) / REPLICAS, writers, 1)}
    if shards.bits:
        key = shard_key(base, shards.bits, prefix_of(base, nodes[1].peer_id, shards.bits))
        group_bits = max(shards.bits - pace.BITS_IN_GROUP, 0)
        part = 0.0 if not group_bits else 1.0 if group_bits == 1 else pace.MAX_PART / 2**shards.bits
        share = min(2.0**-group_bits + (0.5 if group_bits == 1 else part), 1.0)
        loads["shard"] = (
            key,
            count * share / pause / REPLICAS,
            count / 2**shards.bits,
            most_keys(base, count, shards.bits),
        )
    walk, _ = await _cost(lambda: ask(node, to, bytes(20)))
    store, _ = await _cost(lambda: give(node, to, record(), base))
    figures: dict[str, Any] = {"ms_walk": round(1e3 * walk, 2), "ms_store": round(1e3 * store, 2)}
    for name, (key, answers, owners, keys) in loads.items():
        answer, found = await _cost(lambda key=key: ask(node, to, key))
        answers, stores = answers * keys, owners * keys / RECORD_REFRESH_SECONDS
        size = sum(len(entry.value) for entry in found)
        figures[name] = {
            "records": len(found), "keys": keys,
            "answers_per_second": round(answers, 1), "stores_per_second": round(stores, 1),
            "sent_kB_per_second": round(answers * size / 1e3),
            "received_kB_per_second": round(stores * size / len(found) / 1e3, 1),
            "cpu_share_reads": round(answers * answer, 3),
            "cpu_share_stores": round(stores * (store + walk), 3),
        }  # fmt: skip
    return figures


def most_keys(base: bytes, count: int, bits: int) -> int:
    """The most shards that one of `count` nodes keeps, each of which is kept by the five nodes nearest to its key."""
    places = [int.from_bytes(node_id_of(f"node {number}").to_bytes(), "big") for number in range(count)]
    kept: Counter[int] = Counter()
    for prefix in range(2**bits):
        place = int.from_bytes(shard_key(base, bits, prefix), "big")
        kept.update(heapq.nsmallest(REPLICAS, places, key=place.__xor__))
    return max(kept.values())


async def _cost(call: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """CPU seconds of one call, and what it gave."""
    await call()
    began = cpu_seconds()
    for _ in range(MEASURED_CALLS):
        result = await call()
    return (cpu_seconds() - began) / MEASURED_CALLS, result


async def first_sessions(crowd: Crowd, nodes: Sequence[HivemindDirectory], clock: Clock) -> dict[str, Any]:
    """First looks of clients in different places, each of which asks three nodes."""
    lookups = [RecentLookups(node, DIGEST, None, clock, PeerTiming(), num_blocks=BLOCKS) for node in nodes[1:]]
    for each in lookups:
        await each.records()
    answers = {Identity.generate().peer_id: _answer(each) for each in lookups}
    figures = []
    for number in range(CLIENTS):
        rng = random.Random(number)
        place = place_in(REGIONS[number % len(REGIONS)], rng)
        dialer = CrowdDialer(crowd, place, answers)
        initial = [PeerAddress(peer, "192.0.2.1:1") for peer in answers]
        view = SwarmView(Identity.generate(), dialer, initial, DIGEST, BLOCKS, None, clock=clock, rng=rng)
        began, cpu = time.perf_counter(), time.process_time()
        await view.start()
        seconds, cpu, traffic = time.perf_counter() - began, time.process_time() - cpu, dialer.traffic
        covered = {block for known in view.usable() for block in known.record.spec.blocks or ()}
        await view.close()
        assert len(covered) == BLOCKS, "a chain of all blocks is found"
        figures.append((seconds, traffic.lookup_bytes, traffic.ping_bytes, len(traffic.pinged), traffic.lookups, cpu))
    for each in lookups:
        await each.close()
    seconds, lookup_bytes, ping_bytes, pinged, lookups_made, cpus = zip(*figures, strict=True)
    return {
        "seconds_median": round(statistics.median(seconds), 3), "seconds_worst": round(max(seconds), 3),
        "bytes_worst": max(a + b for a, b in zip(lookup_bytes, ping_bytes, strict=True)),
        "lookup_bytes_median": statistics.median(lookup_bytes), "ping_bytes_median": statistics.median(ping_bytes),
        "pinged_worst": max(pinged), "lookups_median": statistics.median(lookups_made),
        "cpu_seconds_median": round(statistics.median(cpus), 3),
    }  # fmt: skip


def _answer(lookups: RecentLookups) -> Callable[[Any], Awaitable[Any]]:
    calls = UnaryCalls(SimpleNamespace(swarm_key=None, lookup=lookups.lookup))  # type: ignore[arg-type]
    return lambda request: calls.lookup(request, "192.0.2.2")


async def measure(count: int, folder: Path) -> dict[str, Any]:
    clock = Clock()
    crowd = Crowd.of(count, clock.now + MAX_RECORD_LIFETIME_SECONDS)
    nodes = await start_nodes(folder, clock)
    identity = Identity.load_or_create(folder / "identity-1")
    sent = 0

    def own_record() -> SignedRecord:
        nonlocal sent
        sent += 1
        spec = PeerSpec(identity.peer_id, BlockRange(0, 4), ComputeCost(0.001), block_hashes=(b"8" * 8,) * 4)
        record = PeerRecord(DIGEST, spec, addresses=("192.0.2.1:1",))
        return sign_peer_record(identity, record, None, clock.now + 60.0 + sent / 1e3)

    try:
        fill(nodes, crowd.records)
        for node in nodes[1:]:
            for _ in range(WARM_LOOKS):
                await node.lookup(NAME)
        first = await first_sessions(crowd, nodes, clock)
        peer = await peer_share(nodes, own_record)
        near = await near_key(nodes, count, peer, own_record)
        return {"peers": count, "first_session": first, "peer": peer, "near_key": near}
    finally:
        for node in reversed(nodes):
            await node.close()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="bench_directory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object in one line")
    parser.add_argument("--peers", type=int, nargs="+", default=[10, 100, 1000, 10_000], help="[default: %(default)s]")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"machine": machine(), "command": command_line("bench_directory", arguments)}
    rows = []
    for count in options.peers:
        with tempfile.TemporaryDirectory(prefix="bench-directory-") as folder:
            rows.append(asyncio.run(measure(count, Path(folder))))
        print(rows[-1], os.getloadavg(), file=sys.stderr, flush=True)
    print(json.dumps({**report, "swarms": rows}, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
