"""The thread that computes: sessions' caches live here, and steps run one after the other.

The loop hands work over with `Engine.submit` and never touches a tensor; what crosses are bytes in wire format.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from ...proto.errors import OutOfMemory, RemoteProtocolError
from ...proto.steps import RowTable, StepPlan
from ...proto.tensors import WireFormat
from ...routing.swarm import BlockRange
from .kv import RowKV
from .kv_bytes import decode_rows, encode_rows, largest_size
from .stage import RowSlice, Stage

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step gave: all its tokens packed in wire format, and when it ran (Unix seconds)."""

    data: bytes
    started_at: float
    finished_at: float


class SessionKv:
    """The rows of one session on this peer. Every method runs in the engine's thread."""

    def __init__(
        self, stage: Stage, blocks: BlockRange, wire_format: WireFormat, kv_tokens: int, max_rows: int
    ) -> None:
        self._stage = stage
        self._view = stage.view(blocks)
        self._dtype = stage.dtype
        self._format = wire_format
        self._kv_tokens = kv_tokens
        self._max_rows = max_rows
        self._rows: list[RowKV] = []

    @property
    def table(self) -> RowTable:
        return RowTable(tuple(row.length for row in self._rows))

    def step(self, plan: StepPlan, data: bytes) -> StepOutput:
        """Permute, truncate, compute. Raises RemoteProtocolError, OutOfMemory.

        A plan that does not fit leaves the rows as they were.
        """
        started_at = time.time()
        self._check(plan)
        if plan.source_rows is not None:
            self._permute(plan.source_rows)
        for piece in plan.rows:
            if piece.row == len(self._rows):
                self._rows.append(self._view.new_row(self._kv_tokens))
            self._rows[piece.row].truncate(piece.start)
        computed = [piece for piece in plan.rows if piece.count]
        if not computed:
            return StepOutput(b"", started_at, time.time())
        hidden = self._format.decode(data).to(self._dtype)
        slices = [RowSlice(self._rows[piece.row], piece.start, piece.count) for piece in computed]
        try:
            output = self._format.encode(self._view.forward(hidden, slices))
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OutOfMemory(f"the peer has no memory for {plan.tokens} more tokens") from error
        return StepOutput(output, started_at, time.time())

    def reset(self) -> None:
        """Forget every row."""
        self._rows.clear()

    def export(self) -> bytes:
        """Every row's cached tokens, for `import_` on another peer with the same blocks. O(tokens)."""
        return encode_rows([row.export() for row in self._rows], self._view.blocks)

    def largest_import(self, lengths: Sequence[int]) -> int:
        """Bytes that an import of these rows may have. Raises RemoteProtocolError for more than was reserved."""
        if len(lengths) > self._max_rows or sum(lengths) > self._kv_tokens:
            raise RemoteProtocolError("the imported cache is larger than what the session reserved")
        return largest_size(lengths, self._view.blocks, self._stage.kv_bytes_per_token)

    def import_(self, lengths: Sequence[int], data: bytes) -> None:
        """Replace the rows by exported ones. Raises RemoteProtocolError if they do not fit; nothing changes then."""
        if len(data) > self.largest_import(lengths):
            raise RemoteProtocolError("the imported cache has more bytes than its rows can have")
        view = self._view
        scratch = view.new_row(max_tokens=1)
        view.forward(torch.zeros(1, self._stage.hidden_size, dtype=self._dtype), [RowSlice(scratch, 0, 1)])
        rows = decode_rows(data, lengths, view.blocks, scratch.export())
        self._rows = [RowKV.import_(view.blocks, self._kv_tokens, row) for row in rows]

    def _check(self, plan: StepPlan) -> None:
        table = self.table.after(plan)
        if len(table.lengths) > self._max_rows:
            raise RemoteProtocolError(
                f"the session reserved {self._max_rows} rows, this step needs {len(table.lengths)}"
            )
        if table.tokens > self._kv_tokens:
            raise RemoteProtocolError(f"the session reserved {self._kv_tokens} tokens, this step needs {table.tokens}")

    def _permute(self, source_rows: Sequence[int]) -> None:
        """A row is moved where it is used first, and copied where it is used again."""
        moved: set[int] = set()
        rows = []
        for source in source_rows:
            rows.append(self._rows[source].fork() if source in moved else self._rows[source])
            moved.add(source)
        self._rows = rows


class Engine:
    """One stage and the one thread that computes with it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    @property
    def blocks(self) -> BlockRange:
        return self.stage.blocks

    def wire_format(self, name: str) -> WireFormat:
        """The wire format of that name for this model. Raises RemoteProtocolError if there is none."""
        return WireFormat.named(name, self.stage.hidden_size)

    def open(self, blocks: BlockRange, wire_format: WireFormat, kv_tokens: int, max_rows: int) -> SessionKv:
        """The rows of a new session. Raises UsageError for blocks that are not hosted here."""
        return SessionKv(self.stage, blocks, wire_format, kv_tokens, max_rows)

    async def submit(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the engine's thread, after what was submitted before."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Stop the thread when the step that runs now is done."""
        self._executor.shutdown(wait=True, cancel_futures=True)
