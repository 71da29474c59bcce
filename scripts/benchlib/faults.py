"""Break real peers, links and networks in the middle of a generation, and say what a user sees of it.

Four peers serve the demo model, two for each half of its blocks, every one behind a line that can be made to swallow,
to delay or to break.  In each case a new client generates a new text greedily, and the fault comes after some tokens.
Right means: the same tokens as the model alone, or, where the case says so, an error in words.

The exit status is 1 if any case gave wrong tokens, ended in another way than it should, or left a client that hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fault_links import Links, Rule
from .processes import SCRIPTS, Child, ChildFailed, command_line, listening_port, machine, run_program

MODEL = SCRIPTS / "demo_model"
HALVES = ("0:4", "4:8")
NEW_TOKENS, FAULT_AT = 60, 20
HANGS_SECONDS = 150.0


@dataclass
class Node:
    """A running peer and the line in front of it."""

    process: Child
    blocks: str
    line: int
    peer_id: str = ""
    pid: int = 0
    address: str = ""


@dataclass
class World:
    """The peers, by id, and the lines to them."""

    links: Links
    folder: Path
    launch: Callable[..., Child] = Child
    nodes: dict[str, Node] = field(default_factory=dict)
    processes: list[Child] = field(default_factory=list)
    """All that were started, also those that never got ready."""
    timers: list[threading.Timer] = field(default_factory=list)

    def start_all(self, ranges: Sequence[str]) -> None:
        """Start a peer for each range; all but the first of the swarm side by side."""
        alone = not self.nodes
        starting = [self._start(blocks) for blocks in ranges[:1]]
        if alone:
            self._wait_for(starting.pop())
        for node in [*starting, *(self._start(blocks) for blocks in ranges[1:])]:
            self._wait_for(node)

    def _start(self, blocks: str) -> Node:
        line, port = self.links.add()
        arguments = [
            "-m", "blockswarm.peer.cli", MODEL, "--blocks", blocks, "--host", "127.0.0.1", "--announce",
            f"127.0.0.1:{port}", "--reach", "direct", "--data", self.folder / f"peer{line}", "--threads", "1", "--json",
        ]  # fmt: skip
        others = [node.address for node in self.nodes.values()]
        arguments += ["--initial-peers", others[0]] if others else ["--new-swarm"]
        self.processes.append(self.launch(*arguments, log=self.folder / f"peer{line}.log"))
        return Node(self.processes[-1], blocks, line)

    def _wait_for(self, node: Node) -> None:
        said = node.process.read()
        node.peer_id, node.pid, node.address = said["peer_id"], said["pid"], said["address"]
        self.links.lead_to(node.line, listening_port(node.pid))
        self.nodes[node.peer_id] = node

    def replace_dead(self) -> None:
        """Have another peer in the place of each that was killed."""
        dead = [node for node in self.nodes.values() if not node.process.is_running()]
        for node in dead:
            self.nodes.pop(node.peer_id).process.end()
        self.start_all([node.blocks for node in dead])

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        self.timers.append(threading.Timer(seconds, act))
        self.timers[-1].start()

    def heal(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
        self.links.apply()
        for node in self.nodes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGCONT)

    def end(self) -> None:
        self.heal()
        for process in self.processes:
            process.end()


@dataclass(frozen=True)
class Moment:
    """The targets of a fault: the client's process, and the peers of the chain in use, in order."""

    world: World
    client: int
    chain: tuple[Node, ...]


# --- the faults ---


def kill(moment: Moment) -> None:
    os.killpg(moment.chain[-1].pid, signal.SIGKILL)


def freeze(moment: Moment) -> None:
    os.killpg(moment.chain[-1].pid, signal.SIGSTOP)


def half_open(moment: Moment) -> None:
    """The client's connection to a peer stands, and nothing comes through."""
    moment.world.links.apply(Rule(dialler=moment.client, peer=moment.chain[0].line))


def unplug(moment: Moment) -> None:
    """A peer's network is away for good: nothing to it, nothing from it."""
    node = moment.chain[-1]
    moment.world.links.apply(Rule(peer=node.line), Rule(dialler=node.pid))


def partition(moment: Moment) -> None:
    """Two neighbours do not reach each other; the client reaches both."""
    first, second = moment.chain[:2]
    moment.world.links.apply(Rule(first.pid, second.line), Rule(second.pid, first.line))


def reset_all(moment: Moment) -> None:
    """Every connection of the client breaks; new ones are possible."""
    moment.world.links.cut(Rule(dialler=moment.client))


def drip(moment: Moment) -> None:
    """The last peer's answers take 1.2 s longer each: just in time, again and again."""
    moment.world.links.apply(Rule(peer=moment.chain[-1].line, held=False, delay_seconds=1.2))


