"""Curves over time as the paths of an SVG: pure arithmetic, no markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600.0, 120.0
INVISIBLE = 1e-9
"""Smaller values are drawn as 0."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One curve; times without a value are gaps in it."""

    title: str
    unit: str
    path: str
    """The `d` of an SVG path in a box of `WIDTH` x `HEIGHT`; a single value is a point."""
    top: float
    """The value at the upper edge; the lower edge is 0."""
    latest: float | None
    """The newest known value; `latest_index` is its index."""
    latest_index: int | None


def chart(title: str, unit: str, values: Sequence[float | None], top: float | None = None) -> Chart:
    """Draw a curve; `top`: the value at the upper edge; None: a round one that is no less than all values."""
    known = [(index, value) for index, value in enumerate(values) if value is not None]
    edge = top if top is not None else round_up(max((value for _, value in known), default=0.0))
    latest_index, latest = known[-1] if known else (None, None)
    return Chart(title, unit, _path(values, edge), edge, latest, latest_index)


def round_up(value: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is >= `value`; 1 for invisible values."""
    if value < INVISIBLE:
        return 1.0
    power = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 1.0
    while power > value:
        power /= 10
    return next((power * step for step in (1, 2, 5) if power * step >= value), power * 10)


def _path(values: Sequence[float | None], top: float) -> str:
    step = WIDTH / max(1, len(values) - 1)
    parts: list[str] = []
    pen_down = False
    for index, value in enumerate(values):
        if value is None:
            pen_down = False
            continue
        x, y = index * step, HEIGHT * (1 - min(value, top) / top)
        parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        if not pen_down:
            parts.append("h0")
        pen_down = True
    return "".join(parts)
