"""From a checkpoint and some initial peers to a connected swarm, for `from_pretrained`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..proto.directory.swarm_key import SwarmKey
from ..proto.errors import SessionLost, UsageError
from ..proto.identity import Identity
from ..proto.model.checkpoint import Checkpoint
from ..proto.network.address import PeerAddress
from ..proto.network.transport import Dialer
from ..proto.wire.precision import at_least
from ..proto.wire.steps import StepPlan
from ..proto.wire.tensors import WireFormat
from .background import BackgroundLoop, background_loop
from .chain.formats import AUTO, check_wire_format
from .chain.prefixes import PageNames
from .chain.session import ChainSession
from .codec import FloatCodec
from .config import SessionConfig, SessionEvent
from .report import ChainReport
from .swarm.router import ViewRouter
from .swarm.view import SwarmView
from .timing import PATIENCE_SECONDS, ClientTiming

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def connect(
    *,
    checkpoint: Checkpoint,
    initial_peers: Sequence[str],
    swarm_key: str | Path | SwarmKey | None = None,
    wire_format: str = AUTO,
    identity_path: str | Path | None = None,
    push: bool = True,
    prefix_cache: bool = True,
    min_precision: str | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    on_event: Callable[[SessionEvent], None] | None = None,
    timing: ClientTiming | None = None,  # for tests
) -> SwarmConnection:
    """Connect to the swarm that serves this checkpoint.

    `initial_peers` are addresses "ID@host:port" of any of its peers; `swarm_key` is the key (or its file) of a private
    swarm; `wire_format` that of what travels ("auto": each peer sends the dtype of its stream, which changes no value);
    `identity_path` a key file, made if there is none (default: a new identity that nobody keeps). `push=False`
    has every output come back through this client. With `prefix_cache` peers are asked to keep the attention caches of
    ended sessions for a while, and later sessions of the same identity begin with what they hold. With `min_precision`
    ("float32") only peers that compute in that numeric format or a more precise one are used. Where all peers are full
    a session waits for room for `patience_seconds`. `on_event` hears of repairs and of waiting, in the network thread.

    Raises UsageError for a bad address, PeerUnavailable if no peer answers, WrongKey in a private swarm.
    """
    timing = timing or ClientTiming()
    key = SwarmKey.load(swarm_key) if isinstance(swarm_key, (str, Path)) else swarm_key
    addresses = _parsed(initial_peers)
    if min_precision is not None:
        at_least("float32", min_precision)  # refuses what is no format
    check_wire_format(wire_format)
    identity = Identity.load_or_create(identity_path) if identity_path else Identity.generate()
    codec = FloatCodec(checkpoint.config.get_text_config(decoder=True).hidden_size)
    model_digest = checkpoint.model_digest().hex()
    page_names = PageNames(identity, model_digest, wire_format, codec.token_bytes) if prefix_cache else None

    def config(dialer: Dialer, view: SwarmView) -> SessionConfig:
        return SessionConfig(
            identity=identity,
            dialer=dialer,
            router=ViewRouter(view, timing),
            model_digest=model_digest,
            num_blocks=checkpoint.num_blocks,
            wire_format=wire_format,
            codec=codec,
            swarm_key=key,
            relay_always=not push,
            page_names=page_names,
            min_precision=min_precision,
            patience_seconds=patience_seconds,
            on_event=on_event or (lambda event: None),
            timing=timing,
        )

    def view(dialer: Dialer) -> SwarmView:
        blocks, proven = checkpoint.num_blocks, checkpoint.proven_hashes()
        return SwarmView(identity, dialer, addresses, model_digest, blocks, key, push, timing=timing, proven=proven)

    return SwarmConnection(background_loop(), view, config, codec.own, timing)


def _parsed(initial_peers: Sequence[str]) -> list[PeerAddress]:
    if not initial_peers:
        raise UsageError("no initial peers are given", hint="Name at least one peer: ID@HOST:PORT.")
    return [PeerAddress.parse(text) for text in initial_peers]


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
        make_view: Callable[[Dialer], SwarmView],
        make_config: Callable[[Dialer, SwarmView], SessionConfig],
        wire_format: WireFormat,
        timing: ClientTiming,
    ) -> None:
        """Make on the loop what belongs to it. Raises what looking at the swarm raises."""
        self.timing = timing
        self._loop = loop
        self._wire_format = wire_format
        self._leaving: set[Future[None]] = set()
        """Sessions that have ended here, and not yet at their peers."""

        async def start() -> tuple[SwarmView, Dialer, SessionConfig]:
            dialer = Dialer()
            view = make_view(dialer)
            try:
                await view.start()
            except BaseException:
                await dialer.close()
                raise
            return view, dialer, make_config(dialer, view)

        self.view, self._dialer, self._config = loop.run(start(), timing.connect_seconds)

    def open_session(
        self, max_tokens: int, max_rows: int, on_event: Callable[[SessionEvent], None] | None = None
    ) -> SwarmSession:
        """A session that reserves `max_tokens` tokens over all rows; its chain is opened with its first step.

        `on_event` hears of this session what the connection's own `on_event` hears of all, in the network thread.
        """
        config = self._config
        if on_event is not None:
            config = replace(config, on_event=_both(on_event, config.on_event))
        session = ChainSession(config, max_tokens, max_rows)
        return SwarmSession(self._loop, session, self._wire_format, self.timing.operation_seconds, self._leave)

    def _leave(self, session: ChainSession) -> None:
        """End a session at its peers, without waiting for it."""
        leaving = self._loop.submit(session.close())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def run(self, work: Coroutine[Any, Any, T], timeout_seconds: float | None = None) -> T:
        """Run something on the loop that the view belongs to; by default it may take as long as connecting."""
        return self._loop.run(work, self.timing.connect_seconds if timeout_seconds is None else timeout_seconds)

    def close(self) -> None:
        """Close the connections; sessions that are open are lost, and those that have ended get a moment to leave."""

        async def stop() -> None:
            leaving = [asyncio.wrap_future(future) for future in tuple(self._leaving)]
            if leaving:
                await asyncio.wait(leaving, timeout=self.timing.leave_seconds)
            await self.view.close()
            await self._dialer.close()

        self._loop.run(stop(), self.timing.close_seconds)

    def __enter__(self) -> SwarmConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class SwarmSession:
    """One session, for the thread that generates: tensors in, tensors out."""

    def __init__(
        self,
        loop: BackgroundLoop,
        session: ChainSession,
        wire_format: WireFormat,
        timeout_seconds: float,
        leave: Callable[[ChainSession], None],
    ) -> None:
        """`timeout_seconds` is for each `run`; `leave` ends the session at its peers."""
        self._loop = loop
        self._leave = leave
        self._session = session
        self._format = wire_format
        self._timeout_seconds = timeout_seconds
        self._pending: Future[bytes] | None = None
        self._aborted = False
        self._closed = False

    def run(self, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        """(plan.tokens, H) -> (plan.answers, H), packed in the order of `plan.rows`. Raises SwarmError."""
        self._pending = self._loop.submit(self._session.run(plan, self._format.encode(hidden)))
        if self._aborted:
            self._pending.cancel()
        try:
            return self._format.decode(self._pending.result(self._timeout_seconds)).to(hidden.dtype)
        except CancelledError:
            raise SessionLost("the session was closed") from None
        finally:
            self._pending.cancel()

    def abort(self) -> None:
        """Make the pending `run` and all later ones raise SessionLost, and free the peers at once."""
        self._aborted = True
        if self._pending is not None:
            self._pending.cancel()
        self._leave(self._session)

    @property
    def answered_steps(self) -> int:
        """The number of steps that were answered."""
        return self._session.answered_steps

    def report(self, since: int = 0) -> ChainReport:
        """Where the time of the last steps went, per hop, without the first `since` answers; also when closed."""
        return self._session.report(since)

    def close(self) -> None:
        """Free what the peers hold. Never raises; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._leave(self._session)