def ten_times_slower(moment: Moment) -> None:
    moment.world.links.apply(Rule(peer=moment.chain[-1].line, held=False, delay_seconds=0.1))


def client_away(seconds: float) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        moment.world.links.apply(Rule(dialler=moment.client))
        moment.world.later(seconds, moment.world.links.apply)

    return act


def peer_away(seconds: float) -> Callable[[Moment], None]:
    def act(moment: Moment) -> None:
        unplug(moment)
        moment.world.later(seconds, moment.world.links.apply)

    return act


def last_connection(moment: Moment) -> None:
    """The client's open connection to a peer is dead, nobody else has its blocks, and the peer itself is well."""
    used = moment.chain[0]
    for node in moment.world.nodes.values():
        if node.blocks == used.blocks and node is not used:
            os.killpg(node.pid, signal.SIGSTOP)
    moment.world.links.apply(Rule(moment.client, used.line, opened_before=time.monotonic()))


def two_at_once(moment: Moment) -> None:
    for node in moment.chain[:2]:
        os.killpg(node.pid, signal.SIGSTOP)


@dataclass(frozen=True)
class Case:
    name: str
    act: Callable[[Moment], None]
    error: bool = False
    """Whether the text is to end with an error, because nothing else is possible."""
    short: bool = False
    """Whether it is one of the cases of --short."""
    at: int = FAULT_AT
    """The number of tokens after which the fault comes."""


CASES = (
    Case("no fault", lambda moment: None, short=True),
    Case("kill -9 of the used peer", kill, short=True),
    Case("SIGSTOP of the used peer", freeze, short=True),
    Case("SIGSTOP of both used peers", two_at_once),
    Case("half-open line to the used peer", half_open, short=True),
    Case("dead connection to the only peer of its blocks", last_connection),
    Case("used peer's network away for good", unplug),
    Case("used peer's network away for 10 s", peer_away(10)),
    Case("two neighbours parted", partition, short=True),
    Case("all of the client's connections reset", reset_all),
    Case("client's network away for 5 s", client_away(5), short=True),
    Case("client's network away for 20 s", client_away(20)),
    Case("client's network away for 60 s", client_away(60), error=True),
    Case("used peer answers 1.2 s late each time", drip),
    Case("used peer ten times slower", ten_times_slower),
)


def random_kills(count: int, rng: random.Random) -> list[Case]:
    """`kill -9` of a random used peer after a random number of tokens."""
    cases = []
    for number in range(count):
        at, hop = rng.randrange(1, NEW_TOKENS - 1), rng.randrange(len(HALVES))

        def act(moment: Moment, hop: int = hop) -> None:
            os.killpg(moment.chain[hop % len(moment.chain)].pid, signal.SIGKILL)

        cases.append(Case(f"kill {number + 1}: used peer {hop + 1} after {at} tokens", act, at=at))
    return cases


# --- playing them ---


@dataclass(frozen=True)
class Outcome:
    """The result of one case."""

    case: str
    fault_at: int
    """The number of tokens after which the fault was to come."""
    passed: bool
    tokens: int
    same_tokens: bool
    error: str | None
    stall_seconds: float
    """The longest time between two tokens, or the last one and the end, from the fault on."""
    total_seconds: float
    events: tuple[str, ...]
    """Kinds, with the seconds after the fault."""
    log: str = ""
    """The end of the client's log, where the client hung or ended by itself."""


def play(case: Case, world: World, alone: Child, rng: random.Random) -> Outcome:
    prompt = [rng.randrange(3, 250) for _ in range(rng.randrange(16, 48))]
    expected = alone.ask(prompt=prompt, new_tokens=NEW_TOKENS)["tokens"]
    log = world.folder / "client.log"
    addresses = [node.address for node in world.nodes.values()]
    with Child("-m", "benchlib.fault_client", MODEL, *addresses, log=log) as client:
        lines = list(watch(case, world, client, prompt))
    world.heal()
    return judge(case, lines, expected)


def judge(case: Case, lines: Sequence[Mapping[str, Any]], expected: Sequence[int]) -> Outcome:
    """The outcome of a case, from the lines of `watch` and the tokens of the model alone."""
    tokens = [line["token"] for line in lines if "token" in line]
    times = [line["at"] for line in lines if "token" in line or "done" in line]
    end = lines[-1]
    came_at = next((line["at"] for line in lines if "fault" in line), None)
    error = end["error"]
    if came_at is None:
        error = f"the text ended before the fault: {error or 'it is shorter'}"
    since = came_at if came_at is not None else float("inf")
    gaps = [after - before for before, after in itertools.pairwise(times) if after > since]
    told = [line for line in lines if "event" in line and line["at"] >= since]
    events = tuple(f"{line['event']} {line['at'] - since:+.1f}" for line in told)
    right = tokens == list(expected[: len(tokens)]) if error else tokens == list(expected)
    passed = right and end["done"] and came_at is not None and bool(error) == case.error
    stall, total = max(gaps, default=0.0), times[-1] - times[0]
    return Outcome(case.name, case.at, passed, len(tokens), right, error, stall, total, events, end.get("log", ""))


