"""One case: a client generates a text, a fault is played on the way, and what came of it is judged."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..processes import Child, ChildFailed
from .world import MODEL, PLAIN, Node, Spec, World

NEW_TOKENS, FAULT_AT = 60, 20
OTHER_TOKENS = 12
"""New tokens of the texts before and after the one to which the fault is played."""
HANGS_SECONDS = 150.0
LOG_SECONDS = 75.0
"""Patience with a line in a peer's log: a record lives for 60 s."""
LOOK_SECONDS = 0.25
MIB = 1 << 20


class CaseFailed(Exception):
    """Something that has to happen after a fault does not."""


@dataclass(frozen=True)
class Moment:
    """The targets of a fault: the client's process, and the peers of the chain in use, in order."""

    world: World
    client: int
    chain: tuple[Node, ...]
    relays: tuple[str | None, ...] = ()
    """By peer of the chain the relay through which the client reaches it."""

    @property
    def twins(self) -> list[Node]:
        """The other peers of the blocks of the last one."""
        last = self.chain[-1]
        return [node for node in self.world.running() if node.blocks == last.blocks and node is not last]

    @property
    def others(self) -> list[Node]:
        return [node for node in self.world.running() if node not in self.chain]


def _nothing(_: object) -> None:
    return None


def heal(moment: Moment) -> None:
    moment.world.heal()


@dataclass(frozen=True)
class Case:
    name: str
    act: Callable[[Moment], None]
    error: bool = False
    """Whether the text is to end with an error, because nothing else is possible."""
    short: bool = False
    """Whether it is one of the cases of --short."""
    at: int = FAULT_AT
    """The number of tokens after which the fault comes. The text pauses there until it has been played."""
    into_step: float = 0.0
    """The share of a step that passes before the fault comes: if more than 0 the text does not wait for it."""
    peers: tuple[Spec, ...] = PLAIN
    setting: Callable[[World], None] = _nothing
    """Before the client starts."""
    begin: Callable[[World], None] = _nothing
    """Before its text begins."""
    after: Callable[[Moment], str | None] = heal
    """After the text: the end of the fault and what has to come of it, in words. Raises CaseFailed."""
    log: str = ""
    """A pattern that a line of a peer's log has to match: what its operator sees of the fault."""
    alone: bool = False
    """Whether the client generates this text only, and no short ones before and after it."""


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
    """The longest time without a token from the moment on at which the fault has been played."""
    total_seconds: float
    events: tuple[str, ...]
    """Kinds, with the seconds after the fault."""
    log: str = ""
    """The end of the client's log, where the client hung or ended by itself."""
    replayed_tokens: int = 0
    replay_seconds: float = 0.0
    """Time in which caches were rebuilt."""
    client_mib: float | None = None
    """Growth of the client's memory, from before the text to after the next one."""
    peers_mib: float | None = None
    """The largest growth of the memory of a peer that has survived, likewise."""
    log_line: str = ""
    """The line in a peer's log that tells its operator of the fault."""
    remark: str = ""
    """The consequences of the fault after the text."""
    problem: str = ""
    """The reason for which a case failed, where tokens and error were right."""


@dataclass(frozen=True)
class Logs:
    """The logs of the peers from a moment on."""

    world: World
    sizes: Mapping[Node, int]

    @classmethod
    def of(cls, world: World) -> Logs:
        return cls(world, {node: len(node.log_text()) for node in world.nodes.values()})

    def lines(self, nodes: Sequence[Node]) -> list[str]:
        """New lines of all of them."""
        texts = (node.log_text()[self.sizes.get(node, 0) :] for node in nodes)
        return [line for text in texts for line in text.splitlines()]


def play(case: Case, world: World, alone: Child, rng: random.Random, patient: bool = True) -> Outcome:
    """Not `patient`: whatever the peers' logs say later is not waited for."""
    texts = [_prompt(rng) for _ in range(1 if case.alone else 3)]
    counts = [NEW_TOKENS] if case.alone else [OTHER_TOKENS, NEW_TOKENS, OTHER_TOKENS]
    truths = [alone.ask(prompt=text, new_tokens=count)["tokens"] for text, count in zip(texts, counts, strict=True)]
    world.came.clear()
    case.setting(world)
    nodes = list(world.nodes.values())
    logs = Logs.of(world)
    addresses = [node.address for node in world.running() if node not in world.joiners and not node.spec.hidden]
    log = world.folder / "client.log"
    with world.launch("-m", "benchlib.breaking.client", MODEL, *addresses, log=log) as client:
        played = Played(case, world, client)
        lines = list(played.lines(texts, truths))
        outcome = judge(case, lines, truths[0 if case.alone else 1])
        nodes += [node for node in world.came if node not in nodes]
        outcome = replace(outcome, **played.found(outcome))
        try:
            outcome = replace(outcome, log_line=log_line(case, logs, nodes, LOG_SECONDS if patient else 0.0))
        except CaseFailed as failed:
            outcome = replace(outcome, passed=False, problem=str(failed))
    world.heal()
    return outcome


