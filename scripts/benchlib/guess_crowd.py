"""Several sessions at once: what guessing brings eight clients together, and what one that guesses costs others."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .guess_prompts import NEW_TEXT, prompts
from .intervals import interval
from .processes import SCRIPTS, Child
from .swarm_runs import running_peers

CLIENTS = 8
SKIP_SECONDS = 1.5
"""Sessions open and read their prompts; then it is counted."""
GUESSING_SKIP_SECONDS = 0.7
TOGETHER = ((3, 0.050, "suffix"), (3, 0.050, "both"))
"""Peers, the round trip between any two nodes, and the mode."""
CROWD = ((8, 0.050, "both"), (8, 0.100, "both"), (8, 0.0, "fixed"), (2, 0.050, "both"), (1, 0.050, "both"))
"""Sessions without guesses, the round trip, and the mode of the session that guesses; "fixed" is 8 ahead anywhere."""
KEPT_BACK = "kept back"
"""Behind a mode: guesses are made, and none is sent."""
DEMO_MODEL = SCRIPTS / "demo_model"


def together(folder: Path, pairs: int, seconds: float, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Eight clients at once, drawing tokens at temperature 0.8: all of them with guesses, and without."""
    rows = []
    for peers, rtt_seconds, mode in TOGETHER:
        say(f"together: {peers} peers, {1000 * rtt_seconds:.0f} ms, {mode}")
        with running_peers(folder, DEMO_MODEL, peers, rtt_seconds) as (_, addresses), client(folder, addresses) as all_:
            texts = beginnings(0)
            found = []
            for number in range(pairs):
                question = {"texts": [next(texts) for _ in range(CLIENTS)], "temperature": 0.8}
                answers = {
                    each: all_.ask(**question, mode=each, seconds=SKIP_SECONDS + seconds)
                    for each in in_turn(number, "off", mode)
                }
                counts = [tokens_of(answers[each], answers[each]["began"] + SKIP_SECONDS) for each in ("off", mode)]
                found.append((counts[0] / seconds, counts[1] / seconds, answers[mode]["guessed"]))
        rows.append({"peers": peers, "rtt_ms": 1000 * rtt_seconds, "mode": mode, **compared(found)})
    return rows


