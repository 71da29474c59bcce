"""Every peer has its row, from one block on, and a row says what is known and nothing else."""

from __future__ import annotations

from blockswarm.client.dashboard.board.peers import PeerRow, peer_rows, started_at
from blockswarm.proto.network.address import PeerAddress, RelayedAddress
from blockswarm.proto.wire.messages.calls import PingReply
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerState
from support.sightings import FACTS, NOW, known, sighting


def rows_of(*peers: object, **options: object) -> list[PeerRow]:
    return list(peer_rows(FACTS, sighting(peers, **options), {}))  # type: ignore[arg-type]


def test_a_row_says_what_the_peer_announces_and_what_it_answers() -> None:
    claim = MoveClaim(NOW, BlockRange(4, 8))
    status = PingReply(sessions=3, queued=2, steps_answered=7)
    (row,) = rows_of(known("0:4", "ann", status=status, claim=claim, kv_free=4096, cost=0.004))
    assert (row.name, row.blocks, row.state, row.moving_to) == ("ann", (0, 4), "serving", (4, 8))
    assert (row.sessions, row.queued, row.steps_answered) == (3, 2, 7)
    assert (row.kv_tokens_free, row.announced_block_seconds, row.block_seconds) == (4096, 0.004, 0.004)
    assert (row.rtt_seconds, row.relayed, row.started_at) == (0.05, False, NOW - 3600)
    assert row.serves


def test_the_device_and_the_tokens_are_the_peers_words_or_not_said() -> None:
    told, silent, old = known("0:8", device="cpu, 2 threads", tokens=0), known("0:8", device="GPU"), known("0:8")
    rows = {row.peer: row for row in rows_of(told, old, silent=[silent])}
    said = [(rows[each.record.spec.id].device_class, rows[each.record.spec.id].tokens_served) for each in (told, old)]
    assert said == [("cpu, 2 threads", 0), ("", None)]
    assert rows[silent.record.spec.id].device_class == "GPU"


def test_all_are_listed_by_their_first_block_and_those_without_blocks_last() -> None:
    first, last = known("0:1", "first"), known("7:8", "last")
    joining = known(None, "joining", state=PeerState.JOINING)
    silent = known("2:4", "silent")
    rows = rows_of(joining, last, first, silent=[silent])
    assert [row.name for row in rows] == ["first", "silent", "last", "joining"]
    assert [row.state for row in rows] == ["serving", "silent", "serving", "joining"]


def test_of_a_silent_peer_only_its_own_words_are_known() -> None:
    (row,) = rows_of(silent=[known("0:8")])
    assert (row.sessions, row.queued, row.rtt_seconds, row.relayed, row.steps_answered) == (None,) * 5
    assert row.weights == ""
    assert not row.serves


def test_a_peer_with_other_weights_is_doubted_and_serves_nobody() -> None:
    good, bad = known("0:8"), known("0:8", hashes=b"x" * 8)
    rows = {row.peer: row for row in rows_of(good, bad, proven=dict.fromkeys(range(8), b"8" * 8))}
    assert rows[good.record.spec.id].weights == "proven"
    assert rows[bad.record.spec.id].weights == "doubted"
    assert not rows[bad.record.spec.id].serves


def test_what_was_measured_is_shown_instead_of_what_is_claimed() -> None:
    peer = known("0:8", cost=0.001)
    (row,) = peer_rows(FACTS, sighting([peer]), {peer.record.spec.id: 0.5})
    assert (row.announced_block_seconds, row.block_seconds) == (0.001, 0.5)


def test_a_peer_behind_a_relay_is_told_from_others() -> None:
    relay = PeerAddress(known("0:1").record.spec.id, "h:1")
    peer = known("0:8")
    behind = known("0:8", reach=RelayedAddress(peer.record.spec.id, relay))
    assert [row.relayed for row in rows_of(peer)] == [False]
    assert [row.relayed for row in rows_of(behind)] == [True]


def test_the_start_is_read_from_incarnations_that_are_times_only() -> None:
    assert started_at(int((NOW - 60) * 1e9), NOW) == NOW - 60
    assert started_at(1, NOW) is None
    assert started_at(int((NOW + 86400) * 1e9), NOW) is None
    assert started_at(2**64 - 1, NOW) is None
