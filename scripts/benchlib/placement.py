"""How fast real peers place themselves, and what a client notices while they come and go.

    scripts/bench_placement --json
    scripts/bench_placement --churn-minutes 3 --churn-every 20

All peers run on this machine, at most four at once, with the product's own times (a refresh of 20 s).  Three parts:

* start: a first peer, then three more at the same moment, each with `--blocks 3` of the eight-block demo model: when
  every block is served.
* kill: one that is alone on some block is killed with its daemon: when every block is served again.
* churn: peers of `--churn-blocks` join and leave in turn while a client generates: failed generations, the fewest
  servers that any block had, moves, blocks loaded, memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockswarm.client.model.load import AutoSwarmModelForCausalLM
from blockswarm.client.swarm.view import SwarmView
from blockswarm.proto.errors import SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.transport import Dialer
from blockswarm.routing.swarm import BlockRange, PeerState

from .processes import SCRIPTS, Child, command_line, machine

DEMO_MODEL = SCRIPTS / "demo_model"
LOOK_SECONDS = 0.25
GIVE_UP_SECONDS = 300.0
SERVED = re.compile(r"serve blocks (\d+:\d+) in place of (\S+)$", re.MULTILINE)


@dataclass
class BenchPeer:
    """A `swarm-peer` process."""

    child: Child
    log: Path
    address: PeerAddress | None = None
    first_memory_bytes: int = 0


@dataclass
class BenchSwarm:
    """The peers of one part, and the records that they announce."""

    folder: Path
    blocks: int
    peers: list[BenchPeer] = field(default_factory=list)
    started: int = 0

    def start(self) -> BenchPeer:
        """Start a peer and do not wait for it."""
        ready = [peer for peer in self.peers if peer.address is not None]
        swarm = ["--initial-peers", str(ready[0].address)] if ready else ["--new-swarm"]
        folder = self.folder / f"peer-{self.started}"
        self.started += 1
        log = folder.with_suffix(".log")
        child = Child(
            "-m", "blockswarm.peer.cli", str(DEMO_MODEL), *swarm, "--blocks", str(self.blocks), "--host", "127.0.0.1",
            "--data", folder, "--threads", "1", "--kv-tokens", "4096", "--json", log=log,
        )  # fmt: skip
        peer = BenchPeer(child, log)
        self.peers.append(peer)
        return peer

    async def ready(self, peer: BenchPeer) -> None:
        """Wait until it serves."""
        described = await asyncio.to_thread(peer.child.read)
        peer.address = PeerAddress.parse(described["address"])
        peer.first_memory_bytes = peer.child.memory_bytes()

    def kill(self, peer: BenchPeer) -> None:
        """As a power cut would."""
        os.killpg(peer.child.pid, signal.SIGKILL)
        self.peers.remove(peer)

    def addresses(self) -> list[PeerAddress]:
        return [peer.address for peer in self.peers if peer.address is not None]

    def moved_blocks(self) -> list[int]:
        """By move of a peer that hosted blocks before: how many blocks were loaded."""
        found = []
        for log in self.folder.glob("*.log"):
            for after, before in SERVED.findall(log.read_text(errors="replace")):
                if before != "None":
                    found.append(len(set(BlockRange.parse(after)) - set(BlockRange.parse(before))))
        return found

    def close(self) -> None:
        for peer in self.peers:
            peer.child.end()


class Watcher:
    """Looks at the swarm as a client does."""

    def __init__(self, swarm: BenchSwarm) -> None:
        self._swarm = swarm
        self._dialer = Dialer()
        checkpoint = open_checkpoint(str(DEMO_MODEL))
        self.num_blocks = checkpoint.num_blocks
        self._digest = checkpoint.model_digest().hex()
        self._view: SwarmView | None = None

    async def servers(self) -> list[int]:
        """By block, how many peers serve it and answer."""
        if self._view is None:
            self._view = SwarmView(
                Identity.generate(), self._dialer, self._swarm.addresses(), self._digest, self.num_blocks, None
            )
        try:
            await self._view.refresh()
        except SwarmError:
            return [0] * self.num_blocks
        serving = [known.record.spec for known in self._view.peers.values()]
        hosted = [spec.blocks for spec in serving if spec.state is PeerState.SERVING and spec.blocks is not None]
        return [sum(block in blocks for blocks in hosted) for block in range(self.num_blocks)]

    def placement(self) -> dict[str, BlockRange]:
        assert self._view is not None
        specs = [known.record.spec for known in self._view.peers.values()]
        return {spec.id: spec.blocks for spec in specs if spec.state is PeerState.SERVING and spec.blocks}

    async def until_covered(self) -> float:
        """Seconds until every block is served."""
        began = time.perf_counter()
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while True:
                if min(await self.servers()) > 0:
                    return time.perf_counter() - began
                await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        if self._view is not None:
            await self._view.close()
        await self._dialer.close()


async def start_and_kill(folder: Path) -> dict[str, Any]:
    swarm = BenchSwarm(folder, blocks=3)
    try:
        began = time.perf_counter()
        await swarm.ready(swarm.start())
        others = [swarm.start() for _ in range(3)]
        together = time.perf_counter()
        watcher = Watcher(swarm)
        await watcher.until_covered()
        covered = time.perf_counter()
        await asyncio.gather(*(swarm.ready(peer) for peer in others))
        say(f"covered {covered - began:.1f} s after the first start")
        servers = await watcher.servers()
        placement = watcher.placement()
        alone = [
            peer for peer in swarm.peers
            if peer.address is not None and any(servers[b] == 1 for b in placement.get(peer.address.peer, ()))
        ]  # fmt: skip
        victim = alone[-1]
        assert victim.address is not None
        lost = placement[victim.address.peer]
        swarm.kill(victim)
        killed = time.perf_counter()
        await watcher.servers()
        hole = await watcher.until_covered()
        await watcher.close()
        return {
            "covered_seconds": covered - began,
            "covered_after_the_last_start_seconds": covered - together,
            "placement": sorted(map(str, placement.values())),
            "killed": str(lost),
            "covered_again_seconds": time.perf_counter() - killed,
            "moves": len(swarm.moved_blocks()),
            "watched_seconds": hole,
        }
    finally:
        swarm.close()


class Generating(threading.Thread):
    """A client that generates one short text after the other."""

    def __init__(self, addresses: Sequence[PeerAddress]) -> None:
        super().__init__(daemon=True)
        self._addresses = [str(address) for address in addresses]
        self.generations = 0
        self.failures: list[str] = []
        self.longest_seconds = 0.0
        self.wanted: list[list[int]] = []
        self.done = threading.Event()

    def run(self) -> None:
        import torch

        model = AutoSwarmModelForCausalLM.from_pretrained(str(DEMO_MODEL), initial_peers=self._addresses)
        ids = torch.tensor([[100, 101, 102, 32]])
        while not self.done.is_set():
            began = time.perf_counter()
            try:
                tokens = model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64, min_new_tokens=64
                )
                self.wanted = self.wanted or tokens.tolist()
                if tokens.tolist() != self.wanted:
                    self.failures.append("other tokens")
            except SwarmError as error:
                self.failures.append(str(error))
            self.generations += 1
            self.longest_seconds = max(self.longest_seconds, time.perf_counter() - began)
        model.session_factory.close()


async def churn(folder: Path, blocks: int, minutes: float, every_seconds: float) -> dict[str, Any]:
    swarm, rng = BenchSwarm(folder, blocks), random.Random(1)
    watcher, fewest, events = None, 99, 0
    generating: Generating | None = None
    leaving: list[asyncio.Task[None]] = []
    try:
        await swarm.ready(swarm.start())
        for _ in range(2):
            await swarm.ready(swarm.start())
        watcher = Watcher(swarm)
        await watcher.until_covered()
        generating = Generating(swarm.addresses())
        generating.start()
        memory_before = [peer.child.memory_bytes() for peer in swarm.peers]
        end = time.perf_counter() + 60 * minutes
        next_event = time.perf_counter()
        while time.perf_counter() < end:
            fewest = min(fewest, min(await watcher.servers()))
            if time.perf_counter() >= next_event:
                next_event += every_seconds
                events += 1
                if len(swarm.peers) < 4:
                    leaving.append(asyncio.create_task(swarm.ready(swarm.start())))
                else:
                    gone = rng.choice([peer for peer in swarm.peers[1:] if peer.address is not None])
                    swarm.peers.remove(gone)
                    leaving.append(asyncio.create_task(asyncio.to_thread(gone.child.end)))
            await asyncio.sleep(LOOK_SECONDS)
        generating.done.set()
        await asyncio.to_thread(generating.join, 60)
        await asyncio.gather(*leaving)
        oldest = swarm.peers[0]
        moved = swarm.moved_blocks()
        return {
            "minutes": minutes,
            "joins_and_leaves": events,
            "generations": generating.generations,
            "failed_generations": len(generating.failures),
            "failures": sorted(set(generating.failures))[:5],
            "longest_generation_seconds": generating.longest_seconds,
            "fewest_servers": fewest,
            "moves": len(moved),
            "blocks_loaded_by_moves": sum(moved),
            "memory_before_bytes": memory_before[0],
            "memory_after_bytes": oldest.child.memory_bytes(),
        }
    finally:
        if generating is not None:
            generating.done.set()
        if watcher is not None:
            await watcher.close()
        swarm.close()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(name: str, figures: Mapping[str, Any]) -> str:
    rows = [
        f"| {key.replace('_', ' ')} | {value:.1f} |"
        if isinstance(value, float)
        else f"| {key.replace('_', ' ')} | {value} |"
        for key, value in figures.items()
    ]
    return "\n".join([f"### {name}", "", "| figure | value |", "| --- | --- |", *rows])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench_placement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--churn-minutes", type=float, default=10.0, help="0: leave this part out")
    parser.add_argument("--churn-every", type=float, default=20.0, help="seconds between a join and a leave")
    parser.add_argument("--churn-blocks", type=int, default=6)
    parser.add_argument("--no-start", action="store_true", help="leave start and kill out")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    chosen = parse(arguments)
    parts: dict[str, Callable[[Path], Any]] = {}
    if not chosen.no_start:
        parts["start and kill"] = start_and_kill
    if chosen.churn_minutes > 0:
        parts["churn"] = lambda folder: churn(folder, chosen.churn_blocks, chosen.churn_minutes, chosen.churn_every)
    found: dict[str, Any] = {}
    for name, part in parts.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = asyncio.run(part(Path(folder)))
    if chosen.json:
        print(json.dumps({"command": command_line("bench_placement", arguments), "machine": machine(), **found}))
    else:
        print("\n\n".join(table(name, figures) for name, figures in found.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
