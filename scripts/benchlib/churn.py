"""Clients among peers that come and go, so that those that are placed have to move."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockswarm.client.config import SessionEvent
from blockswarm.proto.errors import SwarmError

from .placed_swarm import (
    LEAVE_SECONDS,
    LOOK_SECONDS,
    BenchFailed,
    BenchPeer,
    BenchSwarm,
    Watcher,
    connected,
    ended,
    say,
    watching,
)

PLACED_PEERS = 3


@dataclass
class Gaps:
    """The time that a client waits for each token, and for which of them a session changed its peers."""

    stalls: list[float] = field(default_factory=list)
    """Seconds for a token before which an attention cache moved to another peer."""
    tokens: list[float] = field(default_factory=list)
    """Seconds for all other tokens but the first of a text."""
    events: Counter[str] = field(default_factory=Counter)
    """Everything that befell the sessions, by kind."""
    _handed_over: list[float] = field(default_factory=list)
    _asked_at: float = 0.0

    def note(self, event: SessionEvent) -> None:
        """Hear of an event, in the network's thread."""
        self.events[event.kind] += 1
        if event.kind == "handed-over":
            self._handed_over.append(time.perf_counter())

    def begin(self) -> None:
        """A text begins."""
        self._asked_at = 0.0

    def token(self) -> None:
        """A token is there, or the prompt that the text begins with."""
        now = time.perf_counter()
        if self._asked_at:
            stalled = any(self._asked_at <= at <= now for at in self._handed_over)
            (self.stalls if stalled else self.tokens).append(now - self._asked_at)
        self._handed_over.clear()

    def asked(self) -> None:
        """The next token is asked for."""
        self._asked_at = time.perf_counter()


class Generating(threading.Thread):
    """A client that generates one text after the other, and may rest after each token as a reader would.

    An error that is not the swarm's ends it.
    """

    def __init__(
        self, load: Callable[[Callable[[SessionEvent], None]], Any], prompt_tokens: int = 4, new_tokens: int = 64,
        rest_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """`load` connects the model, in this thread; what it is given wants to hear of the sessions' events."""
        super().__init__(daemon=True)
        self._load = load
        self._prompt = [32 + (7 * position) % 90 for position in range(prompt_tokens)]  # no special token is among them
        self._new_tokens, self._rest_seconds = new_tokens, rest_seconds
        self.gaps = Gaps()
        self.generations = 0
        self.failures: list[str] = []
        self.error: Exception | None = None
        self.longest_seconds = 0.0
        self.wanted: list[list[int]] = []
        self.done = threading.Event()

    def run(self) -> None:
        try:
            model = self._load(self.gaps.note)
            with contextlib.closing(model.session_factory):
                while not self.done.is_set():
                    self._generate(model)
        except Exception as error:  # for `finish`, which raises it
            self.error = error

    def _generate(self, model: Any) -> None:
        import torch

        ids = torch.tensor([self._prompt])
        began = time.perf_counter()
        self.gaps.begin()
        try:
            tokens = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, streamer=self,
                max_new_tokens=self._new_tokens, min_new_tokens=self._new_tokens,
            )  # fmt: skip
            self.wanted = self.wanted or tokens.tolist()
            if tokens.tolist() != self.wanted:
                self.failures.append("other tokens")
        except SwarmError as error:
            self.failures.append(str(error))
        self.generations += 1
        rested = self._rest_seconds * self._new_tokens
        self.longest_seconds = max(self.longest_seconds, time.perf_counter() - began - rested)

    def put(self, _tokens: object) -> None:
        """A streamer of transformers: the prompt comes first, then token after token."""
        self.gaps.token()
        time.sleep(self._rest_seconds)
        self.gaps.asked()

    def end(self) -> None:
        """The end of a text."""

    def finish(self, seconds: float) -> None:
        """Let the last text end. Raises the error that ended the client, and BenchFailed if it hangs or did nothing."""
        self.done.set()
        self.join(seconds)
        if self.error is not None:
            raise self.error
        if self.is_alive():
            raise BenchFailed(f"the client did not end its text within {seconds:.0f} s")
        if not self.generations:
            raise BenchFailed("the client generated nothing")