def _prompt(rng: random.Random) -> list[int]:
    return [rng.randrange(3, 250) for _ in range(rng.randrange(16, 48))]


class Played:
    """A case while it is played, with what is found beside the client's lines."""

    def __init__(self, case: Case, world: World, client: Child) -> None:
        self._case = case
        self._world = world
        self._client = client
        self._memory: dict[Child, tuple[int, int]] = {}
        """Bytes before and after."""
        self._remark = ""
        self._problem = ""
        self.moment: Moment | None = None

    def lines(self, texts: Sequence[Sequence[int]], truths: Sequence[Sequence[int]]) -> Iterator[Mapping[str, Any]]:
        """The lines of the text to which the fault is played; the texts before and after it are only compared."""
        if self._case.alone:
            yield from watch(self._case, self._world, self._client, texts[0], act=self._act)
            return
        ended = False
        for line in watch(
            self._case, self._world, self._client, texts[1], act=self._act,
            before=lambda: self._before(texts[0], truths[0]),
        ):  # fmt: skip
            yield line
            ended = bool(line.get("done"))
        if ended:
            try:
                self._after(texts[2], truths[2])
            except (CaseFailed, ChildFailed) as failed:
                self._problem = self._problem or str(failed)

    def found(self, outcome: Outcome) -> dict[str, Any]:
        """The fields of the outcome that do not come from the client's lines."""
        problem = self._problem
        growth = {child: (after - before) / MIB for child, (before, after) in self._memory.items() if after}
        client = growth.pop(self._client, None)
        return {
            "passed": outcome.passed and not problem,
            "remark": self._remark,
            "problem": problem,
            "client_mib": client,
            "peers_mib": max(growth.values(), default=None),
        }

    def _act(self, moment: Moment) -> None:
        self.moment = moment
        self._case.act(moment)

    def _before(self, text: Sequence[int], truth: Sequence[int]) -> None:
        self._compare(text, truth, "before the fault")
        for child in [self._client, *(node.process for node in self._world.running())]:
            self._memory[child] = child.memory_bytes(), 0
        self._case.begin(self._world)

    def _after(self, text: Sequence[int], truth: Sequence[int]) -> None:
        if self.moment is not None:
            self._remark = self._case.after(self.moment) or ""
        self._compare(text, truth, "after the fault")
        for child, (before, _) in self._memory.items():
            if child.is_running():
                self._memory[child] = before, child.memory_bytes()

    def _compare(self, text: Sequence[int], truth: Sequence[int], when: str) -> None:
        """Generate a short text. Raises CaseFailed if it is not that of the model alone."""
        self._client.send(prompt=text, new_tokens=OTHER_TOKENS)
        tokens: list[int] = []
        with _alarm(self._client, HANGS_SECONDS):
            while "done" not in (line := self._client.read()):
                tokens += [line["token"]] if "token" in line else []
        if line["error"] or tokens != list(truth):
            raise CaseFailed(f"the text {when}: {line['error'] or 'WRONG tokens'}")


def log_line(case: Case, logs: Logs, nodes: Sequence[Node], patience_seconds: float) -> str:
    """The line that an operator reads. Raises CaseFailed if that is a defect, or not what the case wants."""
    give_up_at = time.monotonic() + patience_seconds
    while True:
        lines = logs.lines(nodes)
        defects = [line for line in lines if " ERROR " in line or line.startswith("Traceback")]
        if defects and patience_seconds:
            raise CaseFailed(f"a peer's log has a defect: {shortened(defects[0])}")
        found = [line for line in lines if case.log and re.search(case.log, line)]
        if found or not case.log or time.monotonic() > give_up_at:
            break
        time.sleep(LOOK_SECONDS)
    if case.log and not found and patience_seconds:
        raise CaseFailed(f"no log has a line with {case.log!r}")
    found = found or [line for line in lines if " WARN " in line] or [line for line in lines if _TELLING(line)]
    return shortened(found[0]) if found else ""


_TELLING = re.compile(r"no answer from peer|session refused or ended").search


