"""The event loop: a heap of (time, priority, sequence), and nothing else.

Actions run in order of time; at the same time by priority (smaller first), then in the order they were scheduled.  An
action that raises stops the run: failures are never silent.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Event:
    """A scheduled action; `cancel` makes it do nothing."""

    __slots__ = ("action",)

    def __init__(self, action: Action) -> None:
        self.action: Action | None = action

    def cancel(self) -> None:
        """Forget the action. May be called at any time, also after it ran."""
        self.action = None


class Kernel:
    """Virtual time that moves from event to event."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self._heap: list[tuple[float, int, int, Event]] = []
        self._sequence = 0

    def at(self, seconds: float, action: Action, priority: int = 0) -> Event:
        """Run `action` at an absolute time. Raises ValueError for a time in the past."""
        if not seconds >= self.now_seconds:
            raise ValueError(f"cannot schedule at {seconds} s: it is {self.now_seconds} s")
        event = Event(action)
        heapq.heappush(self._heap, (seconds, priority, self._sequence, event))
        self._sequence += 1
        return event

    def after(self, seconds: float, action: Action, priority: int = 0) -> Event:
        """Run `action` that much later."""
        return self.at(self.now_seconds + seconds, action, priority)

    def run(self) -> None:
        """Until nothing is scheduled any more."""
        while self._heap:
            self.now_seconds, _, _, event = heapq.heappop(self._heap)
            action, event.action = event.action, None
            if action is not None:
                action()
