"""The dashboard's pages in a real browser, with swarms that nobody runs: paint, updates, bytes, requests and memory.

The server is a process of its own (pages_worker.py), the browser a headless Chromium, both on this machine.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .intervals import median_of
from .processes import SCRIPTS, Child

TESTS = SCRIPTS.parent / "tests"
SWARMS = (10, 100, 1000)
CHANGES = ("some", "all", "turnover")
"""5 % of the peers have other figures; all have; 5 % leave, and as many join."""
DESKTOP = {"width": 1280, "height": 800}
WAIT_MS = 60_000
POLL_MS = 50
CONNECTIONS = 4
Figure = tuple[float, float, float]

MARKS = """
window.marks = null;
window.EventSource = class extends window.EventSource {
    constructor(...given) {
        super(...given);
        this.addEventListener("snapshot", () => { window.marks = { told: performance.now() }; });
    }
};
addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
    const marks = window.marks;
    marks.changed = performance.now();
    requestAnimationFrame(() => {
        const painted = new MessageChannel();  // a message that is sent before the paint comes after it
        painted.port1.onmessage = () => { marks.painted = performance.now(); };
        painted.port2.postMessage(null);
    });
}).observe(document.querySelector("main"), { attributes: true, attributeFilter: ["data-version"] }));
"""
"""Runs before the page's own script: when it hears of a snapshot, has changed, and shows that."""
VISIT = """() => {
    const [page] = performance.getEntriesByType("navigation");
    const files = [page, ...performance.getEntriesByType("resource")];
    return {
        paint: performance.getEntriesByName("first-contentful-paint")[0].startTime / 1000,
        load: page.loadEventEnd / 1000,
        sent_bytes: files.reduce((sum, file) => sum + file.encodedBodySize, 0),
        plain_bytes: files.reduce((sum, file) => sum + file.decodedBodySize, 0),
        elements: document.getElementsByTagName("*").length,
    };
}"""
UPDATE = """() => {
    const { told, changed, painted } = window.marks;
    const fetched = performance.getEntriesByType("resource").filter((each) => each.initiatorType === "fetch").at(-1);
    return {
        shown: (painted - told) / 1000,
        answered: (fetched.responseEnd - told) / 1000,
        changed: (changed - fetched.responseEnd) / 1000,
        painted: (painted - changed) / 1000,
        sent_bytes: fetched.encodedBodySize,
    };
}"""


def see_tests() -> None:
    """Let this process import what the tests have for a browser."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))


def find_browser() -> str | None:
    """The program that is measured; None where there is none."""
    see_tests()
    from support.browsers import CHROMIUM

    return str(CHROMIUM) if CHROMIUM else None


def figures(found: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """The same of each value."""
    return {name: median_of([each[name] for each in found]) for name in found[0]}


class Dashboard:
    """A dashboard of a made-up swarm, in a process of its own."""

    def __init__(self, child: Child) -> None:
        self.child = child
        told = child.read()
        self.root: str = told["root"]
        self._model: str = told["model"]

    def change(self, what: str) -> tuple[int, float]:
        """Have another snapshot shown: its version, and the server's CPU seconds before it was."""
        told = self.child.ask(change=what)
        return told["version"], told["cpu_seconds"]

    def screens(self) -> dict[str, str]:
        """The address of each screen, by its title."""
        from blockswarm.client.dashboard.web.templating import SCREENS

        model = f"{self.root}/models/{self._model}"
        asked = {"/join": "?memory=4"}
        return {"Now": f"{self.root}/", **{title: model + end + asked.get(end, "") for end, title in SCREENS}}


@contextlib.contextmanager
def serving(peers: int, folder: Path) -> Iterator[Dashboard]:
    """A dashboard of that many peers for the time of a block."""
    environment = {"PYTHONPATH": os.pathsep.join([str(SCRIPTS), str(TESTS)])}
    command = ("-m", "benchlib.pages_worker", str(peers), folder)
    with Child(*command, log=folder / "dashboard.log", environment=environment) as child:
        yield Dashboard(child)


