"""The boards as JSON and CSV, under /api/v1, described by OpenAPI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from ..board.coverage import CoverageMap
from ..board.history import UNREAD, HistoryBoard, parse_span
from ..board.listing import MAX_FILTER_CHARS, PeerQuery, number_of
from ..board.model import ModelBoard
from ..board.now import ModelCard, why_unseen
from ..board.peers import PeerRow
from ..board.placement import PlacementBoard
from ..board.routes import RoutesBoard
from ..history.entries import NumberedEvent
from ..written.table import peers_csv
from ..written.values import as_json
from .site import CSV, JSON, NO_HISTORY, Moment, Site
from .stream import SnapshotStream

MOST_EVENTS_A_REPLY = 1000

ModelId = Annotated[str, Path(description="The first 12 digits of the model's digest.", max_length=64)]
Text = Annotated[str, Query(max_length=MAX_FILTER_CHARS)]


@dataclass(frozen=True, slots=True)
class StatusReply:
    """All models at a glance."""

    version: int
    """Increases with every snapshot."""
    made_at: float
    """Unix time at which this was made, which ages refer to."""
    waiting_for: str | None
    """Why there is no model yet."""
    models: tuple[ModelCard, ...]


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One model: its card, and which peers serve which blocks."""

    card: ModelCard
    coverage: CoverageMap | None


@dataclass(frozen=True, slots=True)
class ModelPeers:
    """The peers of one model, as found by the last look that succeeded."""

    model: str
    name: str
    seen_at: float | None
    """Unix time of that look."""
    current: bool
    """Whether that look describes the present; see `ModelCard.current`."""
    peers: tuple[PeerRow, ...] | None
    """None before the first look."""


def api_router(site: Site) -> APIRouter:
    """Return the routes. Handlers return finished bodies: FastAPI documents them, and does not serialise them again."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/status", response_model=StatusReply, summary="All models at a glance")
    async def status(request: Request) -> Response:
        return await site.answer(request, JSON, lambda moment: as_json(status_reply(moment)))

    @router.get("/models", response_model=tuple[ModelCard, ...], summary="The models")
    async def models(request: Request) -> Response:
        return await site.answer(request, JSON, lambda moment: as_json([moment.card(each) for each in moment.boards]))

    @router.get("/models/{model_id}", response_model=ModelReply, summary="One model and its blocks")
    async def model(request: Request, model_id: ModelId) -> Response:
        known_model(site, model_id)
        return await site.answer(request, JSON, lambda moment: as_json(model_reply(moment, model_id)))

    @router.get("/peers", response_model=tuple[ModelPeers, ...], summary="The peers of all models, or of one")
    async def peers(
        request: Request, model: Text = "", q: Text = "", state: Text = "", block: Text = "", sort: Text = "blocks",
        order: Text = "",
    ) -> Response:  # fmt: skip
        """`q`: a part of a name or id; `sort`: a column, named as in the page's links; `order`: "desc" or empty."""
        query = PeerQuery.parse(request.query_params)
        if model:
            known_model(site, model)
        return await site.answer(request, JSON, lambda moment: as_json(peers_reply(moment, model, query)))

    @router.get("/models/{model_id}/peers.csv", summary="The peers of a model for spreadsheets")
    async def csv(request: Request, model_id: ModelId) -> Response:
        known_model(site, model_id)
        query = PeerQuery.parse(request.query_params)
        headers = {"content-disposition": f'attachment; filename="peers-{model_id}.csv"'}
        return await site.answer(request, CSV, lambda moment: table_of(moment.board(model_id), query), headers)

    @router.get(
        "/stream", summary="Server-sent events: each new snapshot, as /status", response_class=PlainTextResponse
    )
    async def stream(request: Request) -> Response:
        """Events `snapshot` with an id; after `Last-Event-ID` a newer snapshot is sent at once, if there is one."""

        async def told() -> bytes:
            return (await site.body("stream", lambda moment: as_json(status_reply(moment)))).plain

        return SnapshotStream(
            site.streams, site.keeper, request.headers.get("last-event-id", ""), told,
            pause_seconds=site.timing.stream_pause, idle_seconds=site.timing.stream_idle,
        )  # fmt: skip

    _add_analyses(router, site)
    return router


