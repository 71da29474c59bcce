"""The benchmark of endpoint and pages: its interval, its time per token, and the browser that it measures with."""

from __future__ import annotations

import random
import statistics
import urllib.request
from pathlib import Path

import pytest
from support.benchlib import benchlib
from support.browsers import ABSENT, CHROMIUM, open_browser
from support.crowds import Crowd
from support.sightings import NOW

faces, pages = benchlib("faces"), benchlib("pages")


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """With nine values of any distribution: 96 % (binomial, exactly 0.961)."""
    rng = random.Random(0)
    hits = 0
    for _ in range(4000):
        median, low, high = faces.median_of([rng.expovariate(1.0) for _ in range(9)])
        assert low <= median <= high
        hits += low <= 0.6931471805599453 <= high
    assert hits / 4000 == pytest.approx(0.961, abs=0.012)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 32])
def test_an_interval_of_few_values_is_all_of_them(count: int) -> None:
    values = [float(value) for value in range(count)]
    median, low, high = faces.median_of(values)
    assert (median, low <= median <= high) == (statistics.median(values), True)


def test_the_time_per_token_begins_with_the_first_one() -> None:
    assert faces.Text("abc", 5, 1.0, 3.0).token_seconds == 0.5
    assert faces.Text("a", 1, 1.0, 1.0).token_seconds == 0.0


def test_a_crowd_keeps_its_number_and_changes_by_the_share_that_is_asked_for() -> None:
    crowd = Crowd(100, random.Random(0))
    first = crowd.state(NOW).sighting
    crowd.work(0.1)
    worked = crowd.state(NOW + 15).sighting
    crowd.turn_over(0.1)
    turned = crowd.state(NOW + 30).sighting
    assert first is not None
    assert worked is not None
    assert turned is not None
    before, after, last = (dict(each.prepared.known) for each in (first, worked, turned))
    assert [len(before), len(after), len(last), len(first.silent)] == [95, 95, 95, 5]
    assert sum(before[peer] != after[peer] for peer in before) == round(0.1 * 95)
    assert len(after.keys() - last.keys()) == len(last.keys() - after.keys()) == round(0.1 * 95)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=ABSENT)
def test_a_visit_and_an_update_are_what_a_browser_sees(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api")
    with open_browser() as browser, pages.serving(10, tmp_path) as dashboard:
        address = dashboard.screens()["Peers"]
        visit = pages.visit(browser, address)
        sent = plain = 0
        for path in (address, f"{dashboard.root}/static/dashboard.css", f"{dashboard.root}/static/dashboard.js"):
            with urllib.request.urlopen(path, timeout=60) as answer:
                plain += len(answer.read())
            asked = urllib.request.Request(path, headers={"accept-encoding": "gzip"})
            with urllib.request.urlopen(asked, timeout=60) as answer:
                sent += len(answer.read())
        assert visit["plain_bytes"] == pytest.approx(plain, abs=100), "but for the moment that the page was made at"
        assert visit["sent_bytes"] == pytest.approx(sent, abs=100)
        assert visit["paint"] > 0
        updates = pages.measure_updates(browser, dashboard, address, 1)
        assert set(updates) == {"some", "all", "turnover"}
        for update in updates.values():
            parts = sum(update[name][0] for name in ("answered", "changed", "painted"))
            assert update["shown"][0] == pytest.approx(parts)
            assert update["page_cpu"][0] > 0
        found = pages.measure_requests(dashboard, 1, 0.1)
        assert found["gzip_bytes"] < found["plain_bytes"]
        assert found["gzip"]["per_s"][0] > 0
