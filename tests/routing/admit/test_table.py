"""Which sessions get room on a peer, wait, in which order, or are refused: the table and its queue, in virtual time."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from blockswarm.routing.admit.queue import MAX_REMEMBERED, AdmissionQueue, Ticket
from blockswarm.routing.admit.table import AlreadyOpen, NeverFits, NoRoomNow, Reservation, SessionTable
from blockswarm.routing.swarm import PeerId
from blockswarm.routing.timing import MAX_FORECAST_SECONDS, RANK_MEMORY_SECONDS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

TOTAL, MAX_SESSIONS, MAX_WAITING, PER_CLIENT = 100, 4, 9, 4


def reservation(session: int, kv_tokens: int, num_blocks: int = 2, client: str = "me") -> Reservation:
    return Reservation(session.to_bytes(16, "big"), PeerId(client), kv_tokens, num_blocks)


def test_what_can_never_fit_is_refused_at_once_and_what_is_open_is_open_once() -> None:
    table = SessionTable(100)
    for take in (table.admit, table.join):
        with pytest.raises(NeverFits):
            take(reservation(1, 51), 0.0)
    table.admit(reservation(1, 10), 0.0)
    for take in (table.admit, table.join):
        with pytest.raises(AlreadyOpen):
            take(reservation(1, 10), 0.0)


def test_nobody_overtakes_the_head() -> None:
    """A small session that would fit waits behind a large one that does not, and is refused if it cannot wait."""
    table = SessionTable(100)
    table.admit(reservation(1, 30), 0.0)
    assert not table.join(reservation(2, 40, client="large"), 1.0)
    with pytest.raises(NoRoomNow):
        table.admit(reservation(3, 1, client="small"), 2.0)
    assert not table.join(reservation(3, 1, client="small"), 2.0)
    assert table.kv_token_blocks_open == 0
    assert table.release(reservation(1, 30).session_id, 3.0) == (
        reservation(2, 40).session_id,
        reservation(3, 1).session_id,
    )


def test_eight_hours_of_tiny_sessions_do_not_put_the_future_out_of_reach() -> None:
    """A session of one token that lasts half an hour says that a token does; a record has no dates as late as that."""
    table, now = SessionTable(10**9, max_sessions=1), 1.7e9
    for session in range(16):
        table.admit(reservation(session, 1, 1), now)
        now += 1800.0
        table.release(reservation(session, 1).session_id, now)
    table.admit(reservation(100, 10**9, 1), now)
    for session in range(101, 150):
        table.join(reservation(session, 10**9, 1, client=str(session)), now)
    moments = [release.at_seconds for release in table.releases(now)]
    assert moments == sorted(moments)
    assert moments[-1] == now + MAX_FORECAST_SECONDS


def test_leaving_the_head_lets_the_others_go_on() -> None:
    table = SessionTable(100)
    table.admit(reservation(1, 30), 0.0)
    table.join(reservation(2, 40, client="large"), 1.0)
    table.join(reservation(3, 1, client="small"), 2.0)
    assert table.leave(reservation(2, 40).session_id, 3.0) == (reservation(3, 1).session_id,)


def test_clients_take_turns() -> None:
    """Ten sessions of one client do not hold back the one of another that comes after them."""
    queue = AdmissionQueue()
    for number in range(10):
        queue.join(PeerId("many"), b"m%d" % number, 0.0)
    queue.join(PeerId("one"), b"one", 1.0)
    assert [ticket.session_id for ticket in queue][:3] == [b"m0", b"one", b"m1"]
    for _ in range(5):
        queue.admit_head()
    queue.join(PeerId("late"), b"late", 2.0)
    assert queue.head.session_id == b"m4"
    assert [ticket.session_id for ticket in queue].index(b"late") == 1


def test_a_client_s_second_session_is_passed_once_by_each_other_client() -> None:
    """Also by one that comes again as soon as its last session was admitted: rounds that were served take nobody."""
    queue = AdmissionQueue()
    for name in ("a1", "a2"):
        queue.join(PeerId("a"), name.encode(), 0.0)
    order = []
    for number in range(3):
        mine = queue.join(PeerId("b"), b"b%d" % number, 1.0 + number)
        while mine in queue:
            order.append(queue.admit_head().session_id)
    assert order == [b"a1", b"b0", b"a2", b"b1", b"b2"]


def test_a_session_that_comes_again_has_its_rank_until_it_is_forgotten() -> None:
    queue = AdmissionQueue()
    for name in "abc":
        queue.join(PeerId(name), name.encode(), 0.0)
    queue.leave(queue.head, 1.0)
    assert queue.join(PeerId("a"), b"a", 1.0 + RANK_MEMORY_SECONDS - 1) == queue.head
    queue.leave(queue.head, 300.0)
    queue.join(PeerId("a"), b"a", 300.0 + RANK_MEMORY_SECONDS)
    assert [ticket.session_id for ticket in queue] == [b"b", b"c", b"a"]


def test_leaving_and_coming_with_others_gathers_no_early_ranks() -> None:
    queue = AdmissionQueue()
    tickets = []
    for number in range(5):
        tickets.append(queue.join(PeerId("sly"), b"s%d" % number, 0.0))
        queue.leave(tickets[-1], 0.0)
    queue.join(PeerId("honest"), b"honest", 1.0)
    for number in range(5):
        queue.join(PeerId("sly"), b"s%d" % number, 2.0)
    assert [ticket.session_id for ticket in queue][:3] == [b"s0", b"honest", b"s1"]


def test_room_taken_and_not_used_costs_a_round() -> None:
    """Else one client could take the room for the time of a lease, again and again, before everybody who waits."""
    table = SessionTable(100)
    table.join(reservation(1, 50, client="a"), 0.0)
    table.join(reservation(2, 50, client="b"), 1.0)
    table.join(reservation(3, 50, client="c"), 2.0)
    assert table.release(reservation(1, 50).session_id, 3.0) == (reservation(2, 50).session_id,)
    table.join(reservation(1, 50, client="a"), 4.0)
    table.join(reservation(4, 50, client="d"), 5.0)
    assert list(table.places()) == [reservation(n, 50).session_id for n in (3, 1, 4)], "its arrival still counts"


def test_ranks_are_remembered_within_bounds() -> None:
    queue = AdmissionQueue()
    for number in range(2 * MAX_REMEMBERED):
        client = PeerId(f"c{number % 1000}")
        queue.leave(queue.join(client, number.to_bytes(8, "big"), 0.0), 0.0)
    assert queue.num_ranks() == MAX_REMEMBERED
    few = AdmissionQueue(max_per_client=3)
    for number in range(50):
        few.leave(few.join(PeerId("c"), number.to_bytes(8, "big"), 0.0), 0.0)
    assert few.num_ranks(PeerId("c")) == few.num_ranks() == 3


def test_a_session_that_got_room_at_once_counts_no_longer_as_waiting() -> None:
    """Its client's next session would wait one round longer for it, and later sessions of others would pass it."""
    table = SessionTable(100, client_share=1.0)
    first = reservation(0, 5, client="c")
    table.join(first, 0.0)
    table.release(first.session_id, 1.0)  # unused: its rank is remembered
    table.admit(first, 2.0)
    table.admit(reservation(1, 40, client="b"), 3.0)
    for number, client in enumerate("ca", start=2):
        table.join(reservation(number, 25, client=client), float(number))
    assert list(table.places()) == [reservation(2, 25).session_id, reservation(3, 25).session_id]