def measure_visits(browser: Any, dashboard: Dashboard, address: str, times: int) -> dict[str, Any]:
    """Visits with an empty cache: to a page that nobody has asked for since the last look, and to one that is made."""
    new, made = [], []
    for _ in range(times):
        dashboard.change("all")
        new.append(visit(browser, address))
        made.append(visit(browser, address))
    return {"new": figures(new), "made": figures(made)}


def visit(browser: Any, address: str) -> dict[str, float]:
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.goto(address, wait_until="load", timeout=WAIT_MS)
    page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length", timeout=WAIT_MS)
    found: dict[str, float] = page.evaluate(VISIT)
    context.close()
    return found


def measure_updates(browser: Any, dashboard: Dashboard, address: str, times: int) -> dict[str, Any]:
    """One reader stays on the page while the swarm changes; the first update warms up."""
    context = browser.new_context(viewport=DESKTOP)
    context.add_init_script(MARKS)
    page = context.new_page()
    clock = PageClock(context.new_cdp_session(page))
    page.goto(address, timeout=WAIT_MS)
    page.wait_for_function("() => window.marks", timeout=WAIT_MS)
    found = {what: [update(page, clock, dashboard, what) for _ in range(times + 1)][1:] for what in CHANGES}
    context.close()
    return {what: figures(each) for what, each in found.items()}


def update(page: Any, clock: PageClock, dashboard: Dashboard, what: str) -> dict[str, float]:
    page.evaluate("() => { performance.clearResourceTimings(); window.marks = null; }")
    page_before = clock.cpu_seconds()
    version, server_before = dashboard.change(what)
    shown = "(version) => document.querySelector('main').dataset.version === version && window.marks?.painted"
    page.wait_for_function(shown, arg=str(version), polling=POLL_MS, timeout=WAIT_MS)
    found: dict[str, float] = page.evaluate(UPDATE)
    return {
        **found,
        "page_cpu": clock.cpu_seconds() - page_before,
        "server_cpu": dashboard.child.cpu_seconds() - server_before,
    }


class PageClock:
    """CPU time of a page's main thread: what else runs on the machine makes no difference to it, or little."""

    def __init__(self, session: Any) -> None:
        """`session` speaks the protocol of Chromium's developer tools."""
        self._session = session
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_seconds(self) -> float:
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")


def measure_requests(dashboard: Dashboard, rounds: int, seconds: float) -> dict[str, Any]:
    """`/api/v1/peers` over connections that stay open; and the first request for it after a look."""
    first = []
    for _ in range(rounds):
        dashboard.change("all")
        first.append(timed(lambda: get(dashboard, {})))
    packed = {"accept-encoding": "gzip"}
    gzip, plain = ([rate(dashboard, headers, seconds) for _ in range(rounds)] for headers in (packed, {}))
    return {
        "connections": CONNECTIONS,
        "first_s": median_of([each for each, _ in first]),
        "plain_bytes": first[-1][1],
        "gzip_bytes": get(dashboard, packed),
        "gzip": figures(gzip),
        "plain": figures(plain),
    }


