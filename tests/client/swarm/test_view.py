"""A view outlives the errors of single peers, and says so when it cannot look any more; in virtual time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import MAX_PINGS_AT_ONCE, SwarmView
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.errors import (
    DeadlineExceeded,
    LocalProtocolError,
    PeerUnavailable,
    RemoteProtocolError,
    WrongSwarm,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import AddressRefused
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.proto.wire.messages.calls import LookupReply, PingReply
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec, RequestSpec
from support.virtual_time import VirtualTimeLoop

DIGEST = "ab" * 32
NOW = 1_800_000_000.0
TIMING = ClientTiming(refresh_seconds=10.0)


@dataclass
class Peer:
    """A peer that answers look-ups and pings, unless it is told what to do instead."""

    index: int
    identity: Identity = field(default_factory=Identity.generate)
    lookup: Callable[[], Any] | None = None
    ping: Callable[[], Any] | None = None

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(self.id, f"10.0.0.{self.index}:1")


class Net:
    """Stands in for the dialer: every peer knows the records of all."""

    def __init__(self, loop: VirtualTimeLoop, count: int) -> None:
        self.peers = {peer.id: peer for peer in map(Peer, range(1, count + 1))}
        self.closed = False
        self.renewed: list[PeerAddress] = []
        self.unlisted: set[PeerId] = set()
        """Peers without a record."""
        self._loop = loop

    def clock(self) -> float:
        return NOW + self._loop.time()

    def stub(self, address: PeerAddress) -> Any:
        if self.closed:
            raise RuntimeError("the dialer is closed")
        peer = self.peers[address.peer]
        return SimpleNamespace(
            lookup=self._call(lambda: peer.lookup, lambda: LookupReply(tuple(self._records()))),
            ping=self._call(lambda: peer.ping, lambda: PingReply(protocol=PROTOCOL_VERSION)),
        )

    def renew(self, address: PeerAddress) -> None:
        self.renewed.append(address)

    @asynccontextmanager
    async def dialed_once(self, address: PeerAddress) -> AsyncIterator[Any]:
        yield self.stub(address)

    def _call(self, special: Callable[[], Any], usual: Callable[[], Any]) -> Callable[..., Awaitable[Any]]:
        async def call(request: object, timeout: float) -> Any:
            await asyncio.sleep(0.01)
            return (special() or usual)()

        return call

    def _records(self) -> list[bytes]:
        records = []
        for peer in self.peers.values():
            if peer.id in self.unlisted:
                continue
            spec = PeerSpec(
                peer.id, BlockRange(0, 4), ComputeCost(0.01), kv_tokens_total=1000, kv_tokens_free=1000,
                block_hashes=(b"8" * 8,) * 4,
            )  # fmt: skip
            record = PeerRecord(DIGEST, spec, addresses=(peer.address.target,), incarnation=1)
            records.append(sign_peer_record(peer.identity, record, None, self.clock() + 60).encode())
        return records


def in_view(scenario: Callable[[SwarmView, Net], Awaitable[None]], count: int = 2, initial: int | None = None) -> None:
    """Run a scenario with the view of a client that was given the last `initial` peers; None: all of them."""
    loop = VirtualTimeLoop()
    net = Net(loop, count)

    async def play() -> None:
        addresses = [peer.address for peer in net.peers.values()][-(initial or count) :]
        view = SwarmView(
            Identity.generate(), net, addresses, DIGEST, 4, None, True, net.clock, TIMING, monotonic=loop.time
        )  # type: ignore[arg-type]
        await view.start()
        assert len(view.usable()) == count
        await scenario(view, net)
        await view.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with closing(loop):
        loop.run(play())


async def next_look() -> None:
    await asyncio.sleep(TIMING.refresh_seconds + 1)


def unreadable() -> None:
    raise RemoteProtocolError("a PingReply is not readable")


def raise_value_error() -> None:
    raise ValueError("no such thing")


@pytest.mark.parametrize("answer", [unreadable, raise_value_error])
def test_a_ping_that_fails_in_any_way_makes_its_peer_silent_and_nobody_else(
    answer: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        good, bad = net.peers.values()
        bad.ping = answer
        await next_look()
        assert [known.address for known in view.usable()] == [good.address]
        assert list(view.silent) == [bad.id]
        bad.ping = None
        await next_look()
        assert len(view.usable()) == 2

    with caplog.at_level(logging.DEBUG):
        in_view(scenario)
    assert any("no such thing" in record.message or "not readable" in record.message for record in caplog.records)


@pytest.mark.parametrize("answer", [unreadable, raise_value_error])
def test_a_look_up_that_fails_in_any_way_at_one_peer_is_made_up_for_by_another(answer: Callable[[], None]) -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        _, bad = net.peers.values()
        bad.lookup = answer
        await next_look()
        assert len(view.usable()) == 2

    in_view(scenario)


@pytest.mark.parametrize("answer", [unreadable, raise_value_error])
def test_the_view_looks_again_when_no_peer_could_be_understood(
    answer: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        for peer in net.peers.values():
            peer.lookup = answer
        with pytest.raises(PeerUnavailable):
            await view.refresh()
        await next_look()
        for peer in net.peers.values():
            peer.lookup = None
        view.peers = {}
        await next_look()
        assert len(view.usable()) == 2

    with caplog.at_level(logging.WARNING):
        in_view(scenario)
    assert any("looking again in 10 s" in record.message for record in caplog.records)


def test_a_view_that_cannot_look_any_more_tells_its_users_why(caplog: pytest.LogCaptureFixture) -> None:
    """Else the client would choose for ever from what it saw last, without a word."""

    async def scenario(view: SwarmView, net: Net) -> None:
        net.closed = True
        await next_look()
        for use in (view.usable, view.current):
            with pytest.raises(LocalProtocolError, match="the dialer is closed"):
                use()
        with pytest.raises(LocalProtocolError, match="the dialer is closed"):
            await view.refresh()

    with caplog.at_level(logging.ERROR):
        in_view(scenario)
    assert any("looks at the swarm no longer" in record.message for record in caplog.records)


def test_one_look_serves_all_that_ask_meanwhile_also_if_the_first_goes_away() -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        lookups: list[float] = []
        for peer in net.peers.values():
            peer.lookup = lambda: lookups.append(0.0) or LookupReply()
        first, second = asyncio.create_task(view.refresh()), asyncio.create_task(view.refresh())
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert len(lookups) == len(net.peers)

    in_view(scenario)


@pytest.mark.parametrize("answer", [unreadable, raise_value_error])
def test_somebody_is_reached_while_any_peer_answers_also_those_of_the_chain(answer: Callable[[], None]) -> None:
    """In a small swarm all peers are those of the chain that fell silent: one that answers tells of the network."""

    async def scenario(view: SwarmView, net: Net) -> None:
        first, second = net.peers.values()
        first.ping = answer
        assert await view.reaches_anybody(1.0)
        second.ping = answer
        assert not await view.reaches_anybody(1.0)

    in_view(scenario)


@pytest.mark.long
def test_the_initial_peers_are_asked_first_whether_anybody_is_reached() -> None:
    """The peers of a large swarm may all have gone since the last look; an initial peer is meant to be there."""

    async def scenario(view: SwarmView, net: Net) -> None:
        *others, initial = net.peers.values()
        for peer in others:
            peer.ping = unreadable
        view.peers = {peer: known for peer, known in view.peers.items() if peer != initial.id}
        assert await view.reaches_anybody(1.0)
        initial.ping = unreadable
        assert not await view.reaches_anybody(1.0)

    in_view(scenario, MAX_PINGS_AT_ONCE + 1, initial=1)


@pytest.mark.long
def test_where_nobody_of_those_that_were_pinged_answers_the_others_do_not_count() -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        for peer in net.peers.values():
            peer.ping = unreadable
        peers = list(net.peers)
        answers = await view.roll_call(peers, peers)
        assert answers.nobody
        assert answers.asked == set(peers[:MAX_PINGS_AT_ONCE])

    in_view(scenario, MAX_PINGS_AT_ONCE + 1)


def test_an_old_swarm_is_told_from_an_empty_one() -> None:
    """Its peers have the model under another digest, so nobody is found; their pings say why."""

    async def scenario(view: SwarmView, net: Net) -> None:
        for peer in net.peers.values():
            peer.lookup, peer.ping = LookupReply, lambda: PingReply(protocol=2)
        lonely = SwarmView(
            Identity.generate(), net, [p.address for p in net.peers.values()], DIGEST, 4, None, clock=net.clock
        )  # type: ignore[arg-type]
        with pytest.raises(WrongSwarm, match=rf"protocol {PROTOCOL_VERSION} .* 2\b"):
            await lonely.start()

    in_view(scenario)


@pytest.mark.parametrize(
    ("error", "advice"), [(AddressRefused("not dialled"), "--lan"), (PeerUnavailable("no"), "port")]
)
def test_the_advice_fits_the_reason_for_which_no_peer_is_reached(error: Exception, advice: str) -> None:
    def fail() -> None:
        raise error

    async def scenario(view: SwarmView, net: Net) -> None:
        first, second = net.peers.values()
        first.ping, second.ping = lambda: PingReply(clock=time.time(), protocol=PROTOCOL_VERSION), fail
        lonely = SwarmView(Identity.generate(), net, [first.address], DIGEST, 4, None, clock=net.clock)  # type: ignore[arg-type]
        net.unlisted = {first.id}
        with pytest.raises(PeerUnavailable, match=r"none of the peers of this model answers here") as caught:
            await lonely.start()
        assert advice in caught.value.hint

    in_view(scenario)


def test_a_peer_that_was_silent_and_answers_anew_is_excused_once() -> None:
    """The client's connection may be dead, and the peer well: where nobody else is left it is used again."""

    async def scenario(view: SwarmView, net: Net) -> None:
        first, second = net.peers.values()
        second.ping = raise_value_error
        for peer in (first, second):
            view.ban(peer.id, DeadlineExceeded("silent"))
        assert not view.usable()
        assert await view.excuse_silent()
        assert [known.address for known in view.usable()] == [first.address]
        assert net.renewed == [first.address]
        view.ban(first.id, DeadlineExceeded("silent"))
        assert not await view.excuse_silent()
        view.pardon(frozenset({first.id}))
        assert [known.address for known in view.usable()] == [first.address]

    in_view(scenario)


