"""The stream tells each new snapshot once, resumes where a client was, and no client can hold it up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
from blockswarm.client.dashboard.timing import DashboardTiming
from blockswarm.client.dashboard.watch.sighting import ModelState
from blockswarm.client.dashboard.web.app import make_app
from blockswarm.client.dashboard.web.rendering import Overloaded
from blockswarm.client.dashboard.web.site import Site
from blockswarm.client.dashboard.web.stream import MOST_STREAMS, Streams
from support.sightings import FACTS, HOST, ask_app, known, seen, site_of

QUICK = DashboardTiming(stream_pause=0.0, stream_idle=0.05, send=0.2)


class Listener:
    """A client of the stream."""

    def __init__(self, site: Site, last_id: str = "", *, reads: bool = True) -> None:
        headers = [(b"host", b"localhost")] + ([(b"last-event-id", last_id.encode())] if last_id else [])
        self.scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": "/api/v1/stream", "raw_path": b"/api/v1/stream", "query_string": b"", "root_path": "",
            "headers": headers, "client": None, "server": None, "state": {},
        }  # fmt: skip
        self.gone = asyncio.Event()
        self.started: dict[str, Any] = {}
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.reads = reads
        self.task = asyncio.create_task(make_app(site)(self.scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = message
            return
        if not self.reads:
            await asyncio.Future()
        await self.lines.put(message["body"])

    async def event(self) -> tuple[str, Any]:
        """The id and the data of the next snapshot; comments are passed over."""
        while True:
            fields = dict(
                line.split(": ", 1) for line in (await self.lines.get()).decode().splitlines() if ": " in line
            )
            if "data" in fields:
                return fields["id"], json.loads(fields["data"])


def played(scenario: Callable[[Site], Awaitable[None]]) -> None:
    site = site_of(timing=QUICK)

    async def play() -> None:
        async with asyncio.timeout(60):
            await scenario(site)

    asyncio.run(play())


def test_the_network_with_most_gives_its_oldest_place_to_one_that_has_fewer() -> None:
    streams = Streams("run", most=6)
    with ExitStack() as held:
        places = [held.enter_context(streams.place(network)) for network in "baabaa"]
        with pytest.raises(Overloaded), streams.place("a"):
            pass
        with streams.place("c"):
            assert [place.ended.is_set() for place in places] == [False, True, False, False, False, False]
            assert streams.count == 6


def test_each_snapshot_is_told_as_the_status_says_it() -> None:
    async def scenario(site: Site) -> None:
        listener = Listener(site)
        first_id, first = await listener.event()
        assert dict(listener.started["headers"])[b"content-type"].startswith(b"text/event-stream")
        assert first["models"] == []
        await site.keeper.put(seen(known("0:8", "ann")))
        second_id, second = await listener.event()
        assert second_id != first_id
        assert second["models"][0]["peers_serving"] == 1
        assert HOST not in json.dumps(second)
        assert site.streams.count == 1
        listener.gone.set()
        await listener.task
        assert site.streams.count == 0

    played(scenario)


def test_a_client_resumes_with_what_it_does_not_know() -> None:
    async def scenario(site: Site) -> None:
        listener = Listener(site)
        last_id, _ = await listener.event()
        listener.gone.set()
        same = Listener(site, last_id)
        assert await same.lines.get() == b"retry: 3000\n\n"
        assert await same.lines.get() == b":\n\n", "nothing is new: only a sign of life"
        await site.keeper.put(ModelState(FACTS))
        newer_id, newer = await same.event()
        assert newer["models"]
        for known_id in (last_id, "another-run-7", "x" * 100, "-", newer_id + "9"):
            assert (await Listener(site, known_id).event())[0] == newer_id

    played(scenario)


def test_a_client_that_never_reads_is_dropped_and_others_go_on() -> None:
    async def scenario(site: Site) -> None:
        stuck, reader = Listener(site, reads=False), Listener(site)
        await reader.event()
        await stuck.task
        await site.keeper.put(ModelState(FACTS))
        assert (await reader.event())[1]["models"]
        assert site.streams.count == 1

    played(scenario)


def test_streams_are_bounded_and_end_when_the_program_does() -> None:
    async def scenario(site: Site) -> None:
        listeners = [Listener(site) for _ in range(3)]
        for listener in listeners:
            await listener.event()
        with ExitStack() as others:
            for _ in range(MOST_STREAMS - 3):
                others.enter_context(site.streams.place("127.0.0.1"))  # as the one that asks
            answer = await ask_app(make_app(site), "/api/v1/stream")
            assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        site.streams.stop()
        await asyncio.gather(*(listener.task for listener in listeners))

    played(scenario)
