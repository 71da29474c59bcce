"""The chat page in a real browser: it talks, stops, tells what happened, and reaches nothing but its own origin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.api.access.keys import add_key
from blockswarm.client.api.openai.replies import DONE, AnswerHead, ChatShape, chunk, event
from blockswarm.client.api.page import FILES
from blockswarm.client.api.pieces import STOP, Piece
from blockswarm.routing.swarm import BlockRange
from support.browsers import ABSENT, CHROMIUM, open_browser
from support.endpoint import RunningEndpoint, running_endpoint
from support.swarm_thread import SwarmThread, swarm_thread

MODEL = Path(__file__).parents[4] / "scripts" / "demo_model"
WAIT_MS = 30_000
END = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=ABSENT)


@pytest.fixture(scope="module")
def serving() -> Iterator[SwarmThread]:
    torch.set_num_threads(1)
    with swarm_thread(MODEL, "0:4", "4:8") as thread:
        yield thread


@pytest.fixture(scope="module")
def running(serving: SwarmThread) -> Iterator[RunningEndpoint]:
    with running_endpoint(serving, MODEL, model={"default_max_tokens": 24}) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api")
    with open_browser() as browser:
        yield browser


def endless(request: Any) -> str:
    """The request for an answer that the model does not end: it is drawn, and would be short once in a while."""
    return json.dumps({**request.post_data_json, "logit_bias": {str(END): -100}})


class Visit:
    """A page, everything that it asked for, and everything that it complained of."""

    def __init__(self, browser: Any, root: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.route("**/v1/chat/completions", lambda route: route.continue_(post_data=endless(route.request)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.goto(root)
        # By a selector: to look twice, `wait_for_function` evaluates its text, which the policy of the page forbids.
        self.page.wait_for_selector("#model option, #alert:not(:empty)", state="attached", timeout=WAIT_MS)

    def say(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def wait_end(self) -> None:
        self.page.wait_for_selector("#send:enabled", timeout=WAIT_MS)

    def answer(self) -> str:
        return self.page.inner_text("article.assistant:last-of-type > div")

    @property
    def status(self) -> str:
        return self.page.inner_text("#status")


@pytest.fixture
def visit(browser: Any, running: RunningEndpoint, serving: SwarmThread) -> Iterator[Visit]:
    visit = Visit(browser, running.root)
    yield visit
    visit.context.close()
    serving.wait_idle()
    assert all(url.startswith((running.root, "data:")) for url in visit.asked), "another origin was asked"
    assert visit.complaints == []


def test_the_files_are_served_with_headers_that_keep_them_alone(running: RunningEndpoint) -> None:
    """Without a browser: nothing in them names another origin, and no markup is made of text."""
    for path in FILES:
        text = running.get(path)
        assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["'(]?(?:https?:)?//""", text)
        assert "innerHTML" not in text.replace("nothing here writes innerHTML", "")
    script = running.get("/chat.js")
    assert not re.search(r"\beval\(|document\.write|insertAdjacentHTML|outerHTML", script)


@needs_browser
@pytest.mark.long
def test_an_answer_comes_with_its_speed_and_chain(visit: Visit, serving: SwarmThread, tmp_path: Path) -> None:
    visit.say("import os")
    visit.wait_end()
    assert visit.page.inner_text("article.user > div") == "import os"
    assert visit.answer()
    assert re.search(r"\d tokens/s, float32, cut at its longest; chain: ", visit.status)
    for peer in serving.swarm.peers:
        assert peer.identity.peer_id[-6:] in visit.status
    assert visit.page.get_attribute("article.assistant", "aria-busy") == "false"
    picture = Path(os.environ.get("BLOCKSWARM_SCREENSHOTS") or tmp_path) / "chat.png"
    visit.page.set_viewport_size({"width": 800, "height": 640})
    visit.page.screenshot(path=picture)  # docs/endpoint.md shows it
    assert picture.stat().st_size > 10_000


@needs_browser
@pytest.mark.long
def test_the_conversation_stays_in_the_tab_until_it_is_cleared(visit: Visit) -> None:
    visit.say("import os")
    visit.wait_end()
    answer = visit.answer()
    visit.page.reload()
    assert visit.answer() == answer
    visit.page.click("#clear")
    visit.page.reload()
    assert visit.page.locator("article").count() == 0


