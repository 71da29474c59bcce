"""Several sessions at once: what guessing brings eight clients together, and what one of them costs eight others."""

from __future__ import annotations

import contextlib
import itertools
import statistics
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
NINTH_SKIP_SECONDS = 0.7
TOGETHER = ((3, 0.050, "suffix"), (3, 0.050, "both"))
"""Peers, the round trip between any two nodes, and the mode."""
CROWD = ((0.050, "both"), (0.0, "fixed"))
"""Round trip, and the mode of the session that guesses: 8 ahead also where no line is long."""
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
    """Eight sessions without guesses at one peer, all the time, beside a ninth one: by turns with guesses and without.

    The ninth client's process gives way to the others (nice), since its own machine is not what is measured.
    """
    rows = []
    for rtt_seconds, mode in CROWD:
        say(f"crowd: 1 peer, {1000 * rtt_seconds:.0f} ms, {mode}")
        with (
            running_peers(folder, DEMO_MODEL, 1, rtt_seconds) as (_, addresses),
            client(folder, addresses) as others,
            client(folder, addresses, nice=19) as ninth,
        ):
            texts = beginnings(1)
            whole = SKIP_SECONDS + 2 * pairs * (seconds + NINTH_SKIP_SECONDS + 0.5)
            eight = [next(texts) for _ in range(CLIENTS)]
            others.send(texts=eight, temperature=0.0, mode="off", seconds=whole)
            ninth.ask(texts=[next(texts)], temperature=0.0, mode="off", seconds=SKIP_SECONDS)
            windows = []
            for number in range(pairs):
                question = {"texts": [next(texts)], "temperature": 0.0, "seconds": seconds + NINTH_SKIP_SECONDS}
                windows.append({each: ninth.ask(**question, mode=each) for each in in_turn(number, "off", mode)})
            answer = others.read()
        rows.append({"peers": 1, "rtt_ms": 1000 * rtt_seconds, "mode": mode, **beside(answer, windows, mode)})
    return rows


def beside(answer: Mapping[str, Any], windows: Sequence[Mapping[str, Any]], mode: str) -> dict[str, Any]:
    """Figures of the eight while the ninth did this and that; windows after their end do not count.

    Beside tokens per second the time of a token, the median of a window: bursts of other load change it less.
    """
    found, token_ratios = [], []
    for pair in windows:
        if max(each["ended"] for each in pair.values()) > answer["ended"]:
            break
        spans = [(pair[each]["began"] + NINTH_SKIP_SECONDS, pair[each]["ended"]) for each in ("off", mode)]
        off, with_ = (tokens_of(answer, *span) / (span[1] - span[0]) for span in spans)
        found.append((off, with_, pair[mode]["guessed"]))
        before, after = (statistics.median(token_seconds(answer, *span)) for span in spans)
        token_ratios.append(after / before)
    token_time = {"token_ratio": statistics.median(token_ratios), "token_interval": interval(token_ratios)}
    return {**compared(found), **token_time}


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
def client(folder: Path, addresses: Sequence[str], nice: int = 0) -> Iterator[Child]:
    """A process of guess_crowd_worker.py that has generated something."""
    arguments: list[str | Path] = ["-m", "benchlib.guess_crowd_worker", str(nice), DEMO_MODEL, *addresses]
    with Child(*arguments, log=folder / "crowd.log") as child:
        child.read()
        for mode in ("off", "both"):
            child.ask(texts=["def main("], temperature=0.0, mode=mode, seconds=0.5)
        yield child
