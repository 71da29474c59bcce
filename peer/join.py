"""How a peer joins a swarm: it checks by a ping that the initial peers serve its model, and joins their DHT.

A peer that was in the swarm before remembers others in its data folder.  They stand in for initial peers that do not
answer, and through them a peer that began the swarm finds it again when it is restarted with the same command.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..proto.directory.records import open_peer_record
from ..proto.directory.signed import SignedRecord
from ..proto.directory.swarm_key import SwarmKey, dht_id, swarm_key_name
from ..proto.errors import (
    AuthenticationError,
    ClockSkew,
    ModelMismatch,
    PeerUnavailable,
    SwarmError,
    WrongKey,
    WrongSwarm,
    one_line,
)
from ..proto.files import keep_text
from ..proto.network.address import HostPort, PeerAddress
from ..proto.network.dialling import AddressRefused
from ..proto.network.transport import Dialer, ping
from ..proto.wire.messages.calls import PingReply
from ..routing.swarm import PeerState
from .config import PeerConfig
from .offer.lookups import RecentLookups
from .tasks import cancel_all
from .timing import PeerTiming

if TYPE_CHECKING:
    from ..proto.directory.hivemind.node import HivemindDirectory

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 128
"""DHT addresses to remember."""
MAX_MADDRS_OF_A_PEER = 8
MAX_RECORDS_READ = 64
"""Records whose addresses are tried when the DHT is lost, chosen at random."""
_MAX_MADDR_CHARS = 256
_MAX_FILE_BYTES = 1 << 16


class RememberedPeers:
    """The DHT addresses of the peers that were met in one swarm, kept in the data folder."""

    def __init__(self, folder: Path, model_digest: str, swarm_key: SwarmKey | None) -> None:
        name = dht_id(swarm_key_name(model_digest, swarm_key)).hex()
        self._path = folder / f"peers-{name[:16]}.json"

    def load(self) -> tuple[str, ...]:
        """Return the addresses that were saved last; none if the file is missing or garbled."""
        try:
            if self._path.stat().st_size > _MAX_FILE_BYTES:
                return ()
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("the peers of an earlier run in %s are not readable: %s", self._path, error)
            return ()
        return _bounded(content, MAX_REMEMBERED) if isinstance(content, list) else ()

    def save(self, maddrs: Sequence[str]) -> None:
        """Replace the saved addresses; a failure is only logged, because it is no reason to stop a peer."""
        try:
            keep_text(self._path, json.dumps(list(maddrs[:MAX_REMEMBERED]), indent=1))
        except OSError as error:
            logger.warning("the peers that were met cannot be remembered: %s", error)


@dataclass(frozen=True, slots=True)
class FirstContacts:
    """The addresses of the DHT through which a peer joins."""

    maddrs: tuple[str, ...]
    """Empty for a peer that begins a swarm."""
    remembered: tuple[str, ...]
    """Those of an earlier run."""
    met_before: bool
    """Whether no initial peer answered, and `maddrs` are those of an earlier run."""


async def first_contacts(config: PeerConfig, dialer: Dialer, digest: str, swarm_key: SwarmKey | None) -> FirstContacts:
    """Get DHT addresses from the initial peers, or from an earlier run if none answers. Raises as `_initial_maddrs`."""
    remembered = await asyncio.to_thread(RememberedPeers(config.data_folder, digest, swarm_key).load)
    if not config.initial_peers:
        return FirstContacts((), remembered, False)
    try:
        return FirstContacts(
            tuple(await _initial_maddrs(config, dialer, digest, swarm_key is not None)), remembered, False
        )
    except PeerUnavailable as error:
        if not remembered:
            raise
        logger.warning("%s; trying the peers that were met in an earlier run", error)
        return FirstContacts(remembered, remembered, True)


@asynccontextmanager
async def join_swarm(
    config: PeerConfig,
    dialer: Dialer,
    digest: str,
    swarm_key: SwarmKey | None,
    contacts: FirstContacts,
    reached: bool = True,
    clock: Callable[[], float] = time.time,
    num_blocks: int = 0,
) -> AsyncIterator[tuple[HivemindDirectory, RecentLookups]]:
    """Run a DHT node for the time of the block: in the DHT of the first contacts, or in a new one.

    `num_blocks` of the model: with it, nodes that ask are told the hosts that are best for them.

    If this peer is not `reached` from outside, its node stores nothing for others: they could not ask it.
    """
    lookups: RecentLookups | None = None

    async def more_maddrs() -> Sequence[str]:
        announced = await _dialled(dialer, _maddrs_of(lookups.last_records, swarm_key)) if lookups is not None else []
        if not config.initial_peers:
            return announced
        try:
            return [*await _initial_maddrs(config, dialer, digest, swarm_key is not None), *announced]
        except SwarmError as error:
            logger.debug("the initial peers do not help: %s", error)
            return announced

    directory = await _start_directory(config, swarm_key, contacts, more_maddrs, reached, clock)
    if directory.isolated:
        logger.warning(
            "none of the peers that were met in an earlier run answers: the swarm begins anew, and is one with theirs"
            " when they return"
        )
    elif contacts.met_before:
        dialer.known_at(filter(None, map(HostPort.of_multiaddress, contacts.remembered)))
    lookups = RecentLookups(directory, digest, swarm_key, clock, config.timing, num_blocks=num_blocks)
    try:
        yield directory, lookups
    finally:
        try:
            await lookups.close()
        finally:
            await directory.close()


async def _start_directory(
    config: PeerConfig, swarm_key: SwarmKey | None, contacts: FirstContacts,
    more_maddrs: Callable[[], Awaitable[Sequence[str]]], reached: bool, clock: Callable[[], float],
) -> HivemindDirectory:  # fmt: skip
    """Start a node that others can ask, or a mere client of the DHT if they cannot reach it."""
    from ..proto.directory.hivemind.node import HivemindDirectory

    return await HivemindDirectory.start(
        config.identity_path,
        contacts.maddrs,
        [HostPort.of(config.host, config.dht_port).multiaddress],
        swarm_key,
        clock,
        announce_maddrs=[
            HostPort(HostPort.parse(target).host, config.dht_port).multiaddress for target in config.announce
        ],
        client_mode=not reached,
        remembered_maddrs=contacts.remembered,
        more_maddrs=more_maddrs,
        join_timeout_seconds=config.timing.join_seconds if contacts.maddrs else config.timing.join_remembered_seconds,
    )


async def remember_swarm(
    directory: HivemindDirectory, lookups: RecentLookups, remembered: RememberedPeers, swarm_key: SwarmKey | None,
    timing: PeerTiming,
) -> None:  # fmt: skip
    """Keep the remembered addresses up to date until cancelled; forget peers that leave."""
    saved: Sequence[str] = ()
    while True:
        expected = {maddr.rpartition("/p2p/")[2] for maddr in directory.met_maddrs}
        try:
            for record in await lookups.records():
                if record.peer_id in expected and _is_leaving(record, swarm_key):
                    directory.forget(record.peer_id)
        except SwarmError as error:
            logger.debug("the peers of the swarm were not seen: %s", error)
        met = directory.met_maddrs
        if met != saved:
            await asyncio.to_thread(remembered.save, met)
            saved = met
        await asyncio.sleep(timing.record_refresh_seconds)


def _is_leaving(record: SignedRecord, swarm_key: SwarmKey | None) -> bool:
    try:
        return open_peer_record(record, swarm_key).spec.state is PeerState.LEAVING
    except SwarmError:
        return False


def _maddrs_of(records: Sequence[SignedRecord], swarm_key: SwarmKey | None) -> list[str]:
    """The DHT addresses that records chosen at random announce, each with its owner's id."""
    maddrs: list[str] = []
    for record in random.sample(records, min(len(records), MAX_RECORDS_READ)):
        try:
            announced = open_peer_record(record, swarm_key).dht_maddrs
        except SwarmError as error:
            logger.debug("a record is ignored: %s", error)
            continue
        maddrs += [f"{maddr}/p2p/{record.peer_id}" for maddr in announced]
    return maddrs


