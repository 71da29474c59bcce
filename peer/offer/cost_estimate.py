"""The cost of a block and of a visit while the peer serves: the start-up measurement, corrected by every step.

The same two lines as in `calibrate`: decode takes `a + b * rows + c * context`, prefill `a' + p * tokens`, seconds per
block.  Each is a least-squares fit of relative errors that forgets: an observation loses half of its weight for every
`half_life_seconds` of serving and every `HALF_LIFE_STEPS` steps.  The last known cost stays in each fit with the weight
of a few steps, so that the fit does not invent what the traffic does not show (the cost of a context that nobody uses).
The time of a visit besides computing is a mean that forgets likewise; before the first visit, that of an earlier run.
No I/O and no clock here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...routing.swarm import ComputeCost
from ..engine.step_record import StepRecord
from .least_squares import nonnegative_least_squares

HALF_LIFE_STEPS = 2000
INERTIA = 8.0
"""Weight of the last known cost, in steps."""
REFIT_STEPS = 20
"""Steps from one fit to the next: a fit takes half a millisecond, too much for every step."""
OUTLIER = 20.0
"""The most that a step or a visit counts, as a multiple of the expected time: a machine that was suspended tells
nothing, and one that has become slow shows it again with the next step. The limit is no lower because, if other
programs have the processor now and then, most steps are short and a few take many times as long: these make the
mean."""

_SHORTEST_SECONDS = 1e-9

_DECODE_POINTS = ((1.0, 1.0, 64.0), (1.0, 4.0, 256.0), (1.0, 8.0, 512.0), (1.0, 1.0, 1024.0))
_PREFILL_POINTS = ((1.0, 16.0), (1.0, 64.0), (1.0, 256.0))
"""The points, with those of decode, at which the last known cost enters the fit."""


class CostEstimate:
    """The present cost of a block on this peer, and of a visit to it.

    One thread observes steps, and one visits; any thread may read `cost`.
    """

    def __init__(self, start: ComputeCost, half_life_seconds: float) -> None:
        self._decode = _Line(_DECODE_POINTS, (start.decode_fixed, start.decode_per_row, start.decode_per_context_token))
        self._prefill = _Line(_PREFILL_POINTS, (start.prefill_fixed, start.prefill_per_token))
        self._visit = _Mean(start.visit)
        self._steps, self._visits = _Fading(half_life_seconds), _Fading(half_life_seconds)

    def observe(self, step: StepRecord, now_seconds: float) -> None:
        """Take in one step; `now_seconds` is of any monotonic clock.

        In a step with prompts and decode rows, the rows' own time is taken from the fit, and the rest is the prompts'.
        A step in which a session failed tells nothing: its time is that of several passes. O(1), apart from the fits.
        """
        if step.blocks <= 0 or step.seconds <= 0 or step.failed_sessions:
            return
        keep = self._steps.keep(now_seconds)
        per_block = step.seconds / step.blocks
        if step.prefill_tokens == 0:
            self._decode.observe((1.0, float(step.rows), float(step.context_tokens)), per_block, keep)
        else:
            rows_share = float(self._decode.coefficients[1]) * step.decode_rows
            rest = max(per_block - rows_share, 0.1 * per_block)
            self._prefill.observe((1.0, float(step.prefill_tokens)), rest, keep)

    def observe_visit(self, seconds: float, now_seconds: float) -> None:
        """Take in the time of one step here besides its computation and its wait for other sessions. O(1)."""
        self._visit.observe(seconds, self._visits.keep(now_seconds))

    @property
    def cost(self) -> ComputeCost:
        """The current estimate."""
        fixed, per_row, per_context_token = (float(value) for value in self._decode.coefficients)
        prefill_fixed, per_token = (float(value) for value in self._prefill.coefficients)
        return ComputeCost(fixed, per_row, per_context_token, prefill_fixed, per_token, self._visit.value)


def has_changed(announced: ComputeCost, present: ComputeCost, share: float = 0.2) -> bool:
    """Whether a client that plans with `announced` is off by more than `share`, in any of three typical steps."""
    pairs = (
        (announced.decode_seconds(1, 256), present.decode_seconds(1, 256)),
        (announced.decode_seconds(8, 2048), present.decode_seconds(8, 2048)),
        (announced.prefill_seconds(128), present.prefill_seconds(128)),
    )
    return any(abs(new - old) > share * old for old, new in pairs)


class _Fading:
    """The share of their weight that earlier observations keep at each new one."""

    def __init__(self, half_life_seconds: float) -> None:
        self._half_life_seconds = half_life_seconds
        self._last_seconds: float | None = None

    def keep(self, now_seconds: float) -> float:
        idle = 0.0 if self._last_seconds is None else max(0.0, now_seconds - self._last_seconds)
        self._last_seconds = now_seconds
        half_lives = min(idle, self._half_life_seconds) / self._half_life_seconds
        return float(0.5 ** (half_lives + 1 / HALF_LIFE_STEPS))


class _Mean:
    """A mean that starts at `value`, with the weight of a few observations, and forgets; 0: nothing is known."""

    def __init__(self, value: float) -> None:
        self.value = value
        self._weight = INERTIA if value > 0 else 0.0

    def observe(self, seconds: float, keep: float) -> None:
        """Add one observation; earlier ones keep the share `keep` of their weight."""
        known = self._weight * keep
        if self.value > 0:
            seconds = min(seconds, OUTLIER * self.value)
        self._weight = known + 1.0
        self.value += (seconds - self.value) / self._weight


class _Line:
    """A least-squares fit of relative errors with coefficients >= 0 that starts at `start` and forgets."""

    def __init__(self, points: Sequence[tuple[float, ...]], start: tuple[float, ...]) -> None:
        features = np.array(points)
        # Coefficients in units of the largest feature, so that seconds per token and plain seconds are of similar size.
        self._scale: NDArray[np.float64] = features.max(axis=0)
        self._latest: NDArray[np.float64] = np.array(start) * self._scale
        self._seen = 0
        self._points = features / self._scale
        self._gram = np.zeros((len(start), len(start)))
        self._moment = np.zeros(len(start))
        self._waiting: list[tuple[Sequence[float], float, float]] = []
        """Observations since the last fit: a step is only added here."""

    @property
    def coefficients(self) -> NDArray[np.float64]:
        """Seconds per unit of each feature."""
        return self._latest / self._scale

    def observe(self, features: Sequence[float], seconds: float, keep: float) -> None:
        """Add one observation; earlier ones keep the share `keep` of their weight."""
        self._waiting.append((features, seconds, keep))
        self._seen += 1
        if self._seen % REFIT_STEPS == 1:
            self._take_waiting()
            self._latest = self._fit()

    def _take_waiting(self) -> None:
        """Add the observations since the last fit, later ones with more weight; all at once is much less work."""
        observed, seconds, keeps = (np.array(values) for values in zip(*self._waiting, strict=True))
        self._waiting.clear()
        scaled = observed / self._scale
        expected = scaled @ self._latest
        expected = np.where(expected < _SHORTEST_SECONDS, seconds, expected)  # nothing was known
        # Errors are relative to the expected time: relative to the observed time, a slow step would count for less.
        relative, seen = scaled / expected[:, None], np.minimum(seconds / expected, OUTLIER)
        kept = np.cumprod(keeps[::-1])[::-1]
        weighted = relative * np.append(kept[1:], 1.0)[:, None]
        self._gram = kept[0] * self._gram + weighted.T @ relative
        self._moment = kept[0] * self._moment + weighted.T @ seen

    def _fit(self) -> NDArray[np.float64]:
        known = self._points @ self._latest
        is_known = known >= _SHORTEST_SECONDS
        rows, weight = self._points[is_known] / known[is_known, None], INERTIA / len(known)
        gram = self._gram + weight * rows.T @ rows
        moment = self._moment + weight * rows.sum(axis=0)
        # min |L.T x - L^-1 m| is the same problem, as one of rows; the ridge keeps the factor regular.
        ridge = 1e-9 * np.trace(gram) / len(gram)
        lower = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
        return nonnegative_least_squares(lower.T, np.linalg.solve(lower, moment))
