"""A flood of refusals is a few lines in the log, which say how many there were and of what kind; in virtual time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing

import pytest
from blockswarm.peer.session.edge.refusals import Refusals
from blockswarm.proto.errors import PeerBusy, RemoteProtocolError
from support.virtual_time import VirtualTimeLoop


def test_a_flood_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    codes: list[str] = []

    async def scenario() -> None:
        refusals = Refusals(10.0, codes.append)
        for second in range(25):
            for _ in range(100):
                refusals.note(PeerBusy(1.0))
            refusals.note(RemoteProtocolError(f"nonsense {second}"))
            await asyncio.sleep(1)
        await asyncio.sleep(30)
        refusals.note(PeerBusy(1.0, "the last one"))
        await asyncio.sleep(30)

    with caplog.at_level(logging.INFO), closing(VirtualTimeLoop()) as loop:
        loop.run(scenario())
    lines = [record.message for record in caplog.records if record.name.endswith("refusals")]
    assert len(lines) == 5
    assert (codes.count("peer-busy"), codes.count("remote-protocol")) == (2501, 25)
    assert lines[0].startswith("session refused or ended: the peer is full")
    assert lines[1] == "1009 more in 10 s: 999 x peer-busy, 10 x remote-protocol; the last: nonsense 9"
    assert lines[3].startswith("505 more in 10 s: 500 x peer-busy")
    assert lines[4] == "session refused or ended: the last one"
