"""Snapshots of swarms that nobody runs, for the dashboard, and a way to ask its application without a server."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blockswarm.client.dashboard.watch.keeper import SnapshotKeeper
from blockswarm.client.dashboard.watch.sighting import ModelFacts, ModelState, Sighting
from blockswarm.client.dashboard.watch.watcher import sighting_of
from blockswarm.client.dashboard.web.app import make_app
from blockswarm.client.dashboard.web.site import Site
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.snapshot import PreparedSwarm
from blockswarm.client.swarm.weights import WeightTrust
from blockswarm.proto.directory.records import PeerRecord
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress, Reach
from blockswarm.proto.wire.messages.calls import PingReply
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState

NOW = 1_800_000_000.0
DIGEST = "ab" * 32
HOST = "203.0.113.77:4242"
"""Where all made-up peers are: no answer may contain it."""
FACTS = ModelFacts("a model", DIGEST, 8, counted=True)


def known(
    blocks: str | None,
    name: str = "",
    *,
    state: PeerState = PeerState.SERVING,
    kv_free: int = 8 * 2048,
    cost: float = 0.002,
    visit: float = 0.0,
    hashes: bytes = b"8" * 8,
    incarnation: int = int((NOW - 3600) * 1e9),
    status: PingReply | None = None,
    rtt_seconds: float = 0.05,
    reach: Reach | None = None,
    device: str = "",
    tokens: int | None = None,
    **spec: Any,
) -> KnownPeer:
    """A peer that answers, with blocks "0:4"."""
    identity = Identity.generate()
    hosted = BlockRange.parse(blocks) if blocks is not None else None
    described = PeerSpec(
        identity.peer_id, hosted, ComputeCost(cost, visit=visit), state, kv_tokens_total=max(kv_free, 8 * 2048),
        kv_tokens_free=kv_free, block_hashes=(hashes,) * len(hosted or ()), **{"memory_bytes": 2.0**30, **spec},
    )  # fmt: skip
    record = PeerRecord(
        DIGEST, described, addresses=(HOST,), incarnation=incarnation, public_name=name, device_class=device,
        tokens_served=tokens,
    )  # fmt: skip
    address = reach or PeerAddress(identity.peer_id, HOST)
    encoded = f"record at {HOST}".encode()
    return KnownPeer(record, encoded, address, rtt_seconds, 0.0, status or PingReply(sessions=2, steps_answered=99))


def sighting(
    peers: Sequence[KnownPeer] = (),
    silent: Sequence[KnownPeer] = (),
    *,
    num_blocks: int = 8,
    at: float = NOW,
    before: Sighting | None = None,
    proven: Mapping[int, bytes] | None = None,
) -> Sighting:
    prepared = PreparedSwarm.of(
        {peer.record.spec.id: peer for peer in peers}, num_blocks, True, WeightTrust(proven or {})
    )
    return sighting_of(prepared, {peer.record.spec.id: peer.record for peer in silent}, before, at)


def seen(*peers: KnownPeer, silent: Sequence[KnownPeer] = (), facts: ModelFacts = FACTS, **options: Any) -> ModelState:
    """The state of a model after one look."""
    return ModelState(facts, sighting(peers, silent, num_blocks=facts.num_blocks, **options))


@dataclass
class Answer:
    """The answer to one request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def site_of(*states: ModelState, now: float = NOW + 3, **options: Any) -> Site:
    """A site that shows these states at `now`."""
    keeper = SnapshotKeeper()

    async def put() -> None:
        for state in states:
            await keeper.put(state)

    with ThreadPoolExecutor(1) as thread:  # a test that drives a browser has a loop in its own
        thread.submit(asyncio.run, put()).result()
    return Site(keeper, lambda: now, **options)


def ask(
    site: Site, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, host: str = "localhost"
) -> Answer:
    """The application's answer to one request; bodies are unpacked."""
    return asyncio.run(ask_app(app_of(site), target, method=method, headers=headers, host=host))


_apps: list[tuple[Site, Any]] = []


def app_of(site: Site) -> Any:
    """The application of a site; that of the last site is kept, because making one takes long."""
    if not (_apps and _apps[0][0] is site):
        _apps[:] = [(site, make_app(site))]
    return _apps[0][1]


async def ask_app(
    app: Any, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, host: str = "localhost"
) -> Answer:
    path, _, query = target.partition("?")
    sent = {"host": host, **(headers or {})}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    got: list[dict[str, Any]] = []
    waiting = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not waiting.is_set():
            waiting.set()
            return {"type": "http.request", "body": b"", "more_body": False}
        return await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        got.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in got[0]["headers"]}
    body = b"".join(message.get("body", b"") for message in got[1:])
    if found.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return Answer(got[0]["status"], found, body)