def crowd(folder: Path, pairs: int, seconds: float, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Sessions without guesses at one peer, all the time, beside a further one that guesses and does not, by turns.

    In a third turn it makes guesses and keeps them back, which tells what its client costs the others from what its
    guesses do: the peer has a core for itself, but the clients share the other ones.  The guessing client's process
    only gets the time that others leave.
    """
    rows = []
    for count, rtt_seconds, mode in CROWD:
        say(f"crowd: {count} sessions at 1 peer, {1000 * rtt_seconds:.0f} ms, {mode}")
        with (
            running_peers(folder, DEMO_MODEL, 1, rtt_seconds) as ((peer,), addresses),
            apart(peer),
            client(folder, addresses) as others,
            client(folder, addresses, "idle") as guessing,
        ):
            texts = beginnings(1)
            modes = ("off", f"{mode}, {KEPT_BACK}", mode)
            whole = SKIP_SECONDS + len(modes) * pairs * (seconds + GUESSING_SKIP_SECONDS + 0.5)
            others.send(texts=[next(texts) for _ in range(count)], temperature=0.0, mode="off", seconds=whole)
            guessing.ask(texts=[next(texts)], temperature=0.0, mode="off", seconds=SKIP_SECONDS)
            windows = []
            for number in range(pairs):
                question = {"texts": [next(texts)], "temperature": 0.0, "seconds": seconds + GUESSING_SKIP_SECONDS}
                windows.append({each: busy_share(peer, guessing, question, each) for each in in_turn(number, *modes)})
            answer = others.read()
        facts = {"others": count, "rtt_ms": 1000 * rtt_seconds, "mode": mode}
        rows.append({**facts, **beside(answer, windows, *modes)})
    return rows


def busy_share(peer: Child, guessing: Child, question: Mapping[str, Any], mode: str) -> dict[str, Any]:
    """The answer of a session, and the share of its time in which the peer's process was at work (`busy`)."""
    used, began = peer.cpu_seconds(), time.perf_counter()
    answer = guessing.ask(**question, mode=mode)
    return {**answer, "busy": (peer.cpu_seconds() - used) / (time.perf_counter() - began)}


@contextlib.contextmanager
def apart(peer: Child) -> Iterator[None]:
    """A peer has one core for itself, and what this process starts meanwhile the others; where there is one, all it."""
    cores = os.sched_getaffinity(0)
    own = {min(cores)}
    for thread in peer.threads():
        os.sched_setaffinity(thread, own)
    os.sched_setaffinity(0, cores - own or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def beside(
    answer: Mapping[str, Any], windows: Sequence[Mapping[str, Any]], off: str, kept: str, mode: str
) -> dict[str, Any]:
    """Figures of the others while one session did this and that; windows after their end do not count.

    `ratio` is tokens per second with guesses over those without, `sent_ratio` over those with guesses kept back.
    `peer_cost` is by what share of the time of a token its step was longer at the peer, from arrival to answer: there
    no load of the clients' machine is in it.
    """
    found, sent, kept_back, costs, at_peer = [], [], [], [], []
    for turn in windows:
        if max(each["ended"] for each in turn.values()) > answer["ended"]:
            break
        spans = {each: (turn[each]["began"] + GUESSING_SKIP_SECONDS, turn[each]["ended"]) for each in (off, kept, mode)}
        rates = {each: tokens_of(answer, *span) / (span[1] - span[0]) for each, span in spans.items()}
        found.append((rates[off], rates[mode], turn[mode]["guessed"]))
        sent.append(rates[mode] / rates[kept])
        kept_back.append(rates[kept] / rates[off])
        before, after = (seconds_at_peers(answer, *spans[each]) for each in (off, mode))
        token = statistics.median(token_seconds(answer, *spans[off]))
        costs.append((after - before) / token)
        at_peer.append(before)
    return {
        **compared(found),
        "kept_ratio": statistics.median(kept_back),
        "kept_interval": interval(kept_back),
        "sent_ratio": statistics.median(sent),
        "sent_interval": interval(sent),
        "at_peer_ms": 1000 * statistics.median(at_peer),
        "peer_cost": statistics.median(costs),
        "peer_cost_interval": interval(costs),
        "busy": statistics.median(turn[off]["busy"] for turn in windows),
        "busy_with": statistics.median(turn[mode]["busy"] for turn in windows),
    }


def seconds_at_peers(answer: Mapping[str, Any], begin: float, end: float) -> float:
    """The mean time that a step was at peers, over the samples of all texts from one moment to the other."""
    steps, seconds = 0, 0.0
    for samples in answer["at_peers"]:
        within = [sample for sample in samples if begin <= sample[0] < end]
        if within:
            steps += within[-1][1] - within[0][1]
            seconds += within[-1][2] - within[0][2]
    return seconds / steps


def tokens_of(answer: Mapping[str, Any], begin: float, end: float = float("inf")) -> int:
    """The tokens that came from one moment to the other, in all texts of an answer."""
    return sum(tokens for moments in answer["moments"] for at, tokens in moments if begin <= at < end)


def token_seconds(answer: Mapping[str, Any], begin: float, end: float) -> list[float]:
    """The time between two tokens of a text, for all that came from one moment to the other."""
    return [
        after - before
        for moments in answer["moments"]
        for (before, _), (after, _) in itertools.pairwise(moments)
        if begin <= before < after < end
    ]


def compared(found: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Tokens per second of eight clients together: without guesses, with them, and the ratio of the two."""
    ratios = [with_ / without for without, with_, _ in found]
    return {
        "pairs": len(found),
        "without": statistics.median(without for without, _, _ in found),
        "with": statistics.median(with_ for _, with_, _ in found),
        "ratio": statistics.median(ratios),
        "interval": interval(ratios),
        "ratios": ratios,
        "guessed": sum(guessed for _, _, guessed in found),
    }


def in_turn(number: int, *modes: str) -> tuple[str, ...]:
    """The modes in another order each time, so that other load on the machine hits all alike."""
    return modes[number % len(modes) :] + modes[: number % len(modes)]


def beginnings(seed: int) -> Iterator[str]:
    """Prompts of new text."""
    for text in prompts(NEW_TEXT, 1, seed):
        yield text["turns"][0]


@contextlib.contextmanager
def client(folder: Path, addresses: Sequence[str], rank: str = "usual") -> Iterator[Child]:
    """A process of guess_crowd_worker.py that has generated something."""
    arguments: list[str | Path] = ["-m", "benchlib.guess_crowd_worker", rank, DEMO_MODEL, *addresses]
    with Child(*arguments, log=folder / "crowd.log") as child:
        child.read()
        for mode in ("off", "both"):
            child.ask(texts=["def main("], temperature=0.0, mode=mode, seconds=0.5)
        yield child
