"""When room becomes free: the estimates against sessions of known lengths, and the queue against brute force."""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass

import pytest
from blockswarm.routing.admit.forecast import Average, Demand, HoldTimes, Pace, TimeAverage, Turnover, serve_in_order
from blockswarm.routing.admit.table import Reservation, SessionTable
from blockswarm.routing.releases import MAX_RELEASES
from blockswarm.routing.swarm import KvRelease, PeerId
from hypothesis import assume, given, settings
from hypothesis import strategies as st


def test_the_pace_is_that_of_decoding_and_a_prompt_says_nothing_of_it() -> None:
    pace = Pace(Average(9.0), at_seconds=100.0).after(512, 1, 104.0)
    assert pace.seconds_per_token.value == 9.0
    for step in range(1, 20):
        pace = pace.after(512 + step, 1, 104.0 + 0.25 * step)
    assert pace.seconds_per_token.value == pytest.approx(0.25)
    assert pace.end_seconds(1024, 200.0) == pytest.approx(200 + (1024 - 531) * 0.25)


def test_several_rows_share_a_step_and_a_rewind_takes_nothing_back() -> None:
    pace = Pace(Average(1.0), 0.0).after(400, 4, 1.0)
    pace = pace.after(404, 4, 2.0)
    assert pace.seconds_per_token.value == pytest.approx(0.25)
    assert pace.after(390, 4, 3.0).seconds_per_token == pace.seconds_per_token


@pytest.mark.long
@settings(max_examples=300)
@given(
    total=st.integers(10, 40),
    places=st.integers(1, 4),
    running=st.lists(st.tuples(st.integers(1, 10), st.floats(0, 50)), max_size=4),
    waiting=st.lists(st.tuples(st.integers(1, 10), st.floats(0, 50)), max_size=8),
)
def test_waiting_sessions_are_served_as_a_plain_queue_would(
    total: int, places: int, running: list[tuple[int, float]], waiting: list[tuple[int, float]]
) -> None:
    running = running[:places]
    free = total - sum(room for room, _ in running)
    assume(free >= 0)
    ends = [KvRelease(at, room) for room, at in running]
    needs = [Demand(room, held) for room, held in waiting]
    schedule = serve_in_order(0.0, free, places - len(running), ends, needs, MAX_RELEASES)
    taken = [(at, room) for room, at in running]
    start = 0.0
    for need, said in zip(needs, schedule.starts, strict=True):
        moments = sorted({start, *(at for at, _ in taken if at > start)})
        start = next(
            moment
            for moment in moments
            if sum(room for at, room in taken if at > moment) + need.room <= total
            and sum(at > moment for at, _ in taken) < places
        )
        assert said == start
        taken.append((start + need.held_seconds, need.room))
    rest = schedule.rest
    assert all(release.at_seconds >= start for release in rest.releases), "newcomers come after those who wait"
    for moment in {start, *(at for at, _ in taken if at > start)}:
        promised = rest.free + sum(r.tokens for r in rest.releases if r.at_seconds <= moment)
        assert promised <= total - sum(room for at, room in taken if at > moment)
    assert rest.free + sum(r.tokens for r in rest.releases) == total
    assert len(rest.releases) <= MAX_RELEASES


def test_the_time_average_forgets_and_a_young_one_is_not_too_low() -> None:
    average = TimeAverage(600.0, 0.0).after(4, 0.0)
    assert average.mean(60.0) == pytest.approx(4.0)
    half = average.after(0, 60.0)
    assert half.mean(120.0) == pytest.approx(2.0, rel=0.1)
    assert half.mean(3600.0) < 0.02


@dataclass
class Session:
    """A session whose life is known; the table is not told."""

    reservation: Reservation
    prompt: int
    new_tokens: int
    token_seconds: float


