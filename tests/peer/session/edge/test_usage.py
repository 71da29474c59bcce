"""A volunteer sees that the peer is used, in a few lines however much it is; in virtual time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing

import pytest
from blockswarm.peer.session.edge.usage import UsageLog
from support.virtual_time import VirtualTimeLoop


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.endswith("usage")]


def test_a_session_has_its_line_and_many_have_one_for_all(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> str:
        usage = UsageLog(604.5)
        for _ in range(100):
            for _ in range(10):
                usage.computed(2)
                await asyncio.sleep(1)
            usage.ended(20, 10.0)
        await asyncio.sleep(3600)
        usage.ended(0, 5.0)  # it came and computed nothing
        usage.computed(1)
        usage.ended(1, 0.2)
        return usage.summary

    with caplog.at_level(logging.INFO), closing(VirtualTimeLoop()) as loop:
        summary = loop.run(scenario())
    assert lines_of(caplog) == [
        "a session has ended: 20 tokens in 10 s",
        "1,190 tokens in the last 10 min, 59 sessions ended",
        "a session has ended: 20 tokens in 10 s",
        "780 tokens in the last 10 min, 39 sessions ended",
        "a session has ended: 1 token in 0 s",
    ]
    assert summary == "this peer has computed 2,001 tokens in 101 sessions"


def test_a_session_that_goes_on_for_hours_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> str:
        usage = UsageLog(600.0)
        before = usage.summary
        for _ in range(1300):
            usage.computed(1)
            await asyncio.sleep(1)
        return before

    with caplog.at_level(logging.INFO), closing(VirtualTimeLoop()) as loop:
        assert loop.run(scenario()) == "nobody has used this peer"
    assert lines_of(caplog) == ["600 tokens in the last 10 min, 0 sessions ended"] * 2
