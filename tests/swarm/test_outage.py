"""Peers of real processes are cut off or started again, and the swarm is one again a little later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from blockswarm.proto.directory.signed import SignedRecord
from blockswarm.proto.directory.swarm_key import swarm_key_name
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.streams import translated_grpc_errors
from blockswarm.proto.network.transport import Dialer
from blockswarm.proto.wire.handshake import SESSION_ID_BYTES, sign_hello
from blockswarm.proto.wire.messages.calls import LookupRequest
from support.cables import free_port
from support.processes import PeerProcess, PeerProcesses, peer_processes, started_by

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(400)]

MODEL = Path(__file__).parents[2] / "scripts" / "demo_model"
PATIENCE_SECONDS = 60.0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[PeerProcesses]:
    with peer_processes(tmp_path) as processes:
        yield processes


def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> float:
    """Wait for what other processes do; the seconds that it took. Asks every half second."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it does not happen"
        time.sleep(0.5)
    return time.monotonic() - began


def seen_by(peer: PeerProcess) -> set[str]:
    """The ids in the records that a client would be given by a peer."""

    async def ask() -> set[str]:
        address, dialer = peer.address, Dialer(rule=EVERY_RANGE)
        name = swarm_key_name(peer.described["model_digest"], None)
        hello = sign_hello(Identity.generate(), address.peer, bytes(SESSION_ID_BYTES), time.time(), None)
        try:
            with translated_grpc_errors(str(address)):
                reply = await dialer.stub(address).lookup(LookupRequest(name, hello), 20.0)
            return {SignedRecord.decode(record).peer_id for record in reply.records}
        finally:
            await dialer.close()

    return asyncio.run(ask())


def remembers(peer: PeerProcess, data: Path, other: PeerProcess) -> bool:
    return any(str(other.address.peer) in path.read_text() for path in data.glob("peers-*.json"))


def test_a_first_peer_that_is_killed_and_started_by_the_same_command_is_in_the_same_swarm(
    processes: PeerProcesses,
) -> None:
    """A unit file says --new-swarm each time; without a memory there were two swarms that never met again."""
    data, ports = processes.folder / "first", ("--port", free_port(), "--dht-port", free_port())
    first = processes.start(MODEL, "--blocks", "0:4", *ports, data=data).wait_ready()
    second = processes.start(MODEL, "--blocks", "4:8", initial=[first.address]).wait_ready()
    both = {first.address.peer, second.address.peer}
    until(lambda: remembers(first, data, second))
    first.kill()
    again = processes.start(MODEL, "--blocks", "0:4", *ports, data=data).wait_ready()
    assert again.address.peer == first.address.peer
    until(lambda: seen_by(again) == both)
    until(lambda: seen_by(second) == both)


def test_a_peer_that_was_cut_off_for_longer_than_records_live_is_seen_again(processes: PeerProcesses) -> None:
    """All of one peer's processes stand still for 70 s: for the other one its network is away."""
    first = processes.start(MODEL, "--blocks", "0:4").wait_ready()
    second = processes.start(MODEL, "--blocks", "4:8", initial=[first.address]).wait_ready()
    both = {first.address.peer, second.address.peer}
    until(lambda: seen_by(first) == both)
    its = [psutil.Process(second.process.pid), *started_by(second.process)]
    for process in its:
        process.suspend()
    try:
        until(lambda: seen_by(first) == {first.address.peer}, 120.0)
    finally:
        for process in its:
            process.resume()
    until(lambda: seen_by(first) == both)
    until(lambda: "no other node of the DHT answers" in first.log.read_text())


def test_a_daemon_that_hangs_is_replaced_before_its_peer_is_forgotten(processes: PeerProcesses) -> None:
    first = processes.start(MODEL, "--blocks", "0:4").wait_ready()
    second = processes.start(MODEL, "--blocks", "4:8", initial=[first.address]).wait_ready()
    (daemon,) = [child for child in psutil.Process(second.process.pid).children() if "p2pd" in child.name()]
    daemon.suspend()
    assert until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE) < 40
    until(lambda: seen_by(first) == {first.address.peer, second.address.peer})
    until(lambda: "the DHT daemon does not answer; starting it again" in second.log.read_text())
