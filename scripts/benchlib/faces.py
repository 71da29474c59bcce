"""Measure the programs that people see: what an endpoint adds to the Python client, and how fast the dashboard is.

overhead   one text through the endpoint and one in Python, in turn: seconds per token and to the first one
streams    many texts at once through the endpoint, against one alone
left       seconds from a client that goes away in mid-text until the endpoint is idle
memory     of the endpoint, of a Python client, and of a dashboard without and with the program that probes
pages      the dashboard in a headless Chromium with 10, 100 and 1,000 peers: first paint, updates, bytes, requests

Two peers of the demo model, an endpoint, a Python client and a dashboard, each a process of its own, on loopback; the
swarms of `pages` are made up. Every prompt and every swarm is new. An interval is that of the median, at 96 % with nine
pairs. The exit status is 1 if a text through the endpoint was another one than in Python.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .intervals import median_of
from .pages import SWARMS, find_browser, measure_pages, tables
from .processes import SCRIPTS, Child, command_line, describe_machine, machine, run_program
from .swarm_runs import Prompts, Question, running_peers

MODEL = SCRIPTS / "demo_model"
NAME = "demo"
PROMPT_TOKENS = 32
READY = "serving "
SHOWN = "showing the swarm at "
PROBED_SECONDS = 120.0
SECTIONS = ("overhead", "streams", "left", "memory", "pages")


@dataclass(frozen=True)
class Text:
    """One text, and when it came."""

    text: str
    tokens: int
    first_seconds: float
    seconds: float

    @property
    def token_seconds(self) -> float:
        """From the first new token to the last, for each."""
        return (self.seconds - self.first_seconds) / max(1, self.tokens - 1)


class EndpointProcess:
    """A running `swarm-client serve`."""

    def __init__(self, child: Child, address: str) -> None:
        self.child = child
        self._host = urlsplit(address).netloc

    def stream(self, question: Question, most_chunks: int | None = None) -> Text:
        """Ask for a text; with `most_chunks` go away after these. Raises RuntimeError if there is no text."""
        body = {"model": NAME, "prompt": question["prompt"], "max_tokens": question["new_tokens"], "stream": True}
        connection = http.client.HTTPConnection(self._host, timeout=120)
        began, arrivals, text = time.perf_counter(), list[float](), ""
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/completions", json.dumps({**body, "temperature": 0, "logprobs": 0}),
                {"content-type": "application/json"},
            )  # fmt: skip
            answer = connection.getresponse()
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "choices" not in chunk:
                    raise RuntimeError(chunk)
                for choice in chunk["choices"]:
                    text += choice["text"]
                    tokens = len((choice["logprobs"] or {"tokens": []})["tokens"])
                    arrivals += [time.perf_counter() - began] * tokens
                if most_chunks is not None and len(arrivals) >= most_chunks:
                    break
        if not arrivals:
            raise RuntimeError(f"no text: status {answer.status}")
        return Text(text, len(arrivals), arrivals[0], arrivals[-1])

    def running(self) -> float:
        """Requests that generate now."""
        connection = http.client.HTTPConnection(self._host, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("blockswarm_endpoint_running "))


@dataclass(frozen=True)
class Faces:
    """The programs that are measured."""

    endpoint: EndpointProcess
    python: Child
    dashboard: Child
    prompts: Prompts
    new_tokens: int

    def question(self) -> Question:
        return self.prompts.question(PROMPT_TOKENS, self.new_tokens)

    def in_python(self, question: Question) -> Text:
        answer = self.python.ask(**question)
        (first, _), last = answer["arrivals"][0], answer["arrivals"][-1][0]
        return Text(answer["text"], len(answer["tokens"]), first, last)


def measure_overhead(faces: Faces, pairs: int) -> dict[str, Any]:
    ratios, firsts, same = [], [], True
    for number in range(pairs + 1):
        question = faces.question()
        ways = [faces.endpoint.stream, faces.in_python]
        texts = {way: way(question) for way in (ways if number % 2 else ways[::-1])}
        served, python = texts[ways[0]], texts[ways[1]]
        same &= python.text.startswith(served.text)
        if number:  # the first one warms up
            ratios.append(served.token_seconds / python.token_seconds)
            firsts.append(served.first_seconds / python.first_seconds)
            last = (served, python)
    return {
        "pairs": pairs, "token_seconds_ratio": median_of(ratios), "first_token_seconds_ratio": median_of(firsts),
        "python_token_ms": 1e3 * last[1].token_seconds, "endpoint_token_ms": 1e3 * last[0].token_seconds, "same": same,
    }  # fmt: skip


def measure_streams(faces: Faces, count: int) -> dict[str, Any]:
    alone = faces.endpoint.stream(faces.question())
    questions = [faces.question() for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        began = time.perf_counter()
        texts = list(pool.map(faces.endpoint.stream, questions))
        seconds = time.perf_counter() - began
    return {
        "streams": count,
        "alone_tokens_per_second": alone.tokens / alone.seconds,
        "tokens_per_second": sum(text.tokens for text in texts) / seconds,
        "first_token_seconds": median_of([text.first_seconds for text in texts]),
    }


def measure_left(faces: Faces, times: int) -> dict[str, Any]:
    seconds = []
    for _ in range(times):
        question = faces.prompts.question(PROMPT_TOKENS, 400)
        faces.endpoint.stream(question, most_chunks=4)
        began = time.perf_counter()
        while faces.endpoint.running():
            time.sleep(0.002)
        seconds.append(time.perf_counter() - began)
    return {"times": times, "idle_after_seconds": median_of(seconds)}


def measure_memory(faces: Faces) -> dict[str, Any]:
    """Bytes of PSS: memory that processes share counts in proportion."""
    programs = {"endpoint": faces.endpoint.child, "python client": faces.python}
    alone, both = faces.dashboard.memory_by_process()[0], faces.dashboard.memory_bytes()
    return {
        **{name: child.memory_bytes() for name, child in programs.items()},
        "dashboard alone": alone, "dashboard and probe": both,
    }  # fmt: skip


@contextlib.contextmanager
def running(folder: Path, new_tokens: int, streams: int) -> Iterator[Faces]:
    """Peers, endpoint, client and dashboard, ready; the dashboard has probed."""
    with contextlib.ExitStack() as stack:
        _, addresses = stack.enter_context(running_peers(folder, MODEL, 2))
        python = stack.enter_context(
            Child("-m", "benchlib.generate_worker", "swarm", MODEL, *addresses, log=folder / "python.log")
        )
        python.read()
        peers = [part for address in addresses for part in ("--initial-peers", address)]
        options = ["--port", "0", "--name", NAME, "--max-running", str(streams), "--patience", "120"]
        serve = Child(
            "-m", "blockswarm.client.program.cli", "serve", MODEL, *peers, *options, log=folder / "endpoint.log"
        )
        stack.enter_context(serve)
        address = serve.read_text(READY)
        dashboard = stack.enter_context(running_dashboard(folder, peers))
        yield Faces(EndpointProcess(serve, address), python, dashboard, Prompts(256), new_tokens)


@contextlib.contextmanager
def running_dashboard(folder: Path, peers: Sequence[str]) -> Iterator[Child]:
    """A `swarm-dashboard` that has probed. Raises TimeoutError if it does not."""
    options = ["--model", MODEL, "--port", "0", "--data", folder / "history"]
    command = ("-m", "blockswarm.client.dashboard.cli", *peers, *options)
    with Child(*command, log=folder / "dashboard.log") as child:
        address, until = child.read_text(SHOWN), time.perf_counter() + PROBED_SECONDS
        while not any(model["probe"] for model in status_of(address)["models"]):
            if time.perf_counter() > until:
                raise TimeoutError("the dashboard does not probe")
            time.sleep(0.2)
        yield child


def status_of(dashboard: str) -> Any:
    connection = http.client.HTTPConnection(urlsplit(dashboard).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/api/v1/status")
        return json.load(connection.getresponse())


def run(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    quick, found = chosen.quick, dict[str, Any]()

    def measure(name: str, section: Callable[[], Any]) -> None:
        if name in chosen.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found[name] = section()
            if name != "pages":  # which has tables
                print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)

    if set(chosen.only) != {"pages"}:
        with running(folder, 16 if quick else chosen.tokens, chosen.streams) as faces:
            measure("overhead", lambda: measure_overhead(faces, 2 if quick else chosen.pairs))
            measure("streams", lambda: measure_streams(faces, 4 if quick else chosen.streams))
            measure("left", lambda: measure_left(faces, 2 if quick else chosen.pairs))
            measure("memory", lambda: measure_memory(faces))
    swarms = SWARMS[:1] if quick else chosen.peers or SWARMS
    measure("pages", lambda: measure_pages(swarms, 1 if quick else chosen.visits, tell))
    return found


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench_faces", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--pairs", type=int, default=9, help="of texts through endpoint and Python [default: 9]")
    parser.add_argument("--streams", type=int, default=32, help="texts at once [default: 32]")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens of a text [default: 96]")
    parser.add_argument("--visits", type=int, default=7, help="of each page, and updates of a kind [default: 7]")
    parser.add_argument("--peers", type=int, action="append", help="of `pages`, may be given again [default: all]")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be given again [default: all]")
    parser.add_argument("--quick", action="store_true", help="a look whether it works")
    chosen = parser.parse_args()
    chosen.only = chosen.only or list(SECTIONS)
    if "pages" in chosen.only and find_browser() is None:
        parser.error("`pages` needs a chromium (Debian: apt install chromium); --only names other sections")
    facts = dict(machine())
    with tempfile.TemporaryDirectory(prefix="faces-") as folder:
        found = run(chosen, Path(folder))
    print(describe_machine(facts, command_line("bench_faces", sys.argv[1:])), file=sys.stderr)
    if "pages" in found:
        print(tables(found["pages"]), file=sys.stderr)
    if chosen.json:
        print(json.dumps({"machine": facts, **found}, indent=2))
    return 0 if found.get("overhead", {"same": True})["same"] else 1


if __name__ == "__main__":
    run_program(main)
