"""`generate` as an asynchronous iterator: it runs in a thread of its own and can be left at any time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ...proto.errors import UsageError
from .generation import Cancellation

T = TypeVar("T")


async def stream_tokens(
    generate: Callable[..., object], cancellation: Cancellation, kwargs: dict[str, Any], end_seconds: float
) -> AsyncIterator[int]:
    """Call `generate(**kwargs)` in a thread and yield the new token ids of its one sequence.

    Leaving the iteration early requests `cancellation` and waits for the thread, at most `end_seconds`. Raises what
    `generate` raises.
    """
    criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
    kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, _StopOn(cancellation.requested)])

    def work(emit: Callable[[int], object]) -> None:
        generate(**kwargs, streamer=_TokenStreamer(emit))

    async with contextlib.aclosing(stream_from_thread(work, cancellation, end_seconds)) as tokens:  # type: ignore[type-var]
        async for token in tokens:
            yield token


async def stream_from_thread(
    work: Callable[[Callable[[T], object]], object], cancellation: Cancellation, end_seconds: float
) -> AsyncIterator[T]:
    """Call `work(emit)` in a thread of its own and yield what it emits.

    Leaving the iteration early requests `cancellation` and waits for the thread, at most `end_seconds`. Raises what
    `work` raises.
    """
    loop = asyncio.get_running_loop()
    stream: asyncio.Queue[T | _StreamEnd] = asyncio.Queue()
    finished = asyncio.Event()

    def emit(item: T) -> None:
        loop.call_soon_threadsafe(stream.put_nowait, item)

    def run() -> None:
        error: BaseException | None = None
        try:
            work(emit)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the stream was left, and its loop has been closed meanwhile
            loop.call_soon_threadsafe(stream.put_nowait, _StreamEnd(error))
            loop.call_soon_threadsafe(finished.set)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="blockswarm-stream", daemon=True).start()
    try:
        while not isinstance(item := await stream.get(), _StreamEnd):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        if not finished.is_set():
            cancellation.request()
            # A thread that takes longer still frees the session when it unwinds.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), end_seconds)


@dataclass(frozen=True)
class _StreamEnd:
    error: BaseException | None


class _TokenStreamer(BaseStreamer):
    """Passes new tokens on, without the prompt, which `generate` puts first."""

    def __init__(self, emit: Callable[[int], object]) -> None:
        self._emit = emit
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if len(value.shape) > 1 and value.shape[0] > 1:
            raise UsageError("astream generates one sequence at a time")
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._emit(token)
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: the thread announces the end, together with an error if there is one."""


class _StopOn(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