@dataclass
class Visitor:
    """A session of the machine's, and what the rules promise it."""

    reservation: Reservation
    number: int
    """Its number at its first joining."""
    deadline: float
    ahead: int
    """Sessions of its own client that were waiting or remembered when it joined first."""
    passed_by: dict[PeerId, set[bytes]] = field(default_factory=dict)
    """Later sessions of other clients that were admitted before it, by client."""
    waited_for: Counter[PeerId] = field(default_factory=Counter)
    """Sessions of other clients that came only once and were admitted while it waited."""


class AdmissionMachine(RuleBasedStateMachine):
    """Random clients come, wait, leave, use room or not, come again; every promise is checked by other means."""

    SHARE = 1.0

    @initialize()
    def begin(self) -> None:
        self.queue = AdmissionQueue(MAX_WAITING, PER_CLIENT)
        self.table = SessionTable(TOTAL, MAX_SESSIONS, queue=self.queue, client_share=self.SHARE)
        self.now = 1000.0
        self.numbers = itertools.count()
        self.first: dict[bytes, tuple[int, int]] = {}
        """Number of the first joining and own sessions ahead then."""
        self.rounds: dict[PeerId, dict[bytes, float | None]] = {}
        """Each client's sessions with a round of their own, in the order of rounds: None while one waits, else when it
        left the queue; -inf once it is forgotten, but a later one of its client is not."""
        self.by_queue: set[bytes] = set()
        """Sessions that hold room for which they had joined the queue."""
        self.held: dict[bytes, Reservation] = {}
        self.used: set[bytes] = set()
        self.waiting: dict[bytes, Visitor] = {}
        self.gone: list[Reservation] = []
        self.came_again: set[bytes] = set()

    @rule(client=st.sampled_from("abcde"), tokens=st.integers(1, 60), blocks=st.integers(1, 2), waits=st.booleans())
    def come(self, client: str, tokens: int, blocks: int, waits: bool) -> None:
        self.enter(reservation(next(self.numbers), tokens, blocks, client), waits)

    @precondition(lambda self: self.gone)
    @rule(index=st.integers(0, 100), waits=st.booleans())
    def come_again(self, index: int, waits: bool) -> None:
        asked = self.gone.pop(index % len(self.gone))
        self.came_again.add(asked.session_id)
        self.enter(asked, waits)

    def enter(self, asked: Reservation, waits: bool) -> None:
        need = asked.room
        fits = need <= self.free() and len(self.held) < MAX_SESSIONS
        own = sum(visitor.reservation.client == asked.client for visitor in self.waiting.values())
        admitted = False
        try:
            if waits:
                admitted = self.table.join(asked, self.now)
                self.note_arrival(asked)
            else:
                self.table.admit(asked, self.now)
                admitted = True
        except NeverFits:
            assert need > TOTAL
            return
        except NoRoomNow as error:
            assert error.retry_after_seconds >= 1  # noqa: PT017
            if waits:
                assert len(self.waiting) >= MAX_WAITING or own >= PER_CLIENT
            else:
                assert self.waiting or not fits
            return
        if admitted:
            assert fits
            if not waits:
                assert not self.waiting, "somebody was overtaken"
            self.admit((asked.session_id,), asked, waits)
        else:
            number, ahead = self.first[asked.session_id]
            self.waiting[asked.session_id] = Visitor(asked, number, self.now + 40, ahead)

    def note_arrival(self, asked: Reservation) -> None:
        rounds = self.rounds.setdefault(asked.client, {})
        self.forget()
        if rounds.get(asked.session_id, -math.inf) == -math.inf:
            rounds.pop(asked.session_id, None)
            self.first[asked.session_id] = next(self.numbers), len(rounds)
        rounds[asked.session_id] = None

    def note_departure(self, asked: Reservation) -> None:
        """It keeps its round; one that has none any more takes its client's next."""
        rounds = self.rounds.setdefault(asked.client, {})
        self.forget()
        if asked.session_id not in rounds:
            # Those who are left of the round that is being served go first, though they came later.
            self.first[asked.session_id] = self.first[asked.session_id][0], len(rounds) + 1
        rounds[asked.session_id] = self.now
        remembered = [s for s, left in rounds.items() if left is not None and left > -math.inf]
        if len(remembered) > PER_CLIENT:
            rounds[remembered[0]] = -math.inf
        self.forget()

    def forget(self) -> None:
        """Ranks that are too old. A round stays taken for as long as its client has a later one."""
        for rounds in self.rounds.values():
            for session, left in rounds.items():
                if left is not None and left + RANK_MEMORY_SECONDS <= self.now:
                    rounds[session] = -math.inf
            while rounds and next(reversed(rounds.values())) == -math.inf:
                rounds.popitem()

    def free(self) -> int:
        return TOTAL - sum(asked.room for asked in self.held.values())

    def admit(self, sessions: tuple[bytes, ...], arrived: Reservation | None = None, queued: bool = True) -> None:
        for session in sessions:
            asked = arrived or self.waiting.pop(session).reservation
            if queued:
                del self.rounds[asked.client][session]
                self.by_queue.add(session)
            else:
                self.by_queue.discard(session)
                if session in self.rounds.get(asked.client, {}):
                    self.rounds[asked.client][session] = -math.inf
            self.forget()
            self.check_turn(asked, arrived)
            self.held[session] = asked
            self.check_promises(session, asked)

    def check_promises(self, session: bytes, asked: Reservation) -> None:
        number = self.first.get(session, (None, 0))[0]
        for visitor in self.waiting.values():
            if visitor.reservation.client != asked.client and (number is None or number > visitor.number):
                passed = visitor.passed_by.setdefault(asked.client, set())
                passed.add(session)
                assert len(passed) <= visitor.ahead, "more passed than the rules allow"
            if visitor.reservation.client != asked.client and session not in self.came_again:
                visitor.waited_for[asked.client] += 1
                # One in each round up to its own, and one that was left of the round served when it came.
                assert visitor.waited_for[asked.client] <= visitor.ahead + 2, "one client holds back another"

    def check_turn(self, asked: Reservation, arrived: Reservation | None) -> None:
        """Nothing more is promised where nobody has a share."""

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 100), use=st.booleans())
    def end(self, index: int, use: bool) -> None:
        session = list(self.held)[index % len(self.held)]
        if use:
            self.table.note_step(session, 1, 1, self.now)
        asked = self.held.pop(session)
        self.admit(self.table.release(session, self.now))
        if not use:
            self.gone.append(asked)
            if session in self.by_queue:
                self.note_departure(asked)

    @precondition(lambda self: self.waiting)
    @rule(index=st.integers(0, 100))
    def leave(self, index: int) -> None:
        self.give_up(list(self.waiting)[index % len(self.waiting)])

    def give_up(self, session: bytes) -> None:
        asked = self.waiting.pop(session).reservation
        self.note_departure(asked)
        self.admit(self.table.leave(session, self.now))
        self.gone.append(asked)

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for session in [s for s, visitor in self.waiting.items() if visitor.deadline <= self.now]:
            if session in self.waiting:  # the one before it may have let it in
                self.give_up(session)

    @invariant()
    def the_books_agree(self) -> None:
        table = self.table
        assert table.kv_token_blocks_free == self.free() >= 0
        assert table.sessions == len(self.held) <= MAX_SESSIONS
        assert set(table.places()) == set(self.waiting)
        assert table.waiting == len(self.waiting) <= MAX_WAITING
        if self.waiting:
            head = next(iter(table.places()))
            need = self.waiting[head].reservation.room
            assert need > self.free() or len(self.held) == MAX_SESSIONS, "the head fits and waits"

    @invariant()
    def what_is_announced_is_in_bounds(self) -> None:
        releases = self.table.releases(self.now)
        assert [r.at_seconds for r in releases] == sorted(r.at_seconds for r in releases)
        assert self.table.kv_token_blocks_open + sum(r.tokens for r in releases) <= TOTAL
        starts = [self.table.start_seconds(session, self.now) for session in self.table.places()]
        assert all(start >= 0 for start in starts)

    def teardown(self) -> None:
        if not hasattr(self, "table"):
            return
        for session in list(self.waiting):
            if session in self.waiting:
                self.give_up(session)
        for session in list(self.held):
            self.admit(self.table.release(session, self.now))
            del self.held[session]
        assert (self.table.kv_token_blocks_free, self.table.sessions, self.table.waiting) == (TOTAL, 0, 0)
        self.queue.join(PeerId("z"), b"z", self.now + 2 * RANK_MEMORY_SECONDS)
        assert self.queue.num_ranks() == 1, "everybody else is forgotten"


