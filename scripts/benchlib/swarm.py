"""Measure a swarm of real peers against the model alone, in the same run and interleaved with it.

decode   tokens/s and CPU time per token through 1, 2 and 3 peers on loopback
hops     CPU time per token beyond that of the model alone, without guesses: `tiny`, where little is arithmetic
ttft     time to the first token of a prompt of 512 tokens on loopback: a new one, and the same again
wan      both with a round trip of 50 ms between any two nodes, and prompt look-up with the demo model
start    seconds and memory of a peer above a process that only imports torch and the family's modelling file

Every timed prompt is one that the peers have never seen; what they hold of one that comes again is a row of its own.
Every process computes with one thread.  With --against the sections decode and hops are measured through the peers and
clients of another version as well, which are asked in turn with those of this one.

The exit status is 1 if a swarm gave other tokens than the model alone, if less than 99 % of the steps were pushed from
peer to peer, or if peers held what was new, or nothing of what came again.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import itertools
import statistics
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .carry_out import Results, carry_out
from .checkpoints import SHAPES
from .processes import HERE, SCRIPTS, Child, Version, run_program
from .swarm_runs import Bench, Model, Pair, Prompts, Question, alone, interleaved, new_and_again, swarm
from .swarm_tables import table

SECTIONS = ("decode", "hops", "ttft", "wan", "start")
PROMPT_TOKENS = 16
LONG_PROMPT_TOKENS = 512
RTT_SECONDS = 0.050
LOOKUP_TOKENS = 10
LEAST_PUSHED_SHARE = 0.99
DEMO_MODEL = SCRIPTS / "demo_model"
BASELINE = "import torch, transformers.models.llama.modeling_llama, json; print(json.dumps({})); input()"


# --- sections ---


def decode(bench: Bench) -> list[dict[str, Any]]:
    """Through the swarms of all versions."""
    rows = []
    for name in bench.models:
        model, prompts = bench.checkpoint(name), Prompts(SHAPES[name]["vocab_size"])
        for count in bench.peer_counts:
            say(f"decode: {name}, {count} peers")
            with contextlib.ExitStack() as stack:
                plain = stack.enter_context(alone(bench, model))
                swarms = [
                    stack.enter_context(swarm(bench, model, count, version=version))
                    for version in bench.versions.values()
                ]
                ask = lambda: prompts.question(PROMPT_TOKENS, bench.new_tokens)  # noqa: E731, B023  # used before the next
                for version, pairs, running in zip(
                    bench.versions, interleaved(bench, plain, swarms, ask), swarms, strict=True
                ):
                    facts = {"model": name, "peers": count, "version": version}
                    rows.append(facts | decode_figures(pairs) | chain_figures(bench, running))
    return rows


def hops(bench: Bench) -> list[dict[str, Any]]:
    """Through the swarms of all versions: the CPU time of the client and of the peers beside the model alone."""
    rows = []
    model, prompts = bench.checkpoint("tiny"), Prompts(SHAPES["tiny"]["vocab_size"])
    ask = lambda: prompts.question(PROMPT_TOKENS, bench.new_tokens) | {"guess": "off"}  # noqa: E731
    with alone(bench, model) as plain:
        for count in bench.peer_counts:
            say(f"hops: {count} peers")
            with contextlib.ExitStack() as stack:
                swarms = [
                    stack.enter_context(swarm(bench, model, count, version=version))
                    for version in bench.versions.values()
                ]
                for version, pairs in zip(bench.versions, interleaved(bench, plain, swarms, ask), strict=True):
                    rows.append({"model": "tiny", "peers": count, "version": version} | hop_figures(pairs))
    return rows


def ttft(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for name in bench.models:
        model, prompts = bench.checkpoint(name), Prompts(SHAPES[name]["vocab_size"])
        with alone(bench, model) as plain:
            for count in bench.peer_counts:
                say(f"ttft: {name}, {count} peers")
                with swarm(bench, model, count) as running:
                    rows += first_token_rows(bench, plain, running, prompts, {"model": name, "peers": count})
    return rows


def first_token_rows(
    bench: Bench, plain: Model, running: Model, prompts: Prompts, facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for new prompts, and one for the same again."""
    new, again = new_and_again(bench, plain, running, lambda: prompts.question(LONG_PROMPT_TOKENS, 1))
    return [
        {**facts, "prompt": "new", **first_token_figures(new)},
        {**facts, "prompt": "again", **first_token_figures(again)},
    ]


