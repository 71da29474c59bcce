"""The part of a prompt that peers hold is not computed again, and changes no token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.config import SessionEvent
from blockswarm.client.model.load import AutoSwarmModelForCausalLM
from blockswarm.peer.engine.engine import Engine
from blockswarm.proto.wire.prefixes import PAGE_TOKENS
from blockswarm.proto.wire.steps import StepPlan
from support.drafters import SlowDrafter
from support.swarm import LocalSwarm, local_swarm
from support.tiny_models import write_tiny_checkpoint
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.swarm

RANGES = ("0:2", "2:4", "4:6")
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


class Clients:
    """Connected models of a swarm, closed at its end."""

    def __init__(self, swarm: LocalSwarm, folder: Path) -> None:
        self._swarm = swarm
        self._folder = folder
        self.models: list[Any] = []

    async def connect(self, **options: Any) -> Any:
        addresses = [str(peer.address) for peer in self._swarm.peers[:2]]
        model = await asyncio.to_thread(
            AutoSwarmModelForCausalLM.from_pretrained, self._folder, initial_peers=addresses, **options
        )
        self.models.append(model)
        return model


def with_swarm(
    folder: Path,
    scenario: Callable[[LocalSwarm, Clients], Awaitable[None]],
    *ranges: str,
    prefix_bytes: int = 1 << 30,
    **options: Any,
) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(120),
            local_swarm(folder, *(ranges or RANGES), prefix_bytes=prefix_bytes, **options) as swarm,
        ):
            clients = Clients(swarm, folder)
            try:
                await scenario(swarm, clients)
            finally:
                for model in clients.models:
                    await asyncio.to_thread(model.session_factory.close)

    asyncio.run(main())


def prompt_of(tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 250, (1, tokens), generator=torch.Generator().manual_seed(seed))


async def generate(swarm: LocalSwarm, model: Any, prompt: torch.Tensor, **options: Any) -> list[list[int]]:
    """The text; returns when every peer has taken leave of the session."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0} | options
    output = await asyncio.to_thread(model.generate, prompt, **options)
    for peer in swarm.peers:
        await peer.service.wait_idle()
    tokens: list[list[int]] = output.tolist()
    return tokens


def expected(alone: Any, prompt: torch.Tensor, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0} | options
    tokens: list[list[int]] = alone.generate(prompt, **options).tolist()
    return tokens


def hits(swarm: LocalSwarm) -> list[int]:
    return [peer.parts.counters.prefix_hit_tokens for peer in swarm.peers]