@needs_browser
@pytest.mark.long
def test_the_stop_button_frees_the_peers(browser: Any, serving: SwarmThread) -> None:
    with running_endpoint(serving, MODEL, model={"default_max_tokens": 900}) as running:
        visit = Visit(browser, running.root)
        visit.say("import os")
        visit.page.wait_for_selector("article.assistant > div > *", timeout=WAIT_MS)
        visit.page.click("#stop")
        visit.wait_end()
        assert visit.status == "stopped"
        assert visit.page.locator("article.assistant.cut").count() == 1
        visit.context.close()
        serving.wait_idle()


@needs_browser
@pytest.mark.long
def test_a_replaced_peer_is_told_and_a_lost_answer_is_no_answer(browser: Any) -> None:
    with swarm_thread(MODEL, "0:4", "4:8") as thread:
        thread.run(thread.swarm.start_peer(BlockRange(4, 8)))
        with running_endpoint(thread, MODEL, patience_seconds=1, model={"default_max_tokens": 900}) as running:
            visit = Visit(browser, running.root)
            visit.say("import os")
            visit.page.wait_for_selector("article.assistant > div > *", timeout=WAIT_MS)
            used = next(peer for peer in thread.swarm.peers[1:] if peer.parts.sessions.sessions)
            thread.run(used.kill())
            told = f"hop-lost: ..{used.identity.peer_id[-6:]}"  # the peer before it may be told to relay first
            visit.page.wait_for_selector(f'#events li:has-text("{told}")', timeout=WAIT_MS)
            for peer in thread.swarm.peers[1:]:
                thread.run(peer.kill())
            visit.wait_end()
            assert "blocks 4:8" in visit.page.inner_text("#alert")
            assert visit.status == "the answer is not complete"
            visit.context.close()


@needs_browser
@pytest.mark.long
def test_reasoning_is_shown_apart_and_stays_text(visit: Visit) -> None:
    """The stream as the endpoint writes it for a model that reasons."""
    head, shape = AnswerHead("c1", 1, "demo", "fp"), ChatShape()
    pieces = [Piece(0, reasoning="<b>two</b> "), Piece(0, reasoning="ways"), Piece(0, "*yes*"), Piece(0, finish=STOP)]
    body = b"".join(event(chunk(head, shape, [shape.delta(piece)])) for piece in pieces) + DONE
    visit.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    visit.say("which?")
    visit.wait_end()
    assert visit.answer() == "yes"
    visit.page.click("article.assistant summary")
    assert visit.page.inner_text("article.assistant details p") == "<b>two</b> ways"
    assert visit.page.locator("article.user details:visible").count() == 0


HOSTILE = (
    "# head <b>x</b>\n\n<img src=x onerror=alert(1)> **bold** `co<de>` *it*\n\n- one\n- two\n\n1. first\n\n"
    "```html\n<script>alert(2)</script>\n```\n[good](https://example.org/a) [bad](javascript:alert(3)) "
    "![image](https://evil.example/x.png)\n"
)


@needs_browser
@pytest.mark.long
def test_markdown_becomes_nodes_and_never_markup(visit: Visit) -> None:
    visit.page.evaluate("text => document.getElementById('log').append(...markdown(text))", HOSTILE)
    log = visit.page.locator("#log")
    assert log.locator("img, script, b").count() == 0
    assert log.locator("h3").inner_text() == "head <b>x</b>"
    assert log.locator("strong").inner_text() == "bold"
    assert log.locator("p code").inner_text() == "co<de>"
    assert log.locator("pre code").inner_text() == "<script>alert(2)</script>"
    assert log.locator("ul li").all_inner_texts() == ["one", "two"]
    assert log.locator("ol li").all_inner_texts() == ["first"]
    addresses = [address.get_attribute("href") for address in log.locator("a").all()]
    assert addresses[0] == "https://example.org/a"
    assert not any(address.startswith("javascript") for address in addresses)
    assert "[bad](javascript:alert(3))" in log.inner_text()


TALE = (
    "| Peer | Blocks | What it does |\n| --- | :-: | ---: |\n| `a\\|b` | 0:4 | **serves** | too much |\n| b |\n\n"
    "2. two\n   - within\n     goes on\n3. three\n\n> quoted\n> - item\n\n---\na | b\nfirst line\nsecond line\n\n"
    "```python\n" + "x = 1  # " * 40 + "\n```\n" + "long" * 80
)


