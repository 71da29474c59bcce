"""transformers' own `generate` through three peers over real gRPC gives what the model alone gives."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.config import SessionEvent
from blockswarm.proto.errors import NoChainError
from blockswarm.proto.model.family import find_blocks
from blockswarm.routing.swarm import BlockRange
from support.swarm import LocalSwarm
from support.swarm_model import with_swarm
from support.tiny_models import write_tiny_checkpoint
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.swarm

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "num_return_sequences": 2},
}


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mixtral", "gpt2", "deepseek_v3"])
def test_same_tokens_as_the_model_alone(family: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(family, tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.randint(3, 250, (1, 12), generator=torch.Generator().manual_seed(1)).repeat(1, 2)
    padded = {
        "input_ids": torch.cat([prompt, torch.cat([torch.zeros(1, 9, dtype=torch.long), prompt[:, 9:]], dim=1)]),
        "attention_mask": torch.tensor([[1] * 24, [0] * 9 + [1] * 15]),
    }
    cases = [({"input_ids": prompt}, options) for options in KINDS.values()] + [(padded, KINDS["greedy"])]

    def generate(model: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]) -> list[list[int]]:
        torch.manual_seed(0)
        return model.generate(**inputs, **options, max_new_tokens=12, pad_token_id=0).tolist()

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        for inputs, options in cases:
            got = await asyncio.to_thread(generate, model, inputs, options)
            assert got == generate(alone, inputs, options), options
        assert sum(peer.parts.counters.steps_relayed for peer in swarm.peers) == 0

    with_swarm(folder, scenario)


def test_hub_and_spoke_gives_the_same_tokens(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("llama", tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.arange(10, 30)[None]

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        got = await asyncio.to_thread(model.generate, prompt, max_new_tokens=10, do_sample=False)
        assert got.tolist() == alone.generate(prompt, max_new_tokens=10, do_sample=False).tolist()
        assert sum(peer.parts.counters.steps_pushed for peer in swarm.peers) == 0

    with_swarm(folder, scenario, push=False)


def test_a_cancelled_stream_frees_every_peer_at_once(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("llama", tmp_path)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        stream = model.astream(input_ids=torch.arange(10, 30)[None], max_new_tokens=300, min_new_tokens=300)
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 3:
                break
        await stream.aclose()
        for peer in swarm.peers:
            await peer.service.wait_idle()
        assert swarm.peers[-1].parts.counters.steps_answered < 150, "long before its end"
        assert all(peer.parts.replay.nbytes == 0 for peer in swarm.peers)

    with_swarm(folder, scenario)


def test_missing_blocks_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At once, in a warning, and at the end of the wait for others, in the error."""
    folder = write_tiny_checkpoint("llama", tmp_path)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        await swarm.peers[1].kill()
        with pytest.raises(NoChainError, match="2:4") as caught:
            await asyncio.to_thread(model.generate, torch.arange(10, 20)[None], max_new_tokens=2)
        assert caught.value.missing_blocks == (2, 3)

    with_swarm(folder, scenario, patience_seconds=2.0)
    assert "no peer serves blocks 2:4; waiting up to 2 s for others" in caplog.text


class Outage:
    """A model whose client has seen that the only peer of blocks 2:4 is gone."""

    def __init__(self, swarm: LocalSwarm, model: Any) -> None:
        self.swarm = swarm
        self.model = model

    async def begin(self) -> asyncio.Task[Any]:
        """A text that begins when the client has looked at the swarm."""
        await self.swarm.peers[1].kill()
        connection = self.model.session_factory
        await asyncio.to_thread(connection.run, connection.view.refresh())
        prompt = torch.arange(10, 30)[None]
        return asyncio.create_task(asyncio.to_thread(self.model.generate, prompt, max_new_tokens=8, do_sample=False))


def test_a_text_that_begins_while_blocks_are_missing_waits_as_one_under_way(tmp_path: Path) -> None:
    """The swarm was whole a moment ago, and is again a moment later."""
    folder = write_tiny_checkpoint("llama", tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    waits, told = threading.Event(), list[str]()

    def hear(event: SessionEvent) -> None:
        if event.kind == "waiting":
            told.append(event.detail)
            waits.set()

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        text = await Outage(swarm, model).begin()
        await asyncio.wait(
            [text, asyncio.create_task(asyncio.to_thread(waits.wait, 100))], return_when="FIRST_COMPLETED"
        )
        await swarm.start_peer(BlockRange(2, 4))
        got = await text
        assert got.tolist() == alone.generate(torch.arange(10, 30)[None], max_new_tokens=8, do_sample=False).tolist()

    with_swarm(folder, scenario, patience_seconds=100.0, on_event=hear)
    assert told == ["no peer serves blocks 2:4; waiting up to 100 s for others"]


def test_a_text_that_begins_while_blocks_are_missing_fails_with_their_names_when_patience_is_over(
    tmp_path: Path,
) -> None:
    events: list[SessionEvent] = []

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        with pytest.raises(NoChainError, match="2:4") as caught:
            await (await Outage(swarm, model).begin())
        assert caught.value.missing_blocks == (2, 3)

    folder = write_tiny_checkpoint("llama", tmp_path)
    with_swarm(folder, scenario, patience_seconds=2.0, on_event=events.append)
    assert [event.kind for event in events] == ["waiting"]


def test_a_text_does_not_wait_where_the_swarm_was_never_whole(tmp_path: Path) -> None:
    """It waits longer than this test may last, if it waits."""
    events: list[SessionEvent] = []

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        with pytest.raises(NoChainError, match="2:4"):
            await asyncio.to_thread(model.generate, torch.arange(10, 20)[None], max_new_tokens=2)

    folder = write_tiny_checkpoint("llama", tmp_path)
    with_swarm(folder, scenario, "0:2", "4:6", patience_seconds=1000.0, on_event=events.append)
    assert events == []


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_a_slice_of_blocks_computes_what_the_model_alone_does(family: str, tmp_path: Path) -> None:
    """Cut at peers and in their middle; two rows, longer than a window."""
    folder = write_tiny_checkpoint(family, tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    entering: list[torch.Tensor] = []
    leaving: list[torch.Tensor] = []
    for block in find_blocks(alone, 6).blocks:
        block.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
        block.register_forward_hook(lambda module, args, out: leaving.append(out[0] if isinstance(out, tuple) else out))
    with torch.inference_mode():
        alone(torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(1)), use_cache=False)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        assert len(model.blocks) == 6
        for start, stop in ((0, 6), (2, 4), (1, 5), (5, 6), (0, 1)):
            got = await asyncio.to_thread(model.blocks[start:stop], entering[start])
            torch.testing.assert_close(got, leaving[stop - 1], rtol=0, atol=2e-5)
        single = await asyncio.to_thread(model.blocks[-1], entering[5])
        torch.testing.assert_close(single, leaving[5], rtol=0, atol=2e-5)

    with_swarm(folder, scenario)
