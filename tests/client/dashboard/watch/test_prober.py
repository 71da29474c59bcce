"""Probes go on for ever, each minute, and their outcome is shown and kept, whatever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from blockswarm.client.dashboard.history.recorder import Recorder
from blockswarm.client.dashboard.probe.messages import ProbedHop, ProbeOutcome
from blockswarm.client.dashboard.timing import DashboardTiming
from blockswarm.client.dashboard.watch.keeper import SnapshotKeeper
from blockswarm.client.dashboard.watch.prober import Prober
from blockswarm.client.dashboard.watch.sighting import ModelState
from blockswarm.routing.swarm import PeerId
from support.sightings import FACTS, NOW
from support.virtual_time import VirtualTimeLoop

TIMING = DashboardTiming()


class Outcomes:
    """Gives one outcome after the other, each after some seconds; after the last one it hangs."""

    def __init__(self, outcomes: Sequence[ProbeOutcome], seconds: float = 0.0) -> None:
        self.asked_at: list[float] = []
        self._seconds = seconds
        self._outcomes = list(outcomes)

    async def probe(self) -> ProbeOutcome:
        self.asked_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._seconds if self._outcomes else 1e9)
        return self._outcomes.pop(0)


def good(speed: float = 5.0, peer: str = "p") -> ProbeOutcome:
    return ProbeOutcome("", 2.0, 0.5, speed, (ProbedHop(PeerId(peer), 0, 4, 0.1, 0.02, 0.06),))


BAD = ProbeOutcome("no-chain", 1.0)


def test_a_probe_each_minute_whatever_the_one_before_brought() -> None:
    loop, outcomes = VirtualTimeLoop(), Outcomes([good(), BAD, *[good(7.0, "q")] * 30], 1.0)
    keeper = SnapshotKeeper()

    async def play() -> None:
        await keeper.put(ModelState(FACTS))
        prober = Prober(FACTS.id, outcomes, keeper, None, lambda: NOW + loop.time(), TIMING)
        running = asyncio.create_task(prober.run())
        begun = loop.time()
        shown = []
        for _ in range(4):
            snapshot = await keeper.after(keeper.snapshot.version)
            shown.append(snapshot.models[0])
        assert [at - begun for at in outcomes.asked_at] == [0, 60, 120, 180]
        assert [state.probe.outcome.works for state in shown] == [True, False, True, True]
        assert shown[1].probe.at_seconds == NOW + begun + 61
        assert shown[1].measured_block_seconds == {"p": 0.02}, "what was measured before is still known"
        assert shown[2].measured_block_seconds == {"p": 0.02, "q": 0.02}
        await asyncio.sleep(TIMING.measured)
        assert keeper.snapshot.models[0].measured_block_seconds == {"q": 0.02}
        running.cancel()

    with closing(loop):
        loop.run(play())


def test_outcomes_are_kept_and_changes_are_events(tmp_path: Path) -> None:
    failover = ProbeOutcome("", 2.0, 0.5, 5.0, (), 1)
    outcomes = Outcomes([good(), BAD, BAD, good(), failover, good()])

    async def play() -> None:
        keeper, recorder = SnapshotKeeper(), Recorder(tmp_path / "h.sqlite", lambda: NOW)
        await keeper.put(ModelState(FACTS))
        prober = Prober(FACTS.id, outcomes, keeper, recorder, lambda: NOW, DashboardTiming(probe_pause=0.0))
        running = asyncio.create_task(prober.run())
        try:
            async with asyncio.timeout(60):
                while (probe := keeper.snapshot.models[0].probe) is None or probe.availability.probes < 6:
                    await keeper.after(keeper.snapshot.version)
            assert (probe.availability.good, probe.availability.probes) == (4, 6)
            events = await recorder.write(lambda store: store.events(FACTS.id, 10))
            assert [numbered.event.kind for numbered in reversed(events)] == ["probe-failed", "probe-works", "failover"]
        finally:
            running.cancel()
            await asyncio.wait({running})
            recorder.close()

    asyncio.run(play())


def test_probes_that_fail_are_one_event_also_over_restarts(tmp_path: Path) -> None:
    async def play(outcomes: Outcomes, expected: list[str]) -> None:
        keeper, recorder = SnapshotKeeper(), Recorder(tmp_path / "h.sqlite", lambda: NOW)
        await keeper.put(ModelState(FACTS))
        prober = Prober(FACTS.id, outcomes, keeper, recorder, lambda: NOW, DashboardTiming(probe_pause=0.0))
        running = asyncio.create_task(prober.run())
        try:
            async with asyncio.timeout(60):
                while keeper.snapshot.models[0].probe is None:
                    await keeper.after(keeper.snapshot.version)
            events = await recorder.write(lambda store: store.events(FACTS.id, 10))
            assert [numbered.event.kind for numbered in reversed(events)] == expected
        finally:
            running.cancel()
            await asyncio.wait({running})
            recorder.close()

    asyncio.run(play(Outcomes([BAD]), ["probe-failed"]))
    asyncio.run(play(Outcomes([BAD]), ["probe-failed"]))
    asyncio.run(play(Outcomes([good()]), ["probe-failed", "probe-works"]))
    asyncio.run(play(Outcomes([good()]), ["probe-failed", "probe-works"]))
