"""A connection to a swarm, used from several threads: with real peers in this process."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client import AutoSwarmModelForCausalLM
from blockswarm.client.background import background_loop
from blockswarm.client.config import SessionEvent
from blockswarm.client.connect import connect
from blockswarm.client.model.generation import Generation
from blockswarm.client.model.load import attach, load_ends
from blockswarm.client.timing import ChainTiming, ClientTiming
from blockswarm.proto.errors import NoChainError, SessionLost, SwarmError, UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.wire.prefixes import PAGE_TOKENS
from support.prompts import prompt
from support.swarm_thread import SwarmThread, swarm_thread
from support.tiny_models import write_tiny_checkpoint
from transformers.generation.streamers import BaseStreamer

HEARD: list[SessionEvent] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("models") / "small-llama")


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[SwarmThread]:
    torch.set_num_threads(1)
    with swarm_thread(folder, "0:3", "3:6") as thread:
        yield thread


@pytest.fixture(scope="module")
def model(folder: Path, serving: SwarmThread) -> Iterator[Any]:
    addresses = [str(peer.address) for peer in serving.swarm.peers]
    model = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses, on_event=HEARD.append)
    yield model
    model.session_factory.close()


@pytest.mark.long
def test_two_threads_that_generate_at_once_get_the_reports_of_their_own_chains(
    model: Any, serving: SwarmThread
) -> None:
    both = threading.Barrier(2, timeout=60)
    generations: dict[int, Generation] = {}

    def work(new_tokens: int) -> None:
        model.generate(
            **prompt(6, seed=new_tokens), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
        both.wait()
        generations[new_tokens] = model.last_generation

    model.generation_listeners.append(lambda generation: both.wait())
    threads = [threading.Thread(target=work, args=(new_tokens,)) for new_tokens in (3, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    model.generation_listeners.clear()
    peers = [peer.identity.peer_id for peer in serving.swarm.peers]
    for new_tokens in (3, 8):
        generation = generations[new_tokens]
        assert generation.report.steps == new_tokens
        assert [hop.peer for hop in generation.report.hops] == peers
        assert generation.report.step_seconds > sum(hop.compute_seconds for hop in generation.report.hops) > 0
        assert [event.kind for event in generation.events] == ["opened"]
    assert [event.kind for event in HEARD] == ["opened", "opened"], "the connection's listener hears of all"


def test_a_report_is_of_one_call_also_where_calls_share_a_session(model: Any) -> None:
    call = {"do_sample": False, "eos_token_id": None}
    with model.session(max_length=64) as session:
        session.generate(**prompt(6), max_new_tokens=5, **call)
        first = model.last_generation
        session.generate(max_new_tokens=2, **call)
        second = model.last_generation
        assert (first.report.steps, second.report.steps) == (5, 2)
        assert (len(first.events), len(second.events)) == (1, 0)


@pytest.fixture
def with_replica(folder: Path) -> Iterator[SwarmThread]:
    with swarm_thread(folder, "0:3", "3:6", "3:6") as thread:
        yield thread


def test_only_allowed_peers_are_used(folder: Path, with_replica: SwarmThread) -> None:
    """Nothing is sent to another peer, not even where no allowed one serves."""
    first, second, replica = (str(peer.address) for peer in with_replica.swarm.peers)

    def connected(*allowed: str) -> Any:
        options = {"initial_peers": [first], "patience_seconds": 0.0}
        return AutoSwarmModelForCausalLM.from_pretrained(folder, allow_peers=allowed, **options)

    call = {"do_sample": False, "max_new_tokens": 2, "eos_token_id": None}
    for last in (second, replica):
        model = connected(first, last.partition("@")[0])
        model.generate(**prompt(6), **call)
        assert [hop.peer for hop in model.last_generation.report.hops] == [at.partition("@")[0] for at in (first, last)]
        model.session_factory.close()
    model = connected(first)
    with pytest.raises(SwarmError, match="no peer that this client may use serves blocks 3:6; 2 others are known"):
        model.generate(**prompt(6), **call)
    model.session_factory.close()
    with pytest.raises(UsageError, match="is not the id of a peer"):
        connected(first, "QmNobody")


FORKS = """
import os, sys
from blockswarm.client import AutoSwarmModelForCausalLM
from blockswarm.proto.errors import UsageError
from support.prompts import prompt