class Churn:
    """Peers that come and go in turn.

    A newcomer is placed while fewer than `PLACED_PEERS` are; otherwise its operator has chosen the blocks that most
    have already.  A peer that is alone on its blocks goes where a placed one is spare, so that this one has to move.
    """

    def __init__(self, swarm: BenchSwarm, watcher: Watcher) -> None:
        self._swarm, self._watcher = swarm, watcher
        self.changing: list[asyncio.Task[None]] = []
        self.turns = 0
        self.alone = 0
        """How many of those that left were the last server of a block."""
        self.memory: list[tuple[int, int, int]] = []
        """Moves of each peer that moved, and its memory when it began to serve and at its end."""

    def turn(self) -> None:
        """A join or a leave."""
        if self.turns % 2 == 0:
            self.changing.append(asyncio.create_task(self._swarm.ready(self._join())))
        elif (peer := self._next_to_leave()) is not None:
            self._swarm.peers.remove(peer)
            self.note_memory(peer)
            self.changing.append(asyncio.create_task(asyncio.to_thread(peer.child.end, LEAVE_SECONDS)))
        self.turns += 1

    def note_memory(self, peer: BenchPeer) -> None:
        if peer.first_memory_bytes and (moves := len(peer.moved_blocks())):
            self.memory.append((moves, peer.first_memory_bytes, peer.child.memory_bytes()))

    def _join(self) -> BenchPeer:
        if sum(peer.is_placed for peer in self._swarm.peers) < PLACED_PEERS:
            return self._swarm.start()
        lasting, num_blocks = self._watcher.lasting, self._watcher.num_blocks
        start, stop = (0, num_blocks // 2) if lasting[0] >= lasting[-1] else (num_blocks // 2, num_blocks)
        return self._swarm.start(f"{start}:{stop}")

    def _next_to_leave(self) -> BenchPeer | None:
        lasting, placement = self._watcher.lasting, self._watcher.placement()
        hosted = {p: placement[p.address.peer] for p in self._swarm.peers if p.address and p.address.peer in placement}
        alone = [peer for peer, blocks in hosted.items() if any(lasting[block] == 1 for block in blocks)]
        spare = [peer for peer in hosted if peer.is_placed and peer not in alone]
        if alone and spare and min(lasting) > 0:
            self.alone += 1
            return alone[0]
        return next((peer for peer in hosted if peer not in alone and not peer.is_placed), None)


async def churn(folder: Path, minutes: float, every_seconds: float, rtt_seconds: float = 0.0) -> dict[str, Any]:
    swarm, fewest = BenchSwarm(folder, "4", rtt_seconds=rtt_seconds), 99
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(swarm.close)
        for _ in range(PLACED_PEERS):
            await swarm.ready(swarm.start())
        watcher = await stack.enter_async_context(watching(swarm))
        await watcher.until_covered()
        addresses = swarm.addresses()
        clients = {
            "short texts": Generating(lambda note: connected(addresses, on_event=note)),
            "long texts": Generating(lambda note: connected(addresses, on_event=note), 512, 400, rest_seconds=0.1),
        }
        for client in clients.values():
            stack.callback(client.done.set)
            client.start()
        coming = Churn(swarm, watcher)
        stack.push_async_callback(ended, coming.changing)
        began = time.perf_counter()
        while time.perf_counter() < began + 60 * minutes and all(client.is_alive() for client in clients.values()):
            fewest = min(fewest, min(await watcher.servers()))
            if time.perf_counter() >= began + every_seconds * coming.turns:
                coming.turn()
                say(f"{time.perf_counter() - began:.0f} s: {watcher.lasting}")
            await asyncio.sleep(LOOK_SECONDS)
        for client in clients.values():
            await asyncio.to_thread(client.finish, 200)
        for peer in swarm.peers:
            coming.note_memory(peer)
        await asyncio.gather(*coming.changing)
        moved = swarm.moved_blocks()
        return {
            "minutes": minutes,
            "joins_and_leaves": coming.turns,
            "last_servers_that_left": coming.alone,
            "fewest_servers": fewest,
            "moves": len(moved),
            "blocks_loaded_by_moves": sum(moved),
            "predicted": [text for peer in swarm.started for text in peer.predictions()],
            "moves_and_memory_before_and_after_bytes": coming.memory,
            "failed_generations": sum(len(client.failures) for client in clients.values()),
            **{name: figures_of(client) for name, client in clients.items()},
        }


def figures_of(client: Generating) -> dict[str, Any]:
    """All that one client has noticed."""
    return {
        "generations": client.generations,
        "failures": sorted(set(client.failures))[:5],
        "longest_generation_seconds": client.longest_seconds,
        "stalls": len(client.gaps.stalls),
        "stall_p50_p95_max_ms": percentiles(client.gaps.stalls),
        "token_p50_p95_max_ms": percentiles(client.gaps.tokens),
        "events": dict(client.gaps.events),
    }


def percentiles(seconds: Sequence[float]) -> list[float] | None:
    """Median, 95th percentile and largest value, in milliseconds."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return [round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) for share in (0.5, 0.95, 1.0)]