async def _dialled(dialer: Dialer, maddrs: Sequence[str]) -> list[str]:
    """Resolve DHT addresses that others have named; return those that this peer may dial."""

    async def checked(maddr: str) -> list[str]:
        target = HostPort.of_multiaddress(maddr)
        if target is None or "/p2p/" not in maddr:
            return []
        try:
            found = await dialer.addresses(target)
        except PeerUnavailable as error:
            logger.debug("an address of the DHT is left out: %s", error)
            return []
        node = maddr.partition("/p2p/")[2]
        return [f"{HostPort(str(address), target.port).multiaddress}/p2p/{node}" for address in found]

    return list(chain.from_iterable(await asyncio.gather(*map(checked, maddrs))))


def _bounded(maddrs: Sequence[object], limit: int) -> tuple[str, ...]:
    """Those of the first `limit` that may be addresses."""
    return tuple(maddr for maddr in maddrs[:limit] if isinstance(maddr, str) and len(maddr) <= _MAX_MADDR_CHARS)


async def _initial_maddrs(config: PeerConfig, dialer: Dialer, digest: str, private: bool) -> list[str]:
    """The DHT addresses of the initial peers that answer; `private`: we have the key of a private swarm.

    Raises PeerUnavailable, AuthenticationError if another peer answers, ClockSkew, ModelMismatch, WrongKey, and
    WrongSwarm for another version of the protocol.
    """

    peers = config.initial_peers

    async def ask(address: PeerAddress) -> PingReply | SwarmError:
        try:
            reply, _, _ = await ping(dialer.stub(address), address, config.timing.join_ping_seconds)
        except SwarmError as error:
            return error
        return reply

    answers = await _answers([ask(address) for address in peers], config.timing)
    replies = [answer for answer in answers if isinstance(answer, PingReply)]
    if not replies:
        for answer in answers:
            if isinstance(answer, AuthenticationError | WrongSwarm | ClockSkew):
                raise answer
        raise PeerUnavailable(
            f"none of the initial peers answers: {', '.join(map(str, peers))}",
            hint="Check the addresses and that one of them runs; --new-swarm begins a swarm without any.",
        )
    _check_privacy(replies, private)
    others = [reply for reply in replies if reply.model_digest and reply.model_digest != digest]
    if len(others) == len(replies):
        raise ModelMismatch(
            f"the initial peers serve {one_line(others[0].model_name)[:80]} ({one_line(others[0].model_digest)[:12]}),"
            f" not this model ({digest[:12]})"
        )
    told = [maddr for reply in replies for maddr in _bounded(reply.dht_addresses, MAX_MADDRS_OF_A_PEER)]
    maddrs = await _dialled(dialer, told)
    if told and not maddrs:
        raise PeerUnavailable(
            f"the nodes of the initial peers' DHT are at addresses that are not dialled: {one_line(', '.join(told))}",
            hint=AddressRefused.default_hint,
        )
    if not maddrs:  # without any, this peer would begin a swarm of its own
        raise PeerUnavailable(f"the initial peers are in no DHT yet: {', '.join(map(str, peers))}")
    return maddrs


