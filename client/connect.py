"""Connects to the swarm that serves a checkpoint, given some initial peers, for `from_pretrained`."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..proto.directory.swarm_key import SwarmKey
from ..proto.errors import DeadlineExceeded, LocalProtocolError, SessionLost, UsageError
from ..proto.identity import Identity
from ..proto.model.checkpoint import Checkpoint
from ..proto.network.address import PeerAddress, peer_ids
from ..proto.network.dialling import rule_for
from ..proto.network.transport import Dialer, introduction
from ..proto.wire.precision import at_least
from ..proto.wire.steps import StepPlan
from ..proto.wire.tensors import WireFormat
from ..routing.swarm import BlockRange, PeerId, RequestSpec
from .background import BackgroundLoop, background_loop
from .chain.formats import AUTO, check_wire_format
from .chain.prefixes import PageNames
from .chain.session import ChainSession
from .codec import FloatCodec
from .config import SessionConfig, SessionEvent, checked_patience, shielded
from .quotes import Quote, QuoteHistory, SessionTimes
from .report import ChainReport, Trip
from .swarm.router import ViewRouter
from .swarm.view import SwarmView
from .timing import PATIENCE_SECONDS, ClientTiming

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")


def connect(
    *,
    checkpoint: Checkpoint,
    initial_peers: str | Sequence[str],
    swarm_key: str | Path | SwarmKey | None = None,
    wire_format: str = AUTO,
    identity_path: str | Path | None = None,
    lan: bool = False,
    push: bool = True,
    prefix_cache: bool = True,
    min_precision: str | None = None,
    allow_peers: Collection[str] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    on_event: Callable[[SessionEvent], None] | None = None,
    timing: ClientTiming | None = None,  # for tests
) -> SwarmConnection:
    """Connect to the swarm that serves this checkpoint.

    `initial_peers` are addresses "ID@host:port" of any of its peers. `swarm_key` is the key (or key file) of a private
    swarm. `wire_format` is the format of activations on the wire ("auto": each peer sends its stream's own dtype, which
    changes no value). `identity_path` is a key file, created if missing (default: a new identity, not stored). `lan`
    allows dialling private addresses in records. `push=False` routes every output back through this client.
    `prefix_cache` asks peers to keep the attention caches of ended sessions for a while; later sessions of the same
    identity start from them. `min_precision` ("float32") excludes peers that compute less precisely, `allow_peers` all
    but the given ids. A session waits for room, and for blocks that no peer serves any more, for at most
    `patience_seconds`. `on_event` is called with repairs and waits, in the network thread.

    Raises UsageError for a bad argument, PeerUnavailable if no peer answers, WrongKey for a private swarm whose key is
    missing or wrong.
    """
    timing = timing or ClientTiming()
    key = SwarmKey.load(swarm_key) if isinstance(swarm_key, (str, Path)) else swarm_key
    if not isinstance(key, SwarmKey | None):
        raise UsageError(f"swarm_key is a key or its file, not {type(key).__name__}", hint="Give the file's name.")
    addresses = parsed_peers(initial_peers)
    _check_formats(wire_format, min_precision)
    patience_seconds, told = checked_patience(patience_seconds), shielded(on_event or _warn_of_waiting)
    allowed = None if allow_peers is None else peer_ids(allow_peers)
    identity = Identity.load_or_create(identity_path) if identity_path else Identity.generate()
    codec, blocks = FloatCodec(checkpoint.config.get_text_config(decoder=True).hidden_size), checkpoint.num_blocks
    model_digest = checkpoint.model_digest().hex()
    proven = checkpoint.proven_hashes()
    names = PageNames(identity, model_digest, wire_format, codec.token_bytes) if prefix_cache else None

    def config(dialer: Dialer, view: SwarmView) -> SessionConfig:
        return SessionConfig(
            identity=identity, dialer=dialer, router=ViewRouter(view, timing), model_digest=model_digest,
            num_blocks=blocks, wire_format=wire_format, codec=codec, swarm_key=key, relay_always=not push,
            page_names=names, min_precision=min_precision, patience_seconds=patience_seconds,
            on_event=told, place=lambda: view.rough_place, timing=timing,
        )  # fmt: skip

    def view(dialer: Dialer) -> SwarmView:
        return SwarmView(
            identity, dialer, addresses, model_digest, blocks, key, push, timing=timing, proven=proven, allowed=allowed
        )

    dialer = partial(_dialer, addresses, identity, key, lan)
    return SwarmConnection(background_loop(), dialer, view, config, codec.own, timing)


def _dialer(addresses: Sequence[PeerAddress], identity: Identity, key: SwarmKey | None, lan: bool) -> Dialer:
    rule = rule_for(private=key is not None, lan=lan)
    return Dialer(rule=rule, named=addresses, introduce=introduction(identity, key))


def _check_formats(wire_format: str, min_precision: str | None) -> None:
    """Raise UsageError for an unknown format."""
    if min_precision is not None:
        at_least("float32", min_precision)
    check_wire_format(wire_format)


def parsed_peers(initial_peers: str | Sequence[str]) -> list[PeerAddress]:
    """Parse addresses from a sequence, or from one string separated by commas or spaces. Raises UsageError."""
    if isinstance(initial_peers, str):
        initial_peers = initial_peers.replace(",", " ").split()
    if not initial_peers:
        raise UsageError("no initial peers are given", hint="Name at least one peer: ID@HOST:PORT.")
    try:
        return [PeerAddress.parse(text) for text in initial_peers]
    except (TypeError, AttributeError):
        raise UsageError(f"initial_peers are texts, not {initial_peers!r}", hint="Write ID@HOST:PORT.") from None


def _warn_of_waiting(event: SessionEvent) -> None:
    """Log the one event that users want to know of without having asked: the session waits."""
    if event.kind == "waiting":
        logger.warning("%s", event.detail)


def _both(
    first: Callable[[SessionEvent], None], second: Callable[[SessionEvent], None]
) -> Callable[[SessionEvent], None]:
    def tell(event: SessionEvent) -> None:
        first(event)
        second(event)

    return tell


class SwarmConnection:
    """A connected swarm: opens sessions for one model. Also a context manager."""

    def __init__(
        self,
        loop: BackgroundLoop,
        make_dialer: Callable[[], Dialer],
        make_view: Callable[[Dialer], SwarmView],
        make_config: Callable[[Dialer, SwarmView], SessionConfig],
        wire_format: WireFormat,
        timing: ClientTiming,
    ) -> None:
        """Make the dialer, view and configuration on the loop. Raises what the first look at the swarm raises."""
        self.timing = timing
        self._loop = loop
        self._wire_format = wire_format
        self._leaving: set[Future[None]] = set()
        """Sessions that have ended here and are being ended at their peers."""
        self._open: weakref.WeakSet[SwarmSession] = weakref.WeakSet()
        self._closed = False

        async def start() -> tuple[SwarmView, Dialer, SessionConfig]:
            dialer = make_dialer()
            view = make_view(dialer)
            try:
                await view.start()
            except BaseException:
                await dialer.close()
                raise
            return view, dialer, make_config(dialer, view)

        self.view, self._dialer, self._config = loop.run(start(), timing.connect_seconds)
        self._router = ViewRouter(self.view, timing)
        self._history = QuoteHistory()

    def check_open(self) -> None:
        """Raise UsageError if the connection is closed, or was made before this process was forked."""
        self._loop.check()
        if self._closed:
            raise UsageError("the connection to the swarm is closed", hint="Connect again with from_pretrained.")

    def open_session(
        self,
        max_tokens: int,
        max_rows: int,
        on_event: Callable[[SessionEvent], None] | None = None,
        blocks: BlockRange | None = None,
    ) -> SwarmSession:
        """Return a session that reserves `max_tokens` tokens over all rows; its first step opens the chain.

        `blocks` limits it to a part of the model, for hidden states of any origin; peers then keep no prefix pages of
        it. `on_event` receives this session's events, beside the connection's own listener, in the network thread.
        Raises UsageError as `check_open` does.
        """
        self.check_open()
        config = self._config
        if on_event is not None:
            config = replace(config, on_event=_both(on_event, config.on_event))
        if blocks is not None:
            router = ViewRouter(self.view, self.timing, only=blocks)
            config = replace(config, router=router, num_blocks=blocks.stop, page_names=None)
        session = ChainSession(config, max_tokens, max_rows)
        opened = SwarmSession(
            self._loop, session, self._wire_format, self.timing.operation_seconds, self._leave, self._note_times
        )
        self._open.add(opened)
        return opened

    def quote(self, prompt_tokens: int, new_tokens: int) -> Quote:
        """Predict the times of a request of one row that begins now; ended sessions narrow the intervals.

        Raises UsageError as `check_open` does; NoChainError, PeerBusy and other SwarmErrors if there is no chain now.
        """
        self.check_open()
        request = RequestSpec(prompt_tokens, new_tokens)
        chain, times = self.run(self._router.quote(request, self._config.min_precision))
        return self._history.quote(chain, times)

    def _note_times(self, took: SessionTimes, chain: Sequence[tuple[PeerId, BlockRange]]) -> None:
        """Compare the times of an ended session with those predicted for its chain."""
        if self._closed or not took.trips or not chain:
            return
        request = RequestSpec(took.prompt_tokens, took.trips + 1)
        try:
            predicted = self._router.predict_request(chain, request)
        except LocalProtocolError:
            return  # the view has failed, and reports that to its callers
        self._history.add(predicted, took.first_seconds, took.trip_seconds)

    def _leave(self, session: ChainSession, confirmed: Sequence[int]) -> None:
        """End a session at its peers without waiting. Does nothing in a forked child: the session is the parent's."""
        if self._loop.lost:
            return
        leaving = self._loop.submit(session.close(confirmed))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float | None = None) -> T:
        """Run `work` on the view's loop and wait for it; the default time-out is that of connecting."""
        return self._loop.run(work, self.timing.connect_seconds if timeout_seconds is None else timeout_seconds)

    def close(self, in_haste: bool = False) -> None:
        """Close the connections. Open sessions are lost; ended ones get a moment to end at their peers, too.

        In haste that is a short one. Idempotent. Does nothing in a forked child: the connections are the parent's.
        """
        if self._begin_closing():
            self._loop.run(self._stop(in_haste), self.timing.close_seconds)

    def forget(self) -> None:
        """Close without waiting, from any thread: for an owner that is being garbage-collected."""
        if self._begin_closing():
            self._loop.submit(self._stop(in_haste=False))

    def _begin_closing(self) -> bool:
        """Mark the connection as closed and abort its sessions; return False if there is nothing to close."""
        if self._closed or self._loop.lost:
            return False
        self._closed = True
        for session in tuple(self._open):
            session.abort(())
        return True

    async def _stop(self, in_haste: bool) -> None:
        leaving = [asyncio.wrap_future(future) for future in tuple(self._leaving)]
        if leaving:
            await asyncio.wait(leaving, timeout=self.timing.haste_seconds if in_haste else self.timing.leave_seconds)
        await self.view.close()
        await self._dialer.close()

    def __enter__(self) -> SwarmConnection:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self.close(in_haste=kind is not None and issubclass(kind, KeyboardInterrupt))


