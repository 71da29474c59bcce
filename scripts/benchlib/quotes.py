"""Quotes of a client compared with what happened: how many requests ended up inside the interval that was quoted.

Real peers on loopback, or with a line between any two nodes, and one client.  Each request has a prompt and an answer
of other lengths; before each `model.quote` is asked.  Under `busy` another thread of the client generates all the time.
The first requests, of which no interval can be known, are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processes import SCRIPTS, command_line, machine, run_program
from .swarm_runs import running_peers

CASES = (("alone", 0.0, False), ("busy", 0.0, True), ("50 ms", 0.05, False))
SLOW_SHARE = 5
"""One request in this number is made where lines are long, and with shorter answers."""
VOCABULARY = 512


class Client:
    """A connected model, and the arrival times of its tokens."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def ask(self, prompt_tokens: int, new_tokens: int, seed: int) -> tuple[float, float]:
        """Seconds to the first token, and tokens per second after it."""
        import torch

        arrivals: list[float] = []

        class Streamer:
            def put(self, value: Any) -> None:
                arrivals.append(time.perf_counter())

            def end(self) -> None:
                pass

        ids = torch.randint(VOCABULARY, (1, prompt_tokens), generator=torch.Generator().manual_seed(seed))
        began = time.perf_counter()
        self.model.generate(ids, max_new_tokens=new_tokens, do_sample=False, streamer=Streamer())
        first, last = arrivals[1], arrivals[-1]  # the first put is the prompt
        return first - began, (new_tokens - 1) / (last - first)


def compare(client: Client, requests: int, most_new: int) -> dict[str, Any]:
    """The quotes of `requests` requests and what they took."""
    import random

    rng = random.Random(1)
    rows = []
    for number in range(requests):
        prompt, new = rng.randint(8, 400), rng.randint(8, most_new)
        quote = client.model.quote(prompt, new)
        first, speed = client.ask(prompt, new, number)
        if quote.confidence < 1:
            rows.append((quote, first, speed))
    return {
        "requests": len(rows),
        "confidence": statistics.fmean(quote.confidence for quote, _, _ in rows),
        "first_token_inside": statistics.fmean(first in quote.first_token_seconds for quote, first, _ in rows),
        "speed_inside": statistics.fmean(speed in quote.tokens_per_second for quote, _, speed in rows),
        "first_token_error": statistics.median(
            abs(quote.first_token_seconds.expected - first) / first for quote, first, _ in rows
        ),
        "speed_error": statistics.median(
            abs(quote.tokens_per_second.expected - speed) / speed for quote, _, speed in rows
        ),
        "first_token_width": statistics.median(
            quote.first_token_seconds.high / quote.first_token_seconds.low for quote, _, _ in rows
        ),
        "speed_width": statistics.median(
            quote.tokens_per_second.high / quote.tokens_per_second.low for quote, _, _ in rows
        ),
    }


def measure(folder: Path, peers: int, requests: int) -> list[dict[str, Any]]:
    """A row for each case."""
    import torch
    from blockswarm.client import AutoSwarmModelForCausalLM

    torch.set_num_threads(1)
    model = folder / "tiny"
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    subprocess.run([sys.executable, "-m", "benchlib.checkpoints", "tiny", str(model)], check=True, env=environment)
    rows = []
    for name, rtt_seconds, busy in CASES:
        print(f"quotes: {name}", file=sys.stderr, flush=True)
        with running_peers(folder, model, peers, rtt_seconds) as (_, addresses):
            connected = AutoSwarmModelForCausalLM.from_pretrained(model, initial_peers=addresses)
            connected.guess = "off"
            client, over = Client(connected), threading.Event()

            def others(client: Client = client, over: threading.Event = over) -> None:
                seed = 10**6
                while not over.is_set():
                    seed += 1
                    client.ask(64, 64, seed)

            thread = threading.Thread(target=others)
            try:
                if busy:
                    thread.start()
                count = requests if not rtt_seconds else max(requests // SLOW_SHARE, 10)
                print(f"quotes: {name}, {count} requests", file=sys.stderr, flush=True)
                rows.append({"case": name, "peers": peers, **compare(client, count, 12 if rtt_seconds else 32)})
            finally:
                over.set()
                if busy:
                    thread.join()
                connected.session_factory.close()
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="bench_quotes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object in one line")
    parser.add_argument("--requests", type=int, default=200, help="in each case [default: %(default)s]")
    parser.add_argument("--peers", type=int, default=3, help="of the chain [default: %(default)s]")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"machine": machine(), "command": command_line("bench_quotes", arguments)}
    with tempfile.TemporaryDirectory(prefix="bench-quotes-") as folder:
        report["quotes"] = measure(Path(folder), options.peers, options.requests)
    print(json.dumps(report, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
