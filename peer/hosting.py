"""The blocks that a peer hosts now, and the one place where that changes.

`Hosted` is a value; whatever depends on what is hosted (the record, the room, the metrics, the check of an opening)
asks `Hosting.now` each time and keeps nothing that it computed from it.  `Hosting.swap` loads beside and then replaces:

* blocks that stay are the same modules, and go on batching together for sessions of before and after;
* memory never holds more weights than the union of the old and the new blocks;
* open sessions keep the blocks that they opened on; dropped blocks live as long as their last session;
* until the new blocks are loaded nothing has changed, so a load that fails leaves the peer as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..routing.swarm import BlockRange
from .offer.capacity import MemoryOffer
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

    @property
    def blocks(self) -> BlockRange:
        return self.stage.blocks

    @property
    def room_bytes(self) -> int:
        """The attention caches of sessions that use all the room."""
        return self.room * self.stage.kv_bytes_per_token


@dataclass(frozen=True, slots=True)
class BlockSource:
    """Where blocks come from. Both run in a thread of their own and may take minutes."""

    load: Callable[[BlockRange, Stage | None], Stage]
    """Loads blocks; those that the given stage has are its very modules."""
    hashes: Callable[[BlockRange], tuple[bytes, ...]]

    async def hosted(self, blocks: BlockRange, offer: MemoryOffer, reuse: Stage | None = None) -> Hosted:
        """`blocks`, loaded. Raises OutOfMemory before anything is loaded, and whatever the load raises."""
        room = offer.room(len(blocks))
        stage = await asyncio.to_thread(self.load, blocks, reuse)
        return Hosted(stage, await asyncio.to_thread(self.hashes, blocks), room)


class Hosting:
    """Owns what is hosted now."""

    def __init__(
        self,
        engine: Engine,
        first: Hosted,
        offer: MemoryOffer,
        source: BlockSource,
        on_swapped: Callable[[Hosted], None],
    ) -> None:
        """`engine` computes with the stage of `first`; `on_swapped` is told what is hosted after a swap."""
        self._engine = engine
        self._now = first
        self._offer = offer
        self._source = source
        self._on_swapped = on_swapped
        self._turn = asyncio.Lock()

    @property
    def now(self) -> Hosted:
        return self._now

    @property
    def blocks(self) -> BlockRange:
        return self._now.blocks

    async def swap(self, blocks: BlockRange) -> None:
        """Host `blocks` in place of the present ones, without ending a session. One swap at a time.

        Raises OutOfMemory, UsageError, ModelMismatch or RetryElsewhere if they cannot be loaded; the peer is as it was
        then, and also if the caller is cancelled before the new blocks are loaded.
        """
        async with self._turn:
            before = self._now
            if blocks == before.blocks:
                return
            after = await self._source.hosted(blocks, self._offer, before.stage)
            await run_to_end(self._replace(after))
            logger.info("hosting blocks %s in place of %s", after.blocks, before.blocks)

    async def _replace(self, after: Hosted) -> None:
        await self._engine.swap(after.stage, after.room_bytes)
        self._now = after
        self._on_swapped(after)