def shortened(line: str) -> str:
    """A line of a log without its time, and with ids that fit into a table."""
    line = re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ (INFO )?", "", line)
    line = re.sub(r"12D3Koo\w+(@[\w.:]+)?", "ID", line)
    return line if len(line) <= 160 else line[:157] + "..."


def judge(case: Case, lines: Sequence[Mapping[str, Any]], expected: Sequence[int]) -> Outcome:
    """The outcome of a case, from the lines of `watch` and the tokens of the model alone."""
    tokens = [line["token"] for line in lines if "token" in line]
    times = [line["at"] for line in lines if "token" in line or "done" in line]
    end = lines[-1]
    fault = next((line for line in lines if "fault" in line), None)
    error = end["error"]
    if fault is None or fault["over"] > end["at"]:
        error, fault = f"the text ended before the fault: {error or 'it is shorter'}", None
    begins, since = (fault["at"], fault["over"]) if fault is not None else (float("inf"), float("inf"))
    gaps = [after - before for before, after in itertools.pairwise(sorted([*times, since])) if before >= since]
    told = [line for line in lines if "event" in line and line["at"] >= begins]
    right = tokens == list(expected[: len(tokens)]) if error else tokens == list(expected)
    return Outcome(
        case=case.name,
        fault_at=case.at,
        passed=right and end["done"] and fault is not None and bool(error) == case.error,
        tokens=len(tokens),
        same_tokens=right,
        error=error,
        stall_seconds=max(gaps, default=0.0),
        total_seconds=times[-1] - times[0],
        events=tuple(f"{line['event']} {line['at'] - since:+.1f}" for line in told),
        log=end.get("log", ""),
        replayed_tokens=sum(int(line["detail"].split()[0]) for line in told if line["event"] == "replay"),
        replay_seconds=_replay_seconds(told),
    )


def _replay_seconds(told: Sequence[Mapping[str, Any]]) -> float:
    """Time from each replay to the event that ends it."""
    pairs = itertools.pairwise(line for line in told if line["event"] in ("replay", "rebuilt", "rerouted"))
    return sum(after["at"] - before["at"] for before, after in pairs if before["event"] == "replay")


@contextlib.contextmanager
def _alarm(client: Child, seconds: float) -> Iterator[threading.Event]:
    """Kill a client that hangs; the event says that it did."""
    hangs = threading.Event()

    def give_up() -> None:
        hangs.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)

    alarm = threading.Timer(seconds, give_up)
    alarm.start()
    try:
        yield hangs
    finally:
        alarm.cancel()


def watch(
    case: Case,
    world: World,
    client: Child,
    prompt: Sequence[int],
    hangs_seconds: float = HANGS_SECONDS,
    before: Callable[[], None] = lambda: None,
    act: Callable[[Moment], None] | None = None,
) -> Iterator[Mapping[str, Any]]:
    """The client's lines, and one for the fault, which is played on the way; the last one has `done`.

    It is false where the client hung or ended by itself: then `error` says which, and `log` has the end of its log.
    """
    with _alarm(client, hangs_seconds) as hangs:
        try:
            client.read()
            before()
            client.send(prompt=prompt, new_tokens=NEW_TOKENS, pause_after=case.at)
            while "done" not in (line := client.read()):
                yield line if "paused" not in line else _fault(case, world, client, line, act or case.act)
            yield line
        except CaseFailed as failed:
            yield {"done": False, "error": str(failed), "at": time.monotonic()}
        except (ChildFailed, OSError) as failed:  # OSError: nobody reads the question any more
            error = "the client hangs" if hangs.is_set() else "the client ended by itself"
            yield {"done": False, "error": error, "log": str(failed), "at": time.monotonic()}


def _fault(
    case: Case, world: World, client: Child, paused: Mapping[str, Any], act: Callable[[Moment], None]
) -> Mapping[str, Any]:
    """Play the fault to a text that is paused, and let that go on; a line that says when it began and was over."""
    chain = tuple(world.nodes[peer] for peer in paused["chain"])
    if case.into_step:
        client.send(go_on=True)
        time.sleep(case.into_step * paused["step_seconds"])
    began = time.monotonic()
    act(Moment(world, client.pid, chain, tuple(paused["relays"])))
    over = time.monotonic()
    if not case.into_step:
        client.send(go_on=True)
    return {"fault": case.name, "at": began, "over": over}


def until(condition: Callable[[], object], what: str, seconds: float = 120.0) -> float:
    """Wait for what other processes do; the seconds that it took. Raises CaseFailed."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise CaseFailed(f"{what}: not within {seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - began
