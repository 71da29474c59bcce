"""The pages in a real browser: every screen in every state, by keyboard, without JavaScript, on a narrow screen."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blockswarm.client.dashboard.board.listing import ROWS_A_PAGE
from blockswarm.client.dashboard.history.entries import Availability
from blockswarm.client.dashboard.probe.messages import ProbedHop, ProbeOutcome
from blockswarm.client.dashboard.timing import DashboardTiming
from blockswarm.client.dashboard.watch.sighting import Failure, LastProbe, ModelState
from blockswarm.client.dashboard.web.templating import SCREENS
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerState
from support.browsers import ABSENT, CHROMIUM, open_browser
from support.crowds import Crowd
from support.dashboards import ServedSite, served_site
from support.sightings import FACTS, HOST, NOW, known, seen, site_of

WAIT_MS = 30_000
SIZES = {"block_bytes": 1e6, "kv_bytes_per_token": 100.0}
PICTURE = {"width": 1000, "height": 600}
PLAIN = {"color_scheme": "light", "reduced_motion": "reduce"}
HOSTILE = (
    "<script>document.title='hit'</script>",
    "<img src=x onerror=\"document.title='hit'\">",
    '"><svg onload="document.title=\'hit\'">',
    "' autofocus onfocus='document.title=1",
    "</bdi></main><iframe src=//evil.example>",
    "<style>@import '//evil.example'</style>",
    "{{ 7*7 }}",
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason=ABSENT),
]


def healthy(name: str = "a model", peer_name: str | None = None) -> ModelState:
    claim = MoveClaim(NOW, BlockRange(4, 8))
    peers = [
        known("0:4", peer_name or "ann", **SIZES, claim=claim), known("4:8", peer_name or "bob", **SIZES),
        known("2:6", peer_name or "", state=PeerState.DRAINING), known("0:8", peer_name or "liar", hashes=b"x" * 8),
    ]  # fmt: skip
    hops = [
        ProbedHop(p.record.spec.id, *(p.record.spec.blocks.start, p.record.spec.blocks.stop), 0.05, 0.001, 0.01)
        for p in peers[:2]
    ]
    state = seen(
        *peers, silent=[known("0:8", peer_name or "gone")], facts=replace(FACTS, name=name),
        proven=dict.fromkeys(range(8), b"8" * 8),
    )  # fmt: skip
    outcome = ProbeOutcome("", 2.0, 0.5, 7.31, tuple(hops))
    return replace(state, probe=LastProbe(NOW - 40, outcome, Availability(1434, 1440, NOW - 86400)))


def crowd() -> ModelState:
    return Crowd(1000, random.Random(0)).state(NOW)


STATES: dict[str, Callable[[], ModelState]] = {
    "healthy": healthy,
    "empty": lambda: seen(),
    "stale": lambda: replace(
        healthy(), sighting=seen(at=NOW - 7200).sighting, probe=None, failure=Failure("peer-unavailable", NOW)
    ),
    "broken": lambda: replace(
        seen(known("0:3"), known("6:12")), probe=LastProbe(NOW, ProbeOutcome("no-chain", 1.0), None)
    ),
    "crowd": crowd,
}
WORDS = {
    "healthy": "Works: 7.3 tokens/s", "empty": "no peer serves any block",
    "stale": "Last seen 2 h ago: no peer answers",
    "broken": "no chain of peers has all blocks", "crowd": "Every block has a server",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api")
    with open_browser() as browser:
        yield browser


@contextmanager
def visited(browser: Any, served: ServedSite, **context: Any) -> Iterator[Any]:
    """A page whose requests are watched: another origin, or a complaint of the browser, fails the test."""
    opened = browser.new_context(**context)
    page, asked, complaints = opened.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield page
    opened.close()
    assert asked
    assert all(url.startswith((served.root + "/", "data:")) for url in asked), "another origin was asked"
    assert complaints == []


def addresses(root: str) -> list[str]:
    return [
        f"{root}/",
        *(f"{root}/models/{FACTS.id}{end}{'?memory=4' if end == '/join' else ''}" for end, _ in SCREENS),
    ]


def test_the_pictures_of_the_documents(browser: Any, tmp_path: Path) -> None:
    """Writes those of docs/dashboard.md where BLOCKSWARM_SCREENSHOTS names a folder."""
    folder = Path(os.environ.get("BLOCKSWARM_SCREENSHOTS") or tmp_path)
    with served_site(site_of(healthy())) as served, visited(browser, served, viewport=PICTURE, **PLAIN) as page:
        for end, name in {f"models/{FACTS.id}": "blocks", f"models/{FACTS.id}/routes": "routes"}.items():
            page.goto(f"{served.root}/{end}")
            page.screenshot(path=folder / f"dashboard-{name}.png", full_page=True)
            assert (folder / f"dashboard-{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("state", STATES)
def test_every_screen_in_every_state_fits_a_narrow_dark_screen_and_names_no_address(browser: Any, state: str) -> None:
    with (
        served_site(site_of(STATES[state]())) as served,
        visited(
            browser, served, viewport={"width": 320, "height": 640}, color_scheme="dark", reduced_motion="reduce"
        ) as page,
    ):
        for address in addresses(served.root):
            page.goto(address)
            assert page.locator("h1").count() == 1
            assert page.evaluate("document.documentElement.scrollWidth") <= 320, address
            lines = "codes => codes.map((code) => code.getClientRects().length)"
            assert set(page.locator("pre code").evaluate_all(lines)) <= {1}, "a command is broken within a word"
            assert page.evaluate("document.getAnimations().length") == 0
            assert HOST not in page.content()
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
            if address.endswith("/"):
                assert WORDS[state] in page.inner_text("main")


@pytest.mark.parametrize("state", ["healthy", "broken"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_breaks_a_rule_of_accessibility(browser: Any, state: str, scheme: str) -> None:
    """axe-core's rules for WCAG 2.2 A and AA."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    with served_site(site_of(STATES[state]())) as served, visited(browser, served, color_scheme=scheme) as page:
        for address in addresses(served.root):
            page.goto(address)
            found = axe.run(page, options=rules)
            assert found.response["passes"], "the rules were applied"
            assert found.violations_count == 0, f"{address}\n{found.generate_report()}"