def _add_analyses(router: APIRouter, site: Site) -> None:
    """Add routes, placement and history."""

    @router.get("/routes", response_model=RoutesBoard, summary="The best chain from here, and what else there is")
    async def routes(request: Request, model: Text) -> Response:
        known_model(site, model)
        return await site.answer(request, JSON, lambda moment: as_json(site.routes(moment, moment.board(model))))

    @router.get("/placement", response_model=PlacementBoard | None, summary="Figures, and moves that are under way")
    async def placement(request: Request, model: Text) -> Response:
        known_model(site, model)
        return await site.answer(request, JSON, lambda moment: as_json(site.placement(moment, moment.board(model))))

    @router.get("/history", response_model=HistoryBoard, summary="What probes brought, in equal pieces of time")
    async def history(request: Request, model: Text, span: Text = "24h") -> Response:
        """`span`: "24h", "7d" or "30d", up to now."""
        known_model(site, model)
        wanted = parse_span(span)
        return await site.answer(request, JSON, lambda moment: as_json(site.history(model, wanted, moment.now)))

    @router.get("/events", response_model=tuple[NumberedEvent, ...], summary="Events, the newest first")
    async def events(request: Request, model: Text = "", before: Text = "", limit: Text = "100") -> Response:
        """`before`: only events with smaller numbers; at most `limit` of them, which is up to 1000."""
        if model:
            known_model(site, model)
        end, most = number_of(request.query_params, "before", 1, 1 << 53), parse_limit(limit)
        return await site.answer(request, JSON, lambda moment: as_json(known_events(site, model or None, most, end)))


def parse_limit(text: str) -> int:
    """Parse the number of events to return; "" is 1. Raises UsageError."""
    return number_of({"limit": text}, "limit", 1, MOST_EVENTS_A_REPLY) or 1


def known_model(site: Site, model_id: str) -> None:
    """Raise HTTPException if the model is not shown."""
    if site.keeper.snapshot.model(model_id) is None:
        raise HTTPException(404, "no such model is shown here")


def known_events(site: Site, model_id: str | None, limit: int, before: int | None) -> Sequence[NumberedEvent]:
    """Return the events. Raises HTTPException if they cannot be read: an empty list would mean that none happened."""
    if site.recorder is None:
        raise HTTPException(404, NO_HISTORY)
    events = site.events(model_id, limit, before)
    if events is None:
        raise HTTPException(503, UNREAD)
    return events


def table_of(board: ModelBoard, query: PeerQuery) -> bytes:
    """Return the peers as CSV. Raises HTTPException before the first look, because an empty table would mean none."""
    if board.state.sighting is None:
        raise HTTPException(503, f"not seen: {why_unseen(board.state)}")
    return peers_csv(query.rows(board.peers), board.state.sighting.at_seconds)


def status_reply(moment: Moment) -> StatusReply:
    snapshot = moment.snapshot
    return StatusReply(snapshot.version, moment.now, snapshot.waiting_for, tuple(map(moment.card, moment.boards)))


def model_reply(moment: Moment, model_id: str) -> ModelReply:
    board = moment.board(model_id)
    return ModelReply(moment.card(board), board.coverage)


def peers_reply(moment: Moment, model_id: str, query: PeerQuery) -> list[ModelPeers]:
    boards = [moment.board(model_id)] if model_id else moment.boards
    return [_peers_of(moment, board, query) for board in boards]


def _peers_of(moment: Moment, board: ModelBoard, query: PeerQuery) -> ModelPeers:
    card, is_seen = moment.card(board), board.state.sighting is not None
    rows = tuple(query.rows(board.peers)) if is_seen else None
    return ModelPeers(card.id, card.name, card.seen_at, card.current, rows)