@pytest.mark.parametrize("tokens", [63, 64, 65, 127, 128, 300])
def test_a_prompt_that_comes_again_is_not_computed_again(folder: Path, alone: Any, tokens: int) -> None:
    """But for its last token, whose output is wanted, and for what does not fill a page."""
    prompt = prompt_of(tokens)

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect()
        for _ in range(2):
            assert await generate(swarm, model, prompt) == expected(alone, prompt)
        # Together with the tokens that were generated the text fills a page more, which the first session leaves.
        held = min((tokens + NEW_TOKENS - 1) // PAGE_TOKENS * PAGE_TOKENS, tokens - 1)
        held = min(held, tokens // PAGE_TOKENS * PAGE_TOKENS)
        assert hits(swarm) == [held] * 3

    with_swarm(folder, scenario)


def test_the_next_turn_of_a_conversation_begins_with_all_that_was_said(folder: Path, alone: Any) -> None:
    """Each turn is a session of its own, as with a server that gets the whole text again."""

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect()
        text, computed_twice = prompt_of(100), 0
        for turn in range(3):
            before = hits(swarm)[0]
            output = await generate(swarm, model, text, max_new_tokens=70)
            assert output == expected(alone, text, max_new_tokens=70)
            if turn:
                fed = text.shape[1] - 20 - 1  # all of the last session, but for its last token
                assert hits(swarm)[0] - before == fed // PAGE_TOKENS * PAGE_TOKENS
                computed_twice += fed % PAGE_TOKENS
            text = torch.cat([torch.tensor(output), prompt_of(20, seed=turn)], dim=1)
        assert computed_twice < 2 * PAGE_TOKENS

    with_swarm(folder, scenario)


class HoldingEngine(Engine):
    """Begins the first step behind a place of the text only once it may."""

    place: int | None = None

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.is_held, self.go_on = asyncio.Event(), asyncio.Event()

    async def step(self, kv: Any, plan: StepPlan, *args: Any, **more: Any) -> Any:
        if self.place is not None and plan.rows[0].start >= self.place:
            self.is_held.set()
            await self.go_on.wait()
        return await super().step(kv, plan, *args, **more)


@pytest.mark.parametrize("guess", ["off", 30])
def test_a_stream_that_is_left_during_a_step_has_left_what_was_said(folder: Path, alone: Any, guess: Any) -> None:
    """Leaving is how a user stops a text to change the question, and the next request begins with the same words."""
    prompt, whole = prompt_of(PAGE_TOKENS + 36), 2 * PAGE_TOKENS
    text = expected(alone, prompt, max_new_tokens=60)

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect(guess=guess)
        model.make_drafters = lambda: [SlowDrafter(text[0])]
        engine = swarm.peers[1].parts.engine
        assert isinstance(engine, HoldingEngine)
        engine.place = whole + 4
        stream = model.astream(prompt, max_new_tokens=60, do_sample=False, pad_token_id=0)
        said = prompt[0].tolist()
        while len(said) <= whole:  # the last token is not fed yet
            said.append(await anext(stream))
        await engine.is_held.wait()
        await stream.aclose()
        engine.go_on.set()
        for peer in swarm.peers:
            await peer.service.wait_idle()
        assert said == text[0][: len(said)]
        assert hits(swarm) == [0, 0, 0]
        assert (sum(peer.parts.counters.guessed_tokens for peer in swarm.peers) > 0) is (guess != "off")
        again = torch.tensor(text)
        assert await generate(swarm, model, again) == expected(alone, again)
        assert hits(swarm) == [whole] * 3

    with_swarm(folder, scenario, make_engine=HoldingEngine)


def test_a_system_prompt_is_shared_by_conversations(folder: Path, alone: Any) -> None:
    system = prompt_of(140)

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect()
        for question in range(3):
            prompt = torch.cat([system, prompt_of(10, seed=question)], dim=1)
            assert await generate(swarm, model, prompt) == expected(alone, prompt)
        assert hits(swarm) == [2 * 128] * 3

    with_swarm(folder, scenario)


@pytest.mark.parametrize("kind", ["beams", "padded", "sampling", "prompt lookup"])
def test_every_kind_of_generation(folder: Path, alone: Any, kind: str) -> None:
    prompt = prompt_of(150)
    options: dict[str, Any] = {
        "beams": {"num_beams": 3},
        "padded": {"attention_mask": torch.tensor([[1] * 150, [0] * 40 + [1] * 110])},
        "sampling": {"do_sample": True, "num_return_sequences": 2},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
    }[kind]
    if kind == "padded":
        prompt = torch.cat([prompt, torch.cat([torch.zeros(1, 40, dtype=torch.long), prompt[:, :110]], dim=1)])

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect()
        for seed in (1, 2):
            torch.manual_seed(seed)
            got = await generate(swarm, model, prompt, **options)
            torch.manual_seed(seed)
            assert got == expected(alone, prompt, **options)
        assert hits(swarm) == [128 + 64 if kind == "padded" else 128] * 3

    with_swarm(folder, scenario)


def test_two_clients_never_share(folder: Path, alone: Any) -> None:
    prompt = prompt_of(130)

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        for _ in range(2):
            model = await clients.connect()
            assert await generate(swarm, model, prompt) == expected(alone, prompt)
        assert hits(swarm) == [0] * 3

    with_swarm(folder, scenario)


def test_a_client_that_was_started_again_finds_its_prompts(folder: Path, alone: Any, tmp_path: Path) -> None:
    """The identity is all that it needs to keep."""
    prompt = prompt_of(130)

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        for _ in range(2):
            model = await clients.connect(identity_path=tmp_path / "client.key")
            assert await generate(swarm, model, prompt) == expected(alone, prompt)
            await asyncio.to_thread(model.session_factory.close)
        clients.models.clear()
        assert hits(swarm) == [128] * 3

    with_swarm(folder, scenario)


def test_nothing_is_kept_for_a_client_that_does_not_want_it(folder: Path, alone: Any) -> None:
    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect(prefix_cache=False)
        assert await generate(swarm, model, prompt_of(130)) == expected(alone, prompt_of(130))
        assert all(len(peer.parts.engine.pool.prefixes) == 0 for peer in swarm.peers)

    with_swarm(folder, scenario)


def test_a_peer_without_what_the_others_hold_has_all_of_it_computed(folder: Path, alone: Any) -> None:
    """A peer that was started again holds nothing: then the whole chain computes, and all hold it afterwards."""
    prompt = prompt_of(130)

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect()
        await generate(swarm, model, prompt)
        swarm.peers[1].parts.engine.pool.prefixes.shrink_to(0)
        swarm.peers[1].parts.engine.pool.prefixes.shrink_to(1 << 30)
        for held in (0, 128):
            before = hits(swarm)
            assert await generate(swarm, model, prompt) == expected(alone, prompt)
            assert [now - then for now, then in zip(hits(swarm), before, strict=True)] == [held] * 3

    with_swarm(folder, scenario)


def test_room_is_bounded_and_the_least_recently_used_prompts_go(folder: Path, alone: Any) -> None:
    config = alone.config
    page_bytes = PAGE_TOKENS * 2 * config.num_key_value_heads * config.head_dim * 2 * 4  # two blocks, float32

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        model = await clients.connect()
        for seed in (1, 2, 3):
            await generate(swarm, model, prompt_of(66, seed))
        pool = swarm.peers[0].parts.engine.pool
        assert pool.prefixes.nbytes <= pool.prefixes.limit_bytes
        assert pool.prefixes.evicted_pages == 1
        for seed, held in ((3, 64), (2, 64), (1, 0)):
            before = hits(swarm)[0]
            assert await generate(swarm, model, prompt_of(66, seed)) == expected(alone, prompt_of(66, seed))
            assert hits(swarm)[0] - before == held

    with_swarm(folder, scenario, prefix_bytes=2 * page_bytes)


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("moment", ["adopted", "decoding"])
def test_a_peer_dies_after_a_session_began_with_what_it_held(
    folder: Path, alone: Any, victim: int, moment: str
) -> None:
    """Nobody of the chain has the inputs of the adopted tokens, but the client has."""
    prompt = prompt_of(200)

    async def scenario(swarm: LocalSwarm, clients: Clients) -> None:
        loop = asyncio.get_running_loop()
        events: list[SessionEvent] = []

        async def replace() -> None:
            await swarm.start_peer(swarm.peers[victim].blocks)
            await swarm.peers[victim].kill()

        def kill() -> None:
            asyncio.run_coroutine_threadsafe(replace(), loop).result(60)

        def on_event(event: SessionEvent) -> None:
            events.append(event)
            if event.kind == "adopted" and moment == "adopted":
                kill()

        class AtFourthToken:
            seen = 0

            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                self.seen += 1
                if self.seen == 4:
                    kill()
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        model = await clients.connect(on_event=on_event)
        first = prompt[:, :150]
        assert await generate(swarm, model, first) == expected(alone, first)
        events.clear()
        options = {"stopping_criteria": [AtFourthToken()]} if moment == "decoding" else {}
        output = await asyncio.to_thread(
            model.generate, prompt, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **options
        )
        assert output.tolist() == expected(alone, prompt)
        replays = [event.peer for event in events if event.kind == "replay"]
        assert replays[:1] == [None], "rebuilt from anybody but the client"
        assert [event.kind for event in events].count("adopted") == 1

    with_swarm(folder, scenario)
