"""Every call of generate has events and a report of its own, whatever other threads do with the same model."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from blockswarm.client.model.generation import Generation, last_generation
from blockswarm.proto.errors import UsageError
from support.local_chain import LocalChain
from support.prompts import GREEDY, prompt
from transformers import PreTrainedModel


def call(new_tokens: int) -> dict[str, Any]:
    return GREEDY | {"max_new_tokens": new_tokens, "eos_token_id": None}


def test_two_threads_that_generate_at_once_get_their_own_reports(model: Any, chain: LocalChain) -> None:
    """Each thread's first step waits for the other's, so both calls run at the same time."""
    both = threading.Barrier(2, timeout=60)
    reports: dict[int, int] = {}
    failures: list[BaseException] = []

    def work(new_tokens: int) -> None:
        try:
            model.generate(**prompt(6), **call(new_tokens))
            both.wait()  # nobody asks before both are over
            generation = model.last_generation
            reports[new_tokens] = generation.report.steps
            assert [event.detail for event in generation.events] == [f"{6 + new_tokens} tokens"]
        except BaseException as error:
            failures.append(error)

    model.generation_listeners.append(lambda generation: both.wait())
    try:
        threads = [threading.Thread(target=work, args=(new_tokens,)) for new_tokens in (3, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        model.generation_listeners.clear()
    assert not failures, failures
    assert reports == {3: 3, 8: 8}


def test_two_tasks_that_stream_at_once_get_their_own_reports(model: Any) -> None:
    async def steps(new_tokens: int) -> int:
        count = 0
        async for _ in model.astream(**prompt(6), **call(new_tokens)):
            count += 1
            await asyncio.sleep(0)
        assert count == new_tokens
        generation: Generation = model.last_generation
        return generation.report.steps

    async def both() -> list[int]:
        return await asyncio.gather(steps(3), steps(8))

    assert asyncio.run(both()) == [3, 8]


def test_a_report_is_of_one_call_also_where_calls_share_a_session(model: Any) -> None:
    with model.session(max_length=100) as session:
        session.generate(**prompt(6), **call(5))
        first = model.last_generation
        session.generate(**call(2))
        assert (first.report.steps, model.last_generation.report.steps) == (5, 2)
    assert first.finished


def test_a_call_gives_its_report_back_beside_what_it_generated(model: Any, full: PreTrainedModel) -> None:
    """transformers' own value, of whatever kind, and the call: this one's, also where another one came after it."""
    alone = full.generate(**prompt(6), **call(5)).tolist()
    output, generation = model.generate(**prompt(6), **call(5), return_report=True)
    assert output.tolist() == alone
    wrapped, second = model.generate(**prompt(6), **call(3), return_dict_in_generate=True, return_report=True)
    assert wrapped.sequences.tolist() == [alone[0][:9]]
    assert (generation.report.steps, second.report.steps) == (5, 3)
    assert generation.guesses.tokens_per_trip(5) == generation.guesses.forwards_per_trip == 1
    with model.session(max_length=100) as session:
        assert session.generate(**prompt(6), **call(2), return_report=True)[1] is model.last_generation
        text, further = session.generate(**call(3), return_report=True)
        assert text.tolist() == alone
        assert further.report.steps == 3
        assert model.generate(text, **call(1), return_report=True)[1].guesses.trips == 1
    assert model.generate(**prompt(6), **call(5)).tolist() == alone


def test_a_generation_can_be_watched_while_it_runs(model: Any) -> None:
    """A listener hears of every call when it starts, by whatever way it is made."""
    heard: list[tuple[Generation, int]] = []

    async def stream() -> None:
        async for _ in model.astream(**prompt(6), **call(3)):
            heard.append((heard[0][0], heard[0][0].report.steps))

    model.generation_listeners.append(lambda generation: heard.append((generation, generation.report.steps)))
    try:
        asyncio.run(stream())
        model.generate(**prompt(6), **call(2))
    finally:
        model.generation_listeners.clear()
    assert heard[0][1] == 0
    assert heard[-1][0] is model.last_generation
    assert heard[-1][0] is not heard[0][0]


def test_a_call_that_fails_leaves_its_report(model: Any) -> None:
    before = model.last_generation
    with pytest.raises(UsageError):
        model.generate(**prompt(6), **call(2), output_hidden_states=True, return_dict_in_generate=True)
    assert model.last_generation is not before
    assert model.last_generation.finished
    assert model.last_generation.report.steps == 0


def test_a_model_without_a_swarm_has_no_generations(full: PreTrainedModel) -> None:
    full.generate(**prompt(6), **call(2))
    assert last_generation(full) is None


@pytest.mark.long
def test_a_generation_keeps_neither_the_inputs_nor_the_model(model: Any, chain: LocalChain) -> None:
    """A replay buffer holds the hidden states of the whole text; a report must not keep it alive."""
    model.generate(**prompt(6), **call(2))
    generation = model.last_generation
    session = weakref.ref(chain.sessions.pop())
    gc.collect()
    assert session() is None
    assert generation.report.steps == 2
