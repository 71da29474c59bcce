"""Real peers, one of which listens on nothing that others could reach: it serves through relays, the same tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.model.generation import Generation
from blockswarm.client.model.load import AutoSwarmModelForCausalLM
from blockswarm.proto.network.address import PeerAddress, RelayedAddress
from support.benchlib import benchlib
from support.processes import PeerProcess, PeerProcesses, peer_processes, run_program
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(400)]

screens = benchlib("screens")
MODEL = Path(__file__).parents[2] / "scripts" / "demo_model"
NEW_TOKENS = 24
PROMPT = Path(os.__file__).read_text(encoding="ascii", errors="ignore")[200:400]


class At(BaseStreamer):
    """Acts once, after `count` tokens (the prompt counts as one)."""

    def __init__(self, count: int, action: Callable[[], None]) -> None:
        self._left = count
        self._action = action

    def put(self, value: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self._action()

    def end(self) -> None:
        assert self._left <= 0, "the generation ended before its fault"


def tokens(model: Any, **options: Any) -> list[int]:
    inputs = AutoTokenizer.from_pretrained(MODEL)(PROMPT, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        output = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **options
        )
    return list(map(int, output[0]))


@pytest.fixture(scope="module")
def alone() -> list[int]:
    return tokens(AutoModelForCausalLM.from_pretrained(MODEL).eval())


@dataclass
class Swarm:
    """Two relays, which both host the first blocks, and a peer behind them that alone has the last."""

    processes: PeerProcesses
    relays: dict[str, PeerProcess]
    hidden: PeerProcess
    model: Any
    generations: list[Generation]

    def way_to_hidden(self) -> RelayedAddress:
        known = self.model.session_factory.view.peers[self.hidden.described["peer_id"]]
        assert isinstance(known.address, RelayedAddress)
        return known.address


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Swarm]:
    with peer_processes(tmp_path) as processes:
        first = processes.start(MODEL, "--blocks", "0:4", "--relay").wait_ready()
        second = processes.start(MODEL, "--blocks", "0:4", "--relay", initial=[first.address]).wait_ready()
        hidden = processes.start(MODEL, "--blocks", "4:8", "--reach", "relay", initial=[first.address]).wait_ready()
        relays = {str(peer.address.peer): peer for peer in (first, second)}
        while hidden.log.read_text().count("this peer is reached through relay") < 2:
            time.sleep(0.1)
        model = AutoSwarmModelForCausalLM.from_pretrained(
            MODEL, initial_peers=[str(relay.address) for relay in relays.values()]
        )
        generations: list[Generation] = []
        model.generation_listeners.append(generations.append)
        yield Swarm(processes, relays, hidden, model, generations)
        model.session_factory.close()


def test_a_peer_that_nobody_can_dial_serves_and_a_relay_may_die_on_the_way(swarm: Swarm, alone: list[int]) -> None:
    """The relay that is killed is the first peer of the chain as well: both its parts have to be replaced at once."""
    assert swarm.hidden.described["reach"] == "relay"
    assert " through " in swarm.hidden.described["address"]
    assert tokens(swarm.model) == alone
    assert swarm.hidden.described["peer_id"] in [peer for peer, _ in swarm.generations[-1].report.chain]
    before = swarm.way_to_hidden()
    victim = swarm.relays[str(before.relay.peer)]
    assert tokens(swarm.model, streamer=At(8, victim.kill)) == alone
    assert swarm.way_to_hidden().relay != before.relay
    assert tokens(swarm.model) == alone


def assert_progress_is_that_of_the_page(peer: PeerProcess) -> None:
    """docs/screens.md; there the number of threads is measured. Weights are checked and loaded side by side."""
    shown = [line for line in screens.page_part("The first peer of a swarm").splitlines() if line.startswith("TIME")]
    told = screens.shown(peer.log.read_text(), {str(MODEL): screens.MODEL}).splitlines()
    begun = [line for line in shown if "threads" not in line]
    assert [sorted(lines) for lines in pairs(told[: len(begun)])] == [sorted(lines) for lines in pairs(begun)]


def pairs(lines: list[str]) -> tuple[list[str], ...]:
    """Up to the lines that come in either order, these, and what comes then."""
    at = next(index for index, line in enumerate(lines) if "checking" in line or "loading" in line)
    return (*([line] for line in lines[:at]), lines[at : at + 2], *([line] for line in lines[at + 2 :]))


def test_a_peer_whose_port_is_not_forwarded_finds_that_out_and_uses_a_relay(tmp_path: Path) -> None:
    """It announces a port at which nothing answers; and what it listened on last it listens on again."""
    with peer_processes(tmp_path) as processes:
        first = processes.start(MODEL, "--blocks", "0:4", "--relay").wait_ready()
        assert first.described["reach"] == "unchecked", "a founder has nobody to ask"
        assert_progress_is_that_of_the_page(first)
        closed = processes.start(MODEL, "--blocks", "4:8", "--announce", "127.0.0.1:1", initial=[first.address])
        closed.wait_ready()
        assert closed.described["reach"] == "relay"
        listed = run_program("swarm-client", "generate", MODEL, "--initial-peers", first.address, "--prompt", "def")
        assert listed.returncode == 0, listed.stderr
        address = PeerAddress.parse(first.described["address"])
        first.kill()
        again = processes.start(MODEL, "--blocks", "0:4", "--relay", data=processes.folder / "peer-0").wait_ready()
        assert again.address == address
