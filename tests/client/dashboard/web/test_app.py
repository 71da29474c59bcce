"""Pages and JSON of snapshots: the same facts in both, nobody's address, and names that stay text."""

from __future__ import annotations

import asyncio
import csv
import functools
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from blockswarm.client.dashboard.board.listing import ROWS_A_PAGE
from blockswarm.client.dashboard.board.routes import MOST_EXPLAINED
from blockswarm.client.dashboard.history.entries import Availability, EventEntry, ProbeEntry
from blockswarm.client.dashboard.history.recorder import Recorder
from blockswarm.client.dashboard.probe.messages import ProbeOutcome
from blockswarm.client.dashboard.watch.sighting import Failure, LastProbe, ModelState
from blockswarm.client.dashboard.web.rendering import BodyMaker, Overloaded
from blockswarm.client.dashboard.web.site import Site
from blockswarm.routing.swarm import BlockRange, MoveClaim, PeerState
from support.sightings import DIGEST, FACTS, HOST, NOW, ask, known, seen, site_of

ID = FACTS.id
PAGES = ("/", *(f"/models/{ID}{end}" for end in ("", "/peers", "/routes", "/placement", "/join?memory=4", "/history")))
DATA = (
    f"/api/v1/routes?model={ID}", f"/api/v1/placement?model={ID}", f"/api/v1/history?model={ID}", "/api/v1/events",
    f"/badge/{ID}.svg", "/metrics", "/healthz",
    "/api/v1/status", "/api/v1/models", f"/api/v1/models/{ID}", "/api/v1/peers", f"/api/v1/models/{ID}/peers.csv",
)  # fmt: skip

CORPUS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)//",
    "<!--<script>-->",
    "{{ 7*7 }}{% raw %}",
    "&lt;script&gt;",
    "<iframe src=//evil.example>",
    "%3Cscript%3E",
    "<base href=//evil.example>",
    "<a href=data:text/html,x>",
)


