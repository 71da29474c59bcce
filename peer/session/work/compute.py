"""A session's rows as its worker sees them: every call goes to the engine's thread, in parts if it would take long.

No more than `CACHE_PART_BYTES` of attention cache are copied between two steps: that takes some milliseconds.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ....proto.errors import RemoteProtocolError
from ....proto.wire.frames import CACHE_PART_BYTES
from ....proto.wire.prefixes import PAGE_TOKENS, Digests
from ....proto.wire.steps import StepPlan
from ...engine.cache.part import CachePart
from ...engine.engine import Engine, SessionKv, StepOutput


class EngineCompute:
    """The rows of a session, reached through the engine's thread."""

    def __init__(self, engine: Engine, kv: SessionKv, on_step: Callable[[int], None]) -> None:
        """`on_step` is called in the event loop after each step, with its number of tokens."""
        self._engine = engine
        self._kv = kv
        self._on_step = on_step
        self._pages_at_once = max(1, CACHE_PART_BYTES // kv.page_bytes)

    async def step(self, plan: StepPlan, data: bytes, input_format: str) -> StepOutput:
        """Begin with held prefixes, permute, truncate, compute. Raises SwarmError."""
        if plan.adopted:
            await self._adopt(plan)
        wire = self._engine.wire_format(input_format)
        output = await self._engine.step(self._kv, replace(plan, adopted=()), data, wire)
        self._on_step(plan.tokens)
        return output

    async def _adopt(self, plan: StepPlan) -> None:
        self._kv.table.begun(plan.adopted)
        held = self._kv.held_tokens
        if len(plan.adopted) > len(held) or any(map(operator.gt, plan.adopted, held)):
            raise RemoteProtocolError(f"rows cannot begin with {list(plan.adopted)} tokens: {list(held)} are held")
        for row, tokens in enumerate(plan.adopted):
            for stop in _parts(tokens, PAGE_TOKENS * self._pages_at_once):
                await self._engine.submit(lambda row=row, stop=stop: self._kv.adopt(row, stop))  # type: ignore[misc]

    async def keep(self, prefixes: tuple[Digests, ...]) -> None:
        """Keep the first pages of every row for later sessions."""
        for row, digests in enumerate(prefixes):
            for stop in _parts(len(digests), self._pages_at_once):
                part = digests[:stop]
                await self._engine.submit(lambda row=row, part=part: self._kv.keep(row, part))  # type: ignore[misc]

    async def reset(self) -> None:
        await self._engine.submit(self._kv.reset)

    async def export(self, starts: tuple[int, ...], max_tokens: int) -> CachePart:
        """Return the next part of the cache from `starts` on, never more than may be copied at once."""
        most = min(max_tokens, PAGE_TOKENS * self._pages_at_once)
        return await self._engine.submit(functools.partial(self._kv.export, starts, most))

    async def import_(self, part: CachePart) -> None:
        """Take a part of another peer's cache; this counts as use of the room, as a step does."""
        await self._engine.submit(functools.partial(self._kv.import_, part))
        self._on_step(0)


def largest_part(kv: SessionKv, starts: Sequence[int], lengths: Sequence[int]) -> int:
    """Bytes that a part of a session's cache may have. Raises RemoteProtocolError for more than was reserved."""
    most_bytes = max(CACHE_PART_BYTES, kv.page_bytes)
    left, counts = PAGE_TOKENS * most_bytes // kv.page_bytes, list[int]()
    all_of_it = kv.largest_import(starts, lengths)
    for count in map(operator.sub, lengths, starts):  # no more rows than have tokens in a part
        counts.append(min(count, left))
        left -= counts[-1]
    return min(all_of_it, kv.largest_import([0] * len(counts), counts))


def _parts(total: int, size: int) -> Iterator[int]:
    """The ends of parts of `size`: size, 2 size, ..., total."""
    yield from range(size, total, size)
    yield total
