"""Dialling back: the address that the call came from and no other, once, and no more than the budget allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from blockswarm.peer.reach.checker import CheckBudget, ReachChecker
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import AuthenticationError, PeerBusy, PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import HostPort, PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer, introduction, serve
from blockswarm.proto.wire.handshake import HelloChecker
from blockswarm.proto.wire.messages.relay import ReachReply, ReachRequest
from support.relays import answering

TIMING = PeerTiming(reach_pause_seconds=0.0, reach_dial_seconds=2.0)


@asynccontextmanager
async def checker(
    timing: PeerTiming = TIMING, offers: bool = True
) -> AsyncIterator[tuple[Identity, ReachChecker, Dialer]]:
    me, dialer = Identity.generate(), Dialer(rule=EVERY_RANGE)
    hellos = HelloChecker(me.peer_id, time.time, None)
    try:
        yield me, ReachChecker(hellos, dialer, lambda: offers, time.monotonic, timing), dialer
    finally:
        await dialer.close()


@asynccontextmanager
async def listening(identity: Identity, **calls: Any) -> AsyncIterator[int]:
    server, port = await serve(identity, answering(identity, **calls), "127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop(grace=0)


def test_a_peer_is_reached_where_it_listens_and_nowhere_else() -> None:
    async def main() -> None:
        asker, other = Identity.generate(), Identity.generate()
        async with checker() as (me, checks, _), listening(asker) as port, listening(other) as wrong:
            hello = introduction(asker, None)
            reply = await checks.check(ReachRequest(hello(me.peer_id), port), "127.0.0.1")
            assert reply == ReachReply("127.0.0.1", True)
            reply = await checks.check(ReachRequest(hello(me.peer_id), wrong), "127.0.0.1")
            assert reply == ReachReply("127.0.0.1", False), "somebody else's server is no answer"
            reply = await checks.check(ReachRequest(hello(me.peer_id), 1), "127.0.0.1")
            assert reply == ReachReply("127.0.0.1", False)

    asyncio.run(main())


def test_the_address_is_the_one_that_the_call_came_from() -> None:
    """Over real gRPC: nothing in the request can name another host."""

    async def main() -> None:
        asker = Identity.generate()
        async with (
            checker() as (me, checks, dialer),
            listening(asker) as port,
            listening(me, reach=checks.check) as serving,
        ):
            address = PeerAddress(me.peer_id, str(HostPort("127.0.0.1", serving)))
            request = ReachRequest(introduction(asker, None)(me.peer_id), port)
            assert await dialer.stub(address).reach(request, 10) == ReachReply("127.0.0.1", True)
            with pytest.raises(AuthenticationError):
                await dialer.stub(address).reach(request, 10)  # a hello is good once

    asyncio.run(main())


@pytest.mark.parametrize(("host", "offers"), [("", True), ("127.0.0.1", False)])
def test_a_peer_that_sees_no_address_checks_none(host: str, offers: bool) -> None:
    """Reached through a relay it would see its own loopback, and must not be led to dial that."""

    async def main() -> None:
        asker = Identity.generate()
        async with checker(offers=offers) as (me, checks, _):
            with pytest.raises(PeerUnavailable, match="does not see"):
                await checks.check(ReachRequest(introduction(asker, None)(me.peer_id), 4000), host)

    asyncio.run(main())


def test_one_network_is_dialled_once_in_a_while_for_all_that_ask() -> None:
    async def main() -> None:
        async with checker(PeerTiming(reach_pause_seconds=60.0)) as (me, checks, _):
            await checks.check(ReachRequest(introduction(Identity.generate(), None)(me.peer_id), 1), "127.0.0.1")
            with pytest.raises(PeerBusy):
                await checks.check(ReachRequest(introduction(Identity.generate(), None)(me.peer_id), 1), "127.0.0.1")

    asyncio.run(main())


def test_a_host_that_takes_connections_and_says_nothing_costs_the_deadline() -> None:
    async def main() -> None:
        asker = Identity.generate()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with server, checker(PeerTiming(reach_dial_seconds=0.3)) as (me, checks, _):
            port = server.sockets[0].getsockname()[1]
            async with asyncio.timeout(60):
                reply = await checks.check(ReachRequest(introduction(asker, None)(me.peer_id), port), "127.0.0.1")
            assert not reply.reached

    asyncio.run(main())


def test_the_budget_bounds_dials_at_once_and_what_it_remembers() -> None:
    budget = CheckBudget(pause_seconds=10.0, at_once=2, most=3)
    budget.begin("a", 0.0)
    budget.begin("b", 0.0)
    with pytest.raises(PeerBusy):
        budget.begin("c", 0.0)
    budget.end()
    with pytest.raises(PeerBusy) as refused:
        budget.begin("a", 4.0)
    assert refused.value.retry_after_seconds == pytest.approx(6.0)
    budget.begin("a", 10.0)
    for network in "cdefg":
        budget.end()
        budget.begin(network, 10.0)
    budget.end()
    budget.begin("b", 10.0)  # forgotten: memory is bounded
