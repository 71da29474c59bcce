"""A peer has others dial it back: a few of them, drawn by chance, and more where too few answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from blockswarm.peer.reach.ask import MAX_ROUNDS, ReachAsker
from blockswarm.peer.reach.verdict import CHECKERS
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.errors import PeerBusy, PeerUnavailable
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.messages.relay import ReachReply, ReachRequest
from blockswarm.routing.swarm import PeerId


class Others:
    """Peers that answer, or refuse; stands in for the dialler, too."""

    def __init__(self, answering: int, refusing: int = 0) -> None:
        names = [PeerId(f"yes {n}") for n in range(answering)] + [PeerId(f"no {n}") for n in range(refusing)]
        self.addresses = [PeerAddress(name, "127.0.0.1:1") for name in names]
        self.asked: list[PeerId] = []
        self.ports: set[int] = set()
        self.failing = False

    async def known(self) -> Sequence[PeerAddress]:
        if self.failing:
            raise PeerUnavailable("the directory is away")
        return self.addresses

    def stub(self, address: PeerAddress) -> Any:
        others = self

        class Stub:
            async def reach(self, request: ReachRequest, timeout_seconds: float) -> ReachReply:
                assert request.hello.signer == address.peer, "each is greeted by its id"
                others.asked.append(address.peer)
                others.ports.add(request.port)
                if address.peer.startswith("no"):
                    raise PeerBusy(1.0)
                return ReachReply("8.8.8.8", True)

        return Stub()

    def ask(self, seed: int = 0) -> tuple[ReachReply, ...]:
        asker = ReachAsker(self.known, self, lambda to: Signed(signer=to), random.Random(seed), PeerTiming())  # type: ignore[arg-type]
        return asyncio.run(asker.ask(4000))


def test_a_few_are_asked() -> None:
    others = Others(20)
    assert len(others.ask()) == len(others.asked) == CHECKERS
    assert others.ports == {4000}


def test_nobody_can_choose_an_id_with_which_to_be_asked() -> None:
    drawn = set()
    for seed in range(40):
        others = Others(20)
        others.ask(seed)
        drawn.update(others.asked)
    assert len(drawn) > 15


def test_where_some_refuse_others_are_asked_up_to_a_limit() -> None:
    others = Others(2, refusing=4)
    assert len(others.ask()) == 2
    silent = Others(0, refusing=50)
    assert silent.ask() == ()
    assert len(silent.asked) == MAX_ROUNDS * CHECKERS


@pytest.mark.parametrize("failing", [False, True])
def test_where_nobody_is_known_nobody_answers(failing: bool) -> None:
    others = Others(3 if failing else 0)
    others.failing = failing
    assert others.ask() == ()