def watch(
    case: Case, world: World, client: Child, prompt: Sequence[int], hangs_seconds: float = HANGS_SECONDS
) -> Iterator[Mapping[str, Any]]:
    """The client's lines, and one for the fault, which is played on the way; the last one has `done`.

    It is false where the client hung or ended by itself: then `error` says which, and `log` has the end of its log.
    """
    hangs = threading.Event()

    def give_up() -> None:
        hangs.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)

    alarm = threading.Timer(hangs_seconds, give_up)
    alarm.start()
    try:
        client.read()
        line = client.ask(prompt=prompt, new_tokens=NEW_TOKENS)
        count = 0
        while True:
            yield line
            if "done" in line:
                return
            count += "token" in line
            if "token" in line and count == case.at:
                chain = tuple(world.nodes[peer] for peer in line["chain"])
                case.act(Moment(world, client.pid, chain))
                yield {"fault": case.name, "at": line["at"]}
            line = client.read()
    except (ChildFailed, OSError) as failed:  # OSError: nobody reads the question any more
        error = "the client hangs" if hangs.is_set() else "the client ended by itself"
        yield {"done": False, "error": error, "log": str(failed), "at": time.monotonic()}
    finally:
        alarm.cancel()


def run(
    cases: Sequence[Case], folder: Path, rtt_seconds: float, seed: int, say: Callable[[str], None]
) -> list[Outcome]:
    rng = random.Random(seed)
    outcomes = []
    with Links(rtt_seconds) as links, contextlib.ExitStack() as stack:
        world = World(links, folder)
        stack.callback(world.end)
        alone = stack.enter_context(Child("-m", "benchlib.generate_worker", "plain", MODEL, log=folder / "alone.log"))
        say("starting four peers")
        world.start_all((*HALVES, *HALVES))
        alone.read()
        for case in cases:
            say(case.name)
            world.replace_dead()
            outcomes.append(play(case, world, alone, rng))
            if outcomes[-1].log:
                say(outcomes[-1].log)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """For people, as Markdown."""
    moments = {o.fault_at for o in outcomes}
    moment = f" (after {moments.pop()} tokens)" if len(moments) == 1 else ""
    lines = [f"| fault{moment} | passed | tokens | longest stall s | whole text s | what the client did |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for o in outcomes:
        tokens = f"{o.tokens}, {'same' if o.same_tokens else 'WRONG'}" + (f", {o.error}" if o.error else "")
        passed = "yes" if o.passed else "NO"
        cells = [o.case, passed, tokens, f"{o.stall_seconds:.2f}", f"{o.total_seconds:.1f}", ", ".join(o.events)]
        lines.append(f"| {' | '.join(cells)} |")
    stalls = sorted(o.stall_seconds for o in outcomes)
    middle, high = (stalls[min(len(stalls) - 1, int(share * len(stalls)))] for share in (0.5, 0.95))
    passed = sum(o.passed for o in outcomes)
    lines.append(
        f"\n{passed} of {len(outcomes)} passed; stall p50 {middle:.2f}, p95 {high:.2f}, max {stalls[-1]:.2f} s"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON to standard output, the table to standard error"
    )
    parser.add_argument("--only", action="append", help="cases whose name contains this; may be given again")
    parser.add_argument("--short", action="store_true", help="the most telling cases only, about a minute")
    parser.add_argument("--kills", type=int, metavar="N", help="instead of them N kills of random used peers")
    parser.add_argument("--rtt", type=float, default=0.0, help="round trip between any two nodes, seconds")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="of the prompts and of --kills")
    parser.add_argument("--folder", type=Path, help="keep logs there [default: a temporary folder]")
    options = parser.parse_args(arguments)
    wanted = options.only or [""]
    cases = [c for c in CASES if (c.short or not options.short) and any(part in c.name for part in wanted)]
    if options.kills is not None:
        if options.only or options.short:
            parser.error("--kills plays kills and no other cases: --only and --short do not go with it")
        cases = random_kills(options.kills, random.Random(options.seed))
    if not cases:
        parser.error("there is no such case")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    facts = machine()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            outcomes = run(cases, folder.resolve(), options.rtt, options.seed, say)
        except ChildFailed as error:
            say(f"faults: {error}")
            return 1
    print(table(outcomes), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        facts = {**facts, "command": command_line("faults", arguments), "seed": options.seed}
        print(json.dumps({"machine": facts, "outcomes": [vars(outcome) for outcome in outcomes]}, indent=2))
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