class Tags(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


SIZES = {"block_bytes": 1e6, "kv_bytes_per_token": 100.0}


def healthy() -> ModelState:
    claim = MoveClaim(NOW, BlockRange(4, 8))
    peers = [known("0:4", "ann", **SIZES, claim=claim), known("4:8", "bob"), known("2:6", state=PeerState.DRAINING)]
    return seen(*peers, silent=[known("0:8")])


STATES: dict[str, ModelState] = {
    "healthy": healthy(),
    "empty": seen(),
    "unseen": ModelState(FACTS),
    "failed": ModelState(FACTS, failure=Failure("wrong-key", NOW)),
    "stale": replace(healthy(), failure=Failure("peer-unavailable", NOW + 100)),
    "broken": seen(known("0:3"), known("6:12"), known(None, state=PeerState.JOINING)),
}


@pytest.mark.parametrize("target", [*PAGES, *DATA])
@pytest.mark.parametrize("state", STATES)
def test_every_screen_answers_in_every_state_and_tells_nobodys_address(state: str, target: str) -> None:
    for now in (NOW + 3, NOW + 7200):
        answer = ask(site_of(STATES[state], now=now), target)
        is_missing = target.endswith(".csv") and STATES[state].sighting is None
        assert answer.status == (503 if is_missing else 404 if target == "/api/v1/events" else 200)
        assert HOST not in answer.text
        assert HOST.partition(":")[0] not in answer.text


@pytest.mark.parametrize("target", PAGES)
def test_pages_name_no_other_origin_and_have_no_code_of_their_own(target: str) -> None:
    """Nothing is there that the Content-Security-Policy would refuse."""
    for tag, attributes in Tags(ask(site_of(healthy()), target).text).found:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "style"
        if tag == "script":
            assert attributes["src"] == "/static/dashboard.js"
        for name in ("src", "href", "action"):
            assert re.match(r"$|/(?!/)|#|data:,$|\?", attributes.get(name) or ""), (tag, attributes)


@pytest.mark.parametrize("target", [*PAGES, *DATA, "/nothing"])
def test_the_head_of_an_answer_can_be_asked_for_alone(target: str) -> None:
    whole, head = (ask(site_of(healthy()), target, method=method) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (whole.status, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_the_head_of_a_stream_ends() -> None:
    site = site_of(healthy())
    head = ask(site, "/api/v1/stream", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert site.streams.count == 0


@pytest.mark.parametrize("text", CORPUS)
def test_names_are_text_on_every_page(text: str) -> None:
    """Peers and models are named by strangers."""
    references, site = pages_named("name"), site_of(named(text))
    for target in PAGES:
        page, reference = Tags(ask(site, target).text), references[target]
        assert [tag for tag, _ in page.found] == [tag for tag, _ in reference.found]
        assert [sorted(attributes) for _, attributes in page.found] == [sorted(a) for _, a in reference.found]
        assert text in "".join(page.words)


@pytest.mark.parametrize("text", CORPUS)
def test_a_class_of_devices_is_text_too_even_if_a_record_with_it_were_taken(text: str) -> None:
    with pytest.raises(ValueError, match="a class of devices"):
        known("0:8", device=text)
    peer = known("0:8")
    object.__setattr__(peer.record, "device_class", text)
    page, reference = (Tags(ask(site_of(seen(each)), PAGES[2]).text) for each in (peer, known("0:8", device="cpu")))
    assert [tag for tag, _ in page.found] == [tag for tag, _ in reference.found]
    assert text in "".join(page.words)


def test_the_device_and_the_tokens_of_a_peer_are_shown_everywhere() -> None:
    site = site_of(seen(known("0:4", device="cpu, 2 threads", tokens=1_234_567), known("4:8")))
    words = Tags(ask(site, PAGES[2]).text).words
    assert {"Device class", "Tokens served", "cpu, 2 threads", "1,234,567"} <= set(words)
    assert words.count("not said") == 2, "of a peer that says neither"
    told, old = ask(site, "/api/v1/peers").json[0]["peers"]
    assert (told["device_class"], told["tokens_served"]) == ("cpu, 2 threads", 1_234_567)
    assert (old["device_class"], old["tokens_served"]) == ("", None)
    names, first, *_ = csv.reader(ask(site, f"/api/v1/models/{ID}/peers.csv").text.lstrip("\ufeff").splitlines())
    assert dict(zip(names, first, strict=True))["device_class"] == "cpu, 2 threads"
    assert dict(zip(names, first, strict=True))["tokens_served"] == "1234567"


@functools.cache
def pages_named(text: str) -> dict[str, Tags]:
    site = site_of(named(text))
    return {target: Tags(ask(site, target).text) for target in PAGES}


def named(text: str) -> ModelState:
    return seen(known("0:4", text), known("4:8", text), silent=[known("0:8", text)], facts=replace(FACTS, name=text))


@pytest.mark.parametrize("text", CORPUS)
def test_what_a_reader_asks_for_is_text_too(text: str) -> None:
    answer = ask(site_of(healthy()), f"{PAGES[2]}?q={quote(text)}")
    fields = [attributes for tag, attributes in Tags(answer.text).found if tag == "input"]
    assert fields[0]["value"] == text
    refused = ask(site_of(healthy()), f"{PAGES[2]}?sort={quote(text)}")
    assert refused.status == 400
    missing = ask(site_of(healthy()), f"/{quote(text)}")
    assert missing.status == 404
    for page in (answer, refused, missing):
        assert {tag for tag, _ in Tags(page.text).found} & {"img", "svg", "iframe", "base"} == set()


def test_page_and_json_say_the_same() -> None:
    site = site_of(healthy())
    status = ask(site, "/api/v1/status").json
    card = status["models"][0]
    assert ask(site, "/api/v1/models").json == [card]
    model = ask(site, f"/api/v1/models/{ID}").json
    assert model["card"] == card
    assert (card["digest"], card["standing"], card["age_seconds"]) == (DIGEST, "unproven", 3)
    page = "".join(Tags(ask(site, "/").text).words)
    assert card["sentence"][1:] in page
    assert "Seen 3 s ago" in page
    (listed,) = ask(site, f"/api/v1/peers?model={ID}&sort=name").json
    assert {peer["name"] for peer in listed["peers"]} == {"ann", "bob", ""}
    assert model["coverage"]["weakest"]["servers"] == 1
    csv = ask(site, f"/api/v1/models/{ID}/peers.csv",
)  # fmt: skip
    assert csv.headers["content-type"].startswith("text/csv")
    assert len(csv.text.splitlines()) == 5


def test_the_weakest_block_and_the_missing_ones_are_named() -> None:
    page = "".join(Tags(ask(site_of(healthy()), f"/models/{ID}").text).words)
    assert "The weakest block is 0, with 1 server" in page
    page = "".join(Tags(ask(site_of(STATES["broken"]), f"/models/{ID}").text).words)
    assert "no peer serves blocks 3:8 of 8" in page
    assert "5 blocks without a server" in page


def test_errors_come_in_the_form_that_was_asked_for() -> None:
    site = site_of(healthy())
    assert ask(site, "/models/zz").status == 404
    assert "no such model" in ask(site, "/models/zz").text
    assert ask(site, "/api/v1/models/zz").json == {"error": "no such model is shown here"}
    assert ask(site, "/api/v1/peers?model=zz").status == 404
    assert ask(site, "/api/v1/peers?block=x").json == {"error": "block must be a number between 0 and 1048576"}
    assert ask(site, "/nothing").status == 404
    for target, field in (("routes", "model"), ("placement", "model"), (f"peers?q={'x' * 1000}", "q")):
        refused = ask(site, f"/api/v1/{target}")
        assert (refused.status, set(refused.json)) == (400, {"error"})
        assert refused.json["error"].startswith(f"{field}: ")


@pytest.mark.parametrize("target", [PAGES[1], PAGES[2], "/api/v1/status", f"/api/v1/models/{ID}", "/healthz"])
def test_a_slash_behind_an_address_changes_nothing(target: str) -> None:
    site = site_of(healthy())
    there = ask(site, f"{target}/")
    assert (there.status, there.body) == (200, ask(site, target).body)


def test_an_unchanged_answer_is_not_sent_again() -> None:
    site = site_of(healthy())
    first = ask(site, "/api/v1/status", headers={"accept-encoding": "gzip"})
    assert first.headers["vary"] == "accept-encoding"
    again = ask(site, "/api/v1/status", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    packed = ask(site, f"/models/{ID}/peers", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == ask(site, f"/models/{ID}/peers").text


@pytest.mark.parametrize(
    ("said", "packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("identity, gzip; q=0.000", False),
        ("x-gzip", False),
    ],
)
def test_a_body_is_packed_only_for_those_that_take_it(said: str, packed: bool) -> None:
    answer = ask(site_of(healthy()), PAGES[2], headers={"accept-encoding": said})
    assert ("content-encoding" in answer.headers) is packed


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '"other",W/{}'])
def test_a_body_that_a_client_or_a_server_before_this_one_has_is_not_sent(form: str) -> None:
    site = site_of(healthy())
    first = ask(site, "/api/v1/status")
    again = ask(site, "/api/v1/status", headers={"if-none-match": form.format(first.headers["etag"])})
    assert again.status == 304


def test_many_peers_come_in_pages_and_all_of_them_as_data() -> None:
    state = seen(*(known(f"{index % 8}:{index % 8 + 1}", f"peer {index}") for index in range(ROWS_A_PAGE + 5)))
    site = site_of(state)
    rows = [len(re.findall(r"<tr class", ask(site, f"{PAGES[2]}?page={page}").text)) for page in (1, 2, 3)]
    assert rows == [ROWS_A_PAGE, 5, 0]
    assert 'href="/models/' + ID + '/peers?sort=blocks&amp;page=2"' in ask(site, PAGES[2]).text
    assert len(ask(site, "/api/v1/peers").json[0]["peers"]) == ROWS_A_PAGE + 5


def test_the_description_is_not_sent_again_either() -> None:
    site = site_of(healthy())
    first = ask(site, "/api/v1/openapi.json")
    again = ask(site, "/api/v1/openapi.json", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    assert first.headers["content-type"] == "application/json"


@pytest.mark.parametrize("target", ["/healthz", "/nothing", "/models/zz", "/api/v1/models/zz", "/api/v1/peers?block=x"])
def test_health_and_errors_are_not_kept_by_caches(target: str) -> None:
    """A cache that keeps a 404 would answer with it after the model has been found."""
    assert ask(site_of(healthy()), target).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("target", "kind"), [("/api/v1/status", "application/json"), ("/", "text/html")])
def test_a_busy_dashboard_says_so_in_the_form_that_was_asked_for(target: str, kind: str) -> None:
    class FullMaker(BodyMaker):
        async def body(self, key: Any, make: Any) -> Any:
            raise Overloaded

    answer = ask(site_of(healthy(), maker=FullMaker()), target)
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")
    assert answer.headers["content-type"].startswith(kind)
    assert "the dashboard is busy" in answer.text


def test_the_api_is_described_and_its_answers_fit_the_description() -> None:
    site = site_of(healthy())
    described = ask(site, "/api/v1/openapi.json").json
    assert set(described["paths"]) == {
        "/api/v1/status", "/api/v1/models", "/api/v1/models/{model_id}", "/api/v1/peers",
        "/api/v1/models/{model_id}/peers.csv", "/api/v1/history", "/api/v1/events", "/api/v1/routes",
        "/api/v1/placement", "/api/v1/stream",
    }  # fmt: skip
    schemas = described["components"]["schemas"]

    def check(value: Any, schema: dict[str, Any]) -> None:
        schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if "properties" in schema and isinstance(value, dict):
            assert set(value) == set(schema["properties"])
            for name, below in schema["properties"].items():
                check(value[name], below)
        for item in value if isinstance(value, list) and "items" in schema else ():
            check(item, schema["items"])

    paths = ("/api/v1/status", "/api/v1/models", f"/api/v1/models/{ID}", "/api/v1/peers", "/api/v1/events")
    for path in (*paths, *(f"/api/v1/{name}?model={ID}" for name in ("history", "routes", "placement"))):
        operation = described["paths"][path.partition("?")[0].replace(ID, "{model_id}")]["get"]
        check(ask(site, path).json, operation["responses"]["200"]["content"]["application/json"]["schema"])
        assert "422" not in operation["responses"]
        check({"error": "x"}, operation["responses"]["4XX"]["content"]["application/json"]["schema"])
    assert json.dumps(described)


@pytest.fixture
def remembering(tmp_path: Path) -> Iterator[Site]:
    """A site with a history of an hour: a probe each minute, every tenth failed, the last one a minute ago."""
    recorder = Recorder(tmp_path / "h.sqlite", lambda: NOW)

    async def fill() -> None:
        for minute in range(1, 61):
            code = "" if minute % 10 else "no-chain"
            entry = ProbeEntry(ID, NOW - 60 * minute, code, 2.0, None if code else 0.5, None if code else 4.0, 0)
            await recorder.write(lambda store, entry=entry: store.add_probe(entry))
        event = EventEntry(ID, NOW - 30, "silent", "12D3KooWpeer", CORPUS[0], "blocks 0:4")
        await recorder.write(lambda store: store.add_events([event] * 3))

    asyncio.run(fill())
    yield site_of(healthy(), recorder=recorder)
    recorder.close()


def test_the_history_is_shown_as_curves_table_and_data(remembering: Site) -> None:
    past = ask(remembering, f"/api/v1/history?model={ID}&span=24h").json
    assert (past["probes"], past["good_probes"], len(past["buckets"]), past["trouble"]) == (60, 54, 96, None)
    page = Tags(ask(remembering, f"/models/{ID}/history").text)
    words = "".join(page.words)
    assert "90.0 % of 60 probes worked: 54 of 60." in words
    curves = [attributes["d"] for tag, attributes in page.found if attributes.get("class") == "curve"]
    assert len(curves) == 5
    assert all(curves[index] for index in (0, 1, 2, 4))
    assert curves[3] == "", "peers were not counted"
    assert CORPUS[0] in words
    assert len([tag for tag, _ in page.found if tag == "tr"]) == 1 + sum(b["probes"] > 0 for b in past["buckets"])
    assert ask(remembering, f"/models/{ID}/history?span=1y").status == 400
    assert ask(remembering, f"/models/{ID}/history?span=30d").status == 200


def test_events_come_in_pages(remembering: Site) -> None:
    found = ask(remembering, "/api/v1/events?limit=2").json
    assert [each["number"] for each in found] == [3, 2]
    (rest,) = ask(remembering, f"/api/v1/events?model={ID}&before=2").json
    assert (rest["number"], rest["event"]["name"]) == (1, CORPUS[0])
    assert ask(remembering, "/api/v1/events?limit=0").status == 400
    assert ask(remembering, "/api/v1/events?limit=2000").status == 400


def test_without_a_history_the_page_says_so() -> None:
    words = "".join(Tags(ask(site_of(healthy()), f"/models/{ID}/history").text).words)
    assert "this dashboard has no folder for a history" in words
    answer = ask(site_of(healthy()), "/api/v1/events")
    assert (answer.status, answer.json) == (404, {"error": "this dashboard has no folder for a history"})


def test_a_history_that_cannot_be_read_is_no_history_without_events(remembering: Site) -> None:
    """The disk is so slow that no read ends in time."""
    site = replace(remembering, timing=replace(remembering.timing, read_history=0.0))
    go_on = threading.Event()
    writing = threading.Thread(target=lambda: site.recorder.read(lambda store: go_on.wait(60), 60))
    writing.start()
    try:
        answer = ask(site, "/api/v1/events")
        assert (answer.status, answer.json) == (503, {"error": "the history cannot be read"})
        assert answer.headers["cache-control"] == "no-store"
        past = ask(site, f"/api/v1/history?model={ID}").json
        assert [past[name] for name in ("buckets", "probes", "good_probes", "events", "trouble_since")] == [None] * 5
        assert past["trouble"] == "the history cannot be read"
        for screen in ("history", "placement"):
            words = "".join(Tags(ask(site, f"/models/{ID}/{screen}").text).words)
            assert "The events cannot be read." in words
            assert "No event is known" not in words
            assert "no probe in this time" not in words
    finally:
        go_on.set()
        writing.join()
    assert ask(remembering, "/api/v1/events").status == 200


GONE = {
    "never seen": ModelState(FACTS, failure=Failure("peer-unavailable", NOW)),
    "just failed": replace(healthy(), failure=Failure("peer-unavailable", NOW + 1)),
}


@pytest.mark.parametrize("state", GONE)
def test_nothing_is_planned_with_a_swarm_that_does_not_answer(state: str) -> None:
    site = site_of(GONE[state])
    routes = ask(site, f"/api/v1/routes?model={ID}").json
    assert (routes["hops"], routes["failure"]) == ([], "no peer answers")
    assert {routes[name] for name in ("return_seconds", "step_seconds", "exact", "unproven_seconds")} == {None}
    assert ask(site, f"/api/v1/placement?model={ID}").json is None
    for screen, words in (
        ("routes", "There is no chain now: no peer answers."),
        ("placement", "Nothing is known of the swarm now"),
        ("join?memory=4", "Nothing can be said: nothing is known of the swarm now."),
    ):
        assert words in "".join(Tags(ask(site, f"/models/{ID}/{screen}").text).words)


def test_peers_of_a_swarm_that_does_not_answer_are_those_of_then() -> None:
    site = site_of(GONE["just failed"])
    (told,) = ask(site, "/api/v1/peers").json
    assert (told["seen_at"], told["current"], len(told["peers"])) == (NOW, False, 4)
    _, *lines = csv.reader(ask(site, f"/api/v1/models/{ID}/peers.csv").text.splitlines())
    assert {float(line[-1]) for line in lines} == {NOW}
    for screen in ("", "/peers"):
        page = "".join(Tags(ask(site, f"/models/{ID}{screen}").text).words)
        assert "What follows is what was seen then. Nothing is known of now." in page
        assert "seen then" not in ask(site_of(healthy()), f"/models/{ID}{screen}").text


def test_peers_that_were_never_seen_are_not_told_to_be_none() -> None:
    site = site_of(GONE["never seen"])
    (told,) = ask(site, "/api/v1/peers").json
    assert (told["seen_at"], told["current"], told["peers"]) == (None, False, None)
    table = ask(site, f"/api/v1/models/{ID}/peers.csv")
    assert (table.status, table.json) == (503, {"error": "not seen: no peer answers"})
    words = "".join(Tags(ask(site, f"/models/{ID}/peers").text).words)
    assert "0 peers" not in words


@pytest.mark.parametrize("state", GONE)
def test_the_page_of_all_models_tells_no_count_of_then(state: str) -> None:
    figures = re.findall("<dd>(.*?)</dd>", ask(site_of(GONE[state]), "/").text)
    assert figures == ["not known", "not known", "8, servers not known", "not known"]


@pytest.mark.parametrize("state", GONE)
def test_metrics_of_a_swarm_that_does_not_answer_are_missing_but_for_those_that_say_so(state: str) -> None:
    lines = ask(site_of(GONE[state]), "/metrics").text.splitlines()
    prefix = "blockswarm_dashboard_"
    told = {re.split(r"[{ ]", line)[0].removeprefix(prefix) for line in lines if line[0] != "#"}
    assert told.isdisjoint({"peers", "missing_blocks", "weakest_block_servers", "free_sessions"})
    assert {"look_failed", "works"} <= told


def test_an_old_value_of_a_curve_is_told_with_its_time(remembering: Site) -> None:
    """The last probe was a day ago; a curve that ends then does not say how it is now."""
    page = replace(remembering, clock=lambda: NOW + 43200)
    words = " ".join("".join(Tags(ask(page, f"/models/{ID}/history").text).words).split())
    assert "Tokens per second: 4.0 tokens/s at last, 2027-01-15 07:45:00 UTC" in words


def works() -> ModelState:
    outcome = ProbeOutcome("", 2.0, 0.5, 7.31)
    return replace(healthy(), probe=LastProbe(NOW, outcome, Availability(9, 10, NOW - 600)))


def test_metrics_say_what_the_status_says() -> None:
    site = site_of(replace(works(), facts=replace(FACTS, name='a "name"\n')))
    lines = dict(line.rsplit(" ", 1) for line in ask(site, "/metrics").text.splitlines() if line[0] != "#")
    prefix = "blockswarm_dashboard_"
    assert float(lines[f'{prefix}works{{model="{ID}"}}']) == 1
    assert float(lines[f'{prefix}probe_tokens_per_second{{model="{ID}"}}']) == 7.31
    assert float(lines[f'{prefix}probe_age_seconds{{model="{ID}"}}']) == 3
    assert float(lines[f'{prefix}look_age_seconds{{model="{ID}"}}']) == 3
    assert float(lines[f'{prefix}peers{{model="{ID}",state="serving"}}']) == 2
    assert float(lines[f'{prefix}missing_blocks{{model="{ID}"}}']) == 0
    assert float(lines[f"{prefix}history_trouble"]) == 0
    assert f'{prefix}probe_failed{{model="{ID}"}}' not in ask(site_of(healthy()), "/metrics").text


@pytest.mark.parametrize("text", CORPUS)
def test_the_badge_is_a_picture_whatever_the_model_is_called(text: str) -> None:
    answer = ask(site_of(replace(works(), facts=replace(FACTS, name=text))), f"/badge/{ID}.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    picture = ElementTree.fromstring(answer.text)
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} == {"svg", "title", "rect", "g", "text"}
    assert picture.findall(".//{*}text")[1].text == "works, 7.3 tokens/s"
    assert ask(site_of(), f"/badge/{ID}.svg").status == 404


def test_health_is_the_programs_own() -> None:
    assert ask(site_of(ModelState(FACTS)), "/healthz").json == {"status": "ok", "version": 1}


def test_the_chain_and_its_alternatives_are_shown() -> None:
    site = site_of(healthy())
    words = "".join(Tags(ask(site, f"/models/{ID}/routes").text).words)
    assert "ms per token predicted" in words
    assert "none: no peer serves blocks 0:" in words
    assert "it does not answer" in words
    board = ask(site, f"/api/v1/routes?model={ID}").json
    assert [hop["blocks"] for hop in board["hops"]] == [[0, 4], [4, 8]]
    assert len(board["not_chosen"]) == 2


def test_in_a_large_swarm_reasons_are_told_to_those_that_ask() -> None:
    """They take a millisecond for each peer, and the chain is shown without."""
    peers = [known("0:8", f"peer {index}") for index in range(MOST_EXPLAINED + 1)]
    site = site_of(seen(*peers, proven=dict.fromkeys(range(8), b"8" * 8)))
    page = ask(site, f"/models/{ID}/routes").text
    link = next(value for _, found in Tags(page).found for value in found.values() if value and "others" in value)
    reason = "chains with it are slower"
    assert reason not in page
    assert f"Why {MOST_EXPLAINED} peers are not on it" in page
    everything = "".join(Tags(ask(site, link).text).words)
    assert all(f"peer {index} " in everything for index in range(MOST_EXPLAINED + 1))
    assert len(ask(site, f"/api/v1/routes?model={ID}").json["not_chosen"]) == MOST_EXPLAINED


def test_an_analysis_is_made_once_for_page_and_data_of_a_snapshot() -> None:
    reads = []
    site = site_of(healthy(), search_clock=lambda: float(reads.append(None) is not None))
    ask(site, f"/models/{ID}/routes")
    after_page = len(reads)
    ask(site, f"/api/v1/routes?model={ID}")
    assert 0 < after_page == len(reads)
    asyncio.run(site.keeper.put(healthy()))
    ask(site, f"/api/v1/routes?model={ID}")
    assert len(reads) > after_page


def test_only_the_address_that_the_operator_gives_is_told() -> None:
    told = f"{known('0:1').record.spec.id}@192.0.2.1:31330"
    page = ask(site_of(named("$(x) y")), f"/models/{ID}/join").text
    assert "swarm-peer &#39;$(x) y&#39; --initial-peers ID@HOST:PORT" in page
    page = ask(site_of(healthy(), join_addresses=(told,)), f"/models/{ID}/join?memory=1").text
    assert told in page
    assert HOST not in page


def test_the_files_of_the_pages_are_served() -> None:
    site = site_of()
    style, script = ask(site, "/static/dashboard.css"), ask(site, "/static/dashboard.js")
    assert (style.headers["content-type"], script.headers["content-type"]) == (
        "text/css; charset=utf-8", "text/javascript; charset=utf-8",
    )  # fmt: skip
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script.text)
    assert not re.search(r"url\(|@import", style.text)
    assert ask(site, "/static/../app.py").status == 404


def test_before_there_is_a_model_the_page_says_what_it_waits_for() -> None:
    site = site_of()
    assert "Waiting for the first look." in ask(site, "/").text
    assert ask(site, "/api/v1/status").json["models"] == []
