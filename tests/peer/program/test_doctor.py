"""The findings of the doctor; nothing of the machine's owner is in them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from blockswarm.peer.engine.driver import chosen_gpu
from blockswarm.peer.program.doctor import (
    Finding,
    Health,
    Patient,
    as_json,
    describe,
    device_finding,
    examine,
    judge_clock,
    judge_disk,
    judge_memory,
    judge_peers,
    judge_reach,
)
from blockswarm.peer.reach.checker import ReachChecker
from blockswarm.peer.reach.verdict import UNCHECKED, ReachStatus, ReachVerdict
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import UsageError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, serve
from blockswarm.proto.wire.handshake import HelloChecker
from support.relays import answering

TIMING = PeerTiming(join_ping_seconds=2.0)
NOBODY = PeerAddress(Identity.generate().peer_id, "127.0.0.1:1")


@asynccontextmanager
async def other_peer() -> AsyncIterator[PeerAddress]:
    """One that answers pings and dials back."""
    identity, dialer = Identity.generate(), Dialer(rule=EVERY_RANGE)
    hellos = HelloChecker(identity.peer_id, time.time, None)
    checker = ReachChecker(hellos, dialer, lambda: True, time.monotonic, PeerTiming(reach_pause_seconds=0.0))
    server, port = await serve(identity, answering(identity, reach=checker.check), "127.0.0.1", 0)
    try:
        yield PeerAddress(identity.peer_id, f"127.0.0.1:{port}")
    finally:
        await server.stop(grace=0)
        await dialer.close()


def examined(patient: Patient, others: int = 0) -> dict[str, Finding]:
    """The findings by subject; `others` is the number of initial peers that answer."""

    async def main() -> dict[str, Finding]:
        async with AsyncExitStack() as stack:
            known = [await stack.enter_async_context(other_peer()) for _ in range(others)]
            patient_of_them = dataclasses.replace(patient, initial_peers=(*known, *patient.initial_peers))
            findings = await examine(patient_of_them, TIMING, lambda asked: Finding("device", Health.GOOD, "cpu"))
        return {finding.subject: finding for finding in findings}

    return asyncio.run(main())


def patient(folder: Path, **changes: object) -> Patient:
    usual = Patient((), "127.0.0.1", 0, None, folder, "auto")
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def test_a_machine_that_is_well(tmp_path: Path) -> None:
    found = examined(patient(tmp_path), others=2)
    assert set(found) == {"port", "peers", "clock", "reachability", "disk", "memory", "device"}
    well = ("port", "peers", "clock", "reachability")
    assert {subject: found[subject].health for subject in well} == dict.fromkeys(well, Health.GOOD)


def test_a_port_that_is_taken_and_peers_that_do_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = examined(patient(tmp_path, port=taken.getsockname()[1], initial_peers=(NOBODY,)), others=1)
    assert found["port"].health is Health.BAD
    assert found["peers"].health is Health.GOOD
    assert "1 of 2" in found["peers"].text
    assert found["reachability"].health is Health.UNKNOWN


def test_a_forwarded_port_that_leads_nowhere(tmp_path: Path) -> None:
    found = examined(patient(tmp_path, announced_port=1), others=2)
    assert (found["port"].health, found["reachability"].health) == (Health.GOOD, Health.BAD)
    assert "--relay" in found["reachability"].advice


def test_the_output_is_safe_to_paste(tmp_path: Path) -> None:
    """On this machine as much as possible is wrong: no id, host, port, address or path of it is told."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ill = patient(tmp_path / "secret folder", port=port, initial_peers=(NOBODY,), announced_port=54321)
        findings = [*examined(ill, others=1).values(), device_finding("cuda:99")]
    for text in (describe(findings), json.dumps(as_json(findings))):
        for secret in (NOBODY.peer, "127.0.0.1", str(port), "54321", "secret", str(tmp_path), socket.gethostname()):
            assert secret not in text
        assert not re.search(r"12D3KooW|\d+\.\d+\.\d+\.\d+|@|(^|[\s'\"])/\w", text)


class Machine:
    """A machine as `chosen_gpu` sees it."""

    def __init__(self, count: int, *, supported: bool) -> None:
        self._count, self._supported = count, supported

    def count(self) -> int:
        return self._count

    def are_supported(self) -> bool:
        return self._supported

    def torch_version(self) -> str:
        return "2.0 built in /home/somebody"


@pytest.mark.parametrize(
    ("machine", "hint"),
    [
        (Machine(0, supported=False), "Install a build of torch with CUDA (pytorch.org/get-started/locally), or use "),
        (Machine(0, supported=True), "See whether nvidia-smi lists one and its driver is new enough, or use "),
        (Machine(2, supported=True), "Choose one of cuda:0, cuda:1."),
    ],
)
def test_what_the_doctor_shows_of_a_missing_gpu_tells_nothing_private(machine: Machine, hint: str) -> None:
    """The only text of an error that it shows: a new hint has to be read before it is written here."""
    with pytest.raises(UsageError) as refused:
        chosen_gpu("cuda:99", machine)
    assert refused.value.hint.removesuffix("--device cpu.") == hint


def test_judgements_at_their_edges() -> None:
    assert judge_peers(0, []).health is Health.UNKNOWN
    assert judge_peers(2, ["peer-unavailable"] * 2).health is Health.BAD
    assert judge_peers(2, ["wrong-swarm"]).health is Health.GOOD
    assert judge_clock([]).health is Health.UNKNOWN
    assert judge_clock([0.1, -0.2, 500.0]).health is Health.GOOD, "one of three may be wrong"
    assert judge_clock([3.1]).health is judge_clock([-3600.0]).health is Health.BAD
    assert judge_reach(UNCHECKED).health is Health.UNKNOWN
    assert judge_reach(UNCHECKED).text == "no other peer could check it"
    assert judge_reach(ReachVerdict(ReachStatus.UNCHECKED, answers=1)).text.startswith("one other peer reaches")
    assert judge_reach(ReachVerdict(ReachStatus.NO)).health is Health.BAD
    assert judge_reach(ReachVerdict(ReachStatus.YES)).health is Health.GOOD
    assert judge_disk(1 << 40, writable=False).health is judge_disk(1 << 30, writable=True).health is Health.BAD
    assert judge_disk(None, writable=True).health is Health.UNKNOWN
    assert judge_disk(1 << 40, writable=True).health is Health.GOOD
    assert judge_memory(1 << 30).health is Health.BAD
    assert judge_memory(1 << 33).health is Health.GOOD


@pytest.mark.parametrize("health", Health)
def test_everything_that_is_bad_comes_with_advice(health: Health) -> None:
    all_of_them = [
        judge_peers(2, ["x"] * 2), judge_clock([9.0]), judge_reach(ReachVerdict(ReachStatus.NO)),
        judge_disk(0, writable=True), judge_disk(0, writable=False), judge_memory(0), device_finding("cuda:99"),
    ]  # fmt: skip
    assert all(found.health is Health.BAD and found.advice for found in all_of_them)
    assert health.value in describe([Finding("port", health, "text")])
