"""The faults that are played, as a table: what is done to what, what has to come of it, what a log has to say."""

from __future__ import annotations

import os
import random
import signal

from . import acts, joining
from .joining import odd
from .play import NEW_TOKENS, Case, Moment
from .world import PLAIN, Spec

GONE = "no answer from peer"
"""A peer's log, once the record of another one is overdue: about a minute after its end."""
REASON = "^swarm-peer: "
"""The last line of a peer that cannot start."""
SAID_OF = {("first", "shape"): "in the steps that peer", ("first", "nan"): "session refused or ended"}
"""By place and lie, what the log of the next peer says. The answers of the last peer are seen by the client only."""

RELAYED = (Spec("0:4", ("--relay",)), Spec("0:4", ("--relay",)), Spec("4:8", hidden=True))


def peers_with(kind: str, blocks: str = "4:8") -> tuple[Spec, ...]:
    """The usual peers, of which one of these blocks is odd."""
    plain = list(PLAIN)
    plain.remove(Spec(blocks))
    return *plain, odd(kind, blocks)


PROCESSES = (
    Case("no fault", lambda moment: None, short=True),
    Case("kill -9 of the used peer", acts.kill, short=True, log=GONE),
    Case("SIGSTOP of the used peer", acts.freeze, short=True),
    Case("SIGSTOP of both used peers", acts.freeze_both),
    Case("SIGSTOP of the used peer for 60 s", acts.freeze_for(60), after=acts.back_when_over),
    Case("used peer ten times slower", acts.tenth_of_the_time),
    Case(
        "p2pd of the used peer killed",
        acts.kill_daemon,
        after=acts.daemon_is_new,
        log="the DHT daemon ended",
    ),
    Case(
        "p2pd of the used peer stopped",
        acts.freeze_daemon,
        after=acts.daemon_is_new,
        log="the DHT daemon does not answer",
    ),
    Case(
        "first node killed and started again",
        acts.kill_first,
        setting=acts.remembered,
        after=acts.first_is_started_again,
    ),
    Case("three at once: kill -9, SIGSTOP, resets", acts.three_at_once),
)

LINES = (
    Case("half-open line to the used peer", acts.half_open, short=True),
    Case("dead connection to the only peer of its blocks", acts.last_connection),
    Case("used peer's network away for good", acts.unplug),
    Case("used peer's network away for 10 s", acts.peer_away(10)),
    Case(
        "used peer's network away for 120 s",
        acts.peer_away(120),
        after=acts.back_when_over,
        log="no other node of the DHT answers",
    ),
    Case("two neighbours parted", acts.partition, short=True),
    Case("all of the client's connections reset", acts.reset_all),
    Case("client's network away for 5 s", acts.client_away(5), short=True),
    Case("client's network away for 20 s", acts.client_away(20)),
    Case("client's network away for 60 s", acts.client_away(60), error=True),
    Case("used peer answers 1.2 s late each time", acts.answers(delay_seconds=1.2)),
    Case("used peer answers 0.1 s late each time", acts.answers(delay_seconds=0.1)),
    Case("slow drip: 20 bytes/s from the used peer", acts.answers(bytes_per_second=20)),
    Case("a bit flipped in all that the used peer says", acts.answers(flip=True)),
)

LIES = tuple(
    Case(
        f"used {where} peer {what}",
        acts.begin_oddity,
        peers=peers_with(kind, blocks),
        setting=acts.odd_is_near,
        log=SAID_OF.get((where, kind), ""),
    )
    for kind, what in (
        ("shape", "sends wrong shapes"),
        ("nan", "sends NaN in the middle"),
        ("old", "answers with steps of another session"),
    )
    for where, blocks in (("first", "0:4"), ("last", "4:8"))
)

CLOCKS = (
    Case(
        "a peer whose clock is 60 s ahead joins",
        joining.join_with_a_wrong_clock,
        after=joining.is_refused,
        log=REASON,
    ),
    Case(
        "used peer's clock set 60 s ahead",
        acts.begin_oddity,
        peers=peers_with("set-clock 60"),
        setting=acts.odd_is_near,
        after=acts.stays_seen(70),
        log="clock is .* (ahead|behind)|clock was set",
    ),
    Case(
        "used peer's clock set back an hour",
        acts.begin_oddity,
        peers=peers_with("set-clock -3600"),
        setting=acts.odd_is_near,
        after=acts.stays_seen(70),
        log="clock is .* (ahead|behind)|clock was set",
    ),
)

JOINING = (
    Case(
        "disk full while a peer loads",
        joining.join_with_a_full_disk,
        after=joining.is_refused,
        log=REASON,
    ),
    Case(
        "a peer with damaged files joins",
        joining.join_with_a_damaged_folder,
        after=joining.is_refused,
        log=REASON,
    ),
    Case(
        "kill -9 beside a peer with damaged weights",
        acts.kill,
        setting=joining.damaged_peer,
        log="announces other weights",
    ),
    Case(
        "only a peer with damaged weights is left",
        joining.kill_all_but_the_damaged,
        setting=joining.damaged_peer,
        error=True,
        after=joining.as_before,
        log="announces other weights",
    ),
    Case(
        "relay of the used peer killed",
        acts.kill_relay,
        peers=RELAYED,
        setting=acts.two_relays,
        log="this peer is not reached through relay",
    ),
    Case(
        "a peer that moves is killed while it loads",
        joining.kill_mover,
        peers=joining.movers(60),
        setting=joining.mover_is_near,
        begin=joining.have_it_move,
        after=joining.as_before,
    ),
    Case(
        "a peer that moves is killed before it lets go",
        joining.kill_mover_when_it_has_moved,
        peers=joining.movers(5),
        setting=joining.mover_is_near,
        begin=joining.have_it_move,
        after=joining.as_before,
    ),
)

CASES = PROCESSES + LINES + LIES + CLOCKS + JOINING


def random_kills(count: int, rng: random.Random) -> list[Case]:
    """`kill -9` of a random used peer after a random number of tokens, at a random moment of the step after that.

    The text is to be there still where a busy machine plays it some steps late.
    """
    cases = []
    for number in range(count):
        at, hop, into_step = rng.randrange(1, NEW_TOKENS - 20), rng.randrange(2), rng.random()

        def act(moment: Moment, hop: int = hop) -> None:
            os.killpg(moment.chain[hop % len(moment.chain)].pid, signal.SIGKILL)

        name = f"kill {number + 1}: used peer {hop + 1} after {at + into_step:.2f} tokens"
        cases.append(Case(name, act, at=at, into_step=into_step, alone=True))
    return cases
