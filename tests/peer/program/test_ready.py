"""Commands that a peer prints can be pasted, and no name of a folder keeps it from serving."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from blockswarm.peer.program.ready import describe_reach, print_ready
from blockswarm.peer.reach.verdict import UNCHECKED, ReachStatus, ReachVerdict
from blockswarm.peer.serving import ReadyPeer
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.routing.swarm import BlockRange, ComputeCost
from support.benchlib import benchlib
from support.processes import environment

screens = benchlib("screens")

PROGRAM = """
import sys
from blockswarm.peer.cli import reported_errors
from blockswarm.peer.program.ready import print_ready
from blockswarm.peer.reach.verdict import ReachStatus, ReachVerdict
from blockswarm.peer.serving import ReadyPeer
from blockswarm.proto.network.address import PeerAddress
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerId
address = PeerAddress(PeerId("12D3KooWA29sxFFTDw3qgZr3igFR4Cz3XLFKKBWPuJ85BYzMzjiX"), "127.0.0.1:4000")
reached = ReachVerdict(ReachStatus.YES, answers=2)
peer = ReadyPeer(address, reached, BlockRange(0, 4), 8, ComputeCost(1e-3), 100, "ab" * 32, None, "float32", "cpu", 1)
with reported_errors(False):
    print_ready(sys.argv[1], peer)
"""


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_folder_may_be_served(encoding: str) -> None:
    folder = "/home/j\u00f6rg/my models/$HOME; rm"
    program = [sys.executable, "-c", PROGRAM, folder]
    done = subprocess.run(
        program, env=environment() | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.decode(encoding)
    assert "with 1 thread\n" in told
    for line in told.splitlines()[-2:]:
        command = shlex.split(line.partition(":")[2])
        if encoding == "utf-8":
            assert folder in command
        else:
            assert any(word.startswith("/home/j") and word.endswith("rm") for word in command)


def ready_peer(verdict: ReachVerdict) -> ReadyPeer:
    return ReadyPeer(
        PeerAddress(Identity.generate().peer_id, "127.0.0.1:4000"), verdict, BlockRange(0, 4), 8, ComputeCost(1e-3),
        100, "ab" * 32, None, "float32", "cpu", 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "reach", "line"),
    [
        (UNCHECKED, "unchecked", "no other peer has checked"),
        (ReachVerdict(ReachStatus.UNCHECKED, answers=1), "unchecked", "only one other peer has checked"),
        (ReachVerdict(ReachStatus.YES, answers=2), "direct", None),
    ],
)
def test_a_peer_says_how_many_have_checked_its_address(
    verdict: ReachVerdict, reach: str, line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    print_ready("model", ready_peer(verdict))
    told = capsys.readouterr().out
    assert ("has checked" in told) == (line is not None)
    assert line is None or f"\n{line} that this one is reached from outside\n" in told
    assert describe_reach(ready_peer(verdict)) == reach


def test_a_peer_says_that_it_serves_as_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/screens.md, without the progress before."""
    print_ready(screens.MODEL, ready_peer(UNCHECKED))
    told = screens.shown(capsys.readouterr().out, {})
    assert told.startswith("serving blocks 0:4 of 8")
    assert f"\n{told}\n```" in screens.page_part("The first peer of a swarm")


def test_the_commands_have_what_others_need_to_be_of_the_same_swarm(capsys: pytest.CaptureFixture[str]) -> None:
    """Copied as they were, both were refused by a private swarm."""
    peer = ready_peer(ReachVerdict(ReachStatus.YES, answers=2))
    print_ready("model", peer, ("--swarm-key", "my team.key"))
    *_, join, generate = capsys.readouterr().out.splitlines()
    for line, program in ((join, ["swarm-peer"]), (generate, ["swarm-client", "generate"])):
        command = shlex.split(line.partition(":")[2])
        assert command == [*program, "model", "--initial-peers", str(peer.address), "--swarm-key", "my team.key"]


COLLECTOR = """
import gc
import blockswarm.peer.node
from blockswarm.peer.program.ready import settle_memory

class Knot:
    def __init__(self):
        self.self = self

settle_memory()
there = len(gc.get_objects())
assert gc.get_freeze_count() > 10_000 > there, (gc.get_freeze_count(), there)
Knot()
assert gc.collect() > 0, "garbage that comes later is collected"
"""


@pytest.mark.long
def test_what_is_there_when_a_peer_begins_to_serve_is_looked_through_no_more() -> None:
    """In a process of its own, for it cannot be undone."""
    subprocess.run([sys.executable, "-c", COLLECTOR], check=True, timeout=240)