folder, *addresses = sys.argv[1:]
call = {"do_sample": False, "max_new_tokens": 2, "eos_token_id": None}
model = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses)
session = model.session(max_length=64)
session.generate(**prompt(6), **call)

def close():
    session.close()
    model.session_factory.close()
    raise UsageError("closed in the forked child")

uses = {
    "generate": lambda: model.generate(**prompt(6), **call),
    "session": lambda: session.generate(**call),
    "open session": lambda: model.session_factory.open_session(10, 1),
    "load": lambda: AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses),
    "close": close,
}
for name, use in uses.items():
    child = os.fork()
    if child == 0:
        try:
            use()
        except UsageError as error:
            os._exit(7 if "forked" in str(error) else 1)
        finally:
            os._exit(2)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("parent", session.generate(**call).shape[1])
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_connect_itself(folder: Path, serving: SwarmThread) -> None:
    """Pools, servers with workers and loaders of data fork; a call there would wait for an hour.

    In a process of its own, as users have it: one that serves at the same time may be aborted by gRPC when it forks.
    """
    addresses = [str(peer.address) for peer in serving.swarm.peers]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, folder, *addresses],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "generate 7", "session 7", "open session 7", "load 7", "close 7", "parent 10"
    ], done.stderr  # fmt: skip


def test_a_listener_that_fails_is_in_the_log_and_fails_no_session(
    folder: Path, serving: SwarmThread, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the user's own code, and runs in the network thread: a closed file that `print` writes to, say."""
    heard: list[str] = []

    def listen(event: SessionEvent) -> None:
        heard.append(event.kind)
        raise ValueError("I/O operation on closed file")

    addresses = [str(peer.address) for peer in serving.swarm.peers]
    call = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    listening = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses, on_event=listen)
    with listening:
        assert listening.generate(**prompt(6), **call).tolist() == model.generate(**prompt(6), **call).tolist()
    assert heard
    assert "on_event failed" in caplog.text
    assert "closed file" in caplog.text


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"patience_seconds": math.nan}, "patience is between"),
        ({"patience_seconds": -1}, "patience is between"),
        ({"patience_seconds": "30"}, "patience is between"),
        ({"on_event": 5}, "on_event is a function"),
        ({"swarm_key": 5}, "swarm_key is a key or its file"),
        ({"initial_peers": 5}, "initial_peers are texts"),
        ({"initial_peers": [5]}, "initial_peers are texts"),
    ],
    ids=str,
)
def test_an_argument_that_is_none_is_refused_at_once(
    folder: Path, serving: SwarmThread, argument: dict[str, Any], words: str
) -> None:
    addresses = [str(peer.address) for peer in serving.swarm.peers]
    with pytest.raises(UsageError, match=words):
        AutoSwarmModelForCausalLM.from_pretrained(folder, **{"initial_peers": addresses, **argument})


def test_a_closed_connection_is_not_used(folder: Path, serving: SwarmThread) -> None:
    """Its sessions are lost at once, and free at the peers; nothing dials again behind the user's back."""
    addresses = [str(peer.address) for peer in serving.swarm.peers]
    model = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses)
    call = {"do_sample": False, "max_new_tokens": 2, "eos_token_id": None}
    session = model.session(max_length=64)
    session.generate(**prompt(6), **call)
    cache = session.cache
    for _ in range(2):
        model.session_factory.close()
    serving.wait_idle()
    for attempt in (
        lambda: model.generate(**prompt(6), **call),
        lambda: session.generate(**call),
        lambda: model(prompt(6)["input_ids"]),
        lambda: model.session_factory.open_session(10, 1),
    ):
        with pytest.raises(UsageError, match="is closed"):
            attempt()
    assert cache.usable
    session.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_forgotten_model_leaves_the_swarm(folder: Path, serving: SwarmThread) -> None:
    """A notebook that runs its cell again would hold two descriptors and a task more each time."""
    addresses = [str(peer.address) for peer in serving.swarm.peers]

    def used() -> Any:
        model = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses)
        session = model.session(max_length=64)
        session.generate(**prompt(6), do_sample=False, max_new_tokens=2)
        return model.session_factory

    used().forget()  # what the first one loads, later ones share
    loop, before = background_loop(), descriptors()

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    async def only(count: int) -> None:
        while len(asyncio.all_tasks()) > count or descriptors() > before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    running = loop.run(tasks(), 30)
    factory = used()
    gc.collect()
    with pytest.raises(UsageError, match="is closed"):
        factory.check_open()
    loop.run(only(running), 30)
    serving.wait_idle()


