"""A look at a swarm: it counts the peers that the router has and those that join, and starts without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockswarm.client.survey.survey import counted
from blockswarm.client.swarm.snapshot import PreparedSwarm
from blockswarm.client.swarm.weights import WeightTrust
from blockswarm.routing.swarm import BlockRange, ComputeCost, MoveClaim, PeerId, PeerSpec, PeerState
from support.known_peers import known_peer
from support.processes import environment
from support.swarm_thread import SwarmThread, swarm_thread
from support.tiny_models import write_tiny_checkpoint

RIGHT, WRONG = b"r" * 8, b"w" * 8
PROVEN = dict.fromkeys(range(4), RIGHT)


def peer(name: str, stop: int, found: bytes | None = RIGHT, **fields: object) -> PeerSpec:
    hashes = (found,) * stop if found is not None else ()
    return PeerSpec(PeerId(name), BlockRange(0, stop), ComputeCost(0.01), block_hashes=hashes, **fields)  # type: ignore[arg-type]


def test_only_peers_that_may_be_routed_to_are_counted() -> None:
    """One with other weights would be promised to users that never get it."""
    answering = [peer("a", 4), peer("doubted", 4, WRONG), peer("beyond", 5)]
    known = {spec.id: known_peer(spec) for spec in answering}
    routed = PreparedSwarm.of(known, 4, True, WeightTrust(PROVEN))
    claim = MoveClaim(100.0, BlockRange(3, 5))
    joining = [
        peer("j", 4, None, state=PeerState.JOINING),
        peer("k", 2, WRONG, state=PeerState.JOINING),
        peer("m", 2, None, state=PeerState.JOINING, claim=claim),
    ]
    assert [spec.id for spec in counted(routed, joining)] == ["a", "j"]


def test_a_peer_that_leaves_is_counted_as_one_that_leaves() -> None:
    """The router has it, for blocks that nobody else serves; but nothing is promised with it."""
    peers = (peer("a", 4), peer("b", 4, state=PeerState.DRAINING))
    routed = PreparedSwarm.of({spec.id: known_peer(spec) for spec in peers}, 4, True, WeightTrust({}))
    assert [spec.state for spec in counted(routed, [])] == [PeerState.SERVING, PeerState.DRAINING]


# --- the programs ---

LOOK = """
import atexit, sys
from blockswarm.client.program.cli import main
heavy = ("torch", "transformers", "hivemind", "scipy.optimize", "matplotlib")
atexit.register(lambda: print("loaded:", *(name for name in heavy if name in sys.modules), file=sys.stderr))
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[SwarmThread]:
    with swarm_thread(folder, "0:3", "3:6") as thread:
        yield thread


@pytest.mark.long
@pytest.mark.parametrize("line", ["peers", "route", "route --explain", "status", "ping"])
def test_a_look_at_a_swarm_does_not_pay_for_torch(serving: SwarmThread, folder: Path, line: str) -> None:
    """Eight seconds and more on a busy machine, for an answer that needs a digest and a few pings."""
    name, *options = line.split()
    program = [sys.executable, "-c", LOOK, name, str(folder), *serving.initial, *options, "--json"]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert done.stderr.splitlines()[-1].split() == ["loaded:"]
