"""The parts that all answers share, and the one way to answer: a body that is made once per snapshot and URL."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from ...web.tags import has_body
from ..board.history import HistoryBoard, Span, history_board
from ..board.join import JoinBoard, JoinQuery, join_board
from ..board.model import ModelBoard, model_board
from ..board.now import ModelCard, StaleAfter, tells_of_now, why_unseen
from ..board.placement import PlacementBoard, Planning, placement_board, planning_of
from ..board.routes import RoutesBoard, measured_hops, routes_board
from ..history.entries import NumberedEvent
from ..history.recorder import Recorder
from ..timing import DashboardTiming
from ..watch.keeper import SnapshotKeeper
from ..watch.sighting import DashboardSnapshot, ModelState, Sighting
from .rendering import Body, BodyMaker
from .stream import Streams

HTML = "text/html; charset=utf-8"
JSON = "application/json"
CSV = "text/csv; charset=utf-8"
SVG = "image/svg+xml"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
SHOWN_EVENTS = 50
NO_HISTORY = "this dashboard has no folder for a history"


@dataclass(frozen=True)
class Moment:
    """The snapshot that an answer is made from, and the time of making it."""

    snapshot: DashboardSnapshot
    now: float
    """Unix seconds."""
    stale: StaleAfter

    @property
    def boards(self) -> tuple[ModelBoard, ...]:
        return tuple(map(model_board, self.snapshot.models))

    def board(self, model_id: str) -> ModelBoard:
        """Return the boards of a model. Raises KeyError if it is not shown."""
        state = self.snapshot.model(model_id)
        if state is None:
            raise KeyError(model_id)
        return model_board(state)

    def card(self, board: ModelBoard) -> ModelCard:
        return board.card(self.now, self.stale)

    def sighting(self, board: ModelBoard) -> Sighting | None:
        """Return the last sighting if it describes the present, else None."""
        return board.state.sighting if tells_of_now(board.state, self.now, self.stale) else None


@dataclass(frozen=True)
class Site:
    """The parts of a dashboard that answering needs."""

    keeper: SnapshotKeeper
    clock: Callable[[], float]
    """Unix seconds."""
    timing: DashboardTiming = field(default_factory=DashboardTiming)
    loopback_only: bool = False
    recorder: Recorder | None = None
    """None: no history is kept."""
    join_addresses: tuple[str, ...] = ()
    """Addresses that the operator wants shown to people who want to join; no others are ever shown."""
    join_options: tuple[str, ...] = ()
    """Further options that they need."""
    search_clock: Callable[[], float] = time.thread_time
    """The clock, in seconds, that bounds searches for chains."""
    streams: Streams = field(default_factory=lambda: Streams(secrets.token_hex(4)))
    maker: BodyMaker = field(default_factory=BodyMaker)

    def routes(self, moment: Moment, board: ModelBoard, *, explained: bool = True) -> RoutesBoard:
        """Return the routes, computed once per state, at the time of the first request. Call it in a thread.

        There is no chain if the present is unknown.
        """
        state, sighting = board.state, moment.sighting(board)
        if sighting is None:
            return RoutesBoard(failure=why_unseen(state))
        measured = {} if state.probe is None else measured_hops(state.probe.outcome)
        return state.once(
            f"routes, explained: {explained}",
            lambda: routes_board(sighting, measured, moment.now, self.search_clock, explained=explained),
        )

    def placement(self, moment: Moment, board: ModelBoard) -> PlacementBoard | None:
        """Return the placement, planned once per state; None if the present is unknown. Call it in a thread."""
        sighting = moment.sighting(board)
        if sighting is None:
            return None
        planning = self._planning(board.state, sighting)
        return board.state.once("placement", lambda: placement_board(planning, sighting))

    def join(self, moment: Moment, board: ModelBoard, query: JoinQuery) -> JoinBoard:
        """Return what a reader's machine would bring. Call it in a thread: it plans."""
        state, sighting = board.state, moment.sighting(board)
        planning = None
        if query.memory_gib is not None and sighting is not None:
            planning = self._planning(state, sighting)
        return join_board(sighting, planning, query, state.facts.name, self.join_addresses, self.join_options)

    def _planning(self, state: ModelState, sighting: Sighting) -> Planning:
        """Return the snapshot for planning, derived once per state."""
        return state.once("planning", lambda: planning_of(state.facts, sighting))

    def history(self, model_id: str, span: Span, now: float) -> HistoryBoard:
        """Read the history of a model up to `now` (Unix seconds). Blocks: call it in a thread."""
        recorder = self.recorder
        if recorder is None:
            return history_board(model_id, span, None, None, (NO_HISTORY, None), None)
        buckets = recorder.read(
            lambda store: store.buckets(model_id, now, span.buckets, span.bucket_seconds), self.timing.read_history
        )
        trouble = (recorder.trouble.words, recorder.trouble.since) if recorder.trouble is not None else None
        return history_board(model_id, span, buckets, self.events(model_id, SHOWN_EVENTS), trouble, recorder.replaced)

    def events(self, model_id: str | None, limit: int, before: int | None = None) -> Sequence[NumberedEvent] | None:
        """Return the newest events first; None if they cannot be read. Blocks: call it in a thread."""
        if self.recorder is None:
            return None
        return self.recorder.read(lambda store: store.events(model_id, limit, before), self.timing.read_history)

    async def answer(
        self, request: Request, kind: str, make: Callable[[Moment], bytes], headers: Mapping[str, str] | None = None
    ) -> Response:
        """Answer with what `make` returns for the newest snapshot, in a thread. Raises Overloaded, and as `make`."""
        body = await self.body((kind, request.url.path, request.url.query), make)
        sent = {"etag": body.etag, "cache-control": "no-cache", "vary": "accept-encoding", **(headers or {})}
        if has_body(request.headers.get("if-none-match", ""), body.etag):
            return Response(status_code=304, headers=sent)
        if body.packed is not None and takes_gzip(request.headers.get("accept-encoding", "")):
            return Response(body.packed, headers={**sent, "content-encoding": "gzip"}, media_type=kind)
        return Response(body.plain, headers=sent, media_type=kind)

    async def body(self, what: Hashable, make: Callable[[Moment], bytes]) -> Body:
        """Return the body for the newest snapshot, made in a thread once per `what`. Raises as `answer` does."""
        moment = Moment(self.keeper.snapshot, self.clock(), StaleAfter(self.timing.stale, self.timing.probe_stale))
        made_at = int(moment.now // self.timing.fresh_page)
        return await self.maker.body((moment.snapshot.version, made_at, what), partial(make, moment))


def takes_gzip(accept_encoding: str) -> bool:
    """Return whether this `Accept-Encoding` accepts gzip; "gzip;q=0" does not."""
    for coding in accept_encoding.lower().replace(" ", "").split(","):
        name, _, weight = coding.partition(";")
        if name == "gzip":
            return re.fullmatch(r"q=0(\.0*)?", weight) is None
    return False
