"""The blocks that a peer hosts now, and the one place where that changes.

`Hosted` is a value; whatever depends on what is hosted (the record, the room, the metrics, the check of an opening)
asks `Hosting.now` each time and keeps nothing that it computed from it.  `Hosting.load` loads beside, and
`Hosting.adopt` replaces:

* blocks that stay are the same modules, and go on batching together for sessions of before and after;
* memory never holds more weights than the union of the old and the new blocks; where these do not fit together, as many
  of the blocks that will be dropped as necessary are dropped before the load, once their sessions have left;
* open sessions keep the blocks that they opened on; dropped blocks live as long as their last session;
* until the new blocks are loaded nothing has changed, so a load that fails leaves the peer as it was; blocks that were
  dropped for it are loaded again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..proto.errors import OutOfMemory, RetryElsewhere, SwarmError
from ..routing.swarm import BlockRange
from .offer.capacity import MemoryOffer, gib
from .tasks import run_to_end
from .timing import PeerTiming

if TYPE_CHECKING:
    from .engine.blocks.stage import Stage
    from .engine.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hosted:
    """The blocks that are hosted at one time, with everything that follows from them."""

    stage: Stage
    block_hashes: tuple[bytes, ...]
    """First eight bytes of the digest of each block's weights, in block order."""
    room: int
    """KV tokens x blocks that sessions may reserve."""
    load_seconds: float = 0.0
    """Measured time to fetch and load one block, when blocks were last loaded."""

    @property
    def blocks(self) -> BlockRange:
        return self.stage.blocks

    @property
    def room_bytes(self) -> int:
        """The attention caches of sessions that use all the room."""
        return self.room * self.stage.kv_bytes_per_token


class LoadStopped(Exception):
    """Nobody waits for the load any more."""


def load_error(error: OSError | MemoryError, blocks: BlockRange) -> SwarmError:
    """The failure of a load that this machine's disk, network or memory is the reason of."""
    if isinstance(error, MemoryError):
        return OutOfMemory(f"there is no memory for blocks {blocks}")
    return RetryElsewhere(f"blocks {blocks} cannot be loaded: {error}", hint="Check the disk and the model's files.")


@dataclass(frozen=True, slots=True)
class BlockSource:
    """Where blocks come from. Both run in a thread of their own and may take minutes."""

    load: Callable[[BlockRange, Stage | None, Callable[[], None]], Stage]
    """Loads blocks; those that the given stage has are its very modules. Calls the function often: what that raises
    ends the load."""
    hashes: Callable[[BlockRange], tuple[bytes, ...]]

    async def hosted(self, blocks: BlockRange, offer: MemoryOffer, before: Hosted | None = None) -> Hosted:
        """`blocks`, loaded beside those of `before`; a caller that is cancelled stops the load.

        Raises OutOfMemory before anything is loaded, SwarmError where the load fails; what is neither that nor an
        OSError or MemoryError is a defect, and raised as it is.
        """
        room = offer.room(len(blocks))
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set():
                raise LoadStopped

        # Emptied by the load: a thread may hold its arguments for a while after the result is there, and with these the
        # blocks that are dropped next.
        reuse = [before.stage] if before else []
        began = time.perf_counter()
        try:
            stage = await asyncio.to_thread(lambda: self.load(blocks, reuse.pop() if reuse else None, check))
            hashes = await asyncio.to_thread(self.hashes, blocks)
        except (OSError, MemoryError) as error:
            raise load_error(error, blocks) from error
        finally:
            abandoned.set()
        added = len(set(blocks) - set(before.blocks if before else ()))
        per_block = (time.perf_counter() - began) / added if added else before.load_seconds if before else 0.0
        return Hosted(stage, hashes, room, per_block)


def rest_after_release(before: BlockRange, after: BlockRange, count: int) -> BlockRange | None:
    """The rest of `before` when `count` blocks (> 0) that `after` lacks are dropped; None if that cannot be.

    At least one block stays, and what stays is one run. The end that is farther from `after` is dropped first.
    """
    size = len(before) - count
    runs = (
        (BlockRange(start, start + size) for start in range(before.start, before.stop - size + 1)) if size > 0 else ()
    )
    kept = set(before) & set(after)
    lasting = [run for run in runs if kept <= set(run)]
    return min(lasting, key=lambda run: (abs(run.start - after.start), run.start), default=None)


