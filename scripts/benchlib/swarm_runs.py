"""The model alone and in a swarm of real processes: asked in turn, with the CPU time of all that take part."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .long_line import LongLine
from .processes import HERE, SCRIPTS, Child, Version

SETTLE_SECONDS = 0.1
"""Closing a session goes on for a moment after the call; its CPU time belongs to the call."""

Question = Mapping[str, Any]
"""A request to generate_worker.py."""


class Prompts:
    """Random prompts, none of which was there before, so that no peer holds anything of them; equal in every run."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._rng = random.Random(vocabulary)

    def question(self, prompt_tokens: int, new_tokens: int) -> Question:
        """A new prompt of that length."""
        prompt = [self._rng.randrange(3, self._vocabulary) for _ in range(prompt_tokens)]
        return {"prompt": prompt, "new_tokens": new_tokens}


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
    held_tokens: int = 0
    """The tokens of the prompt that the peers held already."""
    cpu_by_process: tuple[float, ...] = ()
    """CPU seconds of the one that generates, then of each peer."""

    @property
    def cpu_seconds_per_token(self) -> float:
        return self.cpu_seconds / len(self.tokens)


@dataclass(frozen=True)
class Pair:
    """The model alone and a swarm, asked the same soon after each other."""

    plain: Call
    swarm: Call

    @property
    def same_tokens(self) -> bool:
        return self.plain.tokens == self.swarm.tokens


