"""The blocks that a peer hosts now, and the one place where that changes.

`Hosted` is a value; whatever depends on what is hosted (the record, the room, the metrics, the check of an opening)
asks `Hosting.now` each time and keeps nothing that it computed from it.  `Hosting.load` loads new blocks beside the
present ones, and `Hosting.adopt` replaces these:

* blocks that stay keep their modules, so that sessions opened before and after still batch together;
* memory never holds more weights than the union of the old and the new blocks; if that does not fit, blocks that are
  to go are dropped first, as few as necessary, and the load waits until their sessions have left;
* open sessions keep the blocks that they opened on; dropped blocks live as long as their last session;
* nothing changes until the new blocks are loaded, so a load that fails leaves the peer as it was; blocks that were
  dropped for it are loaded again, if they fit. If they do not, the peer hosts fewer blocks from then on;
* `Hosting.now` and the stage that sessions open on change in one step of the loop, so that no record announces, and
  no opening is admitted to, blocks that are dropped already.
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
        """The size of the attention caches when all the room is used."""
        return self.room * self.stage.kv_bytes_per_token


class LoadStopped(Exception):
    """The load was abandoned: nobody waits for it any more."""


def load_error(error: OSError | MemoryError, blocks: BlockRange) -> SwarmError:
    """The error of a load that failed because of this machine's disk, network or memory."""
    if isinstance(error, MemoryError):
        return OutOfMemory(f"there is no memory for blocks {blocks}")
    return RetryElsewhere(f"blocks {blocks} cannot be loaded: {error}", hint="Check the disk and the model's files.")


@dataclass(frozen=True, slots=True)
class BlockSource:
    """Where blocks come from. Both functions run in a thread and may take minutes."""

    load: Callable[[BlockRange, Stage | None, Callable[[], None]], Stage]
    """(blocks, reuse, check): loads the blocks, with the modules of those that the stage `reuse` has. Calls `check`
    often; what it raises ends the load."""
    hashes: Callable[[BlockRange], tuple[bytes, ...]]

    async def hosted(self, blocks: BlockRange, offer: MemoryOffer, before: Hosted | None = None) -> Hosted:
        """Load `blocks` beside those of `before`; a caller that is cancelled stops the load.

        Raises OutOfMemory before anything is loaded, and SwarmError if the load fails, also for an OSError or a
        MemoryError. Any other exception is a defect, and passes as it is.
        """
        room = offer.room(len(blocks))
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set():
                raise LoadStopped

        # The load empties this list: a thread may hold its arguments for a while after it has returned, which would
        # keep the blocks that are dropped next in memory.
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
    """The range that stays of `before` when `count` > 0 blocks outside of `after` are dropped; None if there is none.

    At least one block stays. Blocks are dropped first at the end that is farther from `after`.
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

        `free_bytes` reads the free memory of the device with the blocks.
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
        """Load `blocks` beside the present ones, sharing their modules; adopt the result before anything else.

        If there is no memory for both, some of the present blocks outside of `blocks` are dropped first: the caller has
        to know that other peers serve them.

        Raises OutOfMemory, UsageError, ModelMismatch or RetryElsewhere; what was dropped is then loaded again, if it
        fits. A caller that is cancelled stops the load; what was dropped for it stays dropped. So after either `now`
        may be less than before.
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
        """Drop blocks outside of `blocks` to free `missing_bytes`. Raises OutOfMemory."""
        rest = rest_after_release(self.blocks, blocks, -(-missing_bytes // self._offer.block_bytes))
        if rest is None:
            raise OutOfMemory(f"blocks {blocks} do not fit beside {self.blocks}: {gib(missing_bytes)} are missing")
        await self._release(rest)
        await self._until_it_fits(blocks)

    async def _missing_bytes(self, blocks: BlockRange) -> int:
        """The memory missing to hold `blocks` beside the present ones; negative: the memory that would be left."""
        added = len(set(blocks) - set(self._now.blocks))
        return added * self._offer.block_bytes - await asyncio.to_thread(self._free_bytes)

    async def _release(self, rest: BlockRange) -> None:
        """Host only `rest`. The room for sessions stays as it is: what is freed is for weights."""
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
                while await self._missing_bytes(blocks) > 0:  # noqa: ASYNC110 - free memory has no event
                    await asyncio.sleep(self._timing.watch_seconds)
        except TimeoutError:
            seconds = self._timing.release_seconds
            raise OutOfMemory(f"dropped blocks were still in use after {seconds:.0f} s") from None

    async def _restore(self, blocks: BlockRange) -> None:
        """Load the blocks again that were dropped for a failed load, if they fit."""
        try:
            if await self._missing_bytes(blocks) > 0:
                raise OutOfMemory("the memory is in use")
            await self.adopt(await self._source.hosted(blocks, self._offer, self._now))
        except SwarmError as error:
            logger.warning("blocks %s cannot be served again, %s are: %s", blocks, self._now.blocks, error)

    async def adopt(self, loaded: Hosted) -> None:
        """Host the loaded blocks in place of the present ones, without ending a session."""
        async with self._turn:
            before = [self._now]
            await run_to_end(self._replace(loaded))
            logger.info("hosting blocks %s in place of %s", loaded.blocks, before[0].blocks)
            await asyncio.to_thread(before.clear)  # freeing gigabytes takes long: not on the loop

    async def _replace(self, after: Hosted) -> None:
        await self._engine.swap(after.stage, after.room_bytes)
        self._now = after  # nothing else has run on the loop since the engine has the stage
        self._on_swapped(after)