def simulate(seed: int, fills: float, told: bool) -> tuple[list[float], list[float]]:
    """Relative errors of the estimates of the queue, as told at joining, and of the ends of running sessions.

    One peer in virtual time, ten per cent more load than it can carry; sessions use between `fills` and all of what
    they reserve for new tokens.
    """
    rng = random.Random(seed)
    table = SessionTable(8 * 3000, token_seconds=0.05)
    events: list[tuple[float, int, str, int]] = []
    sessions: dict[int, Session] = {}
    joined: dict[int, tuple[float, float]] = {}
    predicted_ends: dict[int, tuple[float, float]] = {}
    wait_errors, end_errors = [], []
    at = 0.0
    for number in range(400):
        at += rng.expovariate(1 / (3.5 * (1 + fills) / 2))
        prompt, answer = rng.randint(50, 800), rng.randint(100, 400)
        client, said = PeerId(f"c{number}"), prompt if told else 0
        reservation = Reservation(number.to_bytes(16, "big"), client, prompt + answer, 8, said)
        sessions[number] = Session(reservation, prompt, int(answer * rng.uniform(fills, 1.0)), rng.uniform(0.03, 0.09))
        events.append((at, number, "come", 0))

    def start(number: int, now: float) -> None:
        if number in joined:
            when, estimate = joined.pop(number)
            actual = now - when
            if actual > 5:
                wait_errors.append(abs(estimate - actual) / actual)
        heapq.heappush(events, (now + 2.0, number, "step", 0))

    heapq.heapify(events)
    while events:
        now, number, what, done = heapq.heappop(events)
        session = sessions[number]
        sid = session.reservation.session_id
        if what == "come":
            if table.join(session.reservation, now):
                start(number, now)
            else:
                joined[number] = now, table.start_seconds(sid, now)
        elif done == session.new_tokens:
            if number in predicted_ends:
                when, end = predicted_ends[number]
                end_errors.append(abs(end - now) / (now - when))
            for admitted in table.release(sid, now):
                start(int.from_bytes(admitted, "big"), now)
        else:
            table.note_step(sid, session.prompt + done, 1, now)
            if done >= session.new_tokens / 4 and number not in predicted_ends:
                predicted_ends[number] = now, table.end_seconds(sid, now)
            jump = min(5, session.new_tokens - done)
            heapq.heappush(
                events, (now + jump * session.token_seconds * rng.uniform(0.8, 1.2), number, "step", done + jump)
            )
    assert (table.sessions, table.waiting) == (0, 0)
    return wait_errors, end_errors


@pytest.mark.long
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(("fills", "wait_bound", "end_bound"), [(1.0, 0.25, 0.1), (0.5, 0.3, 0.6)])
def test_estimates_against_reality(
    fills: float, wait_bound: float, end_bound: float, told: bool, record_property: pytest.RecordProperty
) -> None:
    """Sessions that use up what they reserve, and sessions that end anywhere in the second half of it.

    Seen: waits off by 13 % (medians), by 12 % where prompts are told; ends of running sessions by 3 %
    and, as nobody knows who stops early, 42 %.
    """
    runs = [simulate(seed, fills, told) for seed in range(3)]
    waits, ends = ([error for run in runs for error in run[kind]] for kind in (0, 1))
    assert len(waits) > 200
    assert len(ends) > 500
    record_property("median_relative_error_of_waits", statistics.median(waits))
    record_property("median_relative_error_of_ends", statistics.median(ends))
    assert statistics.median(waits) < wait_bound
    assert statistics.median(ends) < end_bound


def test_long_answers_after_short_ones_are_estimated_where_prompts_are_told() -> None:
    """A crowd asks for four times as many new tokens as the sessions before it."""
    assert ratio_of_a_crowd(told=True) == pytest.approx(1.0, abs=0.1)
    assert ratio_of_a_crowd(told=False) > 1.5