async def _answers(
    questions: Sequence[Coroutine[Any, Any, PingReply | SwarmError]], timing: PeerTiming
) -> list[PingReply | SwarmError]:
    """Ask all questions side by side, and return the answers.

    Returns all of them, or those that have come by the time the patience is over and one of them is good.
    """
    tasks = [asyncio.create_task(question) for question in questions]
    try:
        done, waiting = await asyncio.wait(tasks, timeout=timing.join_patience_seconds)
        while waiting and not any(isinstance(task.result(), PingReply) for task in done):
            logger.info(
                "%d of %d initial peers do not answer yet, waiting up to %.0f s",
                len(waiting), len(tasks), timing.join_ping_seconds,
            )  # fmt: skip
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        return [task.result() for task in tasks if task in done]
    finally:
        await cancel_all(tasks)


def _check_privacy(replies: Sequence[PingReply], private: bool) -> None:
    """Check that the swarm key fits: peers of a private swarm do not tell strangers their model. Raises WrongKey."""
    public = [bool(reply.model_digest) for reply in replies]
    if not private and not any(public):
        raise WrongKey("the initial peers belong to a private swarm, and no swarm key was given")
    if private and all(public):
        raise WrongKey(
            "the initial peers belong to a public swarm, and the key of a private one was given",
            hint="Leave --swarm-key out, or name peers of the private swarm.",
        )
