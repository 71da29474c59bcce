"""A machine that may join is planned by the rule that peers follow, and its command is safe to paste."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from blockswarm.client.dashboard.board.join import CANDIDATE, GIB, JoinBoard, JoinQuery, join_board, join_command
from blockswarm.client.dashboard.board.placement import planning_of
from blockswarm.client.swarm.known import KnownPeer
from blockswarm.proto.errors import UsageError
from blockswarm.routing.swarm import PeerState
from support.sightings import FACTS, known, sighting

BLOCK = 2.0**20


def peer(blocks: str | None, **spec: Any) -> KnownPeer:
    return known(blocks, block_bytes=BLOCK, kv_bytes_per_token=64.0, **spec)


def asked(*peers: KnownPeer, **fields: str) -> JoinBoard:
    seen = sighting(peers)
    return join_board(seen, planning_of(FACTS, seen), JoinQuery.parse(fields), "m", ())


def test_a_machine_takes_the_blocks_that_nobody_serves() -> None:
    board = asked(peer("0:5"), peer("0:5"), memory="1")
    assert board.blocks is not None
    assert set(range(5, 8)) <= set(range(*board.blocks))
    assert board.weights_bytes == (board.blocks[1] - board.blocks[0]) * BLOCK
    assert board.memory_bytes == pytest.approx(0.85 * GIB)
    assert (board.now.token_seconds, board.then.token_seconds is not None) == (None, True)


def test_a_machine_that_is_too_small_is_told() -> None:
    board = asked(peer("0:8"), memory="0.0001")
    assert (board.blocks, board.reason) == (None, "not even one block fits")


def test_nothing_is_planned_before_it_is_asked() -> None:
    board = asked(peer("0:8"))
    assert (board.memory_bytes, board.now, board.formats) == (None, None, ("float32",))
    empty = join_board(None, None, JoinQuery(1.0), "m", ())
    assert (empty.formats, empty.memory_bytes) == ((), None)


def test_formats_and_paces_are_those_of_peers() -> None:
    peers = [peer("0:8", numeric_format="int8", cost=0.01), peer("0:8", cost=0.001), peer("0:8", cost=0.002)]
    board = asked(*peers, memory="1", format="int8", pace="fast")
    assert board.formats == ("float32", "int8")
    for pace in ("fast", "slow", "median"):
        assert asked(*peers, memory="1", pace=pace).now is not None
    assert "in that format" in asked(*peers, memory="1", format="nf4").reason


@pytest.mark.parametrize(
    "fields",
    [{"memory": "x"}, {"memory": "-1"}, {"memory": "nan"}, {"memory": "inf"}, {"memory": "1e9"}, {"pace": "x"}],
)
def test_values_that_say_nothing_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        JoinQuery.parse(fields)


@pytest.mark.parametrize("name", ["a b", "$(reboot)", "x; rm -rf /", "it's", "`id`", '"', "\\"])
def test_the_command_is_one_command_whatever_the_model_is_called(name: str) -> None:
    assert shlex.split(join_command(name, ())) == ["swarm-peer", name, "--initial-peers", "ID@HOST:PORT"]
    assert shlex.split(join_command(name, (), ("--swarm-key", "KEY_FILE")))[-2:] == ["--swarm-key", "KEY_FILE"]
    assert shlex.split(join_command(name, ("a@h:1", "b@h:2")))[2:] == [
        "--initial-peers",
        "a@h:1",
        "--initial-peers",
        "b@h:2",
    ]


def test_the_candidate_is_nobody_and_comes_last() -> None:
    assert max(known("0:1").record.spec.id for _ in range(20)) < CANDIDATE
    waiting = [peer(None, state=PeerState.JOINING, memory_bytes=8 * BLOCK) for _ in range(2)]
    assert asked(peer("0:2"), *waiting, memory="0.01").now is not None
