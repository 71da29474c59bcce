"""A swarm of real peers on this machine for the benchmarks of placement: started, watched as a client does, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockswarm.client.model.load import AutoSwarmModelForCausalLM
from blockswarm.client.swarm.view import SwarmView
from blockswarm.proto.errors import SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer
from blockswarm.routing.swarm import BlockRange, PeerId, PeerSpec, PeerState

from .long_line import LongLine
from .processes import SCRIPTS, Child

DEMO_MODEL = SCRIPTS / "demo_model"
LOOK_SECONDS = 0.25
GIVE_UP_SECONDS = 300.0
CLOSE_SECONDS = 3.0
"""Patience with a peer at the end of a part, when nobody needs it any more."""
LEAVE_SECONDS = 250.0
"""Patience with a peer that is stopped: two minutes for a successor, and two for its sessions."""
SERVED = re.compile(r"serve blocks (\d+:\d+) in place of (\S+)$", re.MULTILINE)
CLAIMED = re.compile(r"claim blocks (\d+:\d+) in place of (\d+:\d+): (.*)$", re.MULTILINE)


class BenchFailed(Exception):
    """There is nothing to measure, or something hangs."""


@dataclass(eq=False)
class BenchPeer:
    """A `swarm-peer` process."""

    child: Child
    log: Path
    address: PeerAddress | None = None
    line: LongLine | None = None
    """The way to it, if that is long."""
    is_placed: bool = True
    """By its agent; otherwise it serves the blocks that it was told to."""
    first_memory_bytes: int = 0
    """When it had begun to serve."""

    def moved_blocks(self) -> list[int]:
        """By move from blocks to others: how many were loaded."""
        moves = SERVED.findall(self.log.read_text(errors="replace"))
        return [
            len(set(BlockRange.parse(after)) - set(BlockRange.parse(before)))
            for after, before in moves
            if before != "None"
        ]

    def predictions(self) -> list[str]:
        """Its words when it claimed other blocks than its own."""
        claims = CLAIMED.findall(self.log.read_text(errors="replace"))
        return [f"{before} -> {after}: {gain}" for after, before, gain in claims]


@dataclass
class BenchSwarm:
    """The peers of one part, and the records that they announce."""

    folder: Path
    blocks: str
    """The blocks that peers are asked to host, unless others are named."""
    kv_tokens: int = 4096
    rtt_seconds: float = 0.0
    """Between any two nodes; the DHT is not delayed."""
    model: Path = DEMO_MODEL
    peers: list[BenchPeer] = field(default_factory=list)
    """Those that are in the swarm, or join."""
    started: list[BenchPeer] = field(default_factory=list)
    """All that were started."""

    def start(self, blocks: str | None = None) -> BenchPeer:
        """Start a peer and do not wait for it."""
        blocks = blocks or self.blocks
        known = [part for address in self.addresses() for part in ("--initial-peers", str(address))]
        swarm = known or ["--new-swarm"]  # of all that are there, for any of them may be about to leave
        folder = self.folder / f"peer-{len(self.started)}"
        log = folder.with_suffix(".log")
        line = LongLine(self.rtt_seconds, folder.with_suffix(".line")) if self.rtt_seconds else None
        child = Child(
            "-m", "blockswarm.peer.cli", str(self.model), *swarm, "--blocks", blocks, "--host", "127.0.0.1",
            "--data", folder, "--threads", "1", "--kv-tokens", str(self.kv_tokens), "--json",
            *(line.options if line is not None else ()), log=log,
        )  # fmt: skip
        peer = BenchPeer(child, log, line=line, is_placed=":" not in blocks)
        self.started.append(peer)
        self.peers.append(peer)
        return peer

    async def ready(self, peer: BenchPeer) -> None:
        """Wait until it serves."""
        described = await asyncio.to_thread(peer.child.read)
        if peer.line is not None:
            await asyncio.to_thread(peer.line.lead_to, peer.child)
        peer.address = PeerAddress.parse(described["address"])
        peer.first_memory_bytes = peer.child.memory_bytes()

    def kill(self, peer: BenchPeer) -> None:
        """As a power cut would."""
        os.killpg(peer.child.pid, signal.SIGKILL)
        self.peers.remove(peer)

    def addresses(self) -> list[PeerAddress]:
        return [peer.address for peer in self.peers if peer.address is not None]

    def moved_blocks(self) -> list[int]:
        """By move of any peer from blocks to others: how many were loaded."""
        return [blocks for peer in self.started for blocks in peer.moved_blocks()]

    def cpu_seconds(self) -> float:
        """CPU time used so far by the peers and their daemons."""
        return sum(peer.child.cpu_seconds() for peer in self.peers)

    def close(self) -> None:
        for peer in self.started:
            peer.child.end(CLOSE_SECONDS)
            if peer.line is not None:
                peer.line.end()


class Watcher:
    """Looks at the swarm as a client does."""

    def __init__(self, swarm: BenchSwarm) -> None:
        self._swarm = swarm
        self._dialer = Dialer(rule=EVERY_RANGE)
        checkpoint = open_checkpoint(str(DEMO_MODEL))
        self.num_blocks = checkpoint.num_blocks
        self._digest = checkpoint.model_digest().hex()
        self._view: SwarmView | None = None
        self.lasting = [0] * self.num_blocks
        """At the last look, how many peers serve each block and stay."""

    async def servers(self) -> list[int]:
        """By block, how many peers answer and serve it, also if they are stopped and wait for a successor."""
        if self._view is None:
            self._view = SwarmView(
                Identity.generate(), self._dialer, self._swarm.addresses(), self._digest, self.num_blocks, None
            )
        try:
            await self._view.refresh()
        except SwarmError:
            return [0] * self.num_blocks
        self.lasting = self._hosts(PeerState.SERVING)
        return self._hosts(PeerState.SERVING, PeerState.DRAINING)

    def _hosts(self, *states: PeerState) -> list[int]:
        specs = self.announced()
        hosted = [spec.blocks for spec in specs if spec.state in states and spec.blocks is not None]
        return [sum(block in blocks for blocks in hosted) for block in range(self.num_blocks)]

    def announced(self) -> list[PeerSpec]:
        """By all peers, at the last look."""
        assert self._view is not None
        return [known.record.spec for known in self._view.peers.values()]

    def placement(self) -> dict[PeerId, BlockRange]:
        specs = self.announced()
        return {spec.id: spec.blocks for spec in specs if spec.state is PeerState.SERVING and spec.blocks}

    async def until_covered(self) -> None:
        """Return when every block is served. Raises BenchFailed after `GIVE_UP_SECONDS`."""
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                while True:
                    if min(await self.servers()) > 0:
                        return
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise BenchFailed(f"some block had no server for {GIVE_UP_SECONDS:.0f} s") from None

    async def close(self) -> None:
        if self._view is not None:
            await self._view.close()
        await self._dialer.close()


@contextlib.asynccontextmanager
async def watching(swarm: BenchSwarm) -> AsyncIterator[Watcher]:
    watcher = Watcher(swarm)
    try:
        yield watcher
    finally:
        await watcher.close()


def connected(addresses: Sequence[PeerAddress], **options: Any) -> Any:
    """The demo model with its blocks at those peers and the others that they know."""
    initial = [str(address) for address in addresses]
    return AutoSwarmModelForCausalLM.from_pretrained(str(DEMO_MODEL), initial_peers=initial, **options)


async def ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for tasks, whatever comes of them."""
    await asyncio.gather(*tasks, return_exceptions=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
