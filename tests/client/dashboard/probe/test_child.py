"""The program that probes, as a process: it generates through real peers, and is killed when it is late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from blockswarm.client.dashboard.probe import program
from blockswarm.client.dashboard.probe.child import ENDED, ProbeProgram
from blockswarm.client.dashboard.probe.messages import ProbeSetup
from blockswarm.proto.errors import DeadlineExceeded
from support.swarm_thread import SwarmThread, swarm_thread

MODEL = Path(__file__).parents[4] / "scripts" / "demo_model"


@pytest.fixture(scope="module")
def serving() -> Iterator[SwarmThread]:
    torch.set_num_threads(1)
    with swarm_thread(MODEL, "0:4", "4:8") as thread:
        yield thread


def setup_for(serving: SwarmThread) -> ProbeSetup:
    return ProbeSetup(str(MODEL), None, (str(serving.swarm.peers[0].address),), None, None, False, 8, 5.0)


def program_for(setup: ProbeSetup, open_seconds: float = 60.0, probe_seconds: float = 60.0) -> ProbeProgram:
    return ProbeProgram(setup, open_seconds=open_seconds, probe_seconds=probe_seconds)


@pytest.mark.long
def test_it_opens_the_model_and_generates_through_the_peers(serving: SwarmThread) -> None:
    async def play() -> None:
        async with program_for(setup_for(serving)) as child:
            opened = await child.open()
            assert (opened.digest, opened.num_blocks) == (serving.swarm.digest, 8)
            assert set(opened.proven) == set(range(8))
            for _ in range(2):
                outcome = await child.probe()
                assert outcome.works
                assert outcome.tokens_per_second > 0
                assert 0 < outcome.first_token_seconds < outcome.seconds
                assert [(hop.peer, hop.start, hop.stop) for hop in outcome.hops] == [
                    (peer.identity.peer_id, peer.blocks.start, peer.blocks.stop) for peer in serving.swarm.peers
                ]

    asyncio.run(play())


def test_a_late_program_is_killed(serving: SwarmThread) -> None:
    async def play() -> None:
        async with program_for(setup_for(serving), open_seconds=0.0) as child:
            with pytest.raises(DeadlineExceeded):
                await child.open()
            outcome = await child.probe()
            assert (outcome.works, outcome.code) == (False, DeadlineExceeded.code)

    asyncio.run(play())


def test_a_program_that_cannot_start_is_a_failed_probe(serving: SwarmThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")

    async def play() -> None:
        async with program_for(setup_for(serving)) as child:
            assert (await child.probe()).code == ENDED

    asyncio.run(play())


def test_the_prompt_fits_every_vocabulary() -> None:
    assert program.prompt_of(5).shape == (1, program.PROMPT_TOKENS)
    assert int(program.prompt_of(5).max()) < 5
