"""How well a median is known, whatever the distribution: intervals of order statistics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics that enclose the true median with at least 95 %; with few values the extremes."""
    ordered, count = sorted(values), len(values)
    outside, cut = 0.0, 0
    while cut < count // 2:
        outside += 2 * math.comb(count, cut) / 2**count  # that at most `cut` values are on one side of the median
        if outside > 1 - CONFIDENCE:
            break
        cut += 1
    cut = max(0, cut - 1)
    return ordered[cut], ordered[count - 1 - cut]


def median_of(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the interval in which it is."""
    return statistics.median(values), *interval(values)
