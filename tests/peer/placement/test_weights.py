"""The operator hears of peers with other weights, and of what his own are based on; once each."""

from __future__ import annotations

import logging

import pytest
from blockswarm.peer.placement.weights import WeightsCheck
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId, PeerSpec


def peer(name: str, start: int, hashes: str) -> PeerSpec:
    blocks = BlockRange(start, start + len(hashes))
    return PeerSpec(
        PeerId(name), blocks, ComputeCost(0.01), block_hashes=tuple(letter.encode() * 8 for letter in hashes)
    )


OWN = peer("own", 2, "gggg")
OTHERS = (OWN, peer("same", 0, "gggg"), peer("elsewhere", 6, "xx"), peer("other", 4, "gxx"))


@pytest.mark.parametrize(
    ("proven", "reason"),
    [({}, "cannot prove them"), ({4: b"g" * 8}, "cannot prove them"), ({5: b"g" * 8}, "files prove them")],
)
def test_a_contradiction_is_told_with_its_blocks_and_the_own_proof(
    caplog: pytest.LogCaptureFixture, proven: dict[int, bytes], reason: str
) -> None:
    check = WeightsCheck(proven)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            check.note(OWN, OTHERS)
    (message,) = [record.message for record in caplog.records]
    assert "peer other announces other weights for blocks 5:6" in message
    assert reason in message


def test_a_crowd_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    crowd = [peer(f"p{number:02d}", 2, "gxxg") for number in range(20)]
    with caplog.at_level(logging.WARNING):
        WeightsCheck({}).note(OWN, crowd)
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("peer p00, peer p01, peer p02 and 17 more announces other weights for blocks 3:5 than")


def test_a_peer_that_comes_back_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    check = WeightsCheck({})
    with caplog.at_level(logging.WARNING):
        for look in (OTHERS, OTHERS[:2], OTHERS):
            check.note(OWN, look)
    assert len(caplog.records) == 2


def test_a_peer_without_blocks_contradicts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        WeightsCheck({}).note(PeerSpec(PeerId("own"), None, ComputeCost(0.01)), OTHERS)
    assert not caplog.records
