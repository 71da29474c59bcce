"""The chain's machine alone: peers are played by hand, time is a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from blockswarm.client.chain.machine import events as ev
from blockswarm.client.chain.machine.machine import ChainMachine
from blockswarm.client.chain.machine.phases import Phase
from blockswarm.client.chain.operation import Operation
from blockswarm.client.timing import ChainTiming
from blockswarm.proto.errors import PeerUnavailable, SwarmError
from blockswarm.proto.network.address import PeerAddress
from blockswarm.proto.wire.frames import HopTiming, WireStep
from blockswarm.proto.wire.steps import RowSlice, RowTable, StepPlan
from blockswarm.routing.swarm import BlockRange, PeerId

TIMING = ChainTiming()
A = TypeVar("A", bound=ev.Action)
THIRDS = (BlockRange(0, 2), BlockRange(2, 4), BlockRange(4, 6))


class Facts:
    """A swarm in which every step is predicted to take 10 ms."""

    def __init__(self) -> None:
        self.left: set[PeerId] = set()
        self.seconds = 0.01
        self.of_chains: dict[frozenset[str], float] = {}
        """Other predictions, by the peers of the chain."""

    def predict_seconds(self, chain: Sequence[tuple[PeerId, BlockRange]], tokens: int) -> float:
        return self.of_chains.get(frozenset(peer for peer, _ in chain), self.seconds)

    def leaving(self, peer: PeerId, blocks: BlockRange) -> bool:
        return peer in self.left

    def record(self, peer: PeerId) -> bytes | None:
        return b"record"

    def clock_offset_seconds(self, peer: PeerId) -> float:
        return 0.0


def choice(name: str, blocks: BlockRange, wait_seconds: float = 0.0) -> ev.HopChoice:
    return ev.HopChoice(PeerAddress(PeerId(name), "10.0.0.1:1"), blocks, b"record", wait_seconds)


class Chain:
    """A machine with a chain of three peers that does what it is told, until the test says otherwise."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.machine = ChainMachine(self.facts, 6, TIMING)
        self.now = 0.0
        self.log: list[ev.Action] = []
        self.opened: dict[str, ev.HopId] = {}
        self.table = RowTable()
        self.next_seq = 1

    def feed(self, event: ev.Event) -> list[ev.Action]:
        actions = self.machine.handle(event, self.now)
        self.log += actions
        for action in actions:
            if isinstance(action, ev.Open):
                self.opened[action.choice.peer] = action.hop
        return actions

    def late(self) -> list[ev.Action]:
        """Time passes until the machine wants to be woken."""
        self.now = self.machine.wake_at
        return self.feed(ev.Late())

    def begin(self, *rows: RowSlice, source: tuple[int, ...] | None = None) -> list[ev.Action]:
        plan = StepPlan(rows or (RowSlice(0, self.table.tokens, 1, 1),), source)
        operation = Operation.of(plan, bytes(plan.tokens), self.table, self.next_seq, 1)
        self.table, self.next_seq = self.table.after(plan), operation.stop_seq
        return self.feed(ev.Begin(operation))

    def choose(self, actions: Sequence[ev.Action], *choices: ev.HopChoice) -> list[ev.Action]:
        return self.feed(ev.Chosen(last(actions, ev.Choose).number, choices))

    def answer(self, name: str, step: WireStep) -> list[ev.Action]:
        return self.feed(ev.Answered(self.opened[name], step))

    def answer_sent(self, actions: Sequence[ev.Action], name: str = "c", seconds: float = 0.0) -> list[ev.Action]:
        """The last peer answers all steps that were sent; b had them for `seconds`."""
        moments = ((0.0, 0.0), (0.0, seconds), (seconds, seconds))
        timings = tuple(
            HopTiming(PeerId(peer), received, received, finished)
            for peer, (received, finished) in zip("abc", moments, strict=True)
        )
        answers: list[ev.Action] = []
        for sent in actions:
            if isinstance(sent, ev.Send):
                answers += self.answer(name, replace(sent.step, timings=timings))
        return answers

    def confirm(self, actions: Sequence[ev.Action], applied_seq: int, complete: bool = True) -> list[ev.Action]:
        """Every hop that was given new neighbours takes them."""
        answers: list[ev.Action] = []
        for action in actions:
            if isinstance(action, ev.Reroute):
                answers += self.feed(ev.Rerouted(action.hop, action.neighbours.epoch, applied_seq, complete))
        return answers


def last(actions: Sequence[ev.Action], kind: type[A]) -> A:
    return [action for action in actions if isinstance(action, kind)][-1]


def all_of(actions: Sequence[ev.Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def running(operations: int = 1) -> Chain:
    """A chain a, b, c that has done some operations of one token."""
    chain = Chain()
    opening = chain.begin()
    sent = chain.choose(opening, *map(choice, "abc", THIRDS))
    for name in "abc":
        chain.feed(ev.Opened(chain.opened[name], 8))
    for _ in range(operations):
        done = chain.answer_sent(sent)
        assert all_of(done, ev.Done)
        sent = chain.begin()
    chain.answer_sent(sent)
    assert chain.machine.phase is Phase.RESTING
    return chain


def lose(chain: Chain, name: str, error: SwarmError | None = None) -> list[ev.Action]:
    return chain.feed(ev.Lost(chain.opened[name], error or PeerUnavailable(f"{name} is gone")))
