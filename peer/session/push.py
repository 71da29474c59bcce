"""A peer's link to its successor in one session: dialled while the first step that goes there is computed.

Not before: a client that makes a peer dial should at least make it compute.  The client learns that the successor
cannot be reached and nothing more: it chose the addresses, and must not find out here what is open at them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from ...proto.errors import PushFailed, SwarmError
from ...proto.network.address import Reach
from ...proto.network.streams import DialedStream
from ...proto.network.transport import Dialer
from ...proto.wire.frames import WireStep, cut_step
from ...proto.wire.messages.opening import PushOpenFrame, Signed
from ...proto.wire.messages.session import FailureFrame
from ...proto.wire.messages.streams import PushFrame, PushReply
from ..tasks import cancel_all, run_to_end
from ..timing import PeerTiming

logger = logging.getLogger(__name__)


class PushLink:
    """Sends steps to one successor. A failure is final: the client then chooses another way."""

    def __init__(
        self,
        dialer: Dialer,
        addresses: Sequence[Reach],
        sign_hello: Callable[[], Signed],
        on_broken: Callable[[PushFailed], None],
        timing: PeerTiming,
        dial: Callable[[Reach], AbstractContextManager[None]],
    ) -> None:
        """`on_broken` is called once when a link that was ready breaks, or is not ready in time.

        `dial` makes the context in which an address is dialled, see `DialBudget.dial`.
        """
        self._timing = timing
        self._dialer = dialer
        self._addresses = addresses
        self._sign_hello = sign_hello
        self._on_broken = on_broken
        self._dial = dial
        self._stream: DialedStream[PushReply, PushFrame] | None = None
        self._ready = asyncio.get_running_loop().create_future()
        self._broken: PushFailed | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether the link may still work; False once it has failed."""
        return self._broken is None

    def prepare(self) -> None:
        """Start to dial, if that was not done yet: there will be something to send."""
        if self._task is None and self._broken is None:
            self._task = asyncio.create_task(self._run(), name="push-link")

    async def send(self, step: WireStep) -> None:
        """Send one step, after waiting for the link at most as long as the step has time. Raises PushFailed."""
        self.prepare()
        try:
            async with asyncio.timeout(step.timeout_seconds):
                await asyncio.shield(self._ready)
                if self._broken is None:
                    assert self._stream is not None
                    for frame in cut_step(step):
                        async with asyncio.timeout(self._timing.write_seconds):
                            await self._stream.write(frame)
                    return
        except TimeoutError:
            self._fail(PushFailed("the successor takes no data"), tell=False)
        except SwarmError as error:
            self._fail(self._broke(error), tell=False)
        except asyncio.CancelledError:
            # gRPC raises it also for a call whose channel was closed here, not only if this task is cancelled.
            self._fail(PushFailed("the link to the successor was cut"), tell=False)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        assert self._broken is not None
        raise self._broken from None

    async def close(self) -> None:
        """Cancel the link and whatever is being sent."""
        self._fail(PushFailed("the link was closed"), tell=False)
        if self._task is not None:
            await run_to_end(cancel_all([self._task]))

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self._timing.push_connect_seconds):
                await self._connect()
            self._ready.set_result(None)
            await self._watch()
        except TimeoutError:
            self._fail(_unreachable(), tell=True)
        except SwarmError as error:
            self._fail(self._broke(error), tell=True)
        finally:
            self._fail(PushFailed("the link to the successor was cut"), tell=True)
            if self._stream is not None:
                self._stream.cancel()

    async def _connect(self) -> None:
        """Raises SwarmError: the successor's own failure, or PushFailed if it cannot be reached."""
        for address in self._addresses:
            try:
                with self._dial(address):
                    self._stream = self._dialer.stub(address).push()
                    await self._stream.write(PushOpenFrame(self._sign_hello()))
                    reply = await self._stream.read()
            except SwarmError as error:
                logger.debug("a successor is not reached: %s", error)
                continue
            self._check(reply)
            return
        raise _unreachable()

    async def _watch(self) -> None:
        assert self._stream is not None
        while True:
            self._check(await self._stream.read())

    def _check(self, reply: PushReply | None) -> None:
        if reply is None:
            raise PushFailed("the successor closed the link")
        if isinstance(reply, FailureFrame):
            raise reply.error

    @staticmethod
    def _broke(error: SwarmError) -> PushFailed:
        """The error for the client, without its text: that may tell what is at the addresses that the client chose."""
        if isinstance(error, PushFailed):
            return error
        logger.debug("the link to a successor broke: %s", error)
        return PushFailed(f"the link to the successor broke ({error.code})")

    def _fail(self, error: PushFailed, tell: bool) -> None:
        if self._broken is not None:
            return
        self._broken = error
        if not self._ready.done():
            self._ready.set_result(None)
        if tell:
            self._on_broken(error)


def _unreachable() -> PushFailed:
    return PushFailed("the successor cannot be reached")
