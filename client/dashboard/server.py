"""Runs a dashboard: binds its port, serves at once, and watches its swarms until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from ..survey.survey import open_caller
from ..timing import ClientTiming
from ..web.listening import drop_idle_readers, listening_socket, root_address, server_config
from .config import HISTORY_FILE, DashboardConfig
from .export import export
from .history.journal import Journal
from .history.recorder import Recorder
from .timing import DashboardTiming
from .watch.keeper import SnapshotKeeper
from .watch.watcher import SwarmWatcher
from .web.app import make_app
from .web.site import Site
from .web.stream import Streams

logger = logging.getLogger(__name__)


class DashboardServer(uvicorn.Server):
    """Calls `on_ready` when it is ready, and ends streams when it stops."""

    def __init__(self, config: uvicorn.Config, streams: Streams, on_ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._streams = streams
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.stop()
        await super().shutdown(sockets)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def run_dashboard(
    config: DashboardConfig,
    listening: socket.socket,
    recorder: Recorder | None,
    on_ready: Callable[[], object],
    stopping: asyncio.Event | None = None,
) -> None:
    """Serve and watch until a signal, or until `stopping` is set. Raises SwarmError for a model that cannot be used."""
    timing, keeper = config.timing, SnapshotKeeper()
    site = Site(
        keeper, time.time, timing, is_loopback(config.host), recorder, config.join_addresses, config.join_options
    )
    limits = server_config(make_app(site), head_seconds=timing.head, stop_seconds=timing.stop)
    server = DashboardServer(limits, site.streams, on_ready)
    async with open_caller(config.swarm) as caller:
        watcher = SwarmWatcher(config, caller, keeper, recorder, time.time, ClientTiming())
        watching = asyncio.create_task(watcher.run(), name="watch the swarms")
        writing = asyncio.create_task(_write(keeper, recorder, timing), name="write the journal")
        serving = asyncio.create_task(server.serve(sockets=[listening]), name="serve pages")
        waiting: set[asyncio.Task[Any]] = {watching, writing, serving}
        if stopping is not None:
            waiting.add(asyncio.create_task(stopping.wait(), name="wait for the end"))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.should_exit = True
            await asyncio.wait({serving})
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        for task in waiting:
            if not task.cancelled():
                task.result()


async def _write(keeper: SnapshotKeeper, recorder: Recorder | None, timing: DashboardTiming) -> None:
    if recorder is None:
        await asyncio.Future()
    else:
        await Journal(keeper, recorder, time.time, timing).run()


@contextlib.contextmanager
def open_recorder(config: DashboardConfig) -> Iterator[Recorder | None]:
    """Yield the recorder of the history, or None if none is kept; closes it at the end. Raises UsageError."""
    if config.data is None:
        yield None
        return
    recorder = Recorder(config.data.expanduser() / HISTORY_FILE, time.time)
    try:
        yield recorder
    finally:
        recorder.close()


def serve(config: DashboardConfig, tell: Callable[[str], object], warn: Callable[[str], object]) -> None:
    """Serve until SIGINT or SIGTERM. Raises SwarmError.

    `tell` is called with the URL once the page can be opened, `warn` with what the operator should know.
    """
    with listening_socket(config.host, config.port) as listening, open_recorder(config) as recorder:
        if recorder is not None and recorder.replaced is not None:
            warn(f"the history was damaged: it is kept as {recorder.replaced}, and a new one begins")
        drop_idle_readers(listening, config.timing.send)
        try:
            asyncio.run(run_dashboard(config, listening, recorder, lambda: tell(root_address(listening))))
        except BaseExceptionGroup as group:
            raise first_of(group) from None


def write_export(config: DashboardConfig, folder: Path) -> int:
    """Look once, write pages and data below `folder`, and return the number of files. Raises SwarmError."""
    with open_recorder(config) as recorder:
        try:
            return asyncio.run(export(config, recorder, folder))
        except BaseExceptionGroup as group:
            raise first_of(group) from None


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error in a group, whatever the nesting."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
