"""Measure a swarm of real peers against the model alone, in the same run and interleaved with it.

decode   tokens/s and CPU time per token through 1, 2 and 3 peers on loopback
ttft     time to the first token of a prompt of 512 tokens, on loopback
wan      both with a round trip of 50 ms between any two nodes, and prompt look-up with the demo model
start    seconds and memory of a peer above a process that only imports torch and the family's modelling file

Every process computes with one thread. The exit status is 1 if a swarm gave other tokens than the model alone, or if
less than 99 % of the steps were pushed from peer to peer.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoints import SHAPES
from .processes import SCRIPTS, Child, ChildFailed, command_line, cpu_seconds, machine

SECTIONS = ("decode", "ttft", "wan", "start")
PEER_COUNTS = (1, 2, 3)
PROMPT_TOKENS = 16
LONG_PROMPT_TOKENS = 512
RTT_SECONDS = 0.050
LOOKUP_TOKENS = 10
LEAST_PUSHED_SHARE = 0.99
SETTLE_SECONDS = 0.1
"""Closing a session goes on for a moment after the call; its CPU time belongs to the call."""
DEMO_MODEL = SCRIPTS / "demo_model"
BASELINE = "import torch, transformers.models.llama.modeling_llama, json; print(json.dumps({})); input()"


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    new_tokens: int
    models: tuple[str, ...]
    peer_counts: tuple[int, ...]


FULL = Effort(repeats=3, new_tokens=128, models=("tiny", "small"), peer_counts=PEER_COUNTS)
QUICK = Effort(repeats=1, new_tokens=32, models=("tiny",), peer_counts=(1, 3))


@dataclass(frozen=True)
class Call:
    """One call of generate."""

    tokens: tuple[int, ...]
    seconds: float
    first_token_seconds: float
    decode_tokens_per_second: float
    """From the first new token to the last; 0 if there is only one."""
    cpu_seconds: float
    """Sum over all processes that took part."""

    @property
    def cpu_seconds_per_token(self) -> float:
        return self.cpu_seconds / len(self.tokens)


@dataclass(frozen=True)
class Pair:
    """The model alone and the swarm, one right after the other."""

    plain: Call
    swarm: Call

    @property
    def same_tokens(self) -> bool:
        return self.plain.tokens == self.swarm.tokens


@dataclass
class Bench:
    """The folder, the effort and the failures that all sections share."""

    effort: Effort
    folder: Path
    """For checkpoints, keys and logs."""
    failures: list[str] = field(default_factory=list)

    def checkpoint(self, name: str) -> Path:
        """The folder of one of `SHAPES`, written on first use."""
        folder = self.folder / name
        if not (folder / "model.safetensors").exists():
            say(f"writing the checkpoint {name}")
            environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
            writer = [sys.executable, "-m", "benchlib.checkpoints", name, str(folder)]
            subprocess.run(writer, check=True, env=environment)
        return folder

    def worker(self, kind: str, model: Path, *addresses: str) -> Child:
        """A process of generate_worker.py that is ready."""
        child = Child("-m", "benchlib.generate_worker", kind, model, *addresses, log=self.folder / f"{kind}.log")
        child.read()
        return child


@dataclass(frozen=True)
class RunningSwarm:
    """Peers, and a client that is connected to them."""

    peers: tuple[Child, ...]
    client: Child

    def status(self) -> Mapping[str, Any]:
        """See generate_worker.swarm_status."""
        return self.client.ask(status=True)  # type: ignore[no-any-return]

    def generate(self, question: Mapping[str, Any]) -> Call:
        return generate(self.client, (self.client, *self.peers), question)


@contextlib.contextmanager
def running_swarm(bench: Bench, model: Path, count: int, rtt_seconds: float = 0.0) -> Iterator[RunningSwarm]:
    """`count` peers with equal parts of the model and a client; any two nodes are `rtt_seconds` apart.

    The DHT is not delayed: no token waits for it.
    """
    blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    bounds = [round(index * blocks / count) for index in range(count + 1)]
    ports = [free_port() for _ in range(count)]
    with contextlib.ExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keys-", dir=bench.folder)))
        announced = ports
        if rtt_seconds:
            arguments = [SCRIPTS / "benchlib" / "delay_proxy.py", str(rtt_seconds / 2), *map(str, ports)]
            announced = stack.enter_context(Child(*arguments, log=bench.folder / "proxy.log")).read()
        peers: list[Child] = []
        addresses: list[str] = []
        for index, (port, announce) in enumerate(zip(ports, announced, strict=True)):
            arguments = [
                "-m", "blockswarm.peer.cli", model, "--blocks", f"{bounds[index]}:{bounds[index + 1]}",
                "--host", "127.0.0.1", "--port", str(port), "--announce", f"127.0.0.1:{announce}",
                "--data", keys / str(index), "--threads", "1", "--json",
            ]  # fmt: skip
            arguments += ["--initial-peers", addresses[0]] if addresses else ["--new-swarm"]
            peers.append(stack.enter_context(Child(*arguments, log=bench.folder / f"peer{index}.log")))
            addresses.append(peers[-1].read()["address"])
        client = stack.enter_context(bench.worker("swarm", model, *addresses))
        yield RunningSwarm(tuple(peers), client)


def generate(worker: Child, involved: Sequence[Child], question: Mapping[str, Any]) -> Call:
    """Have `worker` generate, and count the CPU time of all processes that are `involved`."""
    cpu_before = cpu_seconds(involved)
    answer = worker.ask(**question)
    time.sleep(SETTLE_SECONDS)
    cpu = cpu_seconds(involved) - cpu_before
    (first, first_count), last = answer["arrivals"][0], answer["arrivals"][-1][0]
    later = len(answer["tokens"]) - first_count
    rate = later / (last - first) if later else 0.0
    return Call(tuple(answer["tokens"]), answer["seconds"], first, rate, cpu)


def interleaved(bench: Bench, plain: Child, swarm: RunningSwarm, question: Mapping[str, Any]) -> list[Pair]:
    """Warm up once, then alternate, so that other load on the machine hits both."""
    pairs = []
    for _ in range(1 + bench.effort.repeats):
        pairs.append(Pair(generate(plain, (plain,), question), swarm.generate(question)))
        if not pairs[-1].same_tokens:
            bench.failures.append("a swarm gave other tokens than the model alone")
    return pairs[1:]


def question(vocabulary: int, prompt_tokens: int, new_tokens: int) -> Mapping[str, Any]:
    """A random prompt, the same in every run."""
    rng = random.Random(prompt_tokens)
    return {"prompt": [rng.randrange(3, vocabulary) for _ in range(prompt_tokens)], "new_tokens": new_tokens}


# --- sections ---


def loopback(bench: Bench, sections: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The sections decode and ttft, which share their swarms."""
    rows: dict[str, list[dict[str, Any]]] = {section: [] for section in ("decode", "ttft") if section in sections}
    for name in bench.effort.models:
        model, vocabulary = bench.checkpoint(name), SHAPES[name]["vocab_size"]
        with bench.worker("plain", model) as plain:
            for count in bench.effort.peer_counts:
                with running_swarm(bench, model, count) as swarm:
                    facts = {"model": name, "peers": count}
                    if "decode" in rows:
                        say(f"decode: {name}, {count} peers")
                        ask = question(vocabulary, PROMPT_TOKENS, bench.effort.new_tokens)
                        pairs = interleaved(bench, plain, swarm, ask)
                        rows["decode"].append(facts | decode_figures(pairs) | chain_figures(bench, swarm))
                    if "ttft" in rows:
                        say(f"ttft: {name}, {count} peers")
                        pairs = interleaved(bench, plain, swarm, question(vocabulary, LONG_PROMPT_TOKENS, 1))
                        rows["ttft"].append(facts | first_token_figures(pairs))
    return rows


