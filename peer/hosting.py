"""The blocks that a peer hosts now, and the one place where that changes.

`Hosted` is a value; whatever depends on what is hosted (the record, the room, the metrics, the check of an opening)
asks `Hosting.now` each time and keeps nothing that it computed from it.  `Hosting.load` loads beside, and
`Hosting.adopt` replaces:

* blocks that stay are the same modules, and go on batching together for sessions of before and after;
* memory never holds more weights than the union of the old and the new blocks;
* open sessions keep the blocks that they opened on; dropped blocks live as long as their last session;
* until the new blocks are loaded nothing has changed, so a load that fails leaves the peer as it was.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..proto.errors import OutOfMemory
from ..routing.swarm import BlockRange
from .offer.capacity import MemoryOffer, gib
from .tasks import run_to_end

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


@dataclass(frozen=True, slots=True)
class BlockSource:
    """Where blocks come from. Both run in a thread of their own and may take minutes."""

    load: Callable[[BlockRange, Stage | None, Callable[[], None]], Stage]
    """Loads blocks; those that the given stage has are its very modules. Calls the function often: what that raises
    ends the load."""
    hashes: Callable[[BlockRange], tuple[bytes, ...]]

    async def hosted(self, blocks: BlockRange, offer: MemoryOffer, before: Hosted | None = None) -> Hosted:
        """`blocks`, loaded beside those of `before`; a caller that is cancelled stops the load.

        Raises OutOfMemory before anything is loaded, and whatever the load raises.
        """
        room = offer.room(len(blocks))
        abandoned = threading.Event()

        def check() -> None:
            if abandoned.is_set():
                raise LoadStopped

        began = time.perf_counter()
        try:
            stage = await asyncio.to_thread(self.load, blocks, before.stage if before else None, check)
            hashes = await asyncio.to_thread(self.hashes, blocks)
        finally:
            abandoned.set()
        added = len(set(blocks) - set(before.blocks if before else ()))
        per_block = (time.perf_counter() - began) / added if added else before.load_seconds if before else 0.0
        return Hosted(stage, hashes, room, per_block)


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
        self._turn = asyncio.Lock()

    @property
    def now(self) -> Hosted:
        return self._now

    @property
    def blocks(self) -> BlockRange:
        return self._now.blocks

    async def load(self, blocks: BlockRange) -> Hosted:
        """Load `blocks` beside the present ones, whose modules it shares, to be adopted before anything else is.

        Raises OutOfMemory, UsageError, ModelMismatch or RetryElsewhere; the peer is as it was then, and also if the
        caller is cancelled.
        """
        before = self._now
        added = len(set(blocks) - set(before.blocks))
        needed, free = added * self._offer.block_bytes, self._free_bytes()
        if needed > free:
            raise OutOfMemory(f"{added} more blocks beside {before.blocks} need {gib(needed)}, {gib(free)} are free")
        return await self._source.hosted(blocks, self._offer, before)

    async def adopt(self, loaded: Hosted) -> None:
        """Host what was loaded in place of the present blocks, without ending a session."""
        async with self._turn:
            before = self._now
            await run_to_end(self._replace(loaded))
            logger.info("hosting blocks %s in place of %s", loaded.blocks, before.blocks)

    async def _replace(self, after: Hosted) -> None:
        await self._engine.swap(after.stage, after.room_bytes)
        self._now = after
        self._on_swapped(after)
