"""Has other peers check whether they reach this one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from ...proto.errors import SwarmError
from ...proto.network.address import PeerAddress
from ...proto.network.transport import Dialer
from ...proto.wire.messages.opening import Signed
from ...proto.wire.messages.relay import ReachReply, ReachRequest
from ...routing.swarm import PeerId
from ..timing import PeerTiming
from .verdict import CHECKERS, ENOUGH_CHECKERS

logger = logging.getLogger(__name__)

MAX_ROUNDS = 3
"""Further peers are asked if too few of the first ones have answered."""


class ReachAsker:
    """Asks a few peers, drawn at random, to dial this one back."""

    def __init__(
        self,
        known: Callable[[], Awaitable[Sequence[PeerAddress]]],
        dialer: Dialer,
        introduce: Callable[[PeerId], Signed],
        rng: random.Random,
        timing: PeerTiming,
    ) -> None:
        """`known` returns one address of each other peer that has any; it raises SwarmError."""
        self._known = known
        self._dialer = dialer
        self._introduce = introduce
        self._rng = rng
        self._timing = timing

    async def ask(self, port: int) -> tuple[ReachReply, ...]:
        """Return the answers of the peers that give one; none if nobody is there."""
        try:
            known = list(await self._known())
        except SwarmError as error:
            logger.debug("nobody is known who could check the address: %s", error)
            return ()
        self._rng.shuffle(known)
        answers: list[ReachReply] = []
        for begin in range(0, min(len(known), MAX_ROUNDS * CHECKERS), CHECKERS):
            batch = known[begin : begin + CHECKERS]
            replies = await asyncio.gather(*(self._ask(address, port) for address in batch))
            answers += [reply for reply in replies if reply is not None]
            if len(answers) >= ENOUGH_CHECKERS:
                break
        return tuple(answers)

    async def _ask(self, address: PeerAddress, port: int) -> ReachReply | None:
        try:
            request = ReachRequest(self._introduce(address.peer), port)
            return await self._dialer.stub(address).reach(request, self._timing.reach_answer_seconds)
        except SwarmError as error:
            logger.debug("%s does not check the address: %s", address, error)
            return None