def wan(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """With a line of 50 ms between any two nodes."""
    rows: dict[str, list[dict[str, Any]]] = {"wan": [], "wan_lookup": []}
    model, vocabulary = bench.checkpoint("tiny"), SHAPES["tiny"]["vocab_size"]
    with bench.worker("plain", model) as plain:
        for count in bench.effort.peer_counts:
            with running_swarm(bench, model, count, RTT_SECONDS) as swarm:
                say(f"wan: tiny, {count} peers")
                long = question(vocabulary, LONG_PROMPT_TOKENS, 1)
                first_ever = swarm.generate(long).first_token_seconds
                ttft = interleaved(bench, plain, swarm, long)
                pairs = interleaved(bench, plain, swarm, question(vocabulary, PROMPT_TOKENS, bench.effort.new_tokens))
                row = {"model": "tiny", "peers": count} | decode_figures(pairs) | chain_figures(bench, swarm)
                limit = way_seconds(count)
                row |= {
                    "limit_tokens_per_second": 1 / limit,
                    "limit_with_compute_tokens_per_second": 1 / (limit + 1 / row["plain_tokens_per_second"]),
                    "ttft_first_session_seconds": first_ever,
                    "ttft": first_token_figures(ttft),
                }
                check_delay(bench, row)
                rows["wan"].append(row)
    rows["wan_lookup"] = lookup(bench)
    return rows


def lookup(bench: Bench) -> list[dict[str, Any]]:
    """The demo model over the long lines, with and without prompt look-up."""
    if not (DEMO_MODEL / "model.safetensors").exists():
        say(f"wan: no demo model in {DEMO_MODEL}, prompt look-up is left out")
        return []
    rows = []
    count = bench.effort.peer_counts[-1]
    ask = {"prompt": inspect.getsource(textwrap.dedent), "new_tokens": bench.effort.new_tokens}
    with (
        bench.worker("plain", DEMO_MODEL) as plain,
        running_swarm(bench, DEMO_MODEL, count, RTT_SECONDS) as swarm,
    ):
        for tokens in (None, LOOKUP_TOKENS):
            say(f"wan: demo model, {count} peers, prompt look-up {tokens or 'off'}")
            pairs = interleaved(bench, plain, swarm, ask | {"prompt_lookup_num_tokens": tokens})
            facts = {"model": "demo", "peers": count, "prompt_lookup_num_tokens": tokens or 0}
            rows.append(facts | decode_figures(pairs) | chain_figures(bench, swarm))
    return rows


def start(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """A peer that begins a swarm, above a process that only imports; both live while their memory is read.

    What several processes share counts in proportion for each of them, so it cancels out.
    """
    model = bench.checkpoint("tiny")
    runs = []
    for number in range(1 + bench.effort.repeats):
        say("start: a peer with all blocks of tiny")
        data = bench.folder / f"start{number}"
        command = [
            "-m", "blockswarm.peer.cli", model, "--blocks", "0:8", "--new-swarm", "--host", "127.0.0.1",
            "--data", data, "--threads", "1", "--json",
        ]  # fmt: skip
        with Child("-c", BASELINE, log=bench.folder / "baseline.log") as baseline:
            baseline_seconds = ready_after(baseline)
            with Child(*command, log=bench.folder / "start.log") as peer:
                peer_seconds = ready_after(peer)
                runs.append(
                    {
                        "baseline_seconds": baseline_seconds,
                        "peer_seconds": peer_seconds,
                        "seconds_above": peer_seconds - baseline_seconds,
                        "baseline_cpu_seconds": baseline.cpu_seconds(),
                        "peer_cpu_seconds": peer.cpu_seconds(),
                        "baseline_bytes": baseline.memory_bytes(),
                        "peer_bytes": peer.memory_bytes(),
                    }
                )
                runs[-1]["bytes_above"] = runs[-1]["peer_bytes"] - runs[-1]["baseline_bytes"]
    measured = runs[1:]
    row = {name: median(run[name] for run in measured) for name in measured[0]}
    return {"start": [{"model": "tiny"} | row | {"runs": measured}]}


# --- figures ---


def decode_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Medians over the pairs; a ratio is the median of the pairs' ratios, which other load disturbs least."""
    rates = [pair.swarm.decode_tokens_per_second / pair.plain.decode_tokens_per_second for pair in pairs]
    return {
        "plain_tokens_per_second": median(pair.plain.decode_tokens_per_second for pair in pairs),
        "swarm_tokens_per_second": median(pair.swarm.decode_tokens_per_second for pair in pairs),
        "ratio": median(rates),
        "ratios": rates,
        "whole_call_ratio": median(pair.plain.seconds / pair.swarm.seconds for pair in pairs),
        "plain_cpu_seconds_per_token": median(pair.plain.cpu_seconds_per_token for pair in pairs),
        "swarm_cpu_seconds_per_token": median(pair.swarm.cpu_seconds_per_token for pair in pairs),
        "cpu_ratio": median(pair.swarm.cpu_seconds / pair.plain.cpu_seconds for pair in pairs),
        "same_tokens": all(pair.same_tokens for pair in pairs),
    }


def first_token_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Medians over the pairs."""
    return {
        "plain_seconds": median(pair.plain.first_token_seconds for pair in pairs),
        "swarm_seconds": median(pair.swarm.first_token_seconds for pair in pairs),
        "ratio": median(pair.swarm.first_token_seconds / pair.plain.first_token_seconds for pair in pairs),
    }


def chain_figures(bench: Bench, swarm: RunningSwarm) -> dict[str, Any]:
    """How the steps travelled: the share that peers pushed, the round trips, where the time of a step went."""
    status = swarm.status()
    pushed, relayed = (sum(peer[kind] for peer in status["peers"]) for kind in ("pushed", "relayed"))
    share = pushed / (pushed + relayed) if pushed + relayed else None
    if len(status["peers"]) > 1 and (share is None or share < LEAST_PUSHED_SHARE):
        bench.failures.append(f"only {share or 0:.1%} of the steps were pushed from peer to peer")
    return {
        "pushed_share": share,
        "rtt_seconds": [peer["rtt_seconds"] for peer in status["peers"]],
        "hops": status["hops"],
        "return_seconds": status["return_seconds"],
    }


def way_seconds(peers: int) -> float:
    """Time of a token on the lines when peers push: one way to each peer, and one back."""
    return (peers + 1) * RTT_SECONDS / 2


def check_delay(bench: Bench, row: Mapping[str, Any]) -> None:
    """Figures for long lines are worth nothing if the lines were short."""
    ways = [row["return_seconds"], *(hop["network_seconds"] for hop in row["hops"])]
    if min(row["rtt_seconds"]) < RTT_SECONDS or sum(ways) < way_seconds(row["peers"]):
        bench.failures.append("a line was shorter than it should be")


def median(values: Any) -> float:
    return statistics.median(list(values))


def ready_after(child: Child) -> float:
    """Seconds from the start of the process to its first answer."""
    child.read()
    return time.perf_counter() - child.started_at


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- output ---

TABLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "decode": (
        ("model", "model"),
        ("peers", "peers"),
        ("alone tok/s", "plain_tokens_per_second"),
        ("swarm tok/s", "swarm_tokens_per_second"),
        ("ratio", "ratio"),
        ("whole call", "whole_call_ratio"),
        ("alone CPU ms", "plain_cpu_seconds_per_token"),
        ("swarm CPU ms", "swarm_cpu_seconds_per_token"),
        ("CPU ratio", "cpu_ratio"),
        ("pushed", "pushed_share"),
        ("same tokens", "same_tokens"),
    ),
    "ttft": (
        ("model", "model"),
        ("peers", "peers"),
        ("alone s", "plain_seconds"),
        ("swarm s", "swarm_seconds"),
        ("ratio", "ratio"),
    ),
    "wan": (
        ("model", "model"),
        ("peers", "peers"),
        ("tok/s", "swarm_tokens_per_second"),
        ("limit", "limit_tokens_per_second"),
        ("with compute", "limit_with_compute_tokens_per_second"),
        ("first token s", "ttft.swarm_seconds"),
        ("in first session s", "ttft_first_session_seconds"),
        ("RTT ms", "rtt_seconds"),
        ("pushed", "pushed_share"),
        ("same tokens", "same_tokens"),
    ),
    "wan_lookup": (
        ("model", "model"),
        ("peers", "peers"),
        ("look-up tokens", "prompt_lookup_num_tokens"),
        ("tok/s", "swarm_tokens_per_second"),
        ("alone tok/s", "plain_tokens_per_second"),
        ("RTT ms", "rtt_seconds"),
        ("same tokens", "same_tokens"),
    ),
    "start": (
        ("model", "model"),
        ("imports s", "baseline_seconds"),
        ("peer s", "peer_seconds"),
        ("above s", "seconds_above"),
        ("imports CPU s", "baseline_cpu_seconds"),
        ("peer CPU s", "peer_cpu_seconds"),
        ("imports MB", "baseline_bytes"),
        ("peer MB", "peer_bytes"),
        ("above MB", "bytes_above"),
    ),
}


def table(section: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A section's rows as a Markdown table."""
    columns = TABLES[section]
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(key, row) for _, key in columns) + " |" for row in rows]
    return "\n".join([f"{section}:", *lines, ""])


