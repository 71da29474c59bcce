"""Metrics that are scraped over HTTP tell what happened."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.peer.metrics import COUNTERS, GAUGES, PeerMetrics
from blockswarm.proto.errors import UsageError
from blockswarm.routing.swarm import PeerState
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families


def scrape(port: int) -> dict[str, float]:
    """Samples by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_scrapes_what_happened() -> None:
    metrics = PeerMetrics()
    metrics.observe(StepRecord(2, 3, 2, 64, 500, 4.0, 0.03, 0.001))
    metrics.observe(StepRecord(1, 1, 1, 0, 100, 4.0, 0.01, 0.0))
    metrics.observe_admission(3.0)
    metrics.describe(PeerState.DRAINING, {"version": "1.2", "blocks": "0:4"})
    metrics.observe_failure("peer-busy")
    metrics.observe_failure("peer-busy")
    metrics.readings = {name: index for index, name in enumerate([*GAUGES, *COUNTERS])}
    server = metrics.serve("127.0.0.1", 0)
    try:
        found = scrape(server.port)
        assert found["blockswarm_step_rows_sum"] == 4
        assert found["blockswarm_step_rows_bucket le=1.0"] == 1
        assert found["blockswarm_step_seconds_count"] == 2
        assert found["blockswarm_step_seconds_sum"] == pytest.approx(0.04)
        assert found["blockswarm_tokens_total kind=decode"] == 3
        assert found["blockswarm_tokens_total kind=prefill"] == 64
        assert found["blockswarm_admission_wait_seconds_sum"] == 3
        for index, name in enumerate([*GAUGES, *COUNTERS]):
            assert found[f"blockswarm_{name}" + ("_total" if name in COUNTERS else "")] == index
        assert found["blockswarm_failures_total code=peer-busy"] == 2
        assert found["blockswarm_failures_total code=authentication"] == 0, "a rate needs the zero before the first"
        assert found["blockswarm_peer_info blocks=0:4 version=1.2"] == 1
        assert found["blockswarm_state blockswarm_state=draining"] == 1
        assert found["blockswarm_state blockswarm_state=serving"] == 0
        assert found["process_resident_memory_bytes"] > 1e6
        metrics.readings = {"sessions": 7}
        assert scrape(server.port)["blockswarm_sessions"] == 7
    finally:
        server.close()


def test_names_follow_the_conventions_of_prometheus() -> None:
    """Units come last, and `_total` is for counters: dashboards and alarms are written by these rules."""
    metrics = PeerMetrics()
    metrics.readings = dict.fromkeys([*GAUGES, *COUNTERS], 1.0)
    text = generate_latest(metrics.registry).decode()
    families = [each for each in text_string_to_metric_families(text) if not each.name.endswith("_created")]
    for family in families:
        assert not (family.name.endswith("_total") and family.type != "counter"), family.name
        for unit in ("seconds", "bytes", "tokens", "token_blocks"):
            words = family.name.removesuffix("_total")
            assert f"_{unit}_" not in f"{words}_".removesuffix(f"_{unit}_"), family.name
        assert family.samples, family.name


def test_counters_begin_at_zero() -> None:
    found = generate_latest(PeerMetrics().registry).decode()
    assert 'blockswarm_tokens_total{kind="prefill"} 0.0' in found


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="metrics cannot be served"):
        PeerMetrics().serve("127.0.0.1", taken.getsockname()[1])
