"""Prometheus metrics of a peer for its operator, served on request (`swarm-peer --metrics-port`).

Steps are counted as they happen, in the engine's thread.  The rest are readings that the event loop takes every second;
the server has a thread of its own and touches nothing else of the peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..proto.errors import WIRE_CLASSES, UsageError
from ..routing.admit.table import SessionTable
from ..routing.swarm import ComputeCost, PeerState
from .engine.step_record import StepRecord
from .session.work.seams import Counters

if TYPE_CHECKING:
    from .engine.cache.pool import KvPool

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

GAUGES: Mapping[str, str] = {
    "sessions": "Sessions that hold a reservation",
    "queued_sessions": "Sessions that wait for room",
    "kv_capacity_token_blocks": "Room for the attention cache, tokens x blocks",
    "kv_reserved_token_blocks": "Of this, reserved by sessions",
    "kv_used_bytes": "Attention cache of sessions in memory, bytes",
    "prefix_cache_bytes": "Attention cache of earlier prompts in memory, bytes",
    "replay_bytes": "Replay buffers in memory, bytes",
    "announced_age_seconds": "Time since another node took this peer's record, seconds",
    "isolated": "1 while no other node of the DHT answers",
    "decode_block_seconds": "Announced time of a decode step of one row in one block, seconds",
    "reached_directly": "1 while the peer announces an address of its own",
    "relays_in_use": "Relays through which the peer is reached",
    "relayed_peers": "Peers that are reached through this one",
    "relayed_connections": "Connections to such peers",
}
COUNTERS: Mapping[str, str] = {
    "steps_pushed": "Steps whose output went to the successor directly",
    "steps_relayed": "Steps whose output went through the client",
    "steps_answered": "Steps whose output was the answer",
    "rebuilt_tokens": "Tokens computed again for a session that came from another peer",
    "admissions": "Sessions that were given room",
    "refusals": "Sessions that were refused for want of room",
    "prefix_hit_tokens": "Prompt tokens whose attention cache was held already",
    "guessed_tokens": "Tokens computed that clients had only guessed",
    "crowded_steps": "Steps whose client was told that there is no time for guesses",
    "prefix_evicted_pages": "Pages of earlier prompts that made room for others",
    "relayed_bytes": "Bytes moved for peers that are reached through this one, both directions counted",
}

Readings = Mapping[str, float]
"""A value for each of `GAUGES` and `COUNTERS` that the peer has."""


def readings_of(
    sessions: SessionTable,
    counters: Counters,
    pool: KvPool,
    replay_bytes: int,
    cost: ComputeCost,
    seconds_since_announced: float,
    isolated: bool,
) -> Readings:
    """The readings of this moment; `cost` is the announced one."""
    return {
        "sessions": sessions.sessions,
        "queued_sessions": sessions.waiting,
        "kv_capacity_token_blocks": sessions.kv_token_blocks_total,
        "kv_reserved_token_blocks": sessions.kv_token_blocks_total - sessions.kv_token_blocks_free,
        "kv_used_bytes": pool.used_bytes,
        "prefix_cache_bytes": pool.prefixes.nbytes,
        "replay_bytes": replay_bytes,
        "announced_age_seconds": seconds_since_announced,
        "isolated": float(isolated),
        "decode_block_seconds": cost.decode_seconds(),
        "steps_pushed": counters.steps_pushed,
        "steps_relayed": counters.steps_relayed,
        "steps_answered": counters.steps_answered,
        "rebuilt_tokens": counters.rebuilt_tokens,
        "admissions": sessions.admissions,
        "refusals": sessions.refusals,
        "prefix_hit_tokens": counters.prefix_hit_tokens,
        "guessed_tokens": counters.guessed_tokens,
        "crowded_steps": counters.crowded_steps,
        "prefix_evicted_pages": pool.prefixes.evicted_pages,
    }


class PeerMetrics:
    """The metrics of one peer."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Enum, Histogram, Info, ProcessCollector

        self.readings: Readings = {}
        """The newest readings, set by the event loop."""
        self.registry = CollectorRegistry()
        self.registry.register(_Collector(lambda: self.readings))
        ProcessCollector(registry=self.registry)
        self._info = Info("blockswarm_peer", "The peer: its version, model, blocks and device", registry=self.registry)
        self._state = Enum(
            "blockswarm_state",
            "The state that it announces",
            states=[state.value for state in PeerState],
            registry=self.registry,
        )
        self._failures = Counter(
            "blockswarm_failures", "Sessions that were refused or ended, by error", ["code"], registry=self.registry
        )
        for error_class in WIRE_CLASSES.values():
            self._failures.labels(error_class.code)  # a rate needs the zero before the first

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Any:
            return Histogram(f"blockswarm_{name}", text, buckets=tuple(buckets), registry=self.registry)

        self._rows = histogram("step_rows", "Rows computed together in a step", _ROWS)
        self._seconds = histogram("step_seconds", "Time of a step", _SECONDS)
        self._waits = histogram("step_wait_seconds", "Longest time that a row of a step waited for it", _SECONDS)
        self._tokens = Counter(
            "blockswarm_tokens", "Tokens computed, by kind of step", ["kind"], registry=self.registry
        )
        for kind in ("decode", "prefill"):
            self._tokens.labels(kind)
        self._queue_waits = histogram(
            "admission_wait_seconds", "Time from the opening of a session to its admission", _SECONDS
        )

    def describe(self, state: PeerState, facts: Mapping[str, str]) -> None:
        """Set the present state, and the labels that describe the peer."""
        self._state.state(state.value)
        self._info.info(dict(facts))

    def observe_failure(self, code: str) -> None:
        """Count a session that was refused, or ended with an error."""
        self._failures.labels(code).inc()

    def observe(self, step: StepRecord) -> None:
        """Count a step; may be called from any thread."""
        self._rows.observe(step.rows)
        self._seconds.observe(step.seconds)
        self._waits.observe(step.longest_wait_seconds)
        self._tokens.labels("decode").inc(step.decode_rows)
        self._tokens.labels("prefill").inc(step.prefill_tokens)

    def observe_admission(self, wait_seconds: float) -> None:
        """Count a session that was given room after a wait."""
        self._queue_waits.observe(wait_seconds)

    def serve(self, host: str, port: int) -> MetricsServer:
        """Serve the metrics over HTTP until closed. Raises UsageError if the port cannot be had."""
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise UsageError(
                f"metrics cannot be served on {host}:{port}: {error.strerror or error}",
                hint="Choose another --metrics-port.",
            ) from None
        return MetricsServer(server, thread)


class MetricsServer:
    """The server's thread."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    """Turns readings into samples on request."""

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read = read

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        readings = self._read()
        for names, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for name, text in names.items():
                if name in readings:
                    yield family(f"blockswarm_{name}", text, value=readings[name])