def test_candidates_are_asked_side_by_side_and_only_the_needed_are_waited_for() -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        loop = asyncio.get_running_loop()
        first, second, third = net.peers.values()
        second.ping = raise_value_error
        asked_at = loop.time()
        answers = await view.roll_call([first.id, second.id, third.id], {first.id, second.id})
        assert answers.silent >= {second.id}
        assert not answers.nobody
        assert (await view.roll_call([first.id, third.id], {first.id, third.id})).silent == frozenset()
        assert loop.time() - asked_at < 0.05

    in_view(scenario, 3)


def test_a_repair_avoids_what_does_not_answer_unless_nobody_does() -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        router, request = ViewRouter(view, clock=net.clock), RequestSpec(10, 10)
        (preferred,) = await router.fill((), frozenset(), request)
        net.peers[preferred.peer].ping = raise_value_error
        (other,) = await router.fill((), frozenset(), request, check=True)
        assert other.peer != preferred.peer
        net.peers[other.peer].ping = raise_value_error
        assert await router.fill((), frozenset(), request, check=True) == (other,), "it may be our own network"
        assert len(view.usable()) == 1

    in_view(scenario)


def test_a_peer_that_failed_lately_is_not_preferred_when_its_ban_is_over() -> None:
    async def scenario(view: SwarmView, net: Net) -> None:
        router, request = ViewRouter(view, clock=net.clock), RequestSpec(10, 10)
        (preferred,) = await router.fill((), frozenset(), request)
        view.ban(preferred.peer, PeerUnavailable("gone"))
        await asyncio.sleep(TIMING.ban_seconds + 1)
        assert len(view.usable()) == 2
        (other,) = await router.fill((), frozenset(), request)
        assert other.peer != preferred.peer

    in_view(scenario)
