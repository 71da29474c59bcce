"""The pages: for each screen a template and its values. They work without JavaScript."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment
from starlette.responses import Response

from ..board.history import HistoryBoard, parse_span
from ..board.join import JoinQuery
from ..board.listing import PeerQuery
from ..board.model import ModelBoard
from ..board.routes import MOST_EXPLAINED
from ..written.chart import Chart, chart
from .api import known_model
from .badge import badge_of
from .site import HTML, SHOWN_EVENTS, SVG, Moment, Site

STATIC = {"dashboard.css": "text/css; charset=utf-8", "dashboard.js": "text/javascript; charset=utf-8"}


def page_router(site: Site, templates: Environment) -> APIRouter:
    """Return the routes of all screens and static files, which are not part of the documented API."""
    router = APIRouter(include_in_schema=False)
    pages = _Pages(site, templates)
    router.add_api_route("/", pages.now)
    router.add_api_route("/models/{model_id}", pages.model)
    router.add_api_route("/models/{model_id}/peers", pages.peers)
    router.add_api_route("/models/{model_id}/routes", pages.routes)
    router.add_api_route("/models/{model_id}/placement", pages.placement)
    router.add_api_route("/models/{model_id}/join", pages.join)
    router.add_api_route("/models/{model_id}/history", pages.history)
    router.add_api_route("/badge/{model_id}.svg", pages.badge)
    for file, kind in STATIC.items():
        _add_file(router, site, file, kind)
    return router


class _Pages:
    """A handler for each screen."""

    def __init__(self, site: Site, templates: Environment) -> None:
        self._site = site
        self._templates = templates

    async def now(self, request: Request) -> Response:
        return await self._site.answer(request, HTML, lambda moment: self._page("now.html", moment))

    async def model(self, request: Request, model_id: str) -> Response:
        query = PeerQuery.parse(request.query_params)
        return await self._model_page(
            request, model_id, "", "model.html", lambda moment, board: map_values(board, query)
        )

    async def peers(self, request: Request, model_id: str) -> Response:
        query = PeerQuery.parse(request.query_params)
        return await self._model_page(
            request,
            model_id,
            "/peers",
            "peers.html",
            lambda moment, board: {"query": query, "rows": query.rows(board.peers)},
        )

    async def routes(self, request: Request, model_id: str) -> Response:
        asked = request.query_params.get("others") == "all"

        def values(moment: Moment, board: ModelBoard) -> Mapping[str, Any]:
            explained = asked or len(board.peers) <= MOST_EXPLAINED
            return {"routes": self._site.routes(moment, board, explained=explained)}

        return await self._model_page(request, model_id, "/routes", "routes.html", values)

    async def placement(self, request: Request, model_id: str) -> Response:
        def values(moment: Moment, board: ModelBoard) -> Mapping[str, Any]:
            events = self._site.events(model_id, SHOWN_EVENTS)
            return {"placement": self._site.placement(moment, board), "events": events}

        return await self._model_page(request, model_id, "/placement", "placement.html", values)

    async def join(self, request: Request, model_id: str) -> Response:
        query = JoinQuery.parse(request.query_params)

        def values(moment: Moment, board: ModelBoard) -> Mapping[str, Any]:
            return {"query": query, "join": self._site.join(moment, board, query)}

        return await self._model_page(request, model_id, "/join", "join.html", values)

    async def history(self, request: Request, model_id: str) -> Response:
        span = parse_span(request.query_params.get("span", ""))

        def values(moment: Moment, board: ModelBoard) -> Mapping[str, Any]:
            past = self._site.history(model_id, span, moment.now)
            return {"past": past, "charts": charts_of(past)}

        return await self._model_page(request, model_id, "/history", "history.html", values)

    async def badge(self, request: Request, model_id: str) -> Response:
        known_model(self._site, model_id)
        template = self._templates.get_template("badge.svg")
        return await self._site.answer(
            request, SVG, lambda moment: template.render(badge=badge_of(moment, model_id)).encode()
        )

    async def _model_page(
        self,
        request: Request,
        model_id: str,
        screen: str,
        template: str,
        values: Callable[[Moment, ModelBoard], Mapping[str, Any]],
    ) -> Response:
        """Answer with a page of a model. Raises HTTPException if it is not shown."""
        known_model(self._site, model_id)

        def make(moment: Moment) -> bytes:
            board = moment.board(model_id)
            card = moment.card(board)
            return self._page(template, moment, board=board, card=card, screen=screen, **values(moment, board))

        return await self._site.answer(request, HTML, make)

    def _page(self, name: str, moment: Moment, **values: Any) -> bytes:
        cards = [moment.card(board) for board in moment.boards]
        return self._templates.get_template(name).render(moment=moment, cards=cards, **values).encode()


def map_values(board: ModelBoard, query: PeerQuery) -> Mapping[str, Any]:
    """Return the values for the map of the model's page."""
    rows = board.coverage.rows if board.coverage is not None else ()
    return {"query": query, "rows": query.shown(rows), "row_count": len(rows)}


def charts_of(past: HistoryBoard) -> tuple[Chart, ...]:
    """Return the charts of a history; none if it cannot be read."""
    buckets = past.buckets
    if buckets is None:
        return ()
    shares = [None if bucket.availability is None else 100 * bucket.availability for bucket in buckets]
    return (
        chart("Probes that worked", "%", shares, top=100.0),
        chart("Tokens per second", "tokens/s", [bucket.tokens_per_second for bucket in buckets]),
        chart("Time to first token", "s", [bucket.first_token_seconds for bucket in buckets]),
        chart("Peers that serve", "peers", [bucket.peers for bucket in buckets]),
        chart("Failovers during probes", "peers", [bucket.repairs if bucket.probes else None for bucket in buckets]),
    )


def _add_file(router: APIRouter, site: Site, name: str, kind: str) -> None:
    content = (files(__package__) / "static" / name).read_bytes()

    async def serve(request: Request) -> Response:
        return await site.answer(request, kind, lambda moment: content)

    router.add_api_route(f"/static/{name}", serve)
