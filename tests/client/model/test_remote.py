"""The module in the place of the blocks and its cache: which steps the peers get, and when a session ends."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from blockswarm.client.model.batch.packing import ForwardInputs
from blockswarm.client.model.remote import RemoteBlocks, SwarmCache
from blockswarm.client.report import ChainReport
from blockswarm.client.timing import ClientTiming
from blockswarm.proto.errors import PeerUnavailable, SessionLost, UsageError
from blockswarm.proto.wire.steps import StepPlan
from support.pending import Answered


@dataclass
class Echo:
    """A swarm whose blocks add one, and that notes what was asked of it."""

    opened: list[tuple[int, int]] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    received: list[torch.Tensor] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    failure: BaseException | None = None
    timing: ClientTiming = field(default_factory=ClientTiming)

    def check_open(self) -> None:
        pass

    def open_session(self, max_tokens: int, max_rows: int, on_event: object = None) -> Echo:
        self.opened.append((max_tokens, max_rows))
        return self

    def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        if self.failure is not None:
            raise self.failure
        self.plans.append(plan)
        self.received.append(hidden)
        parts = hidden.split([piece.count for piece in plan.rows])
        return torch.cat([part[len(part) - piece.answers :] for part, piece in zip(parts, plan.rows, strict=True)]) + 1

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> Answered:
        return Answered(self.run(plan, hidden))

    @property
    def answered_steps(self) -> int:
        return len(self.plans)

    def report(self, since: int = 0) -> ChainReport:
        return ChainReport(steps=len(self.plans) - since)

    def last_trip(self) -> None:
        """Times are not known."""

    def abort(self, confirmed: Sequence[int]) -> None:
        self.events.append("abort")

    def close(self, confirmed: Sequence[int]) -> None:
        self.events.append("close")


def new_cache(swarm: Echo) -> SwarmCache:
    return SwarmCache(swarm, max_tokens=20, max_rows=4)


def forward(
    cache: SwarmCache,
    ids: list[list[int]],
    mask: list[list[int]] | None = None,
    positions: list[list[int]] | None = None,
    answers: int = 0,
) -> torch.Tensor:
    """Through the module, with each token's id as its hidden states."""
    tokens = torch.tensor(ids)
    cache.expect(
        ForwardInputs(
            tokens,
            None if mask is None else torch.tensor(mask),
            None if positions is None else torch.tensor(positions),
            answers,
        )
    )
    hidden = tokens[..., None].float().expand(-1, -1, 2)
    output = RemoteBlocks()(hidden, "anything", layer_past=cache)
    assert output.shape == hidden.shape
    return output[..., 0]


def test_padding_stays_here():
    swarm = Echo()
    output = forward(new_cache(swarm), [[0, 0, 7], [4, 5, 6]], mask=[[0, 0, 1], [1, 1, 1]])
    assert swarm.received[0][:, 0].tolist() == [7, 4, 5, 6]
    assert output.tolist() == [[0, 0, 8], [5, 6, 7]]


def test_only_wanted_columns_come_back():
    swarm = Echo()
    output = forward(new_cache(swarm), [[0, 0, 7], [4, 5, 6]], mask=[[0, 0, 1], [1, 1, 1]], answers=2)
    assert swarm.plans[0].answers == 3
    assert output.tolist() == [[0, 0, 8], [0, 6, 7]]


def test_answers_take_the_type_of_the_model_here():
    """The peers may compute in another one, and the wire carries theirs."""

    class Wide(Echo):
        def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
            return super().run(plan, hidden).float()

    cache = new_cache(Wide())
    cache.expect(ForwardInputs(torch.tensor([[1, 2]]), None, None, 0))
    assert RemoteBlocks()(torch.zeros(1, 2, 2, dtype=torch.bfloat16), past_key_values=cache).dtype == torch.bfloat16


def test_equal_rows_given_as_embeddings_are_one_row():
    swarm = Echo()
    cache = new_cache(swarm)
    cache.expect(ForwardInputs(None, None, None, 0))
    hidden = torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.bfloat16)[:, None, :]
    assert RemoteBlocks()(hidden, past_key_values=cache).flatten().tolist() == [2, 3, 2]
    assert swarm.received[0].flatten().tolist() == [1, 2]
    assert cache.input_ids().tolist() == [[-1]] * 3


def test_the_session_is_opened_by_the_first_step_that_has_tokens():
    swarm = Echo()
    cache = new_cache(swarm)
    forward(cache, [[0, 0]], mask=[[0, 0]])
    assert not swarm.opened
    forward(cache, [[3]], mask=[[0, 0, 1]])
    forward(cache, [[4]], mask=[[0, 0, 1, 1]])
    assert swarm.opened == [(20, 4)]
    assert [piece.start for piece in swarm.plans[1].rows] == [1]


