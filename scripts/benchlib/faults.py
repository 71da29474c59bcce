"""Break real peers, links and networks in the middle of a generation, and say what a user sees of it.

Four peers serve the demo model, two for each half of its blocks, every one behind lines that can be made to swallow, to
delay, to drip, to garble or to break.  In each case a new client generates a short text, a new text of 60 tokens to
which the fault comes after some tokens, and a short one after it, all greedily.  Right means: the same tokens as the
model alone, or, where the case says so, an error in words; no peer's log may have a traceback, and where a case names
the line that its operator should read, that has to come.

The exit status is 1 if any case gave wrong tokens, ended in another way than it should, or left a client that hangs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .breaking.cases import CASES, random_kills
from .breaking.forks import Zygote
from .breaking.links import Links
from .breaking.play import Case, CaseFailed, Outcome, play
from .breaking.report import line, table
from .breaking.world import MODEL, World
from .processes import Child, ChildFailed, command_line, machine, run_program

TURN_SECONDS = 20.0
"""Time between a join and a leave with --churn: 30 of them in ten minutes."""

Say = Callable[[str], None]


def run(cases: Sequence[Case], folder: Path, rtt_seconds: float, seed: int, patient: bool, say: Say) -> list[Outcome]:
    """Play cases one after the other; peers that a case has left are used by the next one."""
    rng = random.Random(seed)
    outcomes = []
    with Links(rtt_seconds) as links, contextlib.ExitStack() as stack:
        zygote = stack.enter_context(Zygote())
        alone = stack.enter_context(Child("-m", "benchlib.generate_worker", "plain", MODEL, log=folder / "alone.log"))
        world = World(links, folder, zygote.start)
        stack.callback(world.end)
        zygote.wait()
        alone.read()
        for case in cases:
            outcomes.append(played(case, world, alone, rng, patient))
            say(line(outcomes[-1]))
            if outcomes[-1].log:
                say(outcomes[-1].log)
    return outcomes


def played(case: Case, world: World, alone: Child, rng: random.Random, patient: bool) -> Outcome:
    """Among the peers that it asks for. What it needs and does not get is an outcome, too."""
    try:
        world.arrange(case.peers)
        return play(case, world, alone, rng, patient)
    except (CaseFailed, ChildFailed) as failed:
        world.heal()
        return Outcome(case.name, case.at, False, 0, False, None, 0.0, 0.0, (), problem=f"not played: {failed}")


def churned(folder: Path, minutes: float, rtt_seconds: float) -> dict[str, Any]:
    """The figures of two clients among peers that join and leave, as bench_placement has them."""
    from .churn import churn

    return asyncio.run(churn(folder, minutes, TURN_SECONDS, rtt_seconds))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON to standard output, everything else to standard error"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and play none")
    parser.add_argument("--only", action="append", help="cases whose name contains this; may be given again")
    parser.add_argument(
        "--short", action="store_true", help="the most telling cases only, without what comes after: about a minute"
    )
    parser.add_argument("--kills", type=int, metavar="N", help="instead of them N kills of random used peers")
    parser.add_argument(
        "--churn", type=float, metavar="MINUTES",
        help=f"instead of them a peer that joins or leaves every {TURN_SECONDS:.0f} s, while two clients generate",
    )  # fmt: skip
    parser.add_argument("--rtt", type=float, default=0.0, metavar="MS", help="round trip between any two nodes")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="of the prompts and of --kills")
    parser.add_argument("--folder", type=Path, help="keep logs there [default: a temporary folder]")
    options = parser.parse_args(arguments)
    wanted = options.only or [""]
    options.cases = [c for c in CASES if (c.short or not options.short) and any(part in c.name for part in wanted)]
    instead = [name for name in ("kills", "churn") if getattr(options, name) is not None]
    if instead and (options.only or options.short or len(instead) > 1):
        parser.error(f"--{instead[0]} plays no other cases: --only, --short and another of its kind do not go with it")
    if options.kills is not None:
        options.cases = random_kills(options.kills, random.Random(options.seed))
    if options.short:
        options.cases = [replace(case, alone=True) for case in options.cases]
    if not options.cases or (options.churn is not None and options.churn <= 0):
        parser.error("there is no such case")
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if options.list:
        print("\n".join(case.name for case in options.cases))
        return 0

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    facts = {**machine(), "command": command_line("faults", arguments), "seed": options.seed}
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        folder.mkdir(parents=True, exist_ok=True)
        if options.churn is not None:
            return churn_results(churned(folder.resolve(), options.churn, options.rtt / 1000), facts)
        patient = not options.short and options.kills is None
        outcomes = run(options.cases, folder.resolve(), options.rtt / 1000, options.seed, patient, say)
    say("\n" + table(outcomes))
    if options.json:
        facts["load_average_after"] = os.getloadavg()
        print(json.dumps({"machine": facts, "outcomes": [vars(outcome) for outcome in outcomes]}, indent=2))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def churn_results(figures: dict[str, Any], facts: dict[str, Any]) -> int:
    print(json.dumps({"machine": facts, "churn": figures}, indent=2))
    return 0 if not figures["failed_generations"] and figures["fewest_servers"] > 0 else 1


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