def cell(key: str, row: Mapping[str, Any]) -> str:
    """One value for people; seconds per token and round trips in milliseconds, bytes in MB."""
    value: Any = row
    for part in key.split("."):
        value = value[part]
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if key == "pushed_share":
        return f"{value:.1%}"
    if key == "rtt_seconds":
        return f"{1000 * min(value):.1f}-{1000 * max(value):.1f}"
    if key.endswith("_per_token"):
        return f"{1000 * value:.2f}"
    if "bytes" in key:
        return f"{value / 1e6:.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_swarm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON to standard output, tables to standard error")
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections, separated by commas [default: %(default)s]"
    )
    parser.add_argument("--quick", action="store_true", help="a look whether it works: tiny, few tokens, one run each")
    parser.add_argument("--folder", type=Path, help="keep checkpoints and logs there [default: a temporary folder]")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"there are no sections {', '.join(sorted(unknown))}")
    return options


def measure(bench: Bench, sections: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {}
    if "start" in sections:
        results |= start(bench)
    if {"decode", "ttft"} & set(sections):
        results |= loopback(bench, sections)
    if "wan" in sections:
        results |= wan(bench)
    return results


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    facts = machine()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-swarm-")))
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(QUICK if options.quick else FULL, folder.resolve())
        try:
            results = measure(bench, options.only)
        except ChildFailed as error:
            say(f"bench_swarm: {error}")
            return 1
    facts = {**facts, "load_average_after": os.getloadavg(), "command": command_line("bench_swarm", arguments)}
    for section, rows in results.items():
        print(table(section, rows), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps({"machine": facts, "failures": bench.failures, **results}, indent=2))
    for failure in bench.failures:
        say(f"FAILED: {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