@needs_browser
@pytest.mark.long
def test_tables_lists_and_quotations_are_shown_as_such(visit: Visit) -> None:
    visit.page.evaluate("text => document.getElementById('log').append(...markdown(text))", TALE)
    log = visit.page.locator("#log")
    assert log.locator("thead th").all_inner_texts() == ["Peer", "Blocks", "What it does"]
    rows = [row.locator("td").all_inner_texts() for row in log.locator("tbody tr").all()]
    assert rows == [["a|b", "0:4", "serves"], ["b"]], "no row has more cells than the head"
    assert [item.evaluate("item => item.value") for item in log.locator("ol > li").all()] == [2, 3]
    assert log.locator("ol > li > ul > li").text_content() == "within\ngoes on"
    assert log.locator("blockquote > ul > li").inner_text() == "item"
    assert log.locator("hr").count() == 1
    assert "a | b\nfirst line\nsecond line" in log.locator("p").all_text_contents(), "lines of a text stay lines"


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize(
    "text", [">" * 5000, "\n".join(" " * n + "- x" for n in range(2000)), "|" * 20000, "- " * 20000]
)
def test_no_text_is_too_deep_or_too_slow_for_the_page(visit: Visit, text: str) -> None:
    nodes = visit.page.evaluate("text => make('div', ...markdown(text)).getElementsByTagName('*').length", text)
    assert nodes < 50_000
    deepest = "node => Math.max(0, ...[...node.children].map(deep)) + 1"
    asked = f"text => {{ const deep = {deepest}; return deep(make('div', ...markdown(text))); }}"
    assert visit.page.evaluate(asked, text) < 20


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_conversation_fits_a_narrow_screen_and_an_error_is_seen(
    browser: Any, running: RunningEndpoint, scheme: str
) -> None:
    """An id without a place to break it made the page twice as wide, and what went wrong was told below the screen."""
    visit = Visit(browser, running.root, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    head, shape = AnswerHead("c1", 1, "demo", "fp"), ChatShape()
    told = {"error": {"message": f"no peer serves block 3: {'12D3KooW' + 'x' * 44} is gone"}}
    body = b"".join(event(chunk(head, shape, [shape.delta(Piece(0, TALE))])) for _ in range(3)) + event(told)
    visit.page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    visit.say("w" * 200)
    visit.wait_end()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 320
    for seen in ("#alert", "#send", "#status"):
        box = visit.page.locator(seen).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 640, seen
    visit.context.close()


@needs_browser
@pytest.mark.long
def test_a_reader_who_has_scrolled_up_is_left_there(visit: Visit) -> None:
    grown = """after => {
        const message = { role: "assistant", content: "line\\n\\n".repeat(100) };
        const shown = show(message);
        scrollTo(0, after === "up" ? 0 : page.scrollHeight);
        message.content += "line\\n\\n".repeat(200);
        shown.fill();
        return [page.scrollTop, page.scrollHeight - innerHeight];
    }"""
    top, _ = visit.page.evaluate(grown, "up")
    assert top == 0
    top, end = visit.page.evaluate(grown, "down")
    assert top == pytest.approx(end, abs=1)


@needs_browser
@pytest.mark.long
def test_it_is_used_with_the_keyboard_and_fits_a_narrow_screen(browser: Any, running: RunningEndpoint) -> None:
    visit = Visit(browser, running.root, viewport={"width": 320, "height": 640}, color_scheme="dark")
    reached = []
    for _ in range(6):
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate("document.activeElement.id"))
    assert reached[:4] == ["log", "model", "text", "send"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 320
    for field in visit.page.locator("textarea, select, input").all():
        name = field.get_attribute("id")
        assert visit.page.locator(f"label[for={name}]").count() == 1
    visit.context.close()


@needs_browser
@pytest.mark.long
def test_a_key_is_asked_for_where_one_is_needed(browser: Any, serving: SwarmThread, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.toml", "ann", None, None, "secret")
    with running_endpoint(serving, MODEL, keys=tmp_path / "keys.toml") as running:
        visit = Visit(browser, running.root)
        assert visit.page.inner_text("#alert") == "This endpoint needs an API key."
        visit.page.fill("#key", key)
        visit.page.press("#key", "Tab")
        visit.page.wait_for_selector("#model option", state="attached")
        assert visit.page.inner_text("#alert") == ""
        visit.context.close()
