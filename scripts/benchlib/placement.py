"""How fast real peers place themselves, and what a client notices while they come and go.

    scripts/bench_placement --json
    scripts/bench_placement --churn-minutes 3 --churn-every 20

All peers run on this machine, at most six at once, with the product's own times (a refresh of 20 s).  Six parts:

* start: a first peer, then three more at the same moment, each with `--blocks 3` of the eight-block demo model: when
  every block is served.
* kill: one that is alone on some block is killed with its daemon: when every block is served again.
* churn: peers of four blocks join and leave in turn, so that the placed ones have to move (`churn.py`), while a client
  generates short texts and another one long ones with 512 tokens of context: failed generations, the fewest servers
  that any block had, moves, blocks loaded, how long a token takes before which a cache moves, memory.
* hand-over: how long a step takes before which a cache of 512 tokens of the model `small` moves (`handover.py`).
* rest: `--rest-minutes` in which nobody joins, leaves or asks for anything: moves and claims (none), coordinates that
  peers announce anew, CPU and memory (`rest.py`).
* guarantee: `--sessions` sessions on five peers, at most R at once, against Theorem 2's bound; more than that, against
  the waits that the peers predict; and arrivals at random, against the same peers simulated (`guarantee.py`).

The exit status is 1 if a generation failed or gave other tokens, or if nothing could be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blockswarm.routing.swarm import BlockRange

from .churn import churn
from .guarantee import guarantee
from .handover import handovers
from .placed_swarm import BenchFailed, BenchPeer, BenchSwarm, say, watching
from .processes import ChildFailed, command_line, machine, run_program
from .rest import rest


async def start_and_kill(folder: Path) -> dict[str, Any]:
    swarm = BenchSwarm(folder, "3")
    with contextlib.closing(swarm):
        began = time.perf_counter()
        await swarm.ready(swarm.start())
        others = [swarm.start() for _ in range(3)]
        together = time.perf_counter()
        async with watching(swarm) as watcher:
            await watcher.until_covered()
            covered = time.perf_counter()
            await asyncio.gather(*(swarm.ready(peer) for peer in others))
            say(f"covered {covered - began:.1f} s after the first start")
            servers = await watcher.servers()
            placement = watcher.placement()
            victim = alone_on_a_block(swarm.peers, placement, servers)
            swarm.kill(victim)
            killed = time.perf_counter()
            await watcher.until_covered()
            covered_again = time.perf_counter()
        assert victim.address is not None
        return {
            "covered_seconds": covered - began,
            "covered_after_the_last_start_seconds": covered - together,
            "placement": sorted(map(str, placement.values())),
            "killed": str(placement[victim.address.peer]),
            "covered_again_seconds": covered_again - killed,
            "moves": len(swarm.moved_blocks()),
        }


def alone_on_a_block(
    peers: Sequence[BenchPeer], placement: Mapping[str, BlockRange], servers: Sequence[int]
) -> BenchPeer:
    """The last peer that is the only server of some block. Raises BenchFailed if there is none."""
    for peer in reversed(peers):
        hosted = placement.get(peer.address.peer, ()) if peer.address is not None else ()
        if any(servers[block] == 1 for block in hosted):
            return peer
    raise BenchFailed("every block has two servers or more: no peer can be missed")


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
    parser.add_argument("--handovers", type=int, default=20, help="of a running session; 0: leave this part out")
    parser.add_argument("--rest-minutes", type=float, default=10.0, help="0: leave this part out")
    parser.add_argument("--sessions", type=int, default=200, help="for the guarantee; 0: leave this part out")
    parser.add_argument("--rtt-ms", type=float, default=40.0, help="for the guarantee, between any two nodes")
    parser.add_argument("--no-start", action="store_true", help="leave start and kill out")
    parser.add_argument("--keep", type=Path, help="a folder for the peers' files and logs, which are kept")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    chosen = parse(arguments)
    parts: dict[str, Callable[[Path], Any]] = {}
    if not chosen.no_start:
        parts["start and kill"] = start_and_kill
    if chosen.churn_minutes > 0:
        parts["churn"] = lambda folder: churn(folder, chosen.churn_minutes, chosen.churn_every)
    if chosen.handovers > 0:
        parts["hand-over"] = lambda folder: handovers(folder, chosen.handovers)
    if chosen.rest_minutes > 0:
        parts["rest"] = lambda folder: rest(folder, chosen.rest_minutes)
    if chosen.sessions > 0:
        parts["guarantee"] = lambda folder: guarantee(folder, chosen.sessions, chosen.rtt_ms / 1000)
    found: dict[str, Any] = {}
    for name, part in parts.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) if chosen.keep is None else chosen.keep / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                found[name] = asyncio.run(part(folder))
            except (BenchFailed, ChildFailed) as error:
                say(f"bench_placement: {name}: {error}")
                return 1
    if chosen.json:
        print(json.dumps({"command": command_line("bench_placement", arguments), "machine": machine(), **found}))
    else:
        print("\n\n".join(table(name, figures) for name, figures in found.items()))
    return 1 if any(figures.get("failed_generations") for figures in found.values()) else 0


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
