"""An engine without tensors: a token is one number, and a block folds all tokens of a row so far into the next one.

Every output depends on every input before it in its row and on the blocks passed, so a wrong row, position, order or
block shows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from blockswarm.peer.engine.engine import StepOutput
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.prefixes import PAGE_TOKENS, Digests
from blockswarm.proto.wire.steps import RowTable, StepPlan
from blockswarm.routing.swarm import BlockRange, PeerId

T = TypeVar("T")

TOKEN_BYTES = 8
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class ToyFormat:
    token_bytes: int = TOKEN_BYTES


def pack(tokens: Sequence[int]) -> bytes:
    return b"".join(token.to_bytes(TOKEN_BYTES, "little") for token in tokens)


def unpack(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + TOKEN_BYTES], "little") for i in range(0, len(data), TOKEN_BYTES)]


ToyPages = dict[tuple[PeerId | None, bytes], dict[int, list[int]]]
"""Client and digest -> block -> states."""


@dataclass
class ToyKv:
    """Per row and block the folded states, one per token."""

    blocks: BlockRange
    kv_tokens: int
    max_rows: int
    rows: list[list[list[int]]] = field(default_factory=list)
    client: PeerId | None = None
    prefixes: Sequence[Digests] = ()
    pages: ToyPages = field(default_factory=dict)
    """Shared with the other sessions of the peer."""
    page_bytes: int = 1

    @property
    def held_tokens(self) -> tuple[int, ...]:
        return tuple(len(list(self._held(digests))) * PAGE_TOKENS for digests in self.prefixes)

    def _held(self, digests: Digests) -> Iterator[list[list[int]]]:
        for digest in digests:
            page = self.pages.get((self.client, digest), {})
            if not set(self.blocks) <= page.keys():
                return
            yield [page[block] for block in self.blocks]

    def adopt(self, index: int, tokens: int) -> None:
        if index == len(self.rows):
            self.rows.append([[] for _ in self.blocks])
        pages = list(self._held(self.prefixes[index])) if index < len(self.prefixes) else []
        if tokens > len(pages) * PAGE_TOKENS:
            raise RemoteProtocolError("more than is held")
        for position, states in enumerate(self.rows[index]):
            states[:] = [state for page in pages for state in page[position]][:tokens]

    def keep(self, index: int, digests: Digests) -> None:
        for page, digest in enumerate(digests):
            for block, states in zip(self.blocks, self.rows[index], strict=True):
                content = states[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
                assert len(content) == PAGE_TOKENS
                known = self.pages.setdefault((self.client, digest), {}).setdefault(block, content)
                assert known == content, "two texts have one name"

    @property
    def table(self) -> RowTable:
        return RowTable(tuple(len(row[0]) for row in self.rows))

    def step(self, plan: StepPlan, data: bytes) -> StepOutput:
        assert not plan.adopted
        after = self.table.after(plan)
        if after.tokens > self.kv_tokens or len(after.lengths) > self.max_rows:
            raise RemoteProtocolError("more than reserved")
        if plan.source_rows is not None:
            self.rows = [[list(states) for states in self.rows[source]] for source in plan.source_rows]
        tokens = iter(unpack(data))
        outputs = []
        for piece in plan.rows:
            if piece.row == len(self.rows):
                self.rows.append([[] for _ in self.blocks])
            row = self.rows[piece.row]
            for states in row:
                del states[piece.start :]
            outputs += [self._through_blocks(row, next(tokens)) for _ in range(piece.count)]
        return StepOutput(pack(outputs), 0.0, 0.0)

    def _through_blocks(self, row: list[list[int]], token: int) -> int:
        for block, states in zip(self.blocks, row, strict=True):
            before = states[-1] if states else block + 1
            token = (before * 6364136223846793005 + token * 1442695040888963407 + block) & _MASK
            states.append(token)
        return token

    def reset(self) -> None:
        self.rows.clear()

    def close(self) -> None:
        self.rows.clear()

    def export(self) -> bytes:
        return pack([token for row in self.rows for states in row for token in states])

    def largest_import(self, lengths: Sequence[int]) -> int:
        return sum(lengths) * len(self.blocks) * TOKEN_BYTES

    def import_(self, lengths: Sequence[int], data: bytes) -> None:
        if len(data) != self.largest_import(lengths):
            raise RemoteProtocolError("not the cache of these rows")
        tokens = iter(unpack(data))
        self.rows = [[[next(tokens) for _ in range(length)] for _ in self.blocks] for length in lengths]


class ToyEngine:
    """Computes at once, in the caller."""

    def __init__(self, blocks: BlockRange) -> None:
        self.blocks = blocks
        self.pages: ToyPages = {}

    def wire_format(self, name: str) -> ToyFormat:
        return ToyFormat()

    def open(
        self,
        blocks: BlockRange,
        wire_format: ToyFormat,
        kv_tokens: int,
        max_rows: int,
        client: PeerId,
        prefixes: Sequence[Digests],
    ) -> ToyKv:
        return ToyKv(blocks, kv_tokens, max_rows, [], client, prefixes, self.pages)

    async def step(self, kv: ToyKv, plan: StepPlan, data: bytes) -> StepOutput:
        return kv.step(plan, data)

    async def release(self, kv: ToyKv) -> None:
        kv.close()

    async def submit(self, work: Callable[[], T]) -> T:
        return work()

    def close(self) -> None:
        pass