def timed(call: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def get(dashboard: Dashboard, headers: Mapping[str, str]) -> int:
    """The bytes of one answer."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(dashboard.root).netloc, timeout=60)) as connection:
        return asked(connection, headers)


def asked(connection: http.client.HTTPConnection, headers: Mapping[str, str]) -> int:
    connection.request("GET", "/api/v1/peers", headers=dict(headers))
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}")
    return len(body)


def rate(dashboard: Dashboard, headers: Mapping[str, str], seconds: float) -> dict[str, float]:
    """Answers over `CONNECTIONS` connections, each of which asks again as soon as it is answered."""
    until = time.perf_counter() + seconds

    def ask() -> int:
        count = 0
        with contextlib.closing(http.client.HTTPConnection(urlsplit(dashboard.root).netloc, timeout=60)) as connection:
            while time.perf_counter() < until:
                asked(connection, headers)
                count += 1
        return count

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        began, cpu_before = time.perf_counter(), dashboard.child.cpu_seconds()
        asking = [pool.submit(ask) for _ in range(CONNECTIONS)]
        count = sum(each.result() for each in asking)
        took, cpu = time.perf_counter() - began, dashboard.child.cpu_seconds() - cpu_before
    return {"per_s": count / took, "server_cpu": cpu / count}


def measure_pages(swarms: Sequence[int], times: int, tell: Callable[[str], object]) -> dict[str, Any]:
    """All figures, by number of peers. Raises FileNotFoundError where there is no Chromium."""
    see_tests()
    from support.browsers import open_browser

    found: dict[str, Any] = {}
    with open_browser() as browser:
        for peers in swarms:
            with tempfile.TemporaryDirectory(prefix="pages-") as folder, serving(peers, Path(folder)) as dashboard:
                ready = dashboard.child.memory_bytes()
                screens = {}
                for title, address in dashboard.screens().items():
                    tell(f"{peers} peers, {title}")
                    screens[title] = {
                        "visits": measure_visits(browser, dashboard, address, times),
                        "updates": measure_updates(browser, dashboard, address, times),
                    }
                requests = measure_requests(dashboard, times, 2.0)
                memory = {"ready_pss_bytes": ready, "after_pss_bytes": dashboard.child.memory_bytes()}
                found[str(peers)] = {"screens": screens, "peers_requests": requests, "memory": memory}
    return found


def tables(found: Mapping[str, Any]) -> str:
    """The figures as tables of Markdown."""
    visits = table("peers", "screen", "first paint s: new", "made", "load s: new", "KB: gzip", "plain")
    updates = table("peers", "screen", *(f"update ms: {what}" for what in CHANGES), "CPU ms: server", "page")
    others = table(
        "peers", "answers/s: gzip", "plain", "CPU ms: gzip", "plain", "KB: gzip", "plain", "first ms",
        "PSS MiB: ready", "after",
    )  # fmt: skip
    for peers, swarm in found.items():
        for title, screen in swarm["screens"].items():
            new, made = screen["visits"]["new"], screen["visits"]["made"]
            times = (spread(each) for each in (new["paint"], made["paint"], new["load"]))
            visits.append(row(peers, title, *times, kilobytes(new["sent_bytes"][0]), kilobytes(new["plain_bytes"][0])))
            every = screen["updates"]
            shown = (spread(every[what]["shown"], 1e3, 0) for what in CHANGES)
            cpu = (spread(every["all"][name], 1e3, 0) for name in ("server_cpu", "page_cpu"))
            updates.append(row(peers, title, *shown, *cpu))
        answers = swarm["peers_requests"]
        rates = (spread(answers[name]["per_s"], 1, 0) for name in ("gzip", "plain"))
        cpu = (spread(answers[name]["server_cpu"], 1e3, 1) for name in ("gzip", "plain"))
        sizes = (kilobytes(answers[name]) for name in ("gzip_bytes", "plain_bytes"))
        held = (f"{swarm['memory'][name] / 2**20:.0f}" for name in ("ready_pss_bytes", "after_pss_bytes"))
        others.append(row(peers, *rates, *cpu, *sizes, spread(answers["first_s"], 1e3, 0), *held))
    return "\n".join([*visits, "", *updates, "", *others])


def table(*titles: str) -> list[str]:
    """The first lines of a table."""
    return [row(*titles), row(*("---" for _ in titles))]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def kilobytes(count: float) -> str:
    return f"{count / 1e3:.0f}"


def spread(value: Figure, scale: float = 1.0, digits: int = 2) -> str:
    """A median and its interval."""
    middle, low, high = (f"{scale * each:.{digits}f}" for each in value)
    return f"{middle} ({low}-{high})"
