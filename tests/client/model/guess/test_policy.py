"""How many guesses are worth it: the most tokens per second, and none where only peers would pay for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from blockswarm.client.model.guess.policy import LEAST_GAIN, Acceptance, TripCosts, as_short, guesses_worth, pays
from blockswarm.client.report import Trip
from blockswarm.client.timing import GuessTiming

TIMING = GuessTiming()


def costs_of(*trips: Trip) -> TripCosts:
    costs = TripCosts()
    for trip in trips:
        costs = costs.after(trip)
    return costs


def trip(seconds: float, tokens: int = 1, queue: float = 0.0, compute: float = 0.002, row: float = 0.0003) -> Trip:
    return Trip(tokens, seconds, queue, compute, row)


FAR = costs_of(*[trip(0.104)] * 5)


def speed(chance: float, guesses: int, trip_seconds: float, row_seconds: float) -> float:
    tokens = sum(chance**index for index in range(guesses + 1))
    return tokens / (trip_seconds + row_seconds * guesses)


@pytest.mark.parametrize("chance", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("row", [0.0003, 0.003, 0.03, 0.3])
def test_no_other_number_of_worthwhile_guesses_is_faster(chance: float, row: float):
    costs = costs_of(*[trip(0.104, row=row)] * 5)
    chosen = guesses_worth([chance] * 64, costs)
    worthwhile = [guesses for guesses in range(65) if chance**guesses >= 0.1]
    best = max(speed(chance, guesses, 0.104, row) for guesses in worthwhile)
    plain = speed(chance, 0, 0.104, row)
    expected = best if best >= LEAST_GAIN * plain else plain
    assert speed(chance, chosen, 0.104, row) == pytest.approx(expected)


def test_better_guesses_are_more_guesses():
    numbers = [guesses_worth([chance] * 64, FAR) for chance in (0.01, 0.3, 0.6, 0.9, 0.97)]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert numbers[-1] > 16
    assert guesses_worth([0.97] * 5, FAR) == 5
    assert guesses_worth([], FAR) == 0


def test_a_doubtful_guess_is_worth_it_for_the_sure_ones_behind():
    assert guesses_worth([0.2] + [0.99] * 30, FAR) > 10
    assert guesses_worth([0.2], FAR) == 1
    assert guesses_worth([0.09] + [0.99] * 30, FAR) == 0


def test_guesses_behind_those_on_their_way_are_the_rest_of_what_is_worth_it():
    chances = [0.9] * 12 + [0.7] * 52
    whole = guesses_worth(chances, FAR)
    for sent in range(whole):
        assert guesses_worth(chances[sent:], FAR, chances[:sent]) == whole - sent
    assert guesses_worth(chances[whole:], FAR, chances[:whole]) == 0


def test_nothing_is_guessed_where_the_network_takes_no_time():
    assert pays(FAR, TIMING)
    assert not pays(TripCosts(), TIMING)
    assert not pays(costs_of(trip(0.003)), TIMING), "loopback"
    assert not pays(costs_of(trip(0.085, compute=0.08)), TIMING), "a LAN of slow peers"


def test_trips_that_are_late_by_chance_make_no_line_long():
    near, late = trip(0.003), trip(0.030)
    for trips in ([near, late], [late, near], [near, late, near, late, near], [near, near, late, late, near]):
        assert not pays(costs_of(*trips), TIMING)
    assert pays(costs_of(near, late, late, late), TIMING), "a line that has become long"
    assert pays(costs_of(*[trip(0.104)] * 3, trip(0.003), trip(0.003)), TIMING), "and one that is still long"


def test_the_transfer_of_a_prompt_makes_no_line_long():
    """On a LAN the prompt of a large model may take longer than the whole trip of a token."""
    prompt = Trip(1000, 0.2, 0.0, 0.05, 0.00003, predicted_seconds=0.025)
    assert not pays(costs_of(as_short(prompt)), TIMING)
    assert not pays(costs_of(replace(prompt, tokens=64)), TIMING)
    assert pays(costs_of(as_short(replace(prompt, predicted_seconds=0.104))), TIMING), "a WAN"


def test_nothing_is_guessed_at_peers_that_have_sessions_waiting():
    assert not pays(costs_of(*[trip(0.2, queue=0.05, compute=0.03)] * 9), TIMING)
    assert pays(costs_of(*[trip(0.2, queue=0.005, compute=0.03)] * 9), TIMING)


def test_nothing_is_guessed_where_a_peer_says_that_it_is_crowded():
    crowded = Trip(1, 0.104, 0.0, 0.002, 0.0003, crowded=True)
    assert not pays(costs_of(*[trip(0.104)] * 5, crowded), TIMING)
    assert pays(costs_of(crowded, trip(0.104)), TIMING), "it is no more"
    assert not pays(costs_of(as_short(crowded)), TIMING)


def test_what_this_machine_does_for_guesses_is_a_cost_of_theirs():
    costs = TripCosts()
    for tokens in (1, 9, 3, 17, 1, 9, 17, 5):
        costs = costs.after(trip(0.1, tokens), here_seconds=0.002 * (tokens - 1))
    assert costs.row_seconds == pytest.approx(0.002, rel=0.2)
    assert costs.network_seconds == pytest.approx(0.098), "it is not on the network"


def test_what_rows_cost_is_measured_and_never_less_than_announced():
    """A slow line for answers shows in the trips, whatever peers announce."""
    rows = (1, 9, 3, 17, 1, 9, 17, 5)
    slow_line = costs_of(*[trip(0.1 + 0.01 * (tokens - 1), tokens, row=0.0001) for tokens in rows])
    assert slow_line.row_seconds == pytest.approx(0.01, rel=0.4)
    assert slow_line.trip_seconds() == pytest.approx(0.1, rel=0.3)
    assert guesses_worth([0.9] * 64, slow_line) < guesses_worth([0.9] * 64, FAR)
    odd = costs_of(*[trip(0.1 - 0.001 * tokens, tokens, row=0.002) for tokens in (1, 9, 3, 17)])
    assert odd.row_seconds == 0.002


def test_the_trip_of_a_long_prompt_tells_of_short_ones():
    long = as_short(trip(0.104 + 0.0003 * 99, tokens=100, compute=0.002 + 0.0003 * 99))
    assert (long.tokens, long.seconds) == (1, pytest.approx(0.104))
    assert costs_of(long).network_seconds == pytest.approx(0.102)


def test_a_repair_is_not_taken_for_the_length_of_a_trip():
    costs = costs_of(*[trip(0.1)] * 20, trip(30.0))
    assert costs.trip_seconds() < 0.15


def test_acceptance_follows_what_is_seen():
    acceptance = Acceptance(0.5)
    assert acceptance.chance == 0.5
    good, bad = acceptance, acceptance
    for _ in range(30):
        good, bad = good.after(right=True), bad.after(right=False)
    assert good.chance > 0.9
    assert bad.chance < 0.1
    for index in range(100):
        good = good.after(right=index % 2 == 0)
    assert good.chance == pytest.approx(0.5, abs=0.1)
    assert 0 < Acceptance(0.0).chance + Acceptance(1.0).chance < 2


def test_what_never_worked_is_tried_again_after_a_while():
    bad = Acceptance(0.3)
    for _ in range(30):
        bad = bad.after(right=False)
    assert guesses_worth([bad.chance] * 8, FAR) == 0
    for _ in range(800):
        bad = bad.faded()
    assert guesses_worth([bad.chance] * 8, FAR) > 0