def test_a_traceback_has_the_hint() -> None:
    """Python shows it below the error; a user of the library sees nothing else of it."""
    try:
        raise NoChainError((3,))
    except NoChainError as error:
        shown = "".join(traceback.format_exception(error))
    assert shown.endswith(f"NoChainError: no peer serves blocks 3:4\nhint: {NoChainError.default_hint}\n")


def test_closing_ends_a_call_that_runs(folder: Path, serving: SwarmThread) -> None:
    addresses = [str(peer.address) for peer in serving.swarm.peers]
    model = AutoSwarmModelForCausalLM.from_pretrained(folder, initial_peers=addresses)

    class CloseAtTheThird(BaseStreamer):
        parts = 0

        def put(self, value: torch.Tensor) -> None:
            self.parts += 1
            if self.parts == 3:
                model.session_factory.close()

        def end(self) -> None:
            pass

    with pytest.raises((SessionLost, UsageError), match="closed"):
        model.generate(**prompt(6), do_sample=False, max_new_tokens=20, min_new_tokens=20, streamer=CloseAtTheThird())
    serving.wait_idle()


def test_a_quote_is_of_the_chain_that_a_session_gets_and_learns_from_sessions(model: Any) -> None:
    """Nothing is reserved by it, and it is refused what no session would get."""
    before = model.quote(3, 8)
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=8, do_sample=False)
    after = model.quote(3, 8)
    assert before.chain == model.last_generation.report.chain
    assert after.sessions == before.sessions + 1
    assert after.wait_seconds == 0
    assert 0 < after.tokens_per_second.expected < 1e6
    with pytest.raises(UsageError, match="new_tokens"):
        model.quote(3, 0)
    with pytest.raises(NoChainError, match="too small"):
        model.quote(10**7, 8)


def test_an_interrupt_does_not_wait_for_peers_that_stand_still(folder: Path, serving: SwarmThread) -> None:
    """Peers have long to keep the pages of an ended session; a user who presses Ctrl-C does not wait for that."""
    chain = replace(ChainTiming(), remember_seconds=1e6)
    timing = ClientTiming(leave_seconds=1e6, close_seconds=2e6, haste_seconds=0.01, chain=chain)
    still, on = threading.Event(), threading.Event()

    async def stand_still() -> None:
        still.set()
        on.wait()  # blocks the loop of all peers

    class InterruptWhenTheyDo(BaseStreamer):
        parts = 0

        def put(self, value: torch.Tensor) -> None:
            self.parts += 1
            if self.parts == 6:  # the text has a page that is new
                holding.start()
                assert still.wait(60)
                raise KeyboardInterrupt

        def end(self) -> None:
            pass

    checkpoint = open_checkpoint(folder)
    addresses = [str(peer.address) for peer in serving.swarm.peers]
    holding = threading.Thread(target=serving.run, args=(stand_still(),))

    def interrupted() -> None:
        with connect(checkpoint=checkpoint, initial_peers=addresses, timing=timing) as swarm:
            model = attach(load_ends(checkpoint), swarm, "off")
            model.generate(
                **prompt(PAGE_TOKENS - 2), do_sample=False, max_new_tokens=20, streamer=InterruptWhenTheyDo()
            )

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        on.set()
        holding.join()
    serving.wait_idle()
