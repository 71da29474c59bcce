"""Metrics that are scraped over HTTP tell what happened."""

from __future__ import annotations

import socket
import urllib.request

import pytest
from blockswarm.peer.engine.step_record import StepRecord
from blockswarm.peer.metrics import COUNTERS, GAUGES, PeerMetrics
from blockswarm.proto.errors import UsageError
from prometheus_client.parser import text_string_to_metric_families


def scrape(port: int) -> dict[str, float]:
    """Samples by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
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
        metrics.readings = {"sessions": 7}
        assert scrape(server.port)["blockswarm_sessions"] == 7
    finally:
        server.close()


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="metrics cannot be served"):
        PeerMetrics().serve("127.0.0.1", taken.getsockname()[1])
