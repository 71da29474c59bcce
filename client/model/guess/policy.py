"""How many tokens to guess: pure functions of what was measured.

A trip takes L seconds, a further row c more, and guess i is right with probability a_i if those before it are.  With K
guesses a trip brings 1 + a_1 + a_1 a_2 + ... tokens in L + c K seconds; K is chosen for the most tokens per second.  It
is 0 where the gain is small, where the time of a trip is not spent on the network, and where peers have no time to
spare: a guessed row costs their other sessions something, and it only saves waiting for the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ....proto.errors import UsageError
from ...report import Trip
from ...timing import GuessTiming

AUTO, OFF = "auto", "off"
MOST_GUESSES = 64
"""In one step..."""
MOST_AHEAD = 128
"""...and in all that are ahead of the text."""
LEAST_GAIN = 1.1
"""Guesses must be worth this many times the speed without any."""
LEAST_CHANCE = 0.1
"""A guess that is right less often is not worth a peer's time, however long the trip."""
_PRIOR_WEIGHT = 3.0
"""The estimate before the first outcome counts like this many outcomes."""
_KEPT = 0.97
"""The weight of an outcome after each further one..."""
_KEPT_IDLE = 0.995
"""...and after each trip without a guess of its kind."""


def checked_setting(setting: str | int) -> str | int:
    """ "auto", "off", or a fixed number of guesses ahead; 0 is "off". Raises UsageError for anything else."""
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
    """How often guesses are right, newer outcomes counting more; immutable."""

    prior: float
    right: float = 0.0
    wrong: float = 0.0

    @property
    def chance(self) -> float:
        """How likely a guess is right if those before it are; above 0 and below 1."""
        seen = self.right + self.wrong
        return min(0.99, (_PRIOR_WEIGHT * self.prior + self.right) / (_PRIOR_WEIGHT + seen))

    def after(self, right: bool) -> Acceptance:
        """With one more outcome."""
        return Acceptance(self.prior, self.right * _KEPT + right, self.wrong * _KEPT + (not right))

    def faded(self) -> Acceptance:
        """After a trip without a guess of this kind: what was seen counts a little less, so that it is tried again."""
        return Acceptance(self.prior, self.right * _KEPT_IDLE, self.wrong * _KEPT_IDLE)


@dataclass(frozen=True, slots=True)
class TripCosts:
    """The time of a trip by its rows: a line through what was measured, never flatter than announced; immutable.

    What is measured has everything in it: computing, and the answers' way through the client's own line.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    rows_seconds: float = 0.0
    announced_row_seconds: float = 0.0
    network_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    crowded: bool = False
    """Whether a peer of the last trip has no time for guesses."""

    def after(self, trip: Trip, here_seconds: float = 0.0) -> TripCosts:
        """With one more trip, for which this machine has worked `here_seconds` before it began.

        One that took very long (a repair) counts as three usual ones.
        """
        seconds = trip.seconds + here_seconds
        if self.weight > 0.0:
            seconds = min(seconds, 3 * self.trip_seconds(trip.tokens - 1))
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
            network_seconds=mean(self.network_seconds, min(trip.network_seconds, seconds)),
            queue_seconds=mean(self.queue_seconds, trip.queue_seconds),
            compute_seconds=mean(self.compute_seconds, trip.compute_seconds),
            crowded=trip.crowded,
        )

    @property
    def row_seconds(self) -> float:
        """Seconds that a further row adds to a trip."""
        if self.weight == 0.0:
            return self.announced_row_seconds
        spread = self.rows_squared - self.rows * self.rows / self.weight
        together = self.rows_seconds - self.rows * self.seconds / self.weight
        slope = (together + _STIFFNESS * self.announced_row_seconds) / (spread + _STIFFNESS)
        return max(slope, self.announced_row_seconds)

    def trip_seconds(self, guesses: int = 0) -> float:
        """Seconds of a trip with this many further rows."""
        if self.weight == 0.0:
            return 0.0
        slope = self.row_seconds
        usual = max(0.0, (self.seconds - slope * self.rows) / self.weight)
        return usual + slope * guesses


_STIFFNESS = 50.0
"""The announced slope counts like trips of this squared spread in rows."""


def as_short(trip: Trip) -> Trip:
    """The trip of one token, going by that of a long prompt."""
    compute_seconds = max(0.0, trip.compute_seconds - trip.row_seconds * (trip.tokens - 1))
    return Trip(1, trip.network_seconds + compute_seconds, 0.0, compute_seconds, trip.row_seconds, trip.crowded)


def is_far(costs: TripCosts, timing: GuessTiming) -> bool:
    """Whether a trip waits for the network long enough that guessing can save some of it."""
    return costs.weight > 0.0 and costs.network_seconds >= timing.least_network_seconds


def pays(costs: TripCosts, timing: GuessTiming) -> bool:
    """Whether guessing saves waiting for the network, and takes nothing from sessions that wait at the peers.

    Peers say whether they are crowded; the wait for them tells it, too, where one is of an older version.
    """
    busy = costs.queue_seconds > costs.compute_seconds + timing.idle_queue_seconds
    return is_far(costs, timing) and not busy and not costs.crowded


def guesses_worth(chances: Sequence[float], costs: TripCosts, sent: Sequence[float] = ()) -> int:
    """The number of guesses with which tokens come fastest; 0 where the gain is small. O(guesses).

    `chances` are those of the guesses, in order, each if those before it are right; `sent` are those of guesses that
    are on their way in front of them.
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
