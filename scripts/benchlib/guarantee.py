"""The bounded-load guarantee with real peers: waits and times per token, against Theorem 2's bound, the peers' own
predictions and the simulator.

Sessions send random hidden states of a prompt, then one token at a time, as many as they have reserved room for; the
head of the model is left out.  Peers have room for two sessions each.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from blockswarm.client.chain.session import ChainSession
from blockswarm.client.codec import FloatCodec
from blockswarm.client.config import SessionConfig, SessionEvent
from blockswarm.client.report import ChainReport
from blockswarm.client.swarm.router import ViewRouter
from blockswarm.client.swarm.view import SwarmView
from blockswarm.proto.identity import Identity
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.network.dialling import EVERY_RANGE
from blockswarm.proto.network.transport import Dialer
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.outlook import Outlook, outlook_of
from blockswarm.routing.papers.instances import Instance
from blockswarm.routing.perf import FloatArray, PerfModel
from blockswarm.routing.place.cgbp import CgbpPlan
from blockswarm.routing.sim.runs.product import run_exact
from blockswarm.routing.sim.runs.published import RequestResult
from blockswarm.routing.sim.runs.push import PushTimes
from blockswarm.routing.swarm import BlockRange, PeerId, RequestSpec, Swarm

from .placed_swarm import DEMO_MODEL, BenchFailed, BenchSwarm, say, watching

PEERS = 5
REQUEST = RequestSpec(prompt_tokens=512, new_tokens=32)
LONG_REQUEST = RequestSpec(prompt_tokens=512, new_tokens=128)
"""For the waits, which peers tell in whole seconds."""
KV_TOKENS = 1536
"""Two sessions of the planned length (768 tokens) in each block, and two of these."""
SESSIONS_OF_A_PEER = 2
ALONE_SESSIONS = 10
SETTLE_SECONDS = 45.0
"""Two refreshes: the announced costs are then those of the last steps, and the room is what it is."""
LEFT_SECONDS = 0.2
"""Time for peers to hear that a session has ended, before the client begins another one."""
QUEUED = re.compile(r"place (\d+), about (\d+(?:\.\d+)?) s")


@dataclass
class Session:
    """The times of one session, by the client's clock."""

    request: RequestSpec
    arrived_at: float
    queued: list[tuple[str, int, float, float]] = field(default_factory=list)
    """Each time that the session was told its place: the peer, the place, the estimate in seconds, and when."""
    first_token_at: float = 0.0
    ended_at: float = 0.0
    report: ChainReport = field(default_factory=ChainReport)
    """Where the time of the tokens after the first went."""
    predicted_seconds: float = 0.0
    """By the client's router, for a token of this session on its chain."""

    @property
    def ttft_seconds(self) -> float:
        return self.first_token_at - self.arrived_at

    @property
    def token_seconds(self) -> float:
        """Mean time of a token after the first."""
        return (self.ended_at - self.first_token_at) / (self.request.new_tokens - 1)

    @property
    def between_seconds(self) -> float:
        """Mean time from an answer to the next step: the client's own."""
        return self.token_seconds - self.report.step_seconds


class BenchClient:
    """Runs sessions in this process's loop."""

    def __init__(self, config: SessionConfig, view: SwarmView) -> None:
        self._config = config
        self._router = ViewRouter(view)
        self.view = view
        width = config.codec.token_bytes // 4
        self._hidden = np.random.default_rng(1).standard_normal((REQUEST.prompt_tokens, width)).astype(np.float32)

    async def session(self, request: RequestSpec = REQUEST) -> Session:
        """From the arrival to the last token. Raises SwarmError."""
        told = Session(request, time.perf_counter())

        def note(event: SessionEvent) -> None:
            if event.kind == "queued" and (found := QUEUED.search(event.detail)):
                told.queued.append((event.peer or "", int(found[1]), float(found[2]), time.perf_counter()))

        session = ChainSession(replace(self._config, on_event=note), request.prompt_tokens + request.new_tokens, 1)
        try:
            prompt = request.prompt_tokens
            await session.run(StepPlan((RowSlice(0, 0, prompt, 1),)), self._hidden[:prompt].tobytes())
            told.first_token_at, prompt_steps = time.perf_counter(), session.answered_steps
            for position in range(prompt, prompt + request.new_tokens - 1):
                await session.run(StepPlan((RowSlice(0, position, 1, 1),)), self._hidden[:1].tobytes())
            told.ended_at = time.perf_counter()
            told.report = session.report(since=prompt_steps)
            told.predicted_seconds = self._router.predict_request(session.chain, request).token_seconds
        finally:
            await session.close()
            await asyncio.sleep(LEFT_SECONDS)
        return told

    async def closed_loop(self, clients: int, sessions: int, request: RequestSpec = REQUEST) -> list[Session]:
        """`sessions` in all, `clients` at a time."""
        done: list[Session] = []
        left = iter(range(sessions))

        async def client() -> None:
            for _ in left:
                done.append(await self.session(request))

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return done

    async def open_loop(self, arrivals: Sequence[float]) -> list[Session]:
        """A session at each of those times, seconds from now."""
        began = time.perf_counter()

        async def at(seconds: float) -> Session:
            await asyncio.sleep(began + seconds - time.perf_counter())
            return await self.session()

        return list(await asyncio.gather(*map(at, arrivals)))

    def snapshot(self) -> Swarm:
        """The peers that serve, as they announce themselves now."""
        return replace(self.view.current().prepared.finder.swarm, now_seconds=time.time())