class PendingStep:
    """The pending answers to a step that is under way."""

    def __init__(self, future: Future[bytes], take: Callable[[bytes], torch.Tensor]) -> None:
        """`take` decodes the answers; it is called once, in the thread that calls `result`."""
        self._future = future
        self._take = take
        self._answers: torch.Tensor | None = None

    def done(self) -> bool:
        """Whether `result` returns or raises without blocking."""
        return self._future.done()

    def call_when_done(self, wake: Callable[[], object]) -> None:
        """Call `wake` when the step is done, in any thread; at once if it is already."""
        self._future.add_done_callback(lambda _: wake())

    def result(self) -> torch.Tensor:
        """Wait for the answers: (plan.answers, H), packed in the order of `plan.rows`.

        An interrupt cancels the step. Raises SwarmError.
        """
        if self._answers is None:
            try:
                self._answers = self._take(self._future.result())
            except CancelledError:
                raise SessionLost("the session was closed") from None
            finally:
                self._future.cancel()
        return self._answers


class SwarmSession:
    """One session, as the generating thread uses it: tensors in, tensors out."""

    def __init__(
        self,
        loop: BackgroundLoop,
        session: ChainSession,
        wire_format: WireFormat,
        timeout_seconds: float,
        leave: Callable[[ChainSession, Sequence[int]], None],
        on_end: Callable[[SessionTimes, Sequence[tuple[PeerId, BlockRange]]], None] = lambda took, chain: None,
    ) -> None:
        """`timeout_seconds` is for each step; `leave` ends the session at its peers; `on_end` receives its times."""
        self._loop = loop
        self._leave = leave
        self._session = session
        self._format = wire_format
        self._timeout_seconds = timeout_seconds
        self._pending: set[Future[bytes]] = set()
        self._aborted = False
        self._closed = False
        self._on_end = on_end
        self._times = SessionTimes()

    def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        """Compute a step: (plan.tokens, H) -> (plan.answers, H), packed in the order of `plan.rows`.

        The answers have the dtype of `hidden`. Raises SwarmError.
        """
        return self.begin(plan, hidden).result()

    def begin(self, plan: StepPlan, hidden: torch.Tensor, *, guessed: bool = False) -> PendingStep:
        """Send a step behind those under way, as `run` without waiting. `guessed`: it carries no token of the text."""
        began_at = time.monotonic()
        future = self._loop.submit(self._in_time(self._session.run(plan, self._format.encode(hidden), guessed=guessed)))
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if self._aborted:
            future.cancel()

        def take(data: bytes) -> torch.Tensor:
            self._times = self._times.after(plan, began_at, time.monotonic(), guessed=guessed)
            return self._format.decode(data).to(hidden.dtype)

        return PendingStep(future, take)

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await work
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {self._timeout_seconds:.0f} s") from None

    def last_trip(self) -> Trip | None:
        """Return the times of the last answered step of the text; None if they are not known."""
        return self._session.last_trip

    def abort(self, confirmed: Sequence[int]) -> None:
        """Make pending and later steps raise SessionLost, and free the peers once they have kept their pages.

        `confirmed`: the length of each row up to which peers may keep its attention cache.
        """
        self._aborted = True
        self.close(confirmed)  # first: a step that is cancelled before the session closes ends it with nothing kept
        for future in tuple(self._pending):
            future.cancel()

    @property
    def answered_steps(self) -> int:
        """The number of steps that were answered."""
        return self._session.answered_steps

    def report(self, since: int = 0) -> ChainReport:
        """Report where the time of the latest steps went, per hop, without the first `since`; also when closed."""
        return self._session.report(since)

    def close(self, confirmed: Sequence[int]) -> None:
        """End the session and free what the peers hold; `confirmed` as for `abort`. Never raises; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._on_end(self._times, self._session.chain)
        self._leave(self._session, confirmed)
