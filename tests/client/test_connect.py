"""A connection to a swarm, used from several threads: with real peers in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client import AutoSwarmModelForCausalLM
from blockswarm.client.config import SessionEvent
from blockswarm.client.model.generation import Generation
from support.prompts import prompt
from support.swarm_thread import SwarmThread, swarm_thread
from support.tiny_models import write_tiny_checkpoint

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
    both = threading.Barrier(2, timeout=30)
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