@contextlib.asynccontextmanager
async def bench_client(swarm: BenchSwarm) -> AsyncIterator[BenchClient]:
    checkpoint, identity = open_checkpoint(str(DEMO_MODEL)), Identity.generate()
    digest, dialer = checkpoint.model_digest().hex(), Dialer(rule=EVERY_RANGE)
    view = SwarmView(identity, dialer, swarm.addresses(), digest, checkpoint.num_blocks, None, True)
    await view.start()
    config = SessionConfig(
        identity, dialer, ViewRouter(view), digest, checkpoint.num_blocks, "auto",
        FloatCodec(checkpoint.config.hidden_size), patience_seconds=600.0,
    )  # fmt: skip
    try:
        yield BenchClient(config, view)
    finally:
        await view.close()
        await dialer.close()


async def guarantee(folder: Path, sessions: int, rtt_seconds: float) -> dict[str, Any]:
    """`sessions` among at most R; a fifth of them at random times; half of them in a crowd."""
    swarm = BenchSwarm(folder, "4", KV_TOKENS, rtt_seconds)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(swarm.close)
        for _ in range(PEERS):
            await swarm.ready(swarm.start())
        watcher = await stack.enter_async_context(watching(swarm))
        await watcher.until_covered()
        client = await stack.enter_async_context(bench_client(swarm))
        await client.closed_loop(1, ALONE_SESSIONS)  # the announced costs follow
        await settled(client)
        alone = await client.closed_loop(1, ALONE_SESSIONS)
        await settled(client)
        of_lone = promised(client.snapshot(), client.view.prepared.client_rtts)
        own_seconds = statistics.fmean(session.between_seconds for session in alone)
        say(f"R is {of_lone.concurrency}; alone: {against_the_bound(alone, of_lone, own_seconds)}")
        await client.closed_loop(of_lone.concurrency, ALONE_SESSIONS)
        await settled(client)
        announced = client.snapshot()
        rtts = client.view.prepared.client_rtts
        of_loaded = promised(announced, rtts)
        cpu, began = swarm.cpu_seconds() + time.process_time(), time.perf_counter()
        bounded = await client.closed_loop(of_lone.concurrency, sessions)
        cpu, took = swarm.cpu_seconds() + time.process_time() - cpu, time.perf_counter() - began
        found: dict[str, Any] = {
            "rtt_ms": 1000 * rtt_seconds,
            "placement": sorted(str(peer.blocks) for peer in client.snapshot().peers),
            "R": of_lone.concurrency,
            "visits_ms": [1000 * peer.cost.visit for peer in announced.peers],
            "bound_without_visits_ms": 1000 * promised(without_visits(announced), rtts).bound_seconds,
            "bound_of_lone_sessions_ms": 1000 * (of_lone.bound_seconds + own_seconds),
            "alone": against_the_bound(alone, of_lone, own_seconds),
            "at_most_R": against_the_bound(bounded, of_loaded, own_seconds),
            "cores_used_by_peers_and_client": cpu / took,
        }
        say(f"at most R: {found['at_most_R']}")
        await settled(client)
        found["at_random"] = await live_and_simulated(client, alone, of_lone.concurrency, max(20, sessions // 5))
        say(f"at random: {found['at_random']}")
        await settled(client)
        room = SESSIONS_OF_A_PEER * min(await watcher.servers())
        crowd = await client.closed_loop(3 * room, max(20, sessions // 4), LONG_REQUEST)
        found["above_R"] = {"at_once": 3 * room, "room_for": room, **waits_of(crowd)}
        return found


async def settled(client: BenchClient) -> None:
    """Wait until the records are those of peers at rest."""
    await asyncio.sleep(SETTLE_SECONDS)
    await client.view.refresh()


def promised(swarm: Swarm, rtts: Mapping[PeerId, float]) -> Outlook:
    """The outlook as `swarm-client status` has it. Raises BenchFailed."""
    found = outlook_of(swarm, rtts=rtts)
    if found is None:
        raise BenchFailed("no peer stays")
    return found


def without_visits(swarm: Swarm) -> Swarm:
    """The snapshot of peers that announce no cost of a visit."""
    return replace(swarm, peers=tuple(replace(p, cost=replace(p.cost, visit=0.0)) for p in swarm.peers))


def against_the_bound(sessions: Sequence[Session], outlook: Outlook, own_seconds: float) -> dict[str, Any]:
    """Times per token in milliseconds; `own_seconds`: what the client itself takes from one step to the next."""
    per_token = [session.token_seconds for session in sessions]
    bound_seconds = outlook.bound_seconds + own_seconds
    return {
        "sessions": len(sessions),
        "waited": sum(bool(session.queued) for session in sessions),
        "bound_ms": 1000 * bound_seconds,
        "of_the_client_ms": 1000 * own_seconds,
        "predicted_alone_ms": 1000 * outlook.token_seconds,
        "mean_ms": 1000 * statistics.fmean(per_token),
        "median_ms": 1000 * statistics.median(per_token),
        "above_the_bound": sum(seconds > bound_seconds for seconds in per_token),
        "mean_over_predicted": statistics.fmean(
            s.token_seconds / (s.predicted_seconds + own_seconds) for s in sessions
        ),
        "of_it_ms": where_time_goes(sessions),
    }


def where_time_goes(sessions: Sequence[Session]) -> dict[str, float]:
    """Milliseconds of a token: on the way, waiting for the engine, computing."""
    reports = [session.report for session in sessions if session.report.hops]
    if not reports:
        return {}
    return {
        "network": 1000 * statistics.fmean(sum(h.network_seconds for h in r.hops) + r.return_seconds for r in reports),
        "queue": 1000 * statistics.fmean(sum(h.queue_seconds for h in r.hops) for r in reports),
        "compute": 1000 * statistics.fmean(sum(h.compute_seconds for h in r.hops) for r in reports),
        "between_steps": 1000 * statistics.fmean(session.between_seconds for session in sessions),
        "hops": statistics.fmean(len(r.hops) for r in reports),
    }


def waits_of(sessions: Sequence[Session]) -> dict[str, Any]:
    """The waits of sessions that were told a place, against the first estimate of each; and whether the queue is fair.

    The time until the first token is longer than the wait by the prompt, which sessions that did not wait show.
    """
    waited = [session for session in sessions if session.queued]
    direct = [session.ttft_seconds for session in sessions if not session.queued]
    prompt = statistics.median(direct) if direct else 0.0
    ratios = []
    for session in waited:
        _, _, estimate, told_at = session.queued[0]
        ratios.append((session.first_token_at - told_at - prompt) / max(estimate, 0.5))
    return {
        "sessions": len(sessions),
        "waited": len(waited),
        "median_wait_seconds": statistics.median(s.ttft_seconds - prompt for s in waited) if waited else 0.0,
        "median_wait_over_estimate": statistics.median(ratios) if ratios else None,
        "within_25_percent": sum(0.75 <= ratio <= 1.25 for ratio in ratios),
        "out_of_order": out_of_order(waited),
    }


def out_of_order(waited: Sequence[Session]) -> int:
    """Pairs of sessions whose first queue was the same peer's, of which the one that joined later began earlier."""
    count = 0
    for session in waited:
        peer, _, _, joined_at = session.queued[0]
        for other in waited:
            other_peer, _, _, other_joined_at = other.queued[0]
            if other_peer == peer and other_joined_at > joined_at and other.first_token_at < session.first_token_at:
                count += 1
    return count


async def live_and_simulated(
    client: BenchClient, alone: Sequence[Session], concurrency: int, sessions: int
) -> dict[str, Any]:
    """The same arrivals live and in the simulator, at a load of about half of R sessions at once.

    `raw`: the simulator knows what is announced, and pings.  `calibrated`: it also knows what sessions that were alone
    took beyond that, per hop and token and until the first token; the publications add such constants too.
    """
    world = simulated_world(client)
    holding = statistics.fmean(session.ended_at - session.arrived_at for session in alone)
    rng, arrivals = random.Random(7), [0.0]
    while len(arrivals) < sessions:
        arrivals.append(arrivals[-1] + rng.expovariate(concurrency / 2 / holding))
    one_by_one = world.run([1e6 * number for number in range(ALONE_SESSIONS)])
    hops = statistics.fmean(len(result.chain) for result in one_by_one)
    beyond_token = mean_token(alone) - simulated_token(one_by_one)
    beyond_first = mean_first(alone) - simulated_first(one_by_one)
    calibrated = world.with_overhead(2 * beyond_token / (hops + 1), beyond_first - beyond_token)
    live = await client.open_loop(arrivals)
    figures: dict[str, Any] = {
        "sessions": sessions,
        "per_second": concurrency / 2 / holding,
        "beyond_token_ms": 1000 * beyond_token,
        "beyond_until_first_token_ms": 1000 * beyond_first,
        "token_ms": 1000 * mean_token(live),
        "first_token_ms": 1000 * mean_first(live),
    }
    for name, each in (("raw", world), ("calibrated", calibrated)):
        results = each.run(arrivals)
        figures[f"{name}_token_ratio"] = mean_token(live) / simulated_token(results)
        figures[f"{name}_first_token_ratio"] = mean_first(live) / simulated_first(results)
    return figures


def mean_token(sessions: Sequence[Session]) -> float:
    return statistics.fmean(session.token_seconds for session in sessions)


def mean_first(sessions: Sequence[Session]) -> float:
    return statistics.fmean(session.ttft_seconds for session in sessions)


def simulated_token(results: Sequence[RequestResult]) -> float:
    return statistics.fmean((each.total_seconds - each.ttft_seconds) / (each.new_tokens - 1) for each in results)


def simulated_first(results: Sequence[RequestResult]) -> float:
    return statistics.fmean(each.ttft_seconds for each in results)


@dataclass(frozen=True)
class World:
    """The same peers for the simulator."""

    model: PerfModel
    ranges: tuple[BlockRange | None, ...]
    raw_rtt_seconds: FloatArray
    """(1 + n, 1 + n), the client first."""
    fixed_seconds: float = 0.0
    """Needed by every session before its first token."""

    def with_overhead(self, hop_seconds: float, fixed_seconds: float) -> World:
        """Every visit of a token to a peer takes `hop_seconds` longer, and every session `fixed_seconds`."""
        model = self.model
        slower = replace(
            model,
            rtt_seconds=model.rtt_seconds + hop_seconds,
            prefill_rtt_seconds=model.prefill_rtt_seconds + hop_seconds,
        )
        return replace(self, model=slower, fixed_seconds=max(0.0, fixed_seconds))

    def run(self, arrivals: Sequence[float]) -> list[RequestResult]:
        """Requests at these times through the product's router and queues."""
        model, count = self.model, len(self.ranges)
        sizes = np.array([len(blocks or ()) for blocks in self.ranges])
        plan = CgbpPlan(
            1, self.ranges, tuple(range(count)), sizes, model.full_sessions(sizes), model.decode_seconds,
            np.zeros(model.num_blocks, dtype=np.int64), count, 0.0,
        )  # fmt: skip
        instance = Instance(
            name="live", model=model, prompt_tokens=REQUEST.prompt_tokens, initial_delay_seconds=0.0,
            allocation_seconds=0.0, arrivals_seconds=np.array(arrivals),
            request_client=np.zeros(len(arrivals), dtype=np.int64), requests_per_second=None, concurrency=None,
            requests_per_client=None, petals=None,
        )  # fmt: skip
        times = PushTimes(model, self.raw_rtt_seconds)
        return run_exact(instance, plan, self.fixed_seconds, lambda count: None, [times])


def simulated_world(client: BenchClient) -> World:
    """The peers as they are announced now, with the client's own round trips."""
    prepared, swarm = client.view.current().prepared, client.snapshot()
    ids = [peer.id for peer in swarm.peers]
    rtts = np.array([[prepared.known[peer].rtt_seconds for peer in ids]])
    raw = np.zeros((1 + len(ids), 1 + len(ids)))
    raw[0, 1:] = raw[1:, 0] = rtts[0]
    raw[1:, 1:] = prepared.rtts.matrix(ids)
    model = PerfModel.of_swarm(swarm, request=REQUEST, client_rtt_seconds=rtts)
    return World(model, tuple(peer.blocks for peer in swarm.peers), raw)
