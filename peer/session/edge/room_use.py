"""How long a session may hold room without computing anything.

Only computed steps count as use.  Frames, push streams and reroutes do not: they cost their sender nothing, and could
keep room from others for days.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ....proto.errors import SessionLost
from ....proto.wire.handshake import Grant
from ...timing import PeerTiming


class RoomUse:
    """The clock of one session's room."""

    def __init__(
        self, grant: Grant, timing: PeerTiming, at_work: Callable[[], bool], crowding: Callable[[], bool]
    ) -> None:
        """`at_work`: a step of the session is being computed or waits for that; the session is not at fault then.

        `crowding`: its client holds more than its share while others wait.
        """
        self._timing = timing
        self._at_work = at_work
        self._crowding = crowding
        self._used = False
        self._fed_by_peer = grant.predecessor is not None
        self._since = self._begun_at = asyncio.get_running_loop().time()
        self.tokens = 0
        """Tokens computed so far, in all rows."""

    @property
    def seconds(self) -> float:
        """The age of the session."""
        return asyncio.get_running_loop().time() - self._begun_at

    def step_computed(self, tokens: int) -> None:
        """Note that the room was used just now, for a step of `tokens` tokens."""
        self._used = True
        self.tokens += tokens
        self._since = asyncio.get_running_loop().time()

    async def watch(self) -> None:
        """Wait until the session has held its room for too long without use. Raises SessionLost then."""
        loop = asyncio.get_running_loop()
        while True:
            if self._at_work():
                self._since = loop.time()
            allowed = self._allowed_seconds()
            left = self._since + allowed - loop.time()
            if left <= 0:
                raise SessionLost(f"the session computed nothing with its room for {allowed:.0f} s")
            # The allowed time changes with the sessions that wait.
            await asyncio.sleep(min(left, self._timing.unused_room_seconds))

    def _allowed_seconds(self) -> float:
        timing = self._timing
        if self._crowding():
            return timing.unused_room_seconds
        if self._used:
            return timing.idle_seconds
        return timing.unfed_room_seconds if self._fed_by_peer else timing.unused_room_seconds
