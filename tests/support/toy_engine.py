"""An engine without tensors: a token is one number, and a block folds all tokens of a row so far into the next one.

Every output depends on every input before it in its row and on the blocks passed, so a wrong row, position, order or
block shows at once.  In "float32" a number has 64 bits; in "bfloat16", rounding is to drop all but the last 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from blockswarm.peer.engine.cache.part import CachePart, part_of_rows
from blockswarm.peer.engine.engine import StepOutput
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.prefixes import PAGE_TOKENS, Digests
from blockswarm.proto.wire.steps import RowTable, StepPlan
from blockswarm.routing.swarm import BlockRange, PeerId

T = TypeVar("T")

TOKEN_BYTES = 8
_SIZES = {"float32": TOKEN_BYTES, "bfloat16": TOKEN_BYTES // 2}


def rounded(token: int, name: str) -> int:
    return token & ((1 << 8 * _SIZES[name]) - 1)


@dataclass(frozen=True)
class ToyFormat:
    name: str = "float32"

    @property
    def token_bytes(self) -> int:
        return _SIZES[self.name]

    def encode(self, tokens: Sequence[int]) -> bytes:
        return b"".join(rounded(token, self.name).to_bytes(self.token_bytes, "little") for token in tokens)

    def decode(self, data: bytes) -> list[int]:
        size = self.token_bytes
        return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


class ToyCodec:
    """Does for numbers what `FloatCodec` does for real activations."""

    token_bytes = TOKEN_BYTES

    def link_bytes(self, wire_format: str) -> int:
        return ToyFormat(wire_format).token_bytes

    def encode(self, data: bytes, wire_format: str) -> bytes:
        return ToyFormat(wire_format).encode(unpack(data))

    def decode(self, data: bytes, wire_format: str, guesses: int = 0) -> bytes:
        return pack(ToyFormat(wire_format).decode(data))

    def check(self, data: bytes, wire_format: str, guesses: int = 0) -> None:
        pass

    def finite_tokens(self, data: bytes) -> int:
        return len(data) // TOKEN_BYTES


def pack(tokens: Sequence[int]) -> bytes:
    return ToyFormat().encode(tokens)


def unpack(data: bytes) -> list[int]:
    return ToyFormat().decode(data)


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
    streams: Mapping[int, str] = field(default_factory=dict)
    """Block -> the format of its outputs and of the inputs that it takes in; float32 for those that are not here."""
    wire_format: ToyFormat = ToyFormat()

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

    def step(self, plan: StepPlan, data: bytes, input_format: ToyFormat | None = None) -> StepOutput:
        assert not plan.adopted
        after = self.table.after(plan)
        if after.tokens > self.kv_tokens or len(after.lengths) > self.max_rows:
            raise RemoteProtocolError("more than reserved")
        if plan.source_rows is not None:
            self.rows = [[list(states) for states in self.rows[source]] for source in plan.source_rows]
        packed = (input_format or self.wire_format).decode(data)
        if len(packed) != plan.tokens:
            raise RemoteProtocolError("not in the format of the inputs")
        tokens = iter(packed)
        outputs = []
        for piece in plan.rows:
            if piece.row == len(self.rows):
                self.rows.append([[] for _ in self.blocks])
            row = self.rows[piece.row]
            for states in row:
                del states[piece.start :]
            outputs += [self._through_blocks(row, next(tokens)) for _ in range(piece.count)]
        return StepOutput(self.wire_format.encode(outputs), 0.0, 0.0)

    def _through_blocks(self, row: list[list[int]], token: int) -> int:
        for block, states in zip(self.blocks, row, strict=True):
            before = states[-1] if states else block + 1
            stream = self.streams.get(block, "float32")
            token = before * 6364136223846793005 + rounded(token, stream) * 1442695040888963407 + block
            token = rounded(token, stream)
            states.append(token)
        return token

    def reset(self) -> None:
        self.rows.clear()

    def close(self) -> None:
        self.rows.clear()

    def export(self, starts: Sequence[int], max_tokens: int) -> CachePart:
        begins, ends = part_of_rows(self.table.lengths, starts, max_tokens)
        tokens = [
            token
            for row, begin, end in zip(self.rows, begins, ends, strict=True)
            for states in row
            for token in states[begin:end]
        ]
        return CachePart(tuple(begins), tuple(ends), pack(tokens))

    def largest_import(self, starts: Sequence[int], lengths: Sequence[int]) -> int:
        return (sum(lengths) - sum(starts)) * len(self.blocks) * TOKEN_BYTES

    def import_(self, part: CachePart) -> None:
        if len(part.data) != self.largest_import(part.starts, part.lengths):
            raise RemoteProtocolError("not the cache of these rows")
        tokens, rows = iter(unpack(part.data)), []
        for index, (start, count) in enumerate(zip(part.starts, part.counts, strict=True)):
            kept = self.rows[index] if start else [[] for _ in self.blocks]
            assert len(kept[0]) >= start
            rows.append([states[:start] + [next(tokens) for _ in range(count)] for states in kept])
        self.rows = rows


class ToyEngine:
    """Computes at once, in the caller."""

    def __init__(self, blocks: BlockRange, streams: Mapping[int, str] | None = None) -> None:
        self.blocks = blocks
        self.streams = streams or {}
        self.pages: ToyPages = {}

    def wire_format(self, name: str) -> ToyFormat:
        return ToyFormat(name)

    def open(
        self,
        blocks: BlockRange,
        wire_format: ToyFormat,
        kv_tokens: int,
        max_rows: int,
        client: PeerId,
        prefixes: Sequence[Digests],
    ) -> ToyKv:
        return ToyKv(
            blocks, kv_tokens, max_rows, [], client, prefixes, self.pages, streams=self.streams, wire_format=wire_format
        )

    async def step(self, kv: ToyKv, plan: StepPlan, data: bytes, input_format: ToyFormat) -> StepOutput:
        return kv.step(plan, data, input_format)

    async def release(self, kv: ToyKv) -> None:
        kv.close()

    async def submit(self, work: Callable[[], T]) -> T:
        return work()

    def close(self) -> None:
        pass