class SharingMachine(AdmissionMachine):
    """The same with a share for each client: it changes who is next, and nothing else."""

    SHARE = 0.5

    def check_promises(self, session: bytes, asked: Reservation) -> None:
        """Those beyond their share are passed; what is promised instead is in `check_turn`."""

    def check_turn(self, asked: Reservation, arrived: Reservation | None) -> None:
        """A client gets beyond its share only if every other one that waits would exceed its own with some session."""
        if arrived is not None and not self.waiting:
            return
        if self.beyond(asked):
            beyond = {v.reservation.client: False for v in self.waiting.values()}
            for visitor in self.waiting.values():
                beyond[visitor.reservation.client] |= self.beyond(visitor.reservation)
            beyond.pop(asked.client, None)
            assert all(beyond.values()), "a client got more than its share while others waited"

    def beyond(self, asked: Reservation) -> bool:
        own = [held.room for held in self.held.values() if held.client == asked.client]
        room, sessions = sum(own) + asked.room, len(own) + 1
        return bool(own) and (room > self.SHARE * TOTAL or sessions > self.SHARE * MAX_SESSIONS)


@pytest.mark.long
@pytest.mark.parametrize("machine", [AdmissionMachine, SharingMachine])
def test_the_queue_keeps_its_promises(machine: type[AdmissionMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


def test_while_others_wait_a_client_gets_no_more_than_its_share() -> None:
    """However early its sessions came; a single session may be larger, and where nobody waits everything is free."""
    table = SessionTable(100)
    for number in range(2):
        table.admit(reservation(number, 20, client="many"), 0.0)
    for number in range(2, 5):
        assert not table.join(reservation(number, 20, client="many"), 1.0)
    assert not table.crowds(PeerId("many")), "nobody else waits"
    assert not table.join(reservation(5, 30, client="late"), 2.0)
    assert table.crowds(PeerId("many"))
    assert list(table.places()) == [reservation(n, 20).session_id for n in (5, 2, 3, 4)]
    assert table.release(reservation(0, 20).session_id, 3.0) == (reservation(5, 30).session_id,)
    assert not table.crowds(PeerId("many"))
    assert not table.crowds(PeerId("late")), "a single session may be larger than the share"
    assert table.release(reservation(1, 20).session_id, 4.0) == (reservation(2, 20).session_id,)
    assert table.release(reservation(5, 30).session_id, 5.0) == (reservation(3, 20).session_id,)


def test_places_are_shared_like_room() -> None:
    table = SessionTable(1000, max_sessions=4)
    for number in range(4):
        table.admit(reservation(number, 1, client="many"), 0.0)
    table.join(reservation(4, 1, client="many"), 1.0)
    table.join(reservation(5, 1, client="late"), 2.0)
    assert table.crowds(PeerId("many"))
    assert table.release(reservation(0, 1).session_id, 3.0) == (reservation(5, 1).session_id,)


@pytest.mark.long
def test_thousands_of_openings_cost_little_and_are_told_when_to_come() -> None:
    """The forecast is made a few times, not for each of them."""
    table = SessionTable(1000)
    table.admit(reservation(0, 500), 0.0)
    refused: list[NoRoomNow] = []
    for number in range(1, 5000):
        try:
            table.join(reservation(number, 100, client=f"c{number}"), 0.001 * number / 5000)
        except NoRoomNow as error:
            refused.append(error)
    assert table.waiting == 1024
    assert len(refused) == 4999 - 1024
    assert table.forecasts_made < 100
    assert all(error.retry_after_seconds > 100 for error in refused)


def test_tickets_are_ordered_by_round_and_then_by_arrival() -> None:
    tickets = [Ticket(r, a, PeerId("c"), b"") for r, a in [(1, 9), (2, 3), (2, 4)]]
    assert sorted([tickets[2], *tickets[:2]]) == tickets


def test_less_room_is_paid_off_by_the_open_sessions_before_anybody_else_gets_any() -> None:
    table = SessionTable(100, token_seconds=1.0)
    for number in range(2):
        table.admit(reservation(number, 40, num_blocks=1), 0.0)
    assert table.resize(50, 0.0) == ()
    assert (table.kv_token_blocks_total, table.kv_token_blocks_free, table.kv_token_blocks_open) == (50, -30, 0)
    assert sum(release.tokens for release in table.releases(0.0)) == 50
    with pytest.raises(NoRoomNow):
        table.admit(reservation(2, 20, num_blocks=1), 0.0)
    assert table.release(reservation(0, 40, num_blocks=1).session_id, 1.0) == ()
    assert table.kv_token_blocks_open == 10
    with pytest.raises(NeverFits):
        table.admit(reservation(3, 51, num_blocks=1), 1.0)


def test_a_change_of_the_room_lets_sessions_in_and_names_those_that_never_will_be() -> None:
    table = SessionTable(100)
    table.admit(reservation(0, 90, num_blocks=1), 0.0)
    for number, tokens in ((1, 60), (2, 30)):
        assert not table.join(reservation(number, tokens, num_blocks=1), 0.0)
    assert not table.hopeless()
    assert table.resize(50, 0.0) == ()
    assert list(table.hopeless()) == [reservation(1, 60, num_blocks=1).session_id]
    table.leave(reservation(1, 60, num_blocks=1).session_id, 0.0)
    assert table.resize(130, 0.0) == (reservation(2, 30, num_blocks=1).session_id,)
