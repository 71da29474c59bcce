"""Guessing ahead over real gRPC: the tokens of the model alone, fewer trips, and nothing of wrong guesses is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.model.generation import Generation
from blockswarm.client.model.guess.drafter import Guess
from blockswarm.proto.wire.prefixes import PAGE_TOKENS
from blockswarm.routing.swarm import BlockRange
from support.drafters import KnowingDrafter, RandomDrafter
from support.guessing_swarm import NEW_TOKENS, AtToken, AtTokens, generate, prompt_of
from support.overflow import BAD_TOKEN, write_overflowing_checkpoint
from support.swarm import LocalSwarm
from support.swarm_model import with_swarm
from support.tiny_models import write_tiny_checkpoint
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

pytestmark = pytest.mark.swarm

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_p": 0.9},
    "prompt lookup": {"do_sample": False, "prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_same_tokens_as_the_model_alone(family: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(family, tmp_path)
    alone, prompt = AutoModelForCausalLM.from_pretrained(folder).eval(), prompt_of(24)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        generations: list[Generation] = []
        model.generation_listeners.append(generations.append)
        for options in KINDS.values():
            text = generate(alone, prompt, **options)
            for drafter in (KnowingDrafter(text, lambda position: position % 7 == 3), RandomDrafter(1, 250)):
                model.make_drafters = lambda drafter=drafter: [drafter]
                assert await asyncio.to_thread(generate, model, prompt, **options) == text, options
        text = generate(alone, prompt)
        model.make_drafters = lambda: [KnowingDrafter(text)]
        assert await asyncio.to_thread(generate, model, prompt) == text
        assert generations[-1].guesses.trips <= 1 + NEW_TOKENS // 6
        guessed = sum(generation.guesses.guessed for generation in generations)
        assert [peer.parts.counters.guessed_tokens for peer in swarm.peers] == [guessed] * 3

    with_swarm(folder, scenario, guess=6)


def text_without(token: int, folder: Path) -> tuple[torch.Tensor, list[int]]:
    """A prompt, and what the model alone says to it, both without this token."""
    prompt = prompt_of(24)
    prompt[prompt == token] += 1
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    return prompt, generate(alone, prompt, suppress_tokens=[token])


class BadDrafter(KnowingDrafter):
    """Knows how the text goes on, but guesses a token that overflows at the positions in `wrong_at`."""

    def draft(self, most: int, behind: Sequence[int]) -> list[Guess]:
        start = self._length + len(behind)
        return [
            replace(guess, token=BAD_TOKEN) if self._wrong_at(start + index) else guess
            for index, guess in enumerate(super().draft(most, behind))
        ]


@pytest.mark.parametrize("layout", [("0:6",), ("0:2", "2:4", "4:6")])
def test_a_guess_that_overflows_at_a_peer_harms_no_text(layout: tuple[str, ...], tmp_path: Path) -> None:
    """Nor does it cost a peer: the first one makes infinite values of it, and none is blamed."""
    folder = write_overflowing_checkpoint(tmp_path)
    prompt, text = text_without(BAD_TOKEN, folder)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        generations: list[Generation] = []
        model.generation_listeners.append(generations.append)
        for every in (1, 3, 5):
            model.make_drafters = lambda every=every: [BadDrafter(text, lambda at: at % every == 0)]
            assert await asyncio.to_thread(generate, model, prompt, suppress_tokens=[BAD_TOKEN]) == text
            assert "hop-lost" not in [event.kind for event in generations[-1].events]
            assert generations[-1].guesses.guessed > generations[-1].guesses.right

    with_swarm(folder, scenario, *layout, guess=6)


@pytest.mark.parametrize(("block", "victims"), [(0, "0:2"), (0, "2:4"), (2, "2:4")])
def test_a_repair_behind_a_guess_that_overflows_harms_no_text(block: int, victims: str, tmp_path: Path) -> None:
    """The replacement is rebuilt from what the client or the first peer has sent.

    If the guess overflows at the second peer only, the first one has sent values that its replacement cannot compute
    either.
    """
    folder = write_overflowing_checkpoint(tmp_path, block=block)
    prompt, text = text_without(BAD_TOKEN, folder)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        loop = asyncio.get_running_loop()
        generations: list[Generation] = []
        model.generation_listeners.append(generations.append)
        model.make_drafters = lambda: [BadDrafter(text, lambda at: at % 3 == 0)]

        def go() -> None:
            used = {peer for peer, _ in generations[-1].report.chain}
            blocks = BlockRange.parse(victims)
            victim = next(p for p in swarm.peers if p.identity.peer_id in used and p.parts.engine.blocks == blocks)
            asyncio.run_coroutine_threadsafe(victim.kill(), loop).result(60)

        options = {"suppress_tokens": [BAD_TOKEN], "streamer": AtToken(9, go)}
        assert await asyncio.to_thread(generate, model, prompt, **options) == text
        assert [event.kind for event in generations[-1].events].count("hop-lost") == 1

    with_swarm(folder, scenario, "0:2", "0:2", "2:4", "2:4", "4:6", guess=4)


@pytest.mark.parametrize("way", ["killed", "drained"])
def test_a_peer_that_goes_takes_no_guess_for_text(way: str, tmp_path: Path) -> None:
    """A step with guesses is repaired like any other, and a hand-over drops what was guessed with the next step."""
    folder = write_tiny_checkpoint("llama", tmp_path)
    alone, prompt = AutoModelForCausalLM.from_pretrained(folder).eval(), prompt_of(24)
    text = generate(alone, prompt)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        loop = asyncio.get_running_loop()
        generations: list[Generation] = []
        model.generation_listeners.append(generations.append)
        model.make_drafters = lambda: [KnowingDrafter(text, lambda position: position % 3 == 0)]

        def go() -> None:
            used = {peer for peer, _ in generations[-1].report.chain}
            victim = next(peer for peer in swarm.peers[1:3] if peer.identity.peer_id in used)
            work = victim.kill() if way == "killed" else swarm.drain(victim)
            asyncio.run_coroutine_threadsafe(work, loop).result(60)
            if way == "drained":
                model.session_factory.run(model.session_factory.view.refresh())

        def leave() -> None:
            """A session at rest is handed over as well; the text may be faster than its cache."""
            while way == "drained" and "handed-over" not in [event.kind for event in generations[-1].events]:
                time.sleep(0.01)

        tokens = await asyncio.to_thread(generate, model, prompt, streamer=AtTokens({15: go, NEW_TOKENS - 5: leave}))
        events = [event.kind for event in generations[-1].events]
        assert tokens == text
        assert ("handed-over" if way == "drained" else "hop-lost") in events
        assert generations[-1].guesses.right > 0

    with_swarm(folder, scenario, "0:2", "2:4", "2:4", "4:6", guess=4)


class StopAt(StoppingCriteria):
    """The text ends there, and nobody knew before."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self._length)


