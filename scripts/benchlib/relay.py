"""The price of a relay: added time for 16 KB, throughput against a direct connection, and the relay's CPU per MB.

A relay, a peer and a client in processes of their own, on loopback. The peer sends every chunk back; each figure counts
one way only where it says so. Direct and relayed measurements take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil
from blockswarm.peer.config import RelayQuota
from blockswarm.peer.reach.relay import RelayService
from blockswarm.peer.reach.table import RelayTable
from blockswarm.peer.reach.tunnel import Tunnel
from blockswarm.peer.session.edge.handshakes import Handshakes
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress, Reach, RelayedAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, Handlers, introduction, serve
from blockswarm.proto.wire.frames import ChunkFrame
from blockswarm.proto.wire.handshake import HelloChecker

LOOPBACK = "127.0.0.1"
SMALL_BYTES, LARGE_BYTES = 16 << 10, 512 << 10


async def unused(*args: Any) -> Any:
    raise RuntimeError("not measured here")


async def echo(stream: Any) -> None:
    while (frame := await stream.read()) is not None:
        await stream.write(frame)


async def run_relay() -> None:
    """Relay without a limit on the rate, until killed."""
    identity, timing = Identity.generate(), PeerTiming()
    service = RelayService(
        RelayTable(identity.peer_id, RelayQuota(bytes_per_second=float(1 << 40))),
        HelloChecker(identity.peer_id, time.time, None), Handshakes(timing.handshake_seconds).handshake,
        lambda: True, time.monotonic, timing,
    )  # fmt: skip
    _, port = await serve(identity, Handlers(unused, unused, unused, unused, relay=service.handlers), LOOPBACK, 0)
    print(PeerAddress(identity.peer_id, f"{LOOPBACK}:{port}"), flush=True)
    await asyncio.Event().wait()


async def run_peer(relay: str) -> None:
    """Send back what comes, directly and through the relay, until killed."""
    identity, dialer = Identity.generate(), Dialer(rule=EVERY_RANGE)
    _, port = await serve(identity, Handlers(echo, unused, unused, unused), LOOPBACK, 0)
    tunnel = Tunnel(
        PeerAddress.parse(relay), HostPort(LOOPBACK, port), dialer, introduction(identity, None), PeerTiming()
    )
    address = PeerAddress(identity.peer_id, f"{LOOPBACK}:{port}")
    await tunnel.run(lambda: print(address, flush=True))


class Way:
    """An open stream to the peer, by one way."""

    def __init__(self, dialer: Dialer, reach: Reach) -> None:
        self.stream = dialer.stub(reach).session()
        self.small_ms: list[float] = []
        self.megabytes_per_second: list[float] = []

    async def small(self, count: int) -> None:
        """Round trips of 16 KB there and back, one at a time."""
        frame = ChunkFrame(bytes(SMALL_BYTES))
        for _ in range(count):
            began = time.perf_counter()
            await self.stream.write(frame)
            await self.stream.read()
            self.small_ms.append((time.perf_counter() - began) * 1e3)

    async def large(self, count: int) -> None:
        """MB/s in one direction, while as much comes back."""
        frame = ChunkFrame(bytes(LARGE_BYTES))

        async def send() -> None:
            for _ in range(count):
                await self.stream.write(frame)

        began = time.perf_counter()
        sending = asyncio.create_task(send())
        for _ in range(count):
            await self.stream.read()
        await sending
        self.megabytes_per_second.append(count * LARGE_BYTES / 1e6 / (time.perf_counter() - began))


async def measure(relay: PeerAddress, peer: PeerAddress, relay_process: psutil.Process, rounds: int) -> dict[str, Any]:
    dialer = Dialer(rule=EVERY_RANGE)
    direct, relayed = Way(dialer, peer), Way(dialer, RelayedAddress(peer.peer, relay))
    try:
        for way in (direct, relayed):
            await way.small(20)
            way.small_ms.clear()
        cpu_seconds, moved = 0.0, 0
        for _ in range(rounds):
            await direct.small(100)
            await relayed.small(100)
            await direct.large(64)
            before = sum(relay_process.cpu_times()[:2])
            await relayed.large(64)
            cpu_seconds += sum(relay_process.cpu_times()[:2]) - before
            moved += 2 * 64 * LARGE_BYTES
    finally:
        await dialer.close()
    medians = {name: statistics.median(way.small_ms) for name, way in (("direct", direct), ("relayed", relayed))}
    return {
        "round_trip_16KB_p50_ms": medians,
        "added_ms_per_16KB": (medians["relayed"] - medians["direct"]) / 2,
        "MB_per_second": {
            "direct": statistics.median(direct.megabytes_per_second),
            "relayed": statistics.median(relayed.megabytes_per_second),
        },
        "relay_cpu_ms_per_MB": cpu_seconds * 1e3 / (moved / 1e6),
        "relayed_MB": moved / 1e6,
        "rounds": rounds,
    }


def run(rounds: int) -> dict[str, Any]:
    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchlib.relay", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def address(process: subprocess.Popen[str]) -> PeerAddress:
        assert process.stdout is not None
        return PeerAddress.parse(process.stdout.readline())

    processes = [start("--role", "relay")]
    try:
        relay = address(processes[0])
        processes.append(start("--role", "peer", "--relay", str(relay)))
        peer = address(processes[1])
        return asyncio.run(measure(relay, peer, psutil.Process(processes[0].pid), rounds))
    finally:
        for process in reversed(processes):  # the peer would say that it has lost its relay
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench_relay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=5, help="of 100 small and 64 large chunks by each way")
    parser.add_argument("--role", choices=["relay", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--relay", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.role == "relay":
        asyncio.run(run_relay())
    elif chosen.role == "peer":
        asyncio.run(run_peer(chosen.relay))
    else:
        report = run(chosen.rounds)
        print(json.dumps(report) if chosen.json else json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
