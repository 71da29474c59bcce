"""Measure what guessing ahead brings: the demo model in a swarm of real peers behind long lines, and on loopback.

lines      tokens/s, trips and acceptance with 1, 2 and 3 peers at a round trip of 50 ms and 3 at 100 ms
loopback   `auto` must guess nothing where no line is long
flips      how often float32 chooses another token when guesses share its step, over 10,000 tokens
together   tokens/s of eight clients at once on three peers, all with guesses or none
crowd      tokens/s and time at the peer of one, two and eight sessions without guesses at one peer, beside another one
           that guesses, does not, or keeps its guesses back
crowd-model
           the same in virtual time, with the peer's own decisions and no other load of a machine

Texts are of three kinds, new ones each time: held-out code to continue, a function to repeat and edit, and turns of a
chat.  The demo model is too small to copy; a logits processor has it write the edited function, so everything else of
such a text is as with a model that can.  Each text is generated in every mode, one after the other in changing order,
once greedily and once drawn at temperature 0.8 with a seed; a ratio is the median over pairs of a mode with the same
text without guesses, with the order statistics that enclose the true median with at least 95 %.  Trips depend on no
other load of the machine, seconds do.

The exit status is 1 if a text's tokens differ between modes or from those of the model alone, if any text took more
trips than without guesses, or if something was guessed on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .carry_out import Results, carry_out
from .guess_crowd import crowd, together
from .guess_crowd_model import crowd_model
from .guess_figures import Run, summary, table
from .guess_prompts import KINDS, prompts
from .processes import SCRIPTS, Child, run_program
from .swarm_runs import running_peers

SECTIONS = ("lines", "loopback", "flips", "together", "crowd", "crowd-model")
LINES = ((1, 0.050), (2, 0.050), (3, 0.050), (3, 0.100))
"""Peers, and the round trip between any two nodes, in seconds."""
MODES = ("look-up", "suffix", "draft", "both")
TEMPERATURES = (0.0, 0.8)
FLIP_TOKENS = 10_000
FLIPS_SEED = 1
"""Other prompts than those of the other sections."""
DEMO_MODEL = SCRIPTS / "demo_model"
WARM_UP_TOKENS = 12


@dataclass
class Bench:
    """The effort, the folder and the failures that all sections share."""

    repeats: int
    new_tokens: int
    modes: tuple[str, ...]
    kinds: tuple[str, ...]
    flip_tokens: int
    folder: Path
    """For keys and logs."""
    temperatures: tuple[float, ...] = TEMPERATURES
    """0: greedily."""
    failures: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Note why the run is worth nothing, once."""
        if reason not in self.failures:
            self.failures.append(reason)


# --- sections ---


