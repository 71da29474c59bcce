"""The times that docs/protocol.md names are those of the code, and each of them is compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blockswarm.client.timing import ChainTiming
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.hivemind.daemon import HivemindTiming
from blockswarm.proto.directory.shards import OVERLAP_ANNOUNCEMENTS
from blockswarm.proto.wire import timing as wire
from blockswarm.routing.coordinates import MAX_PLACE
from blockswarm.routing.timing import CLIENT_CELL_SECONDS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"
PROSE = " ".join(PAGE.read_text(encoding="utf-8").partition("<!-- The table:")[0].split())

UNITS = {"ms": 0.001, "s": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
TIME = r"(\d+(?:\.\d+)?) (ms|s|minute|hour|day)s?\b"
NUMBERS = "a|an|one|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|last"
SPELLED_OUT = rf"(?<!records )\b(?:{NUMBERS}) (?:second|minute|hour|day)s?\b"

CHAIN, PEER, DHT = ChainTiming(), PeerTiming(), HivemindTiming()

TIMES = [
    # The directory.
    ("A name is resolved once for a connection, for at most TIME", wire.RESOLVE_SECONDS),
    ("open sessions on average over TIME", PEER.admission.concurrency_seconds),
    ("and lives for TIME", wire.RECORD_LIFETIME_SECONDS),
    ("nobody accepts one that claims more than TIME", wire.MAX_RECORD_LIFETIME_SECONDS),
    ("it is renewed about every TIME", wire.RECORD_REFRESH_SECONDS),
    ("its position (`place`, in cells of TIME", CLIENT_CELL_SECONDS),
    ("what it has seen in the last TIME counts", wire.RECORD_LIFETIME_SECONDS),
    (f"for {OVERLAP_ANNOUNCEMENTS} announcements more (TIME", OVERLAP_ANNOUNCEMENTS * wire.RECORD_REFRESH_SECONDS),
    ("Looks are paced at 10 KB/s on average, with at least one every TIME", DHT.longest_rest_seconds),
    ("Which nodes keep a shard is remembered for TIME", DHT.keepers_seconds),
    ("one that lacks what the other has is asked last for TIME", DHT.distrust_seconds),
    ("where it is (`place`), in cells of TIME", CLIENT_CELL_SECONDS),
    ("centroids of the places of its clients of the last TIME", PEER.client_memory_seconds),
    ("One of other dimensions, or farther out than TIME", MAX_PLACE),
    # Relays, and being dialled back.
    ("the peer opens `Accept` with the token, within TIME", wire.RELAY_ACCEPT_SECONDS),
    ("It ends a connection on which nothing came for TIME", wire.RELAY_IDLE_SECONDS),
    ("the connection that runs inside is pinged every TIME", wire.KEEPALIVE_SECONDS),
    ("once it has pinged itself through it, and repeats that every TIME", PEER.relay_proof_seconds),
    ("It does so once in TIME for a network", PEER.reach_pause_seconds),
    # Identity, rights, and the opening.
    ("it carries a time, which may be off by TIME", wire.HELLO_CLOCK_SKEW_SECONDS),
    ("expiry (TIME for the client here", CHAIN.capability_seconds),
    ("for the client here, at most TIME", wire.MAX_CAPABILITY_SECONDS),
    ("a session that computes nothing for TIME", PEER.idle_seconds),
    ("has not computed its first step after TIME", PEER.unused_room_seconds),
    ("or after TIME if its steps come from a predecessor", PEER.unfed_room_seconds),
    ("with several sessions loses those that compute nothing for TIME", PEER.unused_room_seconds),
    ("A client or successor that takes no frame for TIME", PEER.write_seconds),
    ("A stream has TIME to say what it wants", PEER.handshake_seconds),
    ("(the two are set up side by side; at most TIME", PEER.handshake_seconds),
    # Deadlines.
    ("observed: TIME plus 6 times the prediction", CHAIN.late_seconds),
    ("A peer that does not answer within TIME has failed", CHAIN.probe_seconds),
    # Waiting for room.
    ("for at most `wait_seconds` (TIME", PEER.max_wait_seconds),
    ("when its place changes (at most once in TIME", PEER.news_seconds),
    ("A peer remembers a session that left for TIME", wire.RANK_MEMORY_SECONDS),
    ("is a lease: after TIME it gives all of it back", CHAIN.lease_seconds),
    ("all in all for TIME (`SessionConfig.patience_seconds`)", CHAIN.patience_seconds),
    # Handing over.
    ("is about to take them it stays, for TIME", PEER.replaced_seconds),
    ("once that has stood for a refresh (TIME", wire.RECORD_REFRESH_SECONDS),
    ("A part is as large as moves in about TIME", CHAIN.part_seconds),
    ("when less than 16 KiB of it have moved within TIME", PEER.transfer_silence_seconds),
    ("since it could move, or after TIME", PEER.transfer_hold_seconds),
    ("where the copy takes longer than TIME", CHAIN.handover_seconds),
    ("where the last part takes longer than TIME", CHAIN.last_part_seconds),
    ("or has waited for TIME in all for the new peer", CHAIN.passing_seconds),
]
"""Each time by the words around it, with TIME in its place, and its value in the code."""


def place_of(phrase: str) -> re.Match[str]:
    found = list(re.finditer(re.escape(phrase).replace("TIME", TIME), PROSE))
    assert len(found) == 1, f"the page says {len(found)} times: {phrase}"
    return found[0]


@pytest.mark.parametrize(("phrase", "seconds"), TIMES, ids=[phrase for phrase, _ in TIMES])
def test_a_time_is_that_of_the_code(phrase: str, seconds: float) -> None:
    number, unit = place_of(phrase).groups()
    assert float(number) * UNITS[unit] == pytest.approx(seconds)


def test_every_time_is_compared() -> None:
    compared = {place_of(phrase).start(1) for phrase, _ in TIMES}
    others = [found for found in re.finditer(TIME, PROSE) if found.start() not in compared]
    assert not [PROSE[max(0, found.start() - 60) : found.end()] for found in others], "add them to TIMES"


def test_times_are_written_in_digits() -> None:
    """Otherwise the tests above do not see them."""
    assert not [PROSE[max(0, found.start() - 60) : found.end()] for found in re.finditer(SPELLED_OUT, PROSE)]


def test_the_numbers_of_a_step_s_deadline_are_those_of_the_code() -> None:
    assert f"plus {CHAIN.late_factor:g} times the prediction, times the slowness" in PROSE
    assert f"The step carries {CHAIN.deadline_factor:g} times that as its deadline" in PROSE
    assert CHAIN.late_chances == 4
    assert "A peer that answers probes but makes no progress with the step is given up at the fourth time" in PROSE
