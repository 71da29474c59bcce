"""Three stages in this process in place of a swarm: the engine and the step contract, without any network."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from blockswarm.client.config import SessionEvent
from blockswarm.client.model.load import attach, prepare
from blockswarm.client.model.model import swarm_class
from blockswarm.client.report import ChainReport, Trip
from blockswarm.client.timing import ClientTiming
from blockswarm.peer.engine.blocks.stage import BatchingRoute, RowSpan, Stage
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.proto.errors import SessionLost
from blockswarm.proto.model.family import attention_implementation, find_blocks, stage_class
from blockswarm.proto.wire.steps import RowTable, StepPlan, validate_plan
from blockswarm.routing.swarm import BlockRange
from support.pending import Late
from transformers import PreTrainedModel


def stage_of(full: PreTrainedModel, blocks: BlockRange) -> Stage:
    """A stage with the weights of a full model's blocks."""
    model_class = stage_class(full.config, blocks)
    model = model_class._from_config(
        copy.deepcopy(full.config), attn_implementation=attention_implementation(model_class)
    )
    theirs = find_blocks(full, full.config.num_hidden_layers).blocks
    for index, block in enumerate(find_blocks(model, len(blocks)).blocks):
        block.load_state_dict(theirs[blocks.start + index].state_dict())
    return Stage.of(model.eval(), blocks, BatchingRoute.SINGLE)


def ends_of(full: PreTrainedModel) -> PreTrainedModel:
    """A client's model with the weights of a full model's ends."""
    model_class = swarm_class(full.config)
    model = model_class._from_config(
        copy.deepcopy(full.config), attn_implementation=attention_implementation(model_class)
    )
    missing = model.load_state_dict(full.state_dict(), strict=False).missing_keys
    assert not missing, missing
    model.generation_config = copy.deepcopy(full.generation_config)
    return prepare(model)


@dataclass
class LocalSession:
    """A StepRunner over stages. Checks every step as a peer would."""

    chain: LocalChain
    max_tokens: int
    max_rows: int
    table: RowTable = field(default_factory=RowTable)
    rows: list[list[RowKV]] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    closed: bool = False
    confirmed: tuple[int, ...] = ()
    """The lengths of the rows that were text, as told at the end."""

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.chain.stages]
        self._aborted = threading.Event()

    def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        validate_plan(plan)
        assert not self.closed
        assert hidden.shape[0] == plan.tokens
        if self.chain.failure is not None:
            raise self.chain.failure
        if self.chain.block_before_step == len(self.plans):
            self.chain.waiting.set()
            assert self._aborted.wait(timeout=60)
        if self._aborted.is_set():
            raise SessionLost("aborted")
        self.plans.append(plan)
        self.table = self.table.after(plan)
        assert self.table.tokens <= self.max_tokens
        assert len(self.table.lengths) <= self.max_rows
        with self.chain.computing:
            return self._compute(plan, hidden)

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Late:
        answers = self.run(plan, hidden)
        return Late(lambda: answers, patience=2)

    def _compute(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        for index, stage in enumerate(self.chain.stages):
            if plan.source_rows is not None:
                self.rows[index] = [self.rows[index][source].fork() for source in plan.source_rows]
            rows = self.rows[index]
            rows.extend(stage.new_row(self.max_tokens) for _ in range(len(self.table.lengths) - len(rows)))
            busy = [RowSpan(rows[piece.row], piece.start, piece.count) for piece in plan.rows if piece.count]
            hidden = stage.forward(hidden, busy)
        stop = 0
        answers = []
        for piece in plan.rows:
            stop += piece.count
            answers.append(hidden[stop - piece.answers : stop])
        return torch.cat(answers)

    @property
    def answered_steps(self) -> int:
        return len(self.plans)

    def report(self, since: int = 0) -> ChainReport:
        return ChainReport(steps=len(self.plans) - since)

    def last_trip(self) -> Trip | None:
        return self.chain.trip

    def abort(self, confirmed: Sequence[int]) -> None:
        self._aborted.set()

    def close(self, confirmed: Sequence[int]) -> None:
        self.confirmed = tuple(confirmed)
        self.closed = True
        self.rows = []


class LocalChain:
    """A SessionFactory: a full model cut into stages."""

    def __init__(self, full: PreTrainedModel, cuts: Sequence[int]) -> None:
        borders = [0, *cuts, full.config.num_hidden_layers]
        ranges = [BlockRange(start, stop) for start, stop in itertools.pairwise(borders)]
        self.stages = [stage_of(full, blocks).view(blocks) for blocks in ranges]
        self.sessions: list[LocalSession] = []
        self.closed = False
        self.timing = ClientTiming()
        self.computing = threading.Lock()
        """A stage is used by one thread at a time, as at a peer."""
        self.reset()

    def reset(self) -> None:
        """Forget the sessions, and compute every step."""
        self.sessions.clear()
        self.block_before_step: int | None = None
        """Before this step `run` waits until the session is aborted, and says so in `waiting`."""
        self.waiting = threading.Event()
        self.failure: BaseException | None = None
        """Raised by every step."""
        self.trip: Trip | None = None
        """The times that every step is said to take."""

    def check_open(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def forget(self) -> None:
        self.close()

    def open_session(
        self,
        max_tokens: int,
        max_rows: int,
        on_event: Callable[[SessionEvent], None] | None = None,
        blocks: BlockRange | None = None,
    ) -> LocalSession:
        assert blocks is None, "this chain is of whole models"
        if on_event is not None:
            on_event(SessionEvent("opened", None, f"{max_tokens} tokens"))
        session = LocalSession(self, max_tokens, max_rows)
        self.sessions.append(session)
        return session

    @property
    def open_sessions(self) -> int:
        return sum(not session.closed for session in self.sessions)

    @property
    def plans(self) -> list[StepPlan]:
        """Every step of the last session, in order."""
        return self.sessions[-1].plans


def connected_model(full: PreTrainedModel, cuts: Sequence[int] = (2, 4)) -> tuple[PreTrainedModel, LocalChain]:
    """A client's model that computes through stages of `full`, and the chain it uses."""
    chain = LocalChain(full, cuts)
    return attach(ends_of(full), chain), chain
