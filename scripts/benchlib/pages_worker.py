"""A process that serves a dashboard with a made-up swarm, which changes when it is asked to.

    python -m benchlib.pages_worker PEERS FOLDER    (with tests/ on PYTHONPATH)

The web application, its server and its history (in FOLDER) are those of `swarm-dashboard`; only looks and probes are
made up, by what the tests have for that. Questions come as lines of JSON on standard input, every answer is a line of
JSON on standard output.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from blockswarm.client.dashboard.config import HISTORY_FILE
from blockswarm.client.dashboard.history.entries import Availability, EventEntry, ProbeEntry
from blockswarm.client.dashboard.history.recorder import Recorder
from blockswarm.client.dashboard.probe.messages import ProbeOutcome
from blockswarm.client.dashboard.timing import DashboardTiming
from blockswarm.client.dashboard.watch.keeper import SnapshotKeeper
from blockswarm.client.dashboard.watch.sighting import LastProbe, ModelState
from blockswarm.client.dashboard.web.site import Site
from support.crowds import Crowd
from support.dashboards import ServedSite, served_site
from support.sightings import FACTS

MINUTES = 24 * 60
EVENTS = 100
CHANGED_SHARE = 0.05
"""The peers that differ after "some", and that leave and join with "turnover"."""


async def remember(recorder: Recorder, now: float, rng: random.Random) -> None:
    """A probe in each minute of the last day up to `now`, Unix seconds, and the newest events."""
    entries = [
        ProbeEntry(FACTS.id, now - 60 * minute, "", rng.uniform(1, 3), rng.random(), rng.uniform(4, 9), 0)
        for minute in range(1, MINUTES)
    ]
    events = [
        EventEntry(FACTS.id, now - 30 * number, "silent", f"12D3KooW{number:044}", f"peer {number}", "blocks 0:4")
        for number in range(EVENTS)
    ]
    await recorder.write(lambda store: [store.add_probe(entry) for entry in entries])
    await recorder.write(lambda store: store.add_events(events))


class ChangingSite:
    """A served site and its swarm."""

    def __init__(self, served: ServedSite, crowd: Crowd) -> None:
        self._served = served
        self._crowd = crowd

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Change what is asked for, as of now, and say which snapshot shows it, and the CPU time before."""
        match question["change"]:
            case "some":
                self._crowd.work(CHANGED_SHARE)
            case "all":
                self._crowd.work(1.0)
            case "turnover":
                self._crowd.turn_over(CHANGED_SHARE)
        state = self.state()
        began = time.process_time()
        self._served.put(state)
        return {"version": self._served.site.keeper.snapshot.version, "cpu_seconds": began}

    def state(self) -> ModelState:
        now = time.time()
        probe = LastProbe(now - 20, ProbeOutcome("", 2.0, 0.5, 7.3), Availability(MINUTES, MINUTES, now - 86400))
        return replace(self._crowd.state(now), probe=probe)


def main() -> int:
    peers, folder = int(sys.argv[1]), Path(sys.argv[2])
    rng, began = random.Random(), time.time()
    recorder = Recorder(folder / HISTORY_FILE, time.time)
    asyncio.run(remember(recorder, began, rng))
    timing = DashboardTiming(stream_pause=0.0)  # a change is told at once: the pause is no part of an update
    site = Site(SnapshotKeeper(), time.time, timing, loopback_only=True, recorder=recorder)
    with served_site(site) as served:
        changing = ChangingSite(served, Crowd(peers, rng, began))
        served.put(changing.state())
        print(json.dumps({"root": served.root, "model": FACTS.id}), flush=True)
        for line in sys.stdin:
            print(json.dumps(changing.answer(json.loads(line))), flush=True)
    recorder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
