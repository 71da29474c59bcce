"""A chain's report: where the time of the steps went."""

from __future__ import annotations

from blockswarm.client.chain.timing_log import TimingLog
from blockswarm.proto.wire.frames import HopTiming
from blockswarm.routing.swarm import BlockRange, PeerId


def test_a_report_names_what_each_hop_computes_in() -> None:
    log = TimingLog()
    chain = [(PeerId("a"), BlockRange(0, 2)), (PeerId("b"), BlockRange(2, 4))]
    log.add(0.0, 1.0, tuple(HopTiming(name, 0.2, 0.3, 0.4) for name, _ in chain))
    report = log.report(chain, lambda peer: 0.0, ("float32", "int8"))
    assert [hop.numeric_format for hop in report.hops] == ["float32", "int8"]
