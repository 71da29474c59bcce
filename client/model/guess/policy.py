"""Decides how many tokens to guess: pure functions of what was measured.

A trip takes L seconds, each further token c more, and guess i is right with probability a_i if those before it are.
With K guesses a trip yields 1 + a_1 + a_1 a_2 + ... tokens in L + c K seconds; K maximises tokens per second.  K is 0
if the gain is small, if little of a trip is spent on the network, and if the peers are busy: a guessed token takes time
from their other sessions, and all that it saves is waiting for the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....proto.errors import UsageError
from ...report import Trip
from ...timing import GuessTiming

AUTO, OFF = "auto", "off"
MOST_GUESSES = 64
"""In one step..."""
MOST_AHEAD = 128
"""...and in all steps ahead of the text."""
LEAST_GAIN = 1.1
"""Guess only if it raises the speed by at least this factor."""
LEAST_CHANCE = 0.1
"""A guess that is reached and right less often than this is not worth a peer's time, however long the trip."""
_PRIOR_WEIGHT = 3.0
"""The prior counts like this many outcomes."""
_KEPT = 0.97
"""The weight of an outcome is multiplied by this with each further one..."""
_KEPT_IDLE = 0.995
"""...and by this with each trip without a guess of its kind."""


def checked_setting(setting: str | int) -> str | int:
    """Parse "auto", "off", or a fixed number of guesses ahead; 0 is "off". Raises UsageError for anything else."""
    if setting in (AUTO, OFF):
        return setting
    if isinstance(setting, str) and setting.isdecimal() and setting.isascii() and len(setting) < 4:
        setting = int(setting)
    if isinstance(setting, int) and not isinstance(setting, bool) and 0 <= setting <= MOST_GUESSES:
        return setting or OFF
    raise UsageError(
        f"guess is {AUTO}, {OFF}, or 0 to {MOST_GUESSES} tokens ahead, not {setting!r}",
        hint=f"Leave it out: {AUTO} guesses where it pays.",
    )


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often guesses are right, with newer outcomes weighted more; immutable."""

    prior: float
    right: float = 0.0
    wrong: float = 0.0

    @property
    def chance(self) -> float:
        """The probability that a guess is right if those before it are; at most 0.99."""
        seen = self.right + self.wrong
        return min(0.99, (_PRIOR_WEIGHT * self.prior + self.right) / (_PRIOR_WEIGHT + seen))

    def after(self, right: bool) -> Acceptance:
        """Return the estimate with one more outcome."""
        return Acceptance(self.prior, self.right * _KEPT + right, self.wrong * _KEPT + (not right))

    def faded(self) -> Acceptance:
        """Return the estimate after a trip without a guess of this kind: outcomes lose weight, so it is tried again."""
        return Acceptance(self.prior, self.right * _KEPT_IDLE, self.wrong * _KEPT_IDLE)


@dataclass(frozen=True, slots=True)
class TripCosts:
    """The time of a trip by its number of tokens: a line fitted to the measured trips; immutable.

    The fit is by least squares with exponential forgetting; its slope is at least the announced one.  The measurements
    include everything, such as the answers' transfer over the client's own link.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    rows_seconds: float = 0.0
    announced_row_seconds: float = 0.0
    recent_network_seconds: tuple[float, ...] = ()
    """The network times of the last few trips, the oldest first."""
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    crowded: bool = False
    """Whether a peer of the last trip has no time for guesses."""

    def after(self, trip: Trip, here_seconds: float = 0.0) -> TripCosts:
        """Return the costs with one more trip, before which this machine worked for `here_seconds`.

        The time of a very long trip (a repair) is capped at three times the usual one.
        """
        seconds = trip.seconds + here_seconds
        if self.weight > 0.0:
            seconds = min(seconds, 3 * self.trip_seconds(trip.tokens - 1))
        network = trip.network_seconds
        if self.weight == 0.0:  # a prompt: its transfer takes time on a LAN, too
            network = min(network, max(0.0, trip.predicted_seconds - trip.compute_seconds))
        rows = float(trip.tokens - 1)
        share = max(0.1, 1 / (self.weight + 1))

        def mean(old: float, new: float) -> float:
            return old + share * (new - old)

        return TripCosts(
            weight=self.weight * 0.95 + 1,
            rows=self.rows * 0.95 + rows,
            seconds=self.seconds * 0.95 + seconds,
            rows_squared=self.rows_squared * 0.95 + rows * rows,
            rows_seconds=self.rows_seconds * 0.95 + rows * seconds,
            announced_row_seconds=trip.row_seconds,
            recent_network_seconds=(*self.recent_network_seconds, network)[-_NETWORK_TRIPS:],
            queue_seconds=mean(self.queue_seconds, trip.queue_seconds),
            compute_seconds=mean(self.compute_seconds, trip.compute_seconds),
            crowded=trip.crowded,
        )

    @property
    def network_seconds(self) -> float:
        """The median time of recent trips on the network (the lower one of two): single trips may be late by chance."""
        recent = sorted(self.recent_network_seconds)
        return recent[(len(recent) - 1) // 2] if recent else 0.0

    @property
    def row_seconds(self) -> float:
        """Seconds that each further token adds to a trip."""
        if self.weight == 0.0:
            return self.announced_row_seconds
        spread = self.rows_squared - self.rows * self.rows / self.weight
        together = self.rows_seconds - self.rows * self.seconds / self.weight
        slope = (together + _STIFFNESS * self.announced_row_seconds) / (spread + _STIFFNESS)
        return max(slope, self.announced_row_seconds)

    def trip_seconds(self, guesses: int = 0) -> float:
        """Return the seconds of a trip with one confirmed token and this many guesses."""
        if self.weight == 0.0:
            return 0.0
        slope = self.row_seconds
        usual = max(0.0, (self.seconds - slope * self.rows) / self.weight)
        return usual + slope * guesses


_NETWORK_TRIPS = 5
_STIFFNESS = 50.0
"""The announced slope has the weight of trips whose token counts have this sum of squared deviations."""


def as_short(trip: Trip) -> Trip:
    """Estimate the trip of one token from that of a long prompt."""
    compute_seconds = max(0.0, trip.compute_seconds - trip.row_seconds * (trip.tokens - 1))
    seconds = trip.network_seconds + compute_seconds
    return replace(trip, tokens=1, seconds=seconds, queue_seconds=0.0, compute_seconds=compute_seconds)


def is_far(costs: TripCosts, timing: GuessTiming) -> bool:
    """Return whether a trip waits for the network long enough for guessing to save some of it."""
    return costs.weight > 0.0 and costs.network_seconds >= timing.least_network_seconds


def pays(costs: TripCosts, timing: GuessTiming) -> bool:
    """Return whether guessing saves network time without taking time from sessions that wait at the peers.

    Peers say whether they are crowded; for peers of older versions the time in their queues tells.
    """
    busy = costs.queue_seconds > costs.compute_seconds + timing.idle_queue_seconds
    return is_far(costs, timing) and not busy and not costs.crowded


def guesses_worth(chances: Sequence[float], costs: TripCosts, sent: Sequence[float] = ()) -> int:
    """Return the number of guesses that maximises tokens per second; 0 if the gain is small. O(guesses).

    `chances` are the probabilities of the guesses, in order, each given that those before it are right; `sent` are the
    probabilities of guesses that are under way before them.
    """
    trip, row = costs.trip_seconds(), costs.row_seconds
    if trip <= 0.0:
        return 0
    reached, tokens = 1.0, 1.0
    for chance in sent:
        reached *= chance
        tokens += reached
    best, best_rate = 0, tokens / (trip + row * len(sent))
    for guesses, chance in enumerate(chances, 1):
        reached *= chance
        if reached < LEAST_CHANCE:
            break
        tokens += reached
        rate = tokens / (trip + row * (len(sent) + guesses))
        if rate > best_rate:
            best, best_rate = guesses, rate
    return best if best_rate * trip >= LEAST_GAIN else 0
