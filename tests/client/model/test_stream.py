"""A stream yields the tokens of generate, can be left at any time, and then frees the peers at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
import torch
from blockswarm.client.model.generation import Cancellation
from blockswarm.client.model.stream import stream_from_thread
from blockswarm.proto.errors import UsageError
from support.local_chain import LocalChain
from support.prompts import GREEDY, prompt
from transformers import PreTrainedModel


def test_generate_works_inside_a_running_loop(full: PreTrainedModel, model: Any):
    async def cell() -> torch.Tensor:
        return model.generate(**prompt(5), **GREEDY)  # type: ignore[no-any-return]

    assert asyncio.run(cell()).tolist() == full.generate(**prompt(5), **GREEDY).tolist()


def test_astream_yields_the_tokens_of_generate(full: PreTrainedModel, model: Any):
    async def collect(**call: Any) -> list[int]:
        return [token async for token in model.astream(**call)]

    plain = full.generate(**prompt(5), **GREEDY)[0, 5:].tolist()
    assert asyncio.run(collect(**prompt(5), **GREEDY)) == plain
    # Several tokens at once.
    assert asyncio.run(collect(**prompt(5), assistant_model=full, **GREEDY)) == plain


def test_astream_raises_what_generate_raises(model: Any):
    async def collect() -> None:
        async for _ in model.astream(**prompt(5, 4), **GREEDY):
            pass

    with pytest.raises(UsageError, match="one sequence"):
        asyncio.run(collect())


def test_astream_with_a_streamer_is_told_that_it_is_one(model: Any):
    async def collect() -> None:
        async for _ in model.astream(**prompt(5), streamer=None, **GREEDY):
            pass

    with pytest.raises(UsageError, match="takes no streamer"):
        asyncio.run(collect())


def test_leaving_a_stream_closes_its_session(model: Any, chain: LocalChain):
    async def leave_early() -> list[int]:
        stream = model.astream(**prompt(5), **GREEDY | {"max_new_tokens": 400, "eos_token_id": None})
        seen = []
        async for token in stream:
            seen.append(token)
            if len(seen) == 3:
                break
        await stream.aclose()
        assert chain.open_sessions == 0
        return seen

    assert len(asyncio.run(leave_early())) == 3
    assert len(chain.plans) < 400


def test_a_thread_that_outlives_the_loop_of_its_stream_ends_in_silence(monkeypatch: pytest.MonkeyPatch):
    """The stream waits for it for a while only; a drafter or a processor of the caller's own may take longer."""
    failures: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    threads: list[threading.Thread] = []
    go_on = threading.Event()

    def work(emit: Callable[[int], object]) -> None:
        threads.append(threading.current_thread())
        emit(1)
        assert go_on.wait(60)

    async def leave() -> None:
        async with aclosing(stream_from_thread(work, Cancellation(), end_seconds=0.0)) as stream:  # type: ignore[type-var]
            async for _ in stream:
                break

    asyncio.run(leave())
    go_on.set()
    threads[0].join(60)
    assert not failures


def test_cancelling_a_stream_fails_its_pending_step(model: Any, chain: LocalChain):
    """The step would wait for ever; the task's cancellation ends it and frees the peers."""
    chain.block_before_step = 2

    async def cancel() -> None:
        async def read() -> None:
            async for _ in model.astream(**prompt(5), **GREEDY):
                pass

        task = asyncio.create_task(read())
        assert await asyncio.to_thread(chain.waiting.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert chain.open_sessions == 0

    asyncio.run(asyncio.wait_for(cancel(), 60))
    assert len(chain.plans) == 2


def test_a_session_goes_on_after_a_cancelled_stream(full: PreTrainedModel, model: Any, chain: LocalChain):
    async def leave_early() -> None:
        stream = model.astream(**prompt(5), **GREEDY)
        assert isinstance(await anext(stream), int)
        await stream.aclose()

    with model.session(max_length=50):
        asyncio.run(leave_early())
        assert model.generate(**prompt(5), **GREEDY).tolist() == full.generate(**prompt(5), **GREEDY).tolist()
