"""A chain's report: where the time of the steps went."""

from __future__ import annotations

from typing import Any

from blockswarm.client.chain.machine.events import HopChoice
from blockswarm.client.chain.timing_log import TimingLog
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import HopTiming
from blockswarm.routing.swarm import BlockRange, PeerId
from blockswarm.routing.trust import Evidence


def choice(name: str, blocks: BlockRange, **facts: Any) -> HopChoice:
    return HopChoice(PeerAddress(PeerId(name), "10.0.0.1:1"), blocks, b"", **facts)


def test_a_report_names_what_each_hop_computes_in_and_why_it_is_believed() -> None:
    log = TimingLog()
    chain = (
        choice("a", BlockRange(0, 2), numeric_format="float32", weights=Evidence.PROVEN),
        choice("b", BlockRange(2, 4), numeric_format="int8", weights=Evidence.UNDECIDED),
    )
    log.add(0.0, 1.0, tuple(HopTiming(name, 0.2, 0.3, 0.4) for name in "ab"))
    report = log.report(chain, lambda peer: 0.0)
    assert [hop.numeric_format for hop in report.hops] == ["float32", "int8"]
    assert [hop.weights for hop in report.hops] == [Evidence.PROVEN, Evidence.UNDECIDED]
