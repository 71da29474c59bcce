"""The benchmark of placement counts what failed, and hides no error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blockswarm.client.config import SessionEvent
from blockswarm.proto.errors import NoChainError, SwarmError
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.routing.swarm import BlockRange, ComputeCost, Coordinate, MoveClaim, PeerId, PeerSpec
from support.benchlib import benchlib

placement, churn, guarantee, rest, placed_swarm = map(
    benchlib, ("placement", "churn", "guarantee", "rest", "placed_swarm")
)


class Model:
    """Generates what it is told, or raises it, one after the other; then the client is told to stop."""

    def __init__(self, *results: list[int] | Exception) -> None:
        self.left = list(results)
        self.closed = False
        self.session_factory = SimpleNamespace(close=self.close)
        self.stop: Callable[[], None] = lambda: None

    def close(self) -> None:
        self.closed = True

    def generate(self, *_: Any, **__: Any) -> torch.Tensor:
        result = self.left.pop(0)
        if not self.left:
            self.stop()
        if isinstance(result, Exception):
            raise result
        return torch.tensor([result])


def finished(model: Model) -> Any:
    generating = churn.Generating(lambda note: model)
    model.stop = generating.done.set
    generating.start()
    generating.join(60)
    generating.finish(60)
    return generating


def test_errors_of_the_swarm_and_other_tokens_are_counted() -> None:
    model = Model([1, 2], NoChainError((3,)), [1, 2], [1, 3])
    generating = finished(model)
    assert (generating.generations, generating.failures) == (4, ["no peer serves blocks 3:4", "other tokens"])
    assert model.closed


@pytest.mark.parametrize("error", [ValueError("a defect"), MemoryError("none left")])
def test_any_other_error_ends_the_measurement(error: Exception) -> None:
    """A client that died early has no failures either."""
    model = Model([1, 2], error, [1, 2])
    with pytest.raises(type(error)):
        finished(model)
    assert model.closed


def test_a_client_that_cannot_connect_ends_the_measurement() -> None:
    def load(note: object) -> Any:
        raise SwarmError("nobody is there")

    generating = churn.Generating(load)
    generating.start()
    with pytest.raises(SwarmError):
        generating.finish(60)


def peer(name: Identity) -> Any:
    return placed_swarm.BenchPeer(None, Path(), PeerAddress(name.peer_id, "h:1"))


def test_the_victim_is_the_only_server_of_some_block() -> None:
    first, second = Identity.generate(), Identity.generate()
    peers = [peer(first), peer(second), placed_swarm.BenchPeer(None, Path())]
    hosted = {first.peer_id: BlockRange(0, 3), second.peer_id: BlockRange(2, 4)}
    assert placement.alone_on_a_block(peers, hosted, [1, 1, 2, 2]) is peers[0]
    with pytest.raises(placed_swarm.BenchFailed):
        placement.alone_on_a_block(peers, hosted, [2, 2, 2, 2])


def test_a_token_is_stalled_if_a_cache_has_moved_while_it_was_waited_for() -> None:
    gaps = churn.Gaps()
    for text in range(2):
        gaps.begin()
        gaps.note(SessionEvent("opened"))
        for token in range(5):
            if token == 3:
                gaps.note(SessionEvent("handed-over"))
            gaps.token()
            if text == 1 and token == 3:
                gaps.note(SessionEvent("handed-over"))  # while the reader rests
            gaps.asked()
    assert (len(gaps.stalls), len(gaps.tokens)) == (2, 6)
    assert gaps.events == {"opened": 2, "handed-over": 3}


def test_percentiles_are_in_milliseconds() -> None:
    assert churn.percentiles([number / 1000 for number in range(100, 0, -1)]) == [51.0, 96.0, 100.0]
    assert churn.percentiles([]) is None


def waiting(joined_at: float, began_at: float, estimate: float, peer: str = "a") -> Any:
    session = guarantee.Session(guarantee.REQUEST, joined_at, first_token_at=began_at)
    session.queued.append((peer, 1, estimate, joined_at))
    return session


def test_waits_are_compared_with_the_first_estimate() -> None:
    direct = guarantee.Session(guarantee.REQUEST, 0.0, first_token_at=1.0)
    figures = guarantee.waits_of([direct, waiting(0.0, 5.0, 4.0), waiting(1.0, 12.0, 5.0)])
    assert (figures["sessions"], figures["waited"], figures["within_25_percent"]) == (3, 2, 1)
    assert figures["median_wait_over_estimate"] == pytest.approx((1.0 + 2.0) / 2)


def test_a_session_overtakes_only_those_before_it_in_the_same_queue() -> None:
    sessions = [waiting(0.0, 9.0, 1.0), waiting(1.0, 8.0, 1.0), waiting(2.0, 7.0, 1.0, "b"), waiting(3.0, 10.0, 1.0)]
    assert guarantee.out_of_order(sessions) == 1


def test_a_swarm_at_rest_shows_one_placement_one_coordinate_and_no_claim() -> None:
    ranges, places = [BlockRange(0, 3), BlockRange(3, 6)], [Coordinate((x, 0.0, 0.0), 0.1, 0.2) for x in (0.0, 1.0)]
    moved = MoveClaim(5.0, BlockRange(4, 7))
    watcher = SimpleNamespace(lasting=[1, 2])

    def look(blocks: BlockRange, place: Coordinate, claim: MoveClaim | None) -> None:
        spec = PeerSpec(PeerId("p"), blocks, ComputeCost(0.01), claim=claim, coordinate=place)
        watcher.announced, watcher.placement = lambda: [spec], lambda: {spec.id: spec.blocks}

    seen = rest.Seen()
    for now, blocks, place, claim in [
        (0.0, ranges[0], places[0], None),
        (5.0, ranges[0], places[0], None),
        (10.0, ranges[0], places[1], moved),
        (15.0, ranges[1], places[1], None),
    ]:
        look(blocks, place, claim)
        seen.take(watcher, now)
    assert (len(seen.placements), seen.changed_at, seen.claims, seen.fewest_servers) == (2, 15.0, 1, 1)
    assert seen.coordinates == {PeerId("p"): places}
