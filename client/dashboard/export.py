"""Writes the pages and the data of one look as files, for any static file server, or for none."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator, Mapping
from html import unescape
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.types import ASGIApp

from ...proto.errors import DeadlineExceeded, PeerUnavailable, UsageError
from ...proto.files import keep_bytes
from ..survey.survey import open_caller
from ..timing import ClientTiming
from .board.listing import PeerQuery
from .board.model import ModelBoard, model_board
from .board.routes import MOST_EXPLAINED
from .config import DashboardConfig
from .history.recorder import Recorder
from .watch.keeper import SnapshotKeeper
from .watch.sighting import DashboardSnapshot
from .watch.watcher import SwarmWatcher
from .web.app import make_app
from .web.pages import STATIC
from .web.site import Site
from .web.templating import SCREENS

REFERENCE = re.compile(r'\b(href|src|action)="([^"]*)"')
LIVE = re.compile(r' data-version="\d+"')
"""The attribute by which the script knows that there is a stream, removed because files have none."""


async def export(config: DashboardConfig, recorder: Recorder | None, folder: Path) -> int:
    """Look, probe once if the model's files are here, write everything below `folder`; return the number of files.

    Raises DeadlineExceeded if no model is seen in time, and as `write_files`.
    """
    keeper = SnapshotKeeper()
    site = Site(
        keeper, time.time, config.timing, recorder=recorder,
        join_addresses=config.join_addresses, join_options=config.join_options,
    )  # fmt: skip
    async with open_caller(config.swarm) as caller:
        watcher = SwarmWatcher(config, caller, keeper, recorder, time.time, ClientTiming())
        watching = asyncio.create_task(watcher.run(), name="watch the swarms")
        seeing = asyncio.create_task(_seen(keeper, config), name="wait for all models")
        try:
            await asyncio.wait({watching, seeing}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            snapshot = seeing.result()
        finally:
            watching.cancel()
            seeing.cancel()
            await asyncio.wait({watching, seeing})
    return await write_files(make_app(site), snapshot, folder)


async def _seen(keeper: SnapshotKeeper, config: DashboardConfig) -> DashboardSnapshot:
    """Wait for a snapshot in which every look has succeeded or failed, and every model that can be was probed."""
    try:
        async with asyncio.timeout(config.timing.export):
            while not _is_complete(keeper.snapshot, config):
                await keeper.after(keeper.snapshot.version)
    except TimeoutError:
        seconds = config.timing.export
        raise DeadlineExceeded(f"the swarms of the models were not seen within {seconds:.0f} s") from None
    return keeper.snapshot


def _is_complete(snapshot: DashboardSnapshot, config: DashboardConfig) -> bool:
    looked = all(state.sighting is not None or state.failure is not None for state in snapshot.models)
    probed = all(state.probe is not None for state in snapshot.models if state.facts.counted)
    return looked and probed and len(snapshot.models) >= max(1, len(config.models))


async def write_files(app: ASGIApp, snapshot: DashboardSnapshot, folder: Path) -> int:
    """Request every address of `targets` from the application, and write the answers, linked to each other.

    Returns the number of files. What is not kept here (404) is left out; if an answer fails, the others are written
    before PeerUnavailable is raised. Raises UsageError if the folder cannot be written.
    """
    named = targets(snapshot)
    answers = {target: await _answer(app, target) for target in named}
    files = {target: name for target, name in named.items() if answers[target][0] == HTTPStatus.OK}
    for target, name in files.items():
        body = answers[target][1]
        if name.endswith(".html"):
            body = relinked(body.decode(), name, files).encode()
        try:
            keep_bytes(folder / name, body)
        except OSError as error:
            raise UsageError(
                f"{folder / name} cannot be written: {error.strerror}", hint="Choose another folder."
            ) from None
    if failed := [target for target, (status, _) in answers.items() if status >= HTTPStatus.INTERNAL_SERVER_ERROR]:
        raise PeerUnavailable(
            f"{len(failed)} of {len(named)} addresses have no answer now, {failed[0]} among them",
            hint="The other files are written. See with `swarm-client status` whether the swarm can be reached.",
        )
    return len(set(files.values()))


def targets(snapshot: DashboardSnapshot) -> Mapping[str, str]:
    """Return the addresses to export, with the names of their files."""
    found = {"/": "index.html", "/metrics": "metrics.txt"}
    found |= {f"/static/{name}": f"static/{name}" for name in STATIC}
    found |= {f"/api/v1/{name}": f"api/v1/{name}.json" for name in ("status", "models", "peers", "events")}
    found["/api/v1/openapi.json"] = "api/v1/openapi.json"
    for state in snapshot.models:
        found |= dict(_of_model(model_board(state)))
    return found


def _of_model(board: ModelBoard) -> Iterator[tuple[str, str]]:
    model = board.state.facts.id
    for end, _ in SCREENS:
        yield f"/models/{model}{end}", f"models/{model}{end or '/blocks'}.html"
    query = PeerQuery()
    for page in range(1, query.pages(len(board.peers)) + 1):
        for end, name in (("", "blocks"), ("/peers", "peers")):
            number = f"-{page}" if page > 1 else ""
            yield f"/models/{model}{end}{query.at_page(page)}", f"models/{model}/{name}{number}.html"
    if len(board.peers) > MOST_EXPLAINED:
        yield f"/models/{model}/routes?others=all", f"models/{model}/routes-others.html"
    for span in ("24h", "7d", "30d"):
        yield f"/models/{model}/history?span={span}", f"models/{model}/history-{span}.html"
        yield f"/api/v1/history?model={model}&span={span}", f"api/v1/history-{model}-{span}.json"
    for name in ("routes", "placement"):
        yield f"/api/v1/{name}?model={model}", f"api/v1/{name}-{model}.json"
    yield f"/api/v1/models/{model}", f"api/v1/models/{model}.json"
    yield f"/api/v1/peers{query.address}&model={model}", f"api/v1/peers-{model}.json"
    yield f"/api/v1/models/{model}/peers.csv{query.address}", f"models/{model}/peers.csv"
    yield f"/badge/{model}.svg", f"badge/{model}.svg"


def relinked(page: str, name: str, files: Mapping[str, str]) -> str:
    """Return a page with links between the exported files; links to other addresses lead to the page itself."""
    here = PurePosixPath(name).parent

    def link(found: re.Match[str]) -> str:
        target = unescape(found[2])
        if not target.startswith("/"):
            return found[0]
        to = files.get(target, name)
        return f'{found[1]}="{os.path.relpath(to, here).replace(os.sep, "/")}"'

    return LIVE.sub("", REFERENCE.sub(link, page))


async def _answer(app: ASGIApp, target: str) -> tuple[int, bytes]:
    """Return the status and the body of the application's answer to a GET request from this process."""
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": [],
        "client": None, "server": None, "state": {},
    }  # fmt: skip
    status, body = 0, bytearray()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        body.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, bytes(body)