def ratio_of_a_crowd(told: bool) -> float:
    """The wait of the last of six over what it was told, with room for two."""
    prompt, prompt_seconds, token_seconds = 512, 1.0, 0.05
    table = SessionTable(2 * (prompt + 128))

    def asked(number: int, answer: int) -> Reservation:
        said = prompt if told else 0
        return Reservation(number.to_bytes(16, "big"), PeerId(f"c{number}"), prompt + answer, 1, said)

    def take_part(session: bytes, answer: int, since: float) -> float:
        now = since + prompt_seconds
        table.note_step(session, prompt, 1, now)
        for token in range(1, answer):
            now += token_seconds
            table.note_step(session, prompt + token, 1, now)
        return now

    now = 0.0
    for number in range(10):
        table.admit(asked(number, 32), now)
        now = take_part(asked(number, 32).session_id, 32, now)
        table.release(asked(number, 32).session_id, now)
    crowd = [asked(100 + number, 128) for number in range(6)]
    came, told_seconds = now, 0.0
    running = []
    for each in crowd:
        if table.join(each, now):
            running.append(each.session_id)
        else:
            told_seconds = table.start_seconds(each.session_id, now)
    while table.waiting:
        ends = [take_part(session, 128, now) for session in running]
        running = [admitted for session in running for admitted in table.release(session, ends[0])]
        now = ends[0]
    return (now - came) / told_seconds


def test_a_session_that_rests_for_hours_does_not_stand_for_all_others() -> None:
    pace = Pace(Average(0.1), 0.0).after(100, 1, 1.0).after(101, 1, 1.1)
    times = HoldTimes.guessed(0.1).after(pace, 200, 0.0, 7200.0)
    assert times.expected(200, 100, 1, None) <= 1.0 + 10 * 100 * 0.1 + 1e-6


def test_rows_are_decoded_side_by_side() -> None:
    pace = Pace(Average(0.1), 0.0).after(400, 4, 1.0)
    for step in range(1, 11):
        pace = pace.after(400 + 4 * step, 4, 1.0 + 0.1 * step)
    times = HoldTimes.guessed(9.0).after(pace, 440, 0.0, 2.0)
    assert times.expected(440, 400, 4, None) == pytest.approx(2.0)
    assert times.expected(110, 100, 1, None) == pytest.approx(0.25 + 1.0)


def test_a_short_prompt_that_waited_elsewhere_does_not_stand_for_long_ones() -> None:
    pace = Pace(Average(0.1), 0.0).after(4, 1, 30.0).after(5, 1, 30.1)
    times = HoldTimes.guessed(0.1).after(pace, 14, 0.0, 31.0)
    assert times.expected(1024, 1023, 1, None) <= 4 * 30 + 1


def test_how_fast_a_queue_was_served_counts_the_more_the_longer_it_lasts() -> None:
    """Looking ahead says that a session is let in every 5 s; one is every 10 s."""
    turnover, ahead = Turnover(since=0.0), [165.0, 170.0]
    assert turnover.corrected(ahead, 160.0) == ahead
    for admission in range(1, 17):
        turnover = turnover.admitted(10.0 * admission)
    assert turnover.corrected(ahead, 160.0) == pytest.approx([165 + 5 * 2 / 3, 170 + 10 * 2 / 3])


def test_a_crowd_is_served_as_looking_ahead_says_whatever_the_one_before_was() -> None:
    """The first crowd's sessions hold their room for a minute without a step; the second one decodes."""
    table = SessionTable(100, token_seconds=0.1)

    def asked(number: int) -> Reservation:
        return Reservation(number.to_bytes(16, "big"), PeerId(f"c{number}"), 100, 1)

    table.admit(asked(0), 0.0)
    for number in range(1, 9):
        table.join(asked(number), 1.0)
    for number in range(8):
        table.release(asked(number).session_id, 60.0 * (number + 1))
    assert not table.waiting
    table.join(asked(9), 481.0)
    assert table.start_seconds(asked(9).session_id, 481.0) == pytest.approx(10.0), "100 tokens at 0.1 s"