def wan(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """With a line of 50 ms between any two nodes."""
    rows: dict[str, list[dict[str, Any]]] = {"wan": [], "wan_ttft": []}
    model, prompts = bench.checkpoint("tiny"), Prompts(SHAPES["tiny"]["vocab_size"])
    with alone(bench, model) as plain:
        for count in bench.peer_counts:
            with swarm(bench, model, count, RTT_SECONDS) as running:
                say(f"wan: tiny, {count} peers")
                facts = {"model": "tiny", "peers": count}
                first_ever = running.generate(prompts.question(LONG_PROMPT_TOKENS, 1)).first_token_seconds
                rows["wan_ttft"].append({**facts, "prompt": "new, first session", "swarm_seconds": first_ever})
                rows["wan_ttft"] += first_token_rows(bench, plain, running, prompts, facts)
                (pairs,) = interleaved(
                    bench, plain, [running], lambda: prompts.question(PROMPT_TOKENS, bench.new_tokens)
                )
                row = facts | decode_figures(pairs) | chain_figures(bench, running)
                limit = way_seconds(count)
                row |= {
                    "limit_tokens_per_second": 1 / limit,
                    "limit_with_compute_tokens_per_second": 1 / (limit + 1 / row["plain_tokens_per_second"]),
                }
                check_delay(bench, row)
                rows["wan"].append(row)
    return rows | {"wan_lookup": lookup(bench)}


def lookup(bench: Bench) -> list[dict[str, Any]]:
    """The demo model over the long lines, with and without prompt look-up."""
    if not (DEMO_MODEL / "model.safetensors").exists():
        say(f"wan: no demo model in {DEMO_MODEL}, prompt look-up is left out")
        return []
    rows = []
    count = bench.peer_counts[-1]
    numbers, text = itertools.count(1), inspect.getsource(textwrap.dedent)

    def ask(tokens: int | None) -> Question:
        """The same text behind another number: a name of a page is one of all that is before its end."""
        prompt = f"# {next(numbers)}\n{text}"
        return {"prompt": prompt, "new_tokens": bench.new_tokens, "prompt_lookup_num_tokens": tokens}

    with alone(bench, DEMO_MODEL) as plain, swarm(bench, DEMO_MODEL, count, RTT_SECONDS) as running:
        for tokens in (None, LOOKUP_TOKENS):
            say(f"wan: demo model, {count} peers, prompt look-up {tokens or 'off'}")
            (pairs,) = interleaved(bench, plain, [running], lambda tokens=tokens: ask(tokens))  # type: ignore[misc]
            facts = {"model": "demo", "peers": count, "prompt_lookup_num_tokens": tokens or 0}
            rows.append(facts | decode_figures(pairs) | chain_figures(bench, running))
    return rows


def start(bench: Bench) -> list[dict[str, Any]]:
    """A peer that begins a swarm, above a process that only imports; both live while their memory is read.

    What several processes share counts in proportion for each of them, so it cancels out.
    """
    model = bench.checkpoint("tiny")
    runs = []
    for number in range(1 + bench.repeats):
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
    return [{"model": "tiny"} | row | {"runs": measured}]


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


def hop_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Medians over the pairs, CPU seconds; "beyond" is that of each pair."""
    calls = [pair.swarm for pair in pairs]
    return {
        "plain_cpu_seconds_per_token": median(pair.plain.cpu_seconds_per_token for pair in pairs),
        "client_cpu_seconds_per_token": median(call.cpu_by_process[0] / len(call.tokens) for call in calls),
        "peers_cpu_seconds_per_token": median(sum(call.cpu_by_process[1:]) / len(call.tokens) for call in calls),
        "beyond_cpu_seconds_per_token": median(
            pair.swarm.cpu_seconds_per_token - pair.plain.cpu_seconds_per_token for pair in pairs
        ),
        "same_tokens": all(pair.same_tokens for pair in pairs),
    }


def first_token_figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Medians over the pairs."""
    return {
        "held_tokens": median(pair.swarm.held_tokens for pair in pairs),
        "plain_seconds": median(pair.plain.first_token_seconds for pair in pairs),
        "swarm_seconds": median(pair.swarm.first_token_seconds for pair in pairs),
        "ratio": median(pair.swarm.first_token_seconds / pair.plain.first_token_seconds for pair in pairs),
    }


def chain_figures(bench: Bench, running: Model) -> dict[str, Any]:
    """How the steps travelled: the share that peers pushed, the round trips, where the time of a step went."""
    status = running.status()
    pushed, relayed = (sum(peer[kind] for peer in status["peers"]) for kind in ("pushed", "relayed"))
    share = pushed / (pushed + relayed) if pushed + relayed else None
    if len(status["peers"]) > 1 and (share is None or share < LEAST_PUSHED_SHARE):
        bench.fail(f"only {share or 0:.1%} of the steps were pushed from peer to peer")
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
        bench.fail("a line was shorter than it should be")


def median(values: Any) -> float:
    return statistics.median(list(values))


def ready_after(child: Child) -> float:
    """Seconds from the start of the process to its first answer."""
    child.read()
    return time.perf_counter() - child.started_at


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_swarm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON to standard output, tables to standard error")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections [default: %(default)s]")
    parser.add_argument("--models", default="tiny,small", help="of decode and ttft [default: %(default)s]")
    parser.add_argument("--peers", default="1,2,3", help="numbers of peers [default: %(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs after the warm-up [default: %(default)s]")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of a text [default: %(default)s]")
    parser.add_argument("--quick", action="store_true", help="a look whether it works: tiny, 1 and 3 peers, once")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="clone of another version, for decode and hops")
    parser.add_argument("--folder", type=Path, help="keep checkpoints and logs there [default: a temporary folder]")
    options = parser.parse_args(arguments)
    if options.quick:
        options.models, options.peers, options.repeats, options.tokens = "tiny", "1,3", 1, 32
    options.only, options.models = options.only.split(","), options.models.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"there are no sections {', '.join(sorted(unknown))}")
    if unknown := set(options.models) - set(SHAPES):
        parser.error(f"there are no models {', '.join(sorted(unknown))}")
    if not all(count.isdecimal() and 0 < int(count) <= 8 for count in options.peers.split(",")):
        parser.error("--peers takes numbers from 1 to 8, separated by commas")
    options.peers = [int(count) for count in options.peers.split(",")]
    if options.repeats < 1 or options.tokens < 2:
        parser.error("--repeats must be at least 1, and --tokens 2")
    options.versions = {"here": HERE}
    if options.against is not None:
        try:
            options.versions["other"] = Version.at(options.against.resolve())
        except FileNotFoundError as error:
            parser.error(str(error))
    return options


def measure(bench: Bench, sections: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {}
    if "start" in sections:
        results["start"] = start(bench)
    if "decode" in sections:
        results["decode"] = decode(bench)
    if "hops" in sections:
        results["hops"] = hops(bench)
    if "ttft" in sections:
        results["ttft"] = ttft(bench)
    if "wan" in sections:
        results |= wan(bench)
    return results


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)

    def work(folder: Path) -> tuple[Results, Sequence[str]]:
        bench = Bench(
            options.repeats, options.tokens, tuple(options.models), tuple(options.peers), folder, options.versions
        )
        return measure(bench, options.only), bench.failures

    return carry_out("bench_swarm", arguments, options.folder, options.json, work, table)


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