@pytest.mark.parametrize("guess", ["off", 30])
def test_peers_remember_what_was_said_and_no_guess(guess: str | int, tmp_path: Path) -> None:
    """When the session ends, wrong guesses complete the second page of its row; it gets no name."""
    folder = write_tiny_checkpoint("llama", tmp_path)
    alone, prompt = AutoModelForCausalLM.from_pretrained(folder).eval(), prompt_of(100)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        model.make_drafters = lambda: [RandomDrafter(5, 250, silent_share=0)]

        async def say(text: torch.Tensor, length: int) -> torch.Tensor:
            options = {"max_new_tokens": 200, "stopping_criteria": StoppingCriteriaList([StopAt(length)])}
            tokens = await asyncio.to_thread(generate, model, text, **options)
            for peer in swarm.peers:
                await peer.service.wait_idle()
            assert tokens == generate(alone, text, **options)
            return torch.tensor([tokens])

        text = await say(prompt, 2 * PAGE_TOKENS)  # its last token is never fed
        assert [len(peer.parts.engine.pool.prefixes) for peer in swarm.peers] == [1, 1, 1]
        text = await say(text, 3 * PAGE_TOKENS + 1)
        assert [len(peer.parts.engine.pool.prefixes) for peer in swarm.peers] == [3, 3, 3]
        before = [peer.parts.counters.prefix_hit_tokens for peer in swarm.peers]
        await say(text, 3 * PAGE_TOKENS + 9)
        after = [peer.parts.counters.prefix_hit_tokens for peer in swarm.peers]
        assert [b - a for a, b in zip(before, after, strict=True)] == [3 * PAGE_TOKENS] * 3

    with_swarm(folder, scenario, prefix_bytes=1 << 30, guess=guess)
