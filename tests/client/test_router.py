"""What the client says and does when no chain exists: no host of a block, no room, or a request too large."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from blockswarm.client import session as sessions
from blockswarm.client.config import PATIENCE_SECONDS
from blockswarm.client.router import ViewRouter
from blockswarm.client.session import ChainSession
from blockswarm.proto.errors import NoChainError, PeerBusy, SwarmError
from blockswarm.proto.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import (
    BlockRange,
    ComputeCost,
    KvRelease,
    ModelSpec,
    PeerId,
    PeerSpec,
    RequestSpec,
    Swarm,
)


def peer(name: str, start: int, stop: int, free: int, *releases: KvRelease, total: int = 1000) -> PeerSpec:
    return PeerSpec(
        PeerId(name),
        BlockRange(start, stop),
        ComputeCost(0.01),
        kv_tokens_total=total,
        kv_tokens_free=free,
        releases=releases,
    )


WHOLE = BlockRange(0, 4)


def complaint(*peers: PeerSpec, blocks: BlockRange = WHOLE) -> SwarmError:
    """What the router of a swarm of four blocks raises."""
    view = SimpleNamespace(
        snapshot=lambda num_blocks: Swarm(ModelSpec(num_blocks, 0.0, 0.0), peers),
        peers={p.id: SimpleNamespace(rtt_seconds=0.05, record=SimpleNamespace(spec=p)) for p in peers},
    )
    with pytest.raises(SwarmError) as caught:
        asyncio.run(ViewRouter(view, 4).choose(blocks, frozenset(), RequestSpec(10, 10)))  # type: ignore[arg-type]
    return caught.value


def test_a_block_without_host_is_named_even_where_others_are_full() -> None:
    error = complaint(peer("a", 0, 2, 1000), peer("b", 2, 3, 0))
    assert isinstance(error, NoChainError)
    assert error.missing_blocks == (3,)


def test_full_peers_give_a_time_to_come_back() -> None:
    error = complaint(peer("a", 0, 2, 1000), peer("b", 2, 4, 0, KvRelease(12.0, 1)))
    assert isinstance(error, PeerBusy)
    assert error.retry_after_seconds == 12.0
    assert "blocks 2:4 is full" in str(error)


def test_blocks_are_counted_from_the_model_s_first_in_a_gap_too() -> None:
    assert "blocks 3:4 is full" in str(complaint(peer("b", 2, 4, 0), blocks=BlockRange(3, 4)))


def test_a_request_too_large_for_empty_peers_need_not_come_back() -> None:
    error = complaint(peer("a", 0, 2, 1000), peer("b", 2, 4, 0, total=10))
    assert isinstance(error, NoChainError)
    assert "too small for the request" in str(error)


class Choosing:
    """A router that raises these errors one after the other, the last for ever; time passes when it refreshes."""

    def __init__(self, *errors: SwarmError) -> None:
        self.now = 0.0
        self._errors = list(errors)

    async def choose(
        self, blocks: BlockRange, excluded: frozenset[PeerId], request: RequestSpec, min_precision: str | None
    ) -> tuple[()]:
        if not self._errors:
            return ()
        raise self._errors.pop(0) if len(self._errors) > 1 else self._errors[0]

    async def refresh(self) -> None:
        self.now += 1.0


@pytest.mark.parametrize(("error", "first_chain", "waits"), [
    (PeerBusy(1.0), True, True),
    (PeerBusy(1.0), False, True),
    (NoChainError((1,)), True, False),
    (NoChainError((1,)), False, True),
])  # fmt: skip
def test_a_session_waits_for_room_but_only_running_ones_for_lost_peers(
    error: SwarmError, first_chain: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "NO_CHAIN_PAUSE_SECONDS", 0.0)
    router = Choosing(error)
    config = SimpleNamespace(router=router, clock=lambda: router.now, num_blocks=4, token_bytes=4, min_precision=None)
    session = ChainSession(config, kv_tokens=10, max_rows=1)  # type: ignore[arg-type]
    operation = session._begin(StepPlan((RowSlice(0, 0, 1, 1),)), bytes(4))
    waiting = session._choose_patiently(SwarmError("lost"), PATIENCE_SECONDS, first_chain, operation)
    with pytest.raises(type(error)):
        asyncio.run(waiting)
    assert router.now == (PATIENCE_SECONDS if waits else 0.0)
