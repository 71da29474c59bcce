"""Limits on the streams that have not yet proved what they want: on their number, and on the time of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ....proto.errors import DeadlineExceeded, RemoteProtocolError, UsageError

MAX_HANDSHAKES = 256


class Handshakes:
    """Gives every stream a while to say what it wants; if there are too many, the oldest one makes room.

    An honest stream says so within a round trip, and is rarely the oldest.
    """

    def __init__(self, seconds: float, most: int = MAX_HANDSHAKES) -> None:
        self._seconds = seconds
        self._most = most
        self._limits: dict[asyncio.Timeout, None] = {}

    @property
    def count(self) -> int:
        """The number of streams in their handshake, without those that have to go."""
        return len(self._limits)

    @asynccontextmanager
    async def handshake(self) -> AsyncIterator[None]:
        """Limit the time of the block, in which a stream says what it wants. Raises DeadlineExceeded."""
        if len(self._limits) >= self._most:
            self._end_oldest()
        limit = asyncio.timeout(self._seconds)
        ends_at = asyncio.get_running_loop().time() + self._seconds
        try:
            async with limit:
                self._limits[limit] = None
                yield
        except TimeoutError:
            if asyncio.get_running_loop().time() < ends_at:
                raise DeadlineExceeded("the stream was not opened before newer ones needed its place") from None
            raise DeadlineExceeded(f"the stream was not opened within {self._seconds:.0f} s") from None
        except UsageError as error:
            raise RemoteProtocolError(str(error)) from None
        finally:
            self._limits.pop(limit, None)

    def _end_oldest(self) -> None:
        oldest = next(iter(self._limits))
        del self._limits[oldest]
        if not oldest.expired():  # an expired one ends anyway, and cannot be rescheduled
            oldest.reschedule(asyncio.get_running_loop().time())
