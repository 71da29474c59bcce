"""The prepared snapshot: what is left out, whose clock counts, and what masks do to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from blockswarm.client.chain.machine.events import HopChoice
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.client.swarm.snapshot import PREPARED_ON_LOOP, CurrentSwarm, PreparedSwarm, on_our_clock, prepare
from blockswarm.client.swarm.weights import WeightTrust
from blockswarm.proto.errors import NoChainError, PeerBusy
from blockswarm.routing.route.budget import Meter, SearchBudget
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    Coordinate,
    KvRelease,
    MoveClaim,
    PeerId,
    PeerSpec,
    PeerState,
    RequestSpec,
)
from blockswarm.routing.trust import Evidence
from support.known_peers import known_peer

WHOLE = BlockRange(0, 4)


def peer(name: str, start: int, stop: int, **fields: object) -> PeerSpec:
    defaults = {"cost": ComputeCost(0.01), "kv_tokens_total": 1000, "kv_tokens_free": 1000}
    return PeerSpec(PeerId(name), BlockRange(start, stop), **{**defaults, **fields})  # type: ignore[arg-type]


def known(*peers: PeerSpec) -> dict[PeerId, KnownPeer]:
    return {spec.id: known_peer(spec) for spec in peers}


def prepared(peers: Mapping[PeerId, KnownPeer]) -> PreparedSwarm:
    return PreparedSwarm.of(peers, 4, True, WeightTrust({}))


def current(
    *peers: PeerSpec, banned: tuple[str, ...] = (), full_until: Mapping[PeerId, float] | None = None
) -> CurrentSwarm:
    return CurrentSwarm(prepared(known(*peers)), 0.0, [PeerId(b) for b in banned], full_until or {}, {}, 1.0, 20.0)


def meter() -> Meter:
    return Meter(SearchBudget(), lambda: 0.0)


def choose(
    view: CurrentSwarm, *excluded: str, blocks: BlockRange = WHOLE, precision: str | None = None
) -> list[tuple[str, BlockRange]]:
    without = frozenset(map(PeerId, excluded))
    choices = view.choose(blocks, without, RequestSpec(10, 10), precision, meter(), settle=True)
    return [(choice.peer, choice.blocks) for choice in choices]


def test_a_peer_that_announces_blocks_beyond_the_model_is_left_out() -> None:
    swarm = prepared(known(peer("a", 0, 4), peer("b", 2, 5)))
    assert [spec.id for spec in swarm.finder.peers] == ["a"]


def test_releases_move_to_this_clock_and_nothing_else_of_a_peer_changes() -> None:
    spec = peer("a", 0, 4, releases=(KvRelease(100.0, 5), KvRelease(130.0, 6)))
    ours = on_our_clock(spec, 25.0)
    assert ours.releases == (KvRelease(75.0, 5), KvRelease(105.0, 6))
    assert replace(ours, releases=spec.releases) == spec


def test_round_trips_between_peers_come_from_coordinates_where_both_have_them() -> None:
    """Else the larger of the two to this client: the way is neither shorter than their difference nor above the sum."""
    here, there = Coordinate((0.0, 0.0), 0.01), Coordinate((0.3, 0.4), 0.02)
    seen = known(peer("a", 0, 4, coordinate=here), peer("b", 0, 4, coordinate=there), peer("c", 0, 4))
    for name, seconds in {"a": 0.3, "b": 0.3, "c": 0.37}.items():
        seen[PeerId(name)] = replace(seen[PeerId(name)], rtt_seconds=seconds)
    a, b, c = seen
    rtts = prepared(seen).rtts
    assert rtts(a, b) == pytest.approx(here.rtt_seconds(there))
    assert (rtts(a, c), rtts(c, b)) == (0.37, 0.37)


def test_excluded_and_banned_peers_are_not_chosen() -> None:
    view = current(peer("a", 0, 4), peer("b", 0, 4), peer("c", 0, 4), banned=("b",))
    assert choose(view, "a") == [("c", WHOLE)]
    with pytest.raises(NoChainError) as caught:
        choose(view, "a", "c")
    assert caught.value.missing_blocks == (0, 1, 2, 3)


def test_only_allowed_peers_are_chosen_and_others_are_told_of() -> None:
    peers = known(peer("a", 0, 2), peer("b", 2, 4), peer("c", 0, 4, cost=ComputeCost(0.001)))
    allowed = frozenset({PeerId("a"), PeerId("b"), PeerId("gone")})
    swarm = PreparedSwarm.of(peers, 4, True, WeightTrust({}), allowed)
    view = CurrentSwarm(swarm, 0.0, [], {}, {}, 1.0, 20.0)
    assert [name for name, _ in choose(view)] == ["a", "b"]
    with pytest.raises(NoChainError, match=r"may use serves blocks 2:4; 1 others are known"):
        choose(view, "b")


def test_blocks_that_a_peer_is_about_to_drop_are_left_to_those_that_keep_them() -> None:
    """Unless none of these may be used: the old host can be the only one that is left."""
    mover = peer("a", 0, 3, claim=MoveClaim(100.0, BlockRange(0, 2)), issued_seconds=125.0)
    stayer = peer("b", 2, 4, cost=ComputeCost(0.5))
    assert choose(current(mover, stayer)) == [("a", BlockRange(0, 2)), ("b", BlockRange(2, 4))]
    alone = current(mover, stayer, banned=("b",))
    assert choose(alone, blocks=BlockRange(0, 3)) == [("a", BlockRange(0, 3))]
    assert choose(current(mover, stayer), "b", blocks=BlockRange(0, 3)) == [("a", BlockRange(0, 3))]
    coarse = current(replace(mover, numeric_format="float32"), replace(stayer, numeric_format="int8"))
    assert choose(coarse, blocks=BlockRange(0, 3), precision="float32") == [("a", BlockRange(0, 3))]
    goer = replace(mover, claim=MoveClaim(100.0, BlockRange(4, 8)))
    assert choose(current(goer, peer("c", 0, 4, cost=ComputeCost(0.5)))) == [("c", WHOLE)]


def test_every_gap_is_filled_by_peers_that_are_not_in_the_chain_yet() -> None:
    view = current(peer("a", 0, 1), peer("b", 1, 3), peer("c", 1, 4), peer("d", 3, 4))
    kept = ((PeerId("c"), BlockRange(1, 2)),)
    choices = view.fill(kept, frozenset(), RequestSpec(10, 10), None, meter(), settle=True)
    assert [(choice.peer, choice.blocks) for choice in choices] == [
        ("a", BlockRange(0, 1)),
        ("b", BlockRange(2, 3)),
        ("d", BlockRange(3, 4)),
    ]


def test_a_search_that_found_nothing_in_time_is_no_proof_that_there_is_no_chain() -> None:
    """A session then waits and asks again, as it does where room is wanting."""
    stopped = meter()
    stopped.stop()
    with pytest.raises(PeerBusy, match="found in the time") as caught:
        current(peer("a", 0, 4)).choose(WHOLE, frozenset(), RequestSpec(10, 10), None, stopped, settle=True)
    assert caught.value.retry_after_seconds == 1.0


class Noting(dict[PeerId, KnownPeer]):
    """Known peers that note in which thread they are read."""

    def items(self) -> Any:
        self.read_in = threading.current_thread()
        return super().items()


def test_a_draining_peer_is_chosen_only_where_no_other_usable_one_serves() -> None:
    leaver, first = peer("a", 0, 4, state=PeerState.DRAINING), peer("b", 0, 2)
    assert choose(current(leaver)) == [("a", WHOLE)]
    assert choose(current(leaver, first)) == [("b", BlockRange(0, 2)), ("a", BlockRange(2, 4))]
    successor = peer("c", 2, 4)
    assert choose(current(leaver, first, successor)) == [("b", BlockRange(0, 2)), ("c", BlockRange(2, 4))]
    banned = current(leaver, first, successor, banned=("c",))
    assert choose(banned) == [("b", BlockRange(0, 2)), ("a", BlockRange(2, 4))]
    with pytest.raises(NoChainError):
        choose(current(peer("a", 0, 4, state=PeerState.LEAVING)))


@pytest.mark.parametrize(("count", "beside"), [(PREPARED_ON_LOOP, False), (PREPARED_ON_LOOP + 1, True)])
def test_a_large_snapshot_is_prepared_beside_the_loop(count: int, beside: bool) -> None:
    peers = Noting(known(*(peer(f"p{number:03d}", 0, 4) for number in range(count))))
    assert len(asyncio.run(prepare(peers, 4, True, WeightTrust({}))).finder.peers) == count
    assert (peers.read_in is not threading.current_thread()) == beside


def test_a_choice_carries_what_is_needed_to_open_the_session() -> None:
    view = current(peer("a", 0, 4, kv_tokens_free=0, releases=(KvRelease(5.0, 1000),), numeric_format="int8"))
    (choice,) = view.choose(WHOLE, frozenset(), RequestSpec(10, 10), None, meter(), settle=True)
    seen = view.prepared.known[PeerId("a")]
    assert choice == HopChoice(seen.address, WHOLE, seen.encoded, 5.0, "int8", Evidence.UNOPPOSED, 0.0)