class Hosting:
    """Owns what is hosted now."""

    def __init__(
        self,
        engine: Engine,
        first: Hosted,
        offer: MemoryOffer,
        source: BlockSource,
        on_swapped: Callable[[Hosted], None],
        free_bytes: Callable[[], int],
        timing: PeerTiming,
    ) -> None:
        """`engine` computes with the stage of `first`; `on_swapped` is told what is hosted after a swap.

        `free_bytes`: free memory where the blocks are.
        """
        self._engine = engine
        self._now = first
        self._offer = offer
        self._source = source
        self._on_swapped = on_swapped
        self._free_bytes = free_bytes
        self._timing = timing
        self._turn = asyncio.Lock()

    @property
    def now(self) -> Hosted:
        return self._now

    @property
    def blocks(self) -> BlockRange:
        return self._now.blocks

    async def load(self, blocks: BlockRange) -> Hosted:
        """Load `blocks` beside the present ones, whose modules it shares, to be adopted before anything else is.

        Where there is no memory for both, some of the present blocks that are not among `blocks` are dropped first: the
        caller knows that others serve them.

        Raises OutOfMemory, UsageError, ModelMismatch or RetryElsewhere; the peer is as it was then. A caller that is
        cancelled stops the load; what was dropped for it stays so.
        """
        self._offer.room(len(blocks))
        before = self.blocks  # not the stage: a reference to it would keep what is dropped in memory
        missing = await self._missing_bytes(blocks)
        try:
            if missing > 0:
                await self._make_room(blocks, missing)
            return await self._source.hosted(blocks, self._offer, self._now)
        except SwarmError:
            if self.blocks != before:
                await self._restore(before)
            raise

    async def _make_room(self, blocks: BlockRange, missing_bytes: int) -> None:
        """Drop as many blocks that are not in `blocks` as have `missing_bytes`. Raises OutOfMemory."""
        rest = rest_after_release(self.blocks, blocks, -(-missing_bytes // self._offer.block_bytes))
        if rest is None:
            raise OutOfMemory(f"blocks {blocks} do not fit beside {self.blocks}: {gib(missing_bytes)} are missing")
        await self._release(rest)
        await self._until_it_fits(blocks)

    async def _missing_bytes(self, blocks: BlockRange) -> int:
        """Memory that is wanting to hold `blocks` beside the present ones; negative: that is left then."""
        added = len(set(blocks) - set(self._now.blocks))
        return added * self._offer.block_bytes - await asyncio.to_thread(self._free_bytes)

    async def _release(self, rest: BlockRange) -> None:
        """Host only `rest`. The room stays: what is freed is wanted for weights."""
        before = self._now
        logger.info("dropping blocks to make room for others: %s stay of %s", rest, before.blocks)
        async with self._turn:
            stage = before.stage.part(rest)
            first = rest.start - before.blocks.start
            hashes = before.block_hashes[first : first + len(rest)]
            await run_to_end(self._replace(replace(before, stage=stage, block_hashes=hashes)))

    async def _until_it_fits(self, blocks: BlockRange) -> None:
        """Wait until the sessions that use dropped blocks have left them. Raises OutOfMemory if they do not."""
        try:
            async with asyncio.timeout(self._timing.release_seconds):
                while await self._missing_bytes(blocks) > 0:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(self._timing.watch_seconds)
        except TimeoutError:
            seconds = self._timing.release_seconds
            raise OutOfMemory(f"dropped blocks were still in use after {seconds:.0f} s") from None

    async def _restore(self, blocks: BlockRange) -> None:
        """Host again what was dropped for a load that has failed, if that can be."""
        try:
            if await self._missing_bytes(blocks) > 0:
                raise OutOfMemory("the memory is in use")
            await self.adopt(await self._source.hosted(blocks, self._offer, self._now))
        except SwarmError as error:
            logger.warning("blocks %s cannot be served again, %s are: %s", blocks, self._now.blocks, error)

    async def adopt(self, loaded: Hosted) -> None:
        """Host what was loaded in place of the present blocks, without ending a session."""
        async with self._turn:
            before = [self._now]
            await run_to_end(self._replace(loaded))
            logger.info("hosting blocks %s in place of %s", loaded.blocks, before[0].blocks)
            await asyncio.to_thread(before.clear)  # gigabytes go back to the system, which holds up who drops them

    async def _replace(self, after: Hosted) -> None:
        await self._engine.swap(after.stage, after.room_bytes)
        self._now = after
        self._on_swapped(after)