def lines(bench: Bench, cases: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """Every mode over every line."""
    rows = []
    for peers, rtt_seconds in cases:
        name = f"{peers} peers, {1000 * rtt_seconds:.0f} ms"
        with client(bench, peers, rtt_seconds) as worker:
            for kind in bench.kinds:
                for temperature in bench.temperatures:
                    say(f"lines: {name}, {kind}, temperature {temperature}")
                    runs = texts(bench, worker, kind, temperature, bench.modes)
                    facts = {"peers": peers, "rtt_ms": 1000 * rtt_seconds, "kind": kind, "temperature": temperature}
                    found = [facts | row for row in summary(runs)]
                    for row in found:
                        say("  {mode}: {ratio:.2f} times plain, {tokens_per_trip:.2f} tokens per trip".format_map(row))
                    rows += found
    return rows


def loopback(bench: Bench) -> list[dict[str, Any]]:
    """Without a line `auto` guesses nothing."""
    rows = []
    with client(bench, 1, 0.0) as worker:
        for kind in bench.kinds:
            say(f"loopback: {kind}")
            runs = texts(bench, worker, kind, 0.0, tuple(mode for mode in bench.modes if mode != "look-up"))
            for row in summary(runs):
                rows.append({"peers": 1, "kind": kind, "temperature": 0.0} | row)
                if row["guessed"]:
                    bench.fail(f"{row['guessed']} tokens were guessed on loopback")
    return rows


def flips(bench: Bench) -> list[dict[str, Any]]:
    """Over texts that begin alike, the first token of each that another number of rows in its step has changed."""
    rows = []
    with client(bench, 1, 0.0) as worker:
        for kind in bench.kinds:
            say(f"flips: {kind}")
            row = {"kind": kind, "tokens": 0, "flips": 0, "guessed": 0}
            for text in prompts(kind, bench.new_tokens, FLIPS_SEED):
                question = {**text, "temperature": 0.0, "seed": 0}
                plain, fixed = (Run.of(worker.ask(**question, mode=mode)) for mode in ("off", "fixed"))
                same = [mine == other for mine, other in zip(plain.tokens, fixed.tokens, strict=True)]
                row["tokens"] += same.index(False) + 1 if False in same else len(same)
                row["flips"] += False in same
                row["guessed"] += fixed.guessed
                if row["tokens"] >= bench.flip_tokens / len(bench.kinds):
                    break
            rows.append(row)
    return rows


def texts(bench: Bench, worker: Child, kind: str, temperature: float, modes: Sequence[str]) -> list[dict[str, Run]]:
    """The runs of each new text by mode. The order of the modes changes."""
    asked = [mode for mode in ("off", *modes) if temperature == 0.0 or mode != "look-up"]
    found = []
    for number, text in zip(range(bench.repeats), prompts(kind, bench.new_tokens), strict=False):
        order = [asked[(number + turn) % len(asked)] for turn in range(len(asked))]
        if len(text["turns"]) == 1:
            order.append("alone")
        question = {**text, "temperature": temperature, "seed": number}
        answers = {mode: Run.of(worker.ask(**question, mode=mode)) for mode in order}
        checked(bench, kind, answers)
        found.append(answers)
    return found


def checked(bench: Bench, kind: str, answers: Mapping[str, Run]) -> None:
    """Fail the run if a mode changed a token, or took more trips."""
    plain = answers["off"]
    for mode, run in answers.items():
        if run.tokens != plain.tokens:
            bench.fail(f"{kind}: {mode} gave other tokens than without guesses")
        if run.trips > plain.trips and mode != "alone":
            bench.fail(f"{kind}: {mode} took {run.trips} trips, {plain.trips} without guesses")


@contextlib.contextmanager
def client(bench: Bench, peers: int, rtt_seconds: float) -> Iterator[Child]:
    """A client of new peers, which has generated something in every mode."""
    with running_peers(bench.folder, DEMO_MODEL, peers, rtt_seconds) as (_, addresses):
        arguments: list[str | Path] = ["-m", "benchlib.guess_worker", DEMO_MODEL, *addresses]
        with Child(*arguments, log=bench.folder / "client.log") as worker:
            worker.read()
            for mode in ("alone", "off", *bench.modes):
                worker.ask(turns=["def main("], new_tokens=WARM_UP_TOKENS, temperature=0.0, seed=0, mode=mode)
            yield worker


# --- the program ---


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench_guess", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON to standard output, tables to standard error")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections [default: %(default)s]")
    usual = ",".join(f"{peers}x{1000 * rtt_seconds:.0f}" for peers, rtt_seconds in LINES)
    parser.add_argument("--lines", default=usual, help="peers x milliseconds [default: %(default)s]")
    parser.add_argument("--modes", default=",".join(MODES), help="beside no guesses [default: %(default)s]")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of texts [default: %(default)s]")
    usual = ",".join(map(str, TEMPERATURES))
    parser.add_argument("--temperatures", default=usual, help="of lines; 0: greedily [default: %(default)s]")
    parser.add_argument("--repeats", type=int, default=9, help="texts of each kind [default: %(default)s]")
    parser.add_argument("--tokens", type=int, default=192, help="new tokens of a text [default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=3.0, help="of clients at once [default: %(default)s]")
    parser.add_argument(
        "--quick", action="store_true", help="a look whether it works: one line, one short text of each kind"
    )
    parser.add_argument("--folder", type=Path, help="keep keys and logs there [default: a temporary folder]")
    options = parser.parse_args(arguments)
    options.flip_tokens = FLIP_TOKENS
    if options.quick:
        options.lines, options.repeats, options.tokens, options.flip_tokens = "1x50", 1, 48, 300
        options.seconds = 1.0
    for name, known in (("only", SECTIONS), ("modes", MODES), ("kinds", KINDS)):
        setattr(options, name, tuple(getattr(options, name).split(",")))
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"--{name} does not know {', '.join(sorted(unknown))}")
    found = [re.fullmatch(r"([1-8])x(\d{1,4})", line) for line in options.lines.split(",")]
    if not all(found):
        parser.error("--lines takes 1 to 8 peers and milliseconds, as in 3x50, separated by commas")
    options.lines = [(int(line[1]), int(line[2]) / 1000) for line in found if line]
    try:
        options.temperatures = tuple(float(number) for number in options.temperatures.split(","))
    except ValueError:
        parser.error("--temperatures takes numbers, separated by commas")
    if options.repeats < 1 or options.tokens < 6 or not 0 < options.seconds <= 60:
        parser.error("--repeats must be at least 1, --tokens 6, and --seconds above 0 and at most 60")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)

    def measure(folder: Path) -> tuple[Results, Sequence[str]]:
        bench = Bench(
            options.repeats, options.tokens, options.modes, options.kinds, options.flip_tokens, folder,
            options.temperatures,
        )  # fmt: skip
        sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "lines": lambda: lines(bench, options.lines),
            "loopback": lambda: loopback(bench),
            "flips": lambda: flips(bench),
            "together": lambda: together(folder, options.repeats, options.seconds, say),
            "crowd-model": lambda: crowd_model(options.repeats),
            "crowd": lambda: crowd(folder, options.repeats, options.seconds, say),
        }
        return {name: work() for name, work in sections.items() if name in options.only}, bench.failures

    return carry_out("bench_guess", arguments, options.folder, options.json, measure, table)


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
