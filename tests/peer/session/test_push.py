"""The link to the successor: when it is dialled, what ends it, and what its client hears of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from blockswarm.peer.session.edge.dials import MAX_FAILED_PER_CLIENT, DialBudget
from blockswarm.peer.session.push import PushLink
from blockswarm.peer.session.work.seams import SuccessorLink
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import PushFailed, RemoteProtocolError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.network.dialling import EVERY_RANGE, DialRule
from blockswarm.proto.network.transport import Dialer
from blockswarm.proto.wire.frames import WireStep
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import PeerId
from support.silent_ports import silent_port
from support.workers import FakeLink, make_worker

STEP = WireStep(1, 1, StepPlan((RowSlice(0, 0, 1, 1),)), bytes(16), 0, 30.0)
CLIENT = PeerId("client")


def test_a_relayed_reroute_closes_the_link_to_the_same_successor() -> None:
    """Two neighbours that cannot reach each other: steps went on into the void, and the session was lost after 45 s."""

    async def scenario() -> None:
        first = FakeLink()
        worker = make_worker(first)
        await worker.put_reroute(replace(worker.grant, epoch=2), False, lambda: pytest.fail("the link works"))
        assert not first.closed
        made: list[Any] = []

        def make_link() -> SuccessorLink | None:
            made.append(None)
            return None

        await worker.put_reroute(replace(worker.grant, epoch=3), True, make_link)
        assert first.closed
        assert made == [None]
        with pytest.raises(RemoteProtocolError):
            await worker.put_reroute(replace(worker.grant, epoch=3), True, make_link)

    asyncio.run(scenario())


@dataclass
class Links:
    """Makes links of a peer's sessions."""

    dialer: Dialer
    seconds: float
    budget: DialBudget = field(default_factory=DialBudget)
    told: list[str] = field(default_factory=list)

    def to(self, *targets: str) -> PushLink:
        """A link to a successor that says it is at `targets`."""
        peer = Identity.generate().peer_id
        return PushLink(
            self.dialer,
            [PeerAddress(peer, target) for target in targets],
            lambda: Signed(b"", "", b""),
            lambda error: self.told.append(str(error)),
            PeerTiming(push_connect_seconds=self.seconds),
            partial(self.budget.dial, CLIENT),
        )


@asynccontextmanager
async def links(seconds: float = 10.0, rule: DialRule = EVERY_RANGE) -> AsyncIterator[Links]:
    dialer = Dialer(rule=rule)
    yield Links(dialer, seconds)
    await dialer.close()


def test_a_successor_is_dialled_with_the_first_step_and_no_longer_than_its_session_lasts() -> None:
    """A client could have a peer dial any address by opening a session, and gRPC went on long after its end."""

    async def scenario() -> None:
        async with silent_port() as port, links() as made:
            link = made.to(port.target)
            assert not await port.until_knocks(1, seconds=0.2)
            link.prepare()
            assert await port.until_knocks(1, seconds=10)
            await link.close()
            async with asyncio.timeout(60):
                await port.until_left()
            assert made.dialer.open_channels == 0
            link.prepare()
            with pytest.raises(PushFailed, match="the link was closed"):
                await link.send(STEP)
            assert port.knocks == 1

    asyncio.run(scenario())


async def failures(link: PushLink) -> str:
    with pytest.raises(PushFailed) as caught:
        await link.send(STEP)
    await link.close()
    return str(caught.value)


def test_a_client_hears_the_same_of_every_address_that_is_no_peer() -> None:
    """The words of gRPC tell a closed port from an open one, and both from one that is filtered."""

    async def scenario() -> None:
        async with silent_port() as silent, silent_port(hang_up=True) as hangs_up, links(0.3) as made:
            ways: Sequence[Sequence[str]] = [
                [silent.target], [hangs_up.target], ["127.0.0.1:1"], ["0.0.0.0:1"], [],
                [hangs_up.target, "127.0.0.1:1"],
            ]  # fmt: skip
            heard = [await failures(made.to(*targets)) for targets in ways]
            assert set(heard) == set(made.told) == {"the successor cannot be reached"}
            assert silent.knocks == 1
            assert hangs_up.knocks == 2

    asyncio.run(scenario())


def test_a_client_that_names_one_dead_address_after_the_other_has_a_few_dialled() -> None:
    async def scenario() -> None:
        async with silent_port(hang_up=True) as port, links() as made:
            for _ in range(3 * MAX_FAILED_PER_CLIENT):
                assert await failures(made.to(port.target)) == "the successor cannot be reached"
            assert port.knocks == MAX_FAILED_PER_CLIENT

    asyncio.run(scenario())
