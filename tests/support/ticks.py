"""A clock that moves by one second whenever it is read: a budget of N seconds ends at the Nth look at the time."""

from __future__ import annotations


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now
