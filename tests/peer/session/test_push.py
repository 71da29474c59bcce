"""The link to the successor: what ends it, and that a relayed session does not use it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from blockswarm.peer.session.worker import SuccessorLink
from blockswarm.proto.errors import RemoteProtocolError
from support.workers import FakeLink, make_worker


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