@dataclass
class Bench:
    """The effort, the folder and the failures that all sections share."""

    repeats: int
    new_tokens: int
    models: tuple[str, ...]
    peer_counts: tuple[int, ...]
    folder: Path
    """For checkpoints, keys and logs."""
    versions: Mapping[str, Version] = field(default_factory=lambda: {"here": HERE})
    """By name; decode is measured through the swarms of all of them."""
    again_after_seconds: float = 1.0
    """Pause before a prompt comes again: peers keep what they hold of it when its session has ended there."""
    failures: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Note why the run is worth nothing, once."""
        if reason not in self.failures:
            self.failures.append(reason)

    def checkpoint(self, name: str) -> Path:
        """The folder of one of `SHAPES`, written on first use."""
        folder = self.folder / name
        if not (folder / "model.safetensors").exists():
            environment = os.environ | {"PYTHONPATH": str(SCRIPTS)}
            writer = [sys.executable, "-m", "benchlib.checkpoints", name, str(folder)]
            subprocess.run(writer, check=True, env=environment)  # a process of its own: torch is not needed here
        return folder


@dataclass(frozen=True)
class Model:
    """A process that generates, and the peers that compute for it."""

    worker: Child
    peers: tuple[Child, ...] = ()

    def generate(self, question: Question) -> Call:
        """Ask, and count the CPU time of all processes that are involved."""
        involved = (self.worker, *self.peers)
        before = [child.cpu_seconds() for child in involved]
        answer = self.worker.ask(**question)
        time.sleep(SETTLE_SECONDS)
        used = tuple(child.cpu_seconds() - earlier for child, earlier in zip(involved, before, strict=True))
        return replace(call_of(answer, sum(used)), cpu_by_process=used)

    def status(self) -> Mapping[str, Any]:
        """See generate_worker.swarm_status."""
        return self.worker.ask(status=True)  # type: ignore[no-any-return]


def call_of(answer: Mapping[str, Any], cpu: float) -> Call:
    """The figures of an answer of generate_worker.py."""
    (first, first_count), last = answer["arrivals"][0], answer["arrivals"][-1][0]
    later = len(answer["tokens"]) - first_count
    rate = later / (last - first) if later else 0.0
    return Call(tuple(answer["tokens"]), answer["seconds"], first, rate, cpu, answer.get("held_tokens", 0))


@contextlib.contextmanager
def alone(bench: Bench, model: Path) -> Iterator[Model]:
    """Plain transformers, ready."""
    with _worker(bench, HERE, "plain", model) as worker:
        yield Model(worker)


@contextlib.contextmanager
def swarm(bench: Bench, model: Path, count: int, rtt_seconds: float = 0.0, version: Version = HERE) -> Iterator[Model]:
    """`count` peers with equal parts of the model, and a client; any two nodes are `rtt_seconds` apart."""
    with (
        running_peers(bench.folder, model, count, rtt_seconds, version) as (peers, addresses),
        _worker(bench, version, "swarm", model, *addresses) as worker,
    ):
        yield Model(worker, tuple(peers))


@contextlib.contextmanager
def running_peers(
    folder: Path, model: Path, count: int, rtt_seconds: float = 0.0, version: Version = HERE
) -> Iterator[tuple[list[Child], list[str]]]:
    """`count` peers with equal parts of the model, ready, and their addresses; their logs are in `folder`.

    Every peer listens on a free port that it finds itself. The DHT is not delayed: no token waits for it.
    """
    blocks = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    bounds = [round(index * blocks / count) for index in range(count + 1)]
    with contextlib.ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keys-", dir=folder)))
        peers: list[Child] = []
        addresses: list[str] = []
        lines: list[LongLine | None] = []
        for index in range(count):
            arguments: list[str | Path] = [
                "-m", "blockswarm.peer.cli", model, "--blocks", f"{bounds[index]}:{bounds[index + 1]}",
                "--host", "127.0.0.1", "--data", data / str(index), "--threads", "1", "--json",
            ]  # fmt: skip
            arguments += ["--initial-peers", addresses[0]] if addresses else ["--new-swarm"]
            line = LongLine(rtt_seconds, folder / f"line{index}.log") if rtt_seconds else None
            lines.append(stack.enter_context(line) if line is not None else None)
            arguments += line.options if line is not None else []
            peers.append(stack.enter_context(Child(*arguments, log=folder / f"peer{index}.log", version=version)))
            if index == 0:
                _await_peer(peers[0], lines[0], addresses)
        for peer, line in zip(peers[1:], lines[1:], strict=True):  # they begin side by side
            _await_peer(peer, line, addresses)
        yield peers, addresses


def _await_peer(peer: Child, line: LongLine | None, addresses: list[str]) -> None:
    addresses.append(peer.read()["address"])
    if line is not None:
        line.lead_to(peer)


@contextlib.contextmanager
def _worker(bench: Bench, version: Version, kind: str, model: Path, *addresses: str) -> Iterator[Child]:
    """A process of generate_worker.py that is ready."""
    arguments = ["-m", "benchlib.generate_worker", kind, model, *addresses]
    with Child(*arguments, log=bench.folder / f"{kind}.log", version=version) as child:
        child.read()
        yield child


def interleaved(
    bench: Bench, plain: Model, swarms: Sequence[Model], new_question: Callable[[], Question]
) -> list[list[Pair]]:
    """For each swarm its pairs with the model alone: each time a new question, which all are asked in turn.

    The first question warms up. The order of the models changes, so that other load on the machine hits all alike.
    """
    everybody = (plain, *swarms)
    pairs: list[list[Pair]] = [[] for _ in swarms]
    for number in range(1 + bench.repeats):
        question = new_question()
        order = [(number + turn) % len(everybody) for turn in range(len(everybody))]
        calls = {index: everybody[index].generate(question) for index in order}
        for index, found in enumerate(pairs, 1):
            found.append(_checked(bench, Pair(calls[0], calls[index])))
            if calls[index].held_tokens:
                bench.fail("a peer held a part of a new prompt")
    return [found[1:] for found in pairs]


def new_and_again(
    bench: Bench, plain: Model, swarm: Model, new_question: Callable[[], Question]
) -> tuple[list[Pair], list[Pair]]:
    """Pairs of the model alone with a swarm that is asked something new, and with the same swarm asked it again."""
    new, again = [], []
    for _ in range(1 + bench.repeats):
        question = new_question()
        by_itself = plain.generate(question)
        new.append(_checked(bench, Pair(by_itself, swarm.generate(question))))
        time.sleep(bench.again_after_seconds)
        again.append(_checked(bench, Pair(by_itself, swarm.generate(question))))
        if new[-1].swarm.held_tokens:
            bench.fail("a peer held a part of a new prompt")
        if not again[-1].swarm.held_tokens:
            bench.fail("the peers held nothing of a prompt that came again")
    return new[1:], again[1:]


def _checked(bench: Bench, pair: Pair) -> Pair:
    if not pair.same_tokens:
        bench.fail("a swarm gave other tokens than the model alone")
    return pair