def test_names_are_text_on_every_screen(browser: Any) -> None:
    with served_site(site_of(healthy())) as served, visited(browser, served) as page:
        for text in HOSTILE:
            served.put(healthy(text, text))
            for address in addresses(served.root):
                page.goto(address)
                assert page.locator("script").count() == 1
                assert page.locator("img, iframe, style, main svg[onload], [onfocus]").count() == 0
                assert page.title() != "hit"
                assert text in page.locator("body").inner_text()


def test_the_map_is_a_grid_for_the_keyboard(browser: Any) -> None:
    with (
        served_site(site_of(seen(known("0:4", "ann"), known("4:8", "bob")))) as served,
        visited(browser, served) as page,
    ):
        page.goto(addresses(served.root)[1])
        grid = page.locator("table[role=grid]")
        assert grid.locator("[tabindex='0']").count() == 1, "one stop for the tab key"

        def at() -> str:
            return page.evaluate("document.activeElement.textContent.trim()")

        grid.locator("th").first.focus()
        for key, text in (
            ("ArrowRight", "0"), ("ArrowDown", "1"), ("ArrowDown", "4096"), ("ArrowDown", "4"),
            ("ArrowDown", "serving 0:4"), ("ArrowDown", ""), ("End", "serving 4:8"), ("ArrowUp", ""),
            ("ArrowLeft", "serving 0:4"), ("Control+Home", "Peer"), ("ArrowUp", "Peer"),
            ("Control+End", "serving 4:8"),
        ):  # fmt: skip
            page.keyboard.press(key)
            assert at() == text, key
        page.keyboard.press("Tab")
        assert page.evaluate("!document.activeElement.closest('table')")


def test_new_snapshots_come_in_without_taking_the_focus_and_can_be_paused(browser: Any) -> None:
    site = site_of(seen(known("0:4")), timing=DashboardTiming(stream_pause=0.0))
    with served_site(site) as served, visited(browser, served) as page:
        page.goto(served.root)
        page.wait_for_selector("#live")
        link = page.locator("main h2 a")
        link.focus()
        served.put(seen(known("0:4"), known("4:8")))
        page.locator("main", has_text="8 of 8 served").wait_for(timeout=WAIT_MS)
        assert page.evaluate("document.activeElement === document.querySelector('main h2 a')")
        page.click("#live button")
        assert "not updated" in page.inner_text("#live")
        served.put(seen())
        served.put(ModelState(FACTS))
        with page.expect_response("**/static/dashboard.css"):
            page.evaluate("fetch('/static/dashboard.css')")
        assert "8 of 8 served" in page.inner_text("main")
        page.click("#live button")
        page.locator("main", has_text="Not seen yet").wait_for(timeout=WAIT_MS)


