"""Carries one request from the queue to its last piece, and translates all errors to the API's."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from itertools import islice

from ...proto.errors import PeerBusy, SwarmError
from ..model.generation import Cancellation
from ..model.stream import stream_from_thread
from .access.allowance import Allowance
from .access.keys import Keys
from .gate import Gate
from .metrics import EndpointMetrics
from .openai.errors import SERVER_ERROR, ApiError, from_swarm_error, internal_error
from .openai.requests import ChatRequest, CompletionRequest
from .pieces import Piece, TokenCounts
from .run.call import Begun, Finished, Item, Repaired, answer
from .served import ServedModel
from .timing import EndpointTiming
from .trace import Timings, Trace

logger = logging.getLogger(__name__)

MOST_NAMED = 8
"""The most models that are named to a client that asks for an unknown one."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a request whose answers are complete."""

    counts: TokenCounts
    trace: Trace


@dataclass(frozen=True, slots=True)
class Sender:
    """The one whose request it is."""

    allowance: Allowance
    taker: Hashable
    """By whom requests take turns: the key, or the network where no key is needed."""


AnswerItem = Begun | Piece | Repaired | Completed


class RunningAnswers:
    """The running generations, so that all can be stopped at once. Used on the endpoint's loop only."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[Cancellation] = set()

    @contextmanager
    def running(self, cancellation: Cancellation) -> Iterator[None]:
        """Register the generation that runs inside the block with `stop`. Raises ApiError if that was called before."""
        if self.stopped:
            raise endpoint_stops()
        self._running.add(cancellation)
        try:
            yield
        finally:
            self._running.discard(cancellation)

    def stop(self) -> None:
        """End all generations with an error, and refuse new ones."""
        self.stopped = True
        for cancellation in tuple(self._running):
            cancellation.request()


def endpoint_stops() -> ApiError:
    return ApiError(503, "the endpoint stops: the answer is not complete", kind=SERVER_ERROR, code="endpoint_stops")


@dataclass(frozen=True)
class Endpoint:
    """The parts that all requests share."""

    models: Mapping[str, ServedModel]
    gate: Gate
    metrics: EndpointMetrics
    clock: Callable[[], float]
    """Seconds of a clock that is never adjusted."""
    unix_clock: Callable[[], float]
    new_seed: Callable[[], int]
    """Makes the seed of a request that has none."""
    new_id: Callable[[], str]
    keys: Keys
    allowed_origins: Collection[str] = ()
    """Other origins whose web pages may send requests."""
    loopback_only: bool = False
    timing: EndpointTiming = field(default_factory=EndpointTiming)
    answers: RunningAnswers = field(default_factory=RunningAnswers)

    def model(self, name: str) -> ServedModel:
        """Return the model of that name. Raises ApiError if it is not served."""
        served = self.models.get(name)
        if served is None:
            there = ", ".join(f"'{other}'" for other in islice(self.models, MOST_NAMED))
            message = f"the model '{name}' is not served here; /v1/models lists what is: {there}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return served

    async def answer(
        self, served: ServedModel, request: ChatRequest | CompletionRequest, sender: Sender
    ) -> AsyncIterator[AnswerItem]:
        """Wait for a slot, generate, and yield the items as they come. Leaving the iteration frees the peers.

        The last item is a Completed; without it no answer is complete. Raises ApiError.
        """
        with sender.allowance.spending() as spending:
            async with aclosing(self._answer(served, request, sender.taker)) as items:  # type: ignore[type-var]
                async for item in items:
                    if isinstance(item, Begun):
                        spending.reserve(item.most_tokens)
                        spending.use(item.prompt_tokens)
                    elif isinstance(item, Piece):
                        spending.use(item.tokens)
                    yield item

    async def _answer(
        self, served: ServedModel, request: ChatRequest | CompletionRequest, taker: Hashable
    ) -> AsyncIterator[AnswerItem]:
        operation = "chat" if isinstance(request, ChatRequest) else "text_completion"
        async with self.gate.slot(taker) as waited:
            began = self.clock()
            try:
                async with aclosing(self._generate(served, request)) as items:  # type: ignore[type-var]
                    first: float | None = None
                    async for item in items:
                        now = self.clock() - began
                        if isinstance(item, Piece) and first is None:
                            first = now
                        if not isinstance(item, Finished):
                            yield item
                            continue
                        times = Timings(waited, now if first is None else first, now)
                        head = served.talker.model.head_format
                        trace = Trace(item.report, item.events, times, item.counts.completion, item.guesses, head)
                        self.metrics.note_answer(operation, served.name, item.counts.prompt, trace)
                        yield Completed(item.counts, trace)
            except ApiError as error:
                self.metrics.note_failure(operation, served.name, self.clock() - began, error.code or str(error.status))
                raise

    async def _generate(self, served: ServedModel, request: ChatRequest | CompletionRequest) -> AsyncIterator[Item]:
        """Yield what the generating thread emits. Every error of the thread is raised as an ApiError."""
        cancellation = Cancellation()
        work = functools.partial(answer, served, request, self.new_seed(), self.new_id, cancellation)
        end_seconds = served.talker.swarm.timing.stream_end_seconds
        stream = stream_from_thread(work, cancellation, end_seconds)
        try:
            with self.answers.running(cancellation):
                async with aclosing(stream) as items:  # type: ignore[type-var]
                    async for item in items:
                        yield item
        except ApiError:
            raise
        except SwarmError as error:
            if self.answers.stopped:
                raise endpoint_stops() from None
            if isinstance(error, PeerBusy):
                self.gate.note_busy(error.retry_after_seconds)
            logger.warning("a request for %s failed: %s", served.name, error)
            raise from_swarm_error(error) from error
        except Exception as error:
            logger.exception("a request for %s failed", served.name)
            raise internal_error() from error
