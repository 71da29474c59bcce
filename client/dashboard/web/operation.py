"""/healthz and /metrics, for monitoring the dashboard."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.responses import JSONResponse, Response

from ..board.now import ModelCard, Standing
from .site import TEXT, Moment, Site


def ops_router(site: Site) -> APIRouter:
    """Return the routes, which are not part of the documented API."""
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    async def health(request: Request) -> Response:
        """Report that the program answers, whatever the state of the swarms."""
        health = {"status": "ok", "version": site.keeper.snapshot.version}
        return JSONResponse(health, headers={"cache-control": "no-store"})

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        return await site.answer(request, TEXT, lambda moment: scrape(site, moment))

    return router


class _Collector:
    """The metrics of one moment."""

    def __init__(self, site: Site, moment: Moment) -> None:
        self._site = site
        self._moment = moment

    def collect(self) -> Iterator[Metric]:
        cards = [self._moment.card(board) for board in self._moment.boards]
        for name, text, values in _gauges(cards):
            family = GaugeMetricFamily(f"blockswarm_dashboard_{name}", text, labels=("model",))
            for card, value in zip(cards, values, strict=True):
                if value is not None:
                    family.add_metric((card.id,), float(value))
            yield family
        peers = GaugeMetricFamily("blockswarm_dashboard_peers", "Peers, by state.", labels=("model", "state"))
        named = GaugeMetricFamily("blockswarm_dashboard_model", "The name of a model.", labels=("model", "name"))
        for card in cards:
            states = {"serving": card.peers_serving, "other": card.peers_other, "silent": card.peers_silent}
            for state, count in states.items():
                if count is not None:
                    peers.add_metric((card.id, state), count)
            named.add_metric((card.id, card.name), 1)
        yield peers
        yield named
        recorder = self._site.recorder
        yield GaugeMetricFamily(
            "blockswarm_dashboard_history_trouble", "1 while the history is not written.",
            value=float(recorder is not None and recorder.trouble is not None),
        )  # fmt: skip


Gauges = list[tuple[str, str, list[float | int | bool | None]]]


def _gauges(cards: list[ModelCard]) -> Gauges:
    probes = [card.probe for card in cards]
    return [
        ("look_age_seconds", "Age of the last look that succeeded.", [card.age_seconds for card in cards]),
        ("look_failed", "1 if the last look failed.", [card.failure is not None for card in cards]),
        ("missing_blocks", "Blocks that no peer serves.", [_size(card.missing_blocks) for card in cards]),
        ("weakest_block_servers", "Servers of the block with the fewest.", [card.weakest_servers for card in cards]),
        ("free_sessions", "Requests of 1024 tokens that find room.", [card.free_sessions for card in cards]),
        ("works", "1 while a recent probe says so.", [card.standing is Standing.WORKS for card in cards]),
        (
            "probe_age_seconds",
            "Age of the last probe.",
            [None if probe is None else probe.age_seconds for probe in probes],
        ),
        (
            "probe_failed",
            "1 if the last probe failed.",
            [None if probe is None else bool(probe.code) for probe in probes],
        ),
        (
            "probe_tokens_per_second",
            "Of the last probe.",
            [None if probe is None else probe.tokens_per_second for probe in probes],
        ),
        (
            "probe_first_token_seconds",
            "Of the last probe.",
            [None if probe is None else probe.first_token_seconds for probe in probes],
        ),
    ]


def _size(blocks: tuple[int, ...] | None) -> int | None:
    return len(blocks) if blocks is not None else None


def scrape(site: Site, moment: Moment) -> bytes:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(site, moment))  # type: ignore[arg-type]
    return generate_latest(registry)