def test_a_page_says_that_it_is_old_where_no_newer_one_can_be_made_and_when_it_was_made(browser: Any) -> None:
    site = site_of(seen(known("0:4")), timing=DashboardTiming(stream_pause=0.0))
    moments = iter(range(10_000))
    with served_site(replace(site, clock=lambda: NOW + next(moments))) as served:
        opened = browser.new_context()
        page = opened.new_page()
        page.goto(served.root)
        page.wait_for_selector("#live")
        made = page.inner_text("footer time")
        page.route(f"{served.root}/", lambda route: route.fulfill(status=503, body="busy"))
        served.put(seen(known("0:4"), known("4:8")))
        page.locator("#live", has_text="this page is old").wait_for(timeout=WAIT_MS)
        assert "4 of 8 served" in page.inner_text("main")
        assert page.inner_text("footer time") == made
        page.unroute(f"{served.root}/")
        served.put(seen())
        page.locator("main", has_text="0 of 8 served").wait_for(timeout=WAIT_MS)
        assert "this page is old" not in page.inner_text("#live")
        assert page.inner_text("footer time") != made
        opened.close()


CONTENT = """() => {
    const copy = document.querySelector("main").cloneNode(true);
    for (const each of copy.querySelectorAll("*")) { each.removeAttribute("role"); each.removeAttribute("tabindex"); }
    return copy.innerHTML.replace(/\\s+/g, " ").replace(/> </g, "><");
}"""
KEEP_ROWS = "(window.rows = new Set(document.querySelectorAll('tbody tr'))).size"
KEPT_ROWS = "[...document.querySelectorAll('tbody tr')].filter((row) => window.rows.has(row)).length"


def test_an_update_says_what_a_new_page_says_and_keeps_the_rows_that_are_there(browser: Any) -> None:
    """The first of 300 peers is gone, another has other blocks, and one is new."""
    before = [known(f"{i % 5}:{i % 5 + 3}", f"peer {i:03}", **SIZES) for i in range(300)]
    moved = replace(
        before[7], record=replace(before[7].record, spec=replace(before[7].record.spec, blocks=BlockRange(5, 8)))
    )
    after = [known("0:3", "a new one", **SIZES), *before[1:7], moved, *before[8:]]
    site = site_of(seen(*before), timing=DashboardTiming(stream_pause=0.0))
    with served_site(site) as served, visited(browser, served) as page, visited(browser, served) as fresh:
        for address in addresses(served.root):
            served.put(seen(*before))
            page.goto(address)
            page.wait_for_selector("#live")
            rows = page.evaluate(KEEP_ROWS)
            version = page.get_attribute("main", "data-version")
            served.put(seen(*after))
            page.wait_for_function("(old) => document.querySelector('main').dataset.version !== old", arg=version)
            fresh.goto(address)
            assert page.evaluate(CONTENT) == fresh.evaluate(CONTENT), address
            if rows >= ROWS_A_PAGE and not address.endswith("/routes"):  # a chain less, and the rest moves
                assert page.evaluate(KEPT_ROWS) >= ROWS_A_PAGE - 3, address
            assert page.locator("table[role=grid] [tabindex='0']").count() == page.locator("table[role=grid]").count()


def test_rows_of_a_large_map_are_low_and_its_sums_are_on_the_first_screen(browser: Any) -> None:
    """Names stay in one line where there is room, and in two on a narrow screen, however wide the map is."""
    with served_site(site_of(crowd())) as served:
        for width, lines in ((1280, 1), (320, 2)):
            with visited(browser, served, viewport={"width": width, "height": 800}) as page:
                page.goto(f"{served.root}/models/{FACTS.id}")
                heights = page.evaluate(
                    "[...document.querySelectorAll('.map tbody tr')].map((row) => row.offsetHeight)"
                )
                assert max(heights) < 24 * lines + 12
                assert page.evaluate("document.querySelector('.sums').getBoundingClientRect().bottom") < 800


def test_everything_is_there_without_javascript(browser: Any) -> None:
    with served_site(site_of(crowd())) as served, visited(browser, served, java_script_enabled=False) as page:
        for address in addresses(served.root):
            page.goto(address)
            assert page.locator("main").inner_text()
        page.goto(f"{served.root}/models/{FACTS.id}/peers")
        assert page.locator("tbody tr").count() == ROWS_A_PAGE
        page.click("text=ms per block")
        assert page.locator("tbody tr").first.locator("td").first.inner_text() == "peer 0"
        page.click("nav.pager >> text=2")
        assert page.locator("tbody tr").count() == ROWS_A_PAGE
        page.fill("input[name=q]", "silent 4")
        page.click("main button")
        assert page.locator("tbody tr").count() == 11
        assert "11 peers" in page.inner_text("main")
        page.goto(f"{served.root}/models/{FACTS.id}/join")
        page.fill("input[name=memory]", "2")
        page.click("main button")
        assert "It would host" in page.inner_text("main")
