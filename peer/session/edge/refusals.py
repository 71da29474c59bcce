"""The log of sessions that were refused or ended: one line at once, then one for all that follow in a while."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from ....proto.errors import SwarmError

logger = logging.getLogger(__name__)


class Refusals:
    """Logs refusals for the operator; a flood of them takes no more lines than a few."""

    def __init__(self, seconds: float, count: Callable[[str], None]) -> None:
        """`seconds`: the time between two lines; `count` is called with the code of every error."""
        self._seconds = seconds
        self._count = count
        self._more: Counter[str] = Counter()
        self._last = ""
        self._telling: asyncio.TimerHandle | None = None

    def note(self, error: SwarmError) -> None:
        """Log a refusal, or count it for the next line."""
        self._count(error.code)
        if self._telling is None:
            logger.info("session refused or ended: %s", error)
            self._tell_later()
        else:
            self._more[error.code] += 1
            self._last = str(error)

    def _tell_later(self) -> None:
        self._telling = asyncio.get_running_loop().call_later(self._seconds, self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self._more:
            kinds = ", ".join(f"{count} x {code}" for code, count in self._more.most_common())
            logger.info("%d more in %.0f s: %s; the last: %s", self._more.total(), self._seconds, kinds, self._last)
            self._more.clear()
            self._tell_later()