def test_a_cache_that_nobody_has_any_more_ends_its_session():
    swarm = Echo()
    cache = new_cache(swarm)
    forward(cache, [[1, 2]])
    del cache
    gc.collect()
    assert swarm.events == ["close"]


@pytest.mark.parametrize("failure", [PeerUnavailable("gone"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failed_step_ends_the_session(failure: BaseException):
    """How far the peers came is unknown: to go on would risk wrong tokens."""
    swarm = Echo()
    cache = new_cache(swarm)
    forward(cache, [[1]])
    swarm.failure = failure
    with pytest.raises(type(failure)):
        forward(cache, [[2]])
    assert swarm.events == ["close"]
    assert not cache.usable
    swarm.failure = None
    with pytest.raises(SessionLost, match="failed"):
        forward(cache, [[2]])


def test_a_refused_forward_leaves_the_session_as_it_was():
    swarm = Echo()
    cache = new_cache(swarm)
    forward(cache, [[1, 2]])
    with pytest.raises(UsageError, match="do not fit"):
        forward(cache, [[3] * 19])
    forward(cache, [[3]])
    assert [piece.start for piece in swarm.plans[1].rows] == [2]


def test_a_session_cancelled_while_it_opens_is_closed():
    """Opening may take long; its result must not stay behind."""

    class Slow(Echo):
        def open_session(self, max_tokens: int, max_rows: int, on_event: object = None) -> Echo:
            cache.abort()
            return super().open_session(max_tokens, max_rows)

    swarm = Slow()
    cache = new_cache(swarm)
    with pytest.raises(SessionLost, match="cancelled"):
        forward(cache, [[1]])
    assert swarm.events == ["close"]
    assert not swarm.plans


def test_abort_and_close_reach_the_session_once():
    swarm = Echo()
    cache = new_cache(swarm)
    forward(cache, [[1]])
    cache.abort()
    cache.close()
    cache.close()
    assert swarm.events == ["abort", "close"]


@pytest.mark.parametrize(
    ("mask", "positions", "natural"),
    [
        ([[0, 1, 1]], [[0, 0, 1]], True),
        ([[0, 1, 1]], [[9, 0, 1]], True),  # what stands at padding means nothing
        ([[0, 1, 1]], [[0, 1, 2]], False),
        ([[1, 1, 1]], [[0, 1, 2]], True),
        ([[1, 1, 1]], [[1, 2, 3]], False),
    ],
)
def test_only_natural_positions_are_accepted(mask: list[list[int]], positions: list[list[int]], natural: bool):
    cache = new_cache(Echo())
    if natural:
        forward(cache, [[1, 2, 3]], mask, positions)
        following = sum(mask[0])
        forward(cache, [[4]], [[*mask[0], 1]], [[following]])
        with pytest.raises(UsageError, match="position_ids"):
            forward(cache, [[4]], [[*mask[0], 1, 1]], [[following]])
    else:
        with pytest.raises(UsageError, match="position_ids"):
            forward(cache, [[1, 2, 3]], mask, positions)


def test_one_row_of_positions_serves_the_whole_batch():
    cache = new_cache(Echo())
    forward(cache, [[1, 2], [3, 4]], positions=[[0, 1]])
    forward(cache, [[1], [3]], positions=[[2]])
    with pytest.raises(UsageError, match="position_ids"):
        forward(cache, [[1], [3]], positions=[[2], [3]])


@pytest.mark.parametrize("mask", [[[1, 1]], [[1, 1, 1, 1]]])
def test_a_mask_of_another_width_is_refused(mask: list[list[int]]):
    with pytest.raises(UsageError, match="shape"):
        forward(new_cache(Echo()), [[1, 2, 3]], mask)


def test_a_mask_that_changes_or_goes_away_is_refused():
    cache = new_cache(Echo())
    forward(cache, [[0, 1]], [[0, 1]])
    for mask in ([[1, 1, 1]], [[0, 0, 1]], None):
        with pytest.raises(UsageError, match="mask"):
            forward(cache, [[2]], mask)
    forward(cache, [[2]], [[0, 1, 1]])


def test_the_blocks_cannot_be_called_without_their_model():
    with pytest.raises(UsageError, match="without their model"):
        RemoteBlocks()(torch.zeros(1, 1, 2))
    with pytest.raises(UsageError, match="without their model"):
        RemoteBlocks()(torch.zeros(1, 1, 2), past_key_values=new_cache(Echo()))
