"""A watcher goes on when looks fail, keeps what it saw last, and begins anew where a model is larger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.client.dashboard.config import DashboardConfig
from blockswarm.client.dashboard.watch.keeper import SnapshotKeeper
from blockswarm.client.dashboard.watch.watcher import SwarmWatcher
from blockswarm.client.program.options import SwarmOptions
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.snapshot import PreparedSwarm
from blockswarm.client.swarm.weights import WeightTrust
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.directory.records import sign_peer_record
from blockswarm.proto.errors import DeadlineExceeded, PeerUnavailable, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import LookupReply, PingReply
from support.sightings import DIGEST, NOW, known, sighting
from support.virtual_time import VirtualTimeLoop


class FakeView:
    """Finds what the next of `looks` says: peers, or an error."""

    def __init__(self, num_blocks: int, looks: list[list[KnownPeer] | SwarmError]) -> None:
        self.num_blocks = num_blocks
        self.silent: dict[str, Any] = {}
        self.closed = False
        self._looks = looks
        self._found: list[KnownPeer] = []

    @property
    def peers(self) -> dict[str, KnownPeer]:
        return {peer.record.spec.id: peer for peer in self._found}

    async def first_look(self) -> None:
        await self.refresh()

    async def refresh(self) -> None:
        found = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
        if isinstance(found, SwarmError):
            raise found
        self._found = found

    def current(self) -> Any:
        return SimpleNamespace(prepared=PreparedSwarm.of(self.peers, self.num_blocks, True, WeightTrust({})))

    async def close(self) -> None:
        self.closed = True


class FakeCaller:
    """Says which model the initial peers serve, once one of them answers, and gives views of it."""

    def __init__(self, looks: list[list[KnownPeer] | SwarmError], pings: Iterable[Any], announced: list[bytes]) -> None:
        self.identity = Identity.generate()
        self.options = SwarmOptions((PeerAddress(self.identity.peer_id, "h:1"),))
        self.dialer = self
        self.views: list[FakeView] = []
        self._looks = looks
        self._pings = list(pings)
        self._announced = announced

    def stub(self, address: object) -> Any:
        async def ping(request: object, timeout: float) -> Any:
            answer = self._pings.pop(0) if len(self._pings) > 1 else self._pings[0]
            if isinstance(answer, SwarmError):
                raise answer
            return answer

        async def lookup(request: object, timeout: float) -> LookupReply:
            return LookupReply(tuple(self._announced))

        return SimpleNamespace(ping=ping, lookup=lookup)

    def view(self, model: Any, timing: ClientTiming) -> FakeView:
        self.views.append(FakeView(model.num_blocks, self._looks))
        return self.views[-1]


SERVING = PingReply(protocol=PROTOCOL_VERSION, model_digest=DIGEST, model_name="tiny")


def watched(
    looks: list[list[KnownPeer] | SwarmError],
    scenario: Callable[[SnapshotKeeper, FakeCaller], Awaitable[None]],
    pings: Iterable[Any] = (SERVING,),
    announced: list[bytes] | None = None,
) -> None:
    loop = VirtualTimeLoop()

    async def play() -> None:
        caller, keeper = FakeCaller(looks, pings, announced or []), SnapshotKeeper()
        config = DashboardConfig(caller.options)
        watcher = SwarmWatcher(config, caller, keeper, None, lambda: NOW + loop.time(), ClientTiming())  # type: ignore[arg-type]
        task = asyncio.create_task(watcher.run())
        await scenario(keeper, caller)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(view.closed for view in caller.views)

    with closing(loop):
        loop.run(play())


async def until(keeper: SnapshotKeeper, wanted: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(3600):  # of virtual time
        while not (keeper.snapshot.models and wanted(keeper.snapshot.models[0])):
            await keeper.after(keeper.snapshot.version)
    return keeper.snapshot.models[0]


def test_failed_looks_keep_what_was_seen_and_say_why() -> None:
    peer = known("0:4", "ann")

    async def scenario(keeper: SnapshotKeeper, caller: FakeCaller) -> None:
        first = await until(keeper, lambda state: state.sighting is not None)
        failed = await until(keeper, lambda state: state.failure is not None)
        assert failed.failure.code == "peer-unavailable"
        assert failed.sighting is first.sighting
        again = await until(keeper, lambda state: state.failure is None)
        assert again.sighting.at_seconds > first.sighting.at_seconds

    # the first finds how many blocks there are; the view for these begins anew
    watched([[peer], [peer], PeerUnavailable("203.0.113.9:1 is away"), [peer]], scenario)


def test_a_model_that_turns_out_to_be_larger_is_looked_at_anew() -> None:
    small, large = known("0:4"), known("4:8")

    async def scenario(keeper: SnapshotKeeper, caller: FakeCaller) -> None:
        seen = await until(keeper, lambda state: state.sighting is not None and len(state.sighting.prepared.known) == 2)
        assert seen.facts.num_blocks == 8
        assert [view.num_blocks for view in caller.views] == [1, 4, 8]

    watched([[small], [small], [small, large]], scenario)


def test_the_number_of_blocks_is_at_first_what_the_records_say() -> None:
    identity, peer = Identity.generate(), known("0:6")
    spec = peer.record.spec
    record = replace(peer.record, spec=replace(spec, id=identity.peer_id))
    signed = sign_peer_record(identity, record, None, time.time() + 60).encode()

    async def scenario(keeper: SnapshotKeeper, caller: FakeCaller) -> None:
        seen = await until(keeper, lambda state: state.sighting is not None)
        assert (seen.facts.num_blocks, seen.facts.name, seen.facts.counted) == (6, "tiny", False)
        assert [view.num_blocks for view in caller.views] == [6]

    watched([[peer]], scenario, announced=[signed, b"no record"])


def test_it_waits_for_an_initial_peer_to_name_a_model() -> None:
    async def scenario(keeper: SnapshotKeeper, caller: FakeCaller) -> None:
        waiting = await keeper.after(0)
        assert "initial peer" in waiting.waiting_for
        await until(keeper, lambda state: state.sighting is not None)

    silence = DeadlineExceeded("no answer")
    nameless = PingReply(protocol=PROTOCOL_VERSION, model_digest="not a digest")
    watched([[known("0:1")]], scenario, pings=[silence, nameless, SERVING])


def test_since_when_a_peer_is_in_its_state_is_remembered_from_look_to_look() -> None:
    stays, leaves = known("0:4"), known("4:8")
    first = sighting([stays, leaves], at=NOW)
    second = sighting([stays], [leaves], at=NOW + 15, before=first)
    third = sighting([stays], [leaves], at=NOW + 30, before=second)
    since = third.since[stays.record.spec.id]
    assert (since.at_seconds, since.at_least) == (NOW, True)
    since = third.since[leaves.record.spec.id]
    assert (since.at_seconds, since.at_least) == (NOW + 15, False)
