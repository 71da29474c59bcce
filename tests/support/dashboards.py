"""A dashboard of this process, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from blockswarm.client.dashboard.config import DashboardConfig
from blockswarm.client.dashboard.server import DashboardServer, open_recorder, run_dashboard
from blockswarm.client.dashboard.watch.sighting import ModelState
from blockswarm.client.dashboard.web.app import make_app
from blockswarm.client.dashboard.web.site import Site
from blockswarm.client.web.listening import drop_idle_readers, listening_socket, root_address, server_config


@dataclass
class RunningDashboard:
    """Made by `running_dashboard`."""

    root: str

    def get(self, path: str) -> str:
        """Raises HTTPError."""
        with urllib.request.urlopen(self.root + path, timeout=60) as response:
            return response.read().decode()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def wait(self, path: str, wanted: Callable[[Any], bool], seconds: float = 180.0) -> Any:
        """The JSON at `path` as soon as it is as wanted; fails if that takes too long."""
        until = time.monotonic() + seconds
        while not wanted(found := self.json(path)):
            assert time.monotonic() < until, found
            time.sleep(0.05)
        return found


@contextmanager
def running_dashboard(config: DashboardConfig) -> Iterator[RunningDashboard]:
    """A dashboard for the time of a block. Raises what ends it before."""
    loop = asyncio.new_event_loop()
    stopping, ready, failed = asyncio.Event(), threading.Event(), list[BaseException]()
    with listening_socket("127.0.0.1", 0) as listening, open_recorder(config) as recorder:

        def run() -> None:
            try:
                loop.run_until_complete(run_dashboard(config, listening, recorder, ready.set, stopping))
            except BaseException as error:
                failed.append(error)
            finally:
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(60)
            yield RunningDashboard(root_address(listening))
        finally:
            loop.call_soon_threadsafe(stopping.set)
            thread.join(60)
            loop.close()
    if failed:
        raise failed[0]


class ServedSite:
    """A site with made-up snapshots behind a real port. Made by `served_site`."""

    def __init__(self, site: Site, server: DashboardServer, loop: asyncio.AbstractEventLoop, root: str) -> None:
        self.site = site
        self.server = server
        self.root = root
        self._loop = loop

    def put(self, *states: ModelState) -> None:
        """Show these states as the newest snapshot."""

        async def put() -> None:
            for state in states:
                await self.site.keeper.put(state)

        asyncio.run_coroutine_threadsafe(put(), self._loop).result(60)

    def wait_connections(self, count: int) -> None:
        """Until no more than that many are open; fails if that takes too long."""
        until = time.monotonic() + 60
        while len(self.server.server_state.connections) > count:
            assert time.monotonic() < until, "connections stay open"
            time.sleep(0.05)

    def wait_no_streams(self) -> None:
        """Until none is open; fails if that takes too long."""
        until = time.monotonic() + 60
        while self.site.streams.count:
            assert time.monotonic() < until, "streams stay open"
            time.sleep(0.05)


@contextmanager
def served_site(site: Site) -> Iterator[ServedSite]:
    """Serve a site, made by `support.sightings`, for the time of a block."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    with listening_socket("127.0.0.1", 0) as listening:
        drop_idle_readers(listening, site.timing.send)
        server = DashboardServer(
            server_config(make_app(site), head_seconds=30.0, stop_seconds=1.0), site.streams, ready.set
        )
        thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(sockets=[listening]),))
        thread.start()
        try:
            assert ready.wait(60)
            yield ServedSite(site, server, loop, root_address(listening))
        finally:
            server.should_exit = True
            thread.join(60)
            loop.close()
