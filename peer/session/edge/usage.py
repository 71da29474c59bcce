"""The log of a peer's use: a line for a session that ends, then one per ten minutes, and a sum at the end."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger(__name__)


class UsageLog:
    """Shows a volunteer that the peer is used; heavy use takes no more lines than light use."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: the time between two lines."""
        self._seconds = seconds
        self._sessions = self._tokens = 0
        self._new_sessions = self._new_tokens = 0
        """Those that no line has reported yet."""
        self._telling: asyncio.TimerHandle | None = None
        self._told = False
        """Whether a session has had a line of its own since the last line about all sessions."""

    def computed(self, tokens: int) -> None:
        """Count the tokens of a step."""
        self._tokens += tokens
        self._new_tokens += tokens
        self._tell_later()

    def ended(self, tokens: int, seconds: float) -> None:
        """Log a session that has computed `tokens`, or count it for the next line."""
        if not tokens:
            return
        self._sessions += 1
        self._tell_later()
        if self._told:
            self._new_sessions += 1
        else:
            logger.info("a session has ended: %s in %.0f s", _count(tokens, "token"), seconds)
            self._told = True
            self._new_tokens = max(0, self._new_tokens - tokens)

    @property
    def summary(self) -> str:
        """The use since the start, for the last line of the log."""
        if not self._tokens:
            return "nobody has used this peer"
        return f"this peer has computed {_count(self._tokens, 'token')} in {_count(self._sessions, 'session')}"

    def _tell_later(self) -> None:
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(self._seconds, self._tell)

    def _tell(self) -> None:
        self._telling, self._told = None, False
        if self._new_tokens:
            logger.info(
                "%s in the last %.0f min, %s ended",
                _count(self._new_tokens, "token"), self._seconds / 60, _count(self._new_sessions, "session"),
            )  # fmt: skip
        self._new_sessions = self._new_tokens = 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
