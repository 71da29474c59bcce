"""How a peer gets into a swarm: the initial peers are asked whether they are the right ones, and lead into the DHT.

A peer that was in the swarm before remembers others in its data folder.  They make up for initial peers that do not
answer, and a peer that began the swarm finds them again when the same command starts it anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..proto.directory.records import open_peer_record
from ..proto.directory.signed import SignedRecord
from ..proto.directory.swarm_key import SwarmKey, dht_id, swarm_key_name
from ..proto.errors import AuthenticationError, ModelMismatch, PeerUnavailable, SwarmError, WrongKey, WrongSwarm
from ..proto.network.address import HostPort, PeerAddress
from ..proto.network.transport import Dialer, ping
from ..proto.wire.messages.calls import PingReply
from ..routing.swarm import PeerState
from .config import PeerConfig
from .offer.lookups import RecentLookups
from .timing import PeerTiming

if TYPE_CHECKING:
    from ..proto.directory.hivemind.node import HivemindDirectory

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 128
"""DHT addresses that are remembered."""
MAX_MADDRS_OF_A_PEER = 8
MAX_RECORDS_READ = 64
"""Records whose addresses are tried when the DHT is lost, chosen at random."""
_MAX_MADDR_CHARS = 256
_MAX_FILE_BYTES = 1 << 16


class RememberedPeers:
    """The DHT addresses of the peers of one swarm that were met, in the data folder."""

    def __init__(self, folder: Path, model_digest: str, swarm_key: SwarmKey | None) -> None:
        name = dht_id(swarm_key_name(model_digest, swarm_key)).hex()
        self._path = folder / f"peers-{name[:16]}.json"

    def load(self) -> tuple[str, ...]:
        """The addresses that were saved last; none if the file is missing or garbled."""
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
        """Replace what was saved; that it cannot be written is no reason to stop a peer."""
        scratch = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(list(maddrs[:MAX_REMEMBERED]), indent=1), encoding="utf-8")
            scratch.replace(self._path)
        except OSError as error:
            logger.warning("the peers that were met cannot be remembered: %s", error)


@asynccontextmanager
async def join_swarm(
    config: PeerConfig, dialer: Dialer, digest: str, swarm_key: SwarmKey | None
) -> AsyncIterator[tuple[HivemindDirectory, RecentLookups]]:
    """A node of the DHT for the time of the block: of a new one, or of that of the initial peers."""
    from ..proto.directory.hivemind.node import HivemindDirectory

    remembered = await asyncio.to_thread(RememberedPeers(config.data_folder, digest, swarm_key).load)
    initial: Sequence[str] = ()
    if config.initial_peers:
        try:
            initial = await _initial_maddrs(config, dialer, digest, swarm_key is not None)
        except PeerUnavailable as error:
            if not remembered:
                raise
            logger.warning("%s; trying the peers that were met in an earlier run", error)
            initial = remembered

    lookups: RecentLookups | None = None

    async def more_maddrs() -> Sequence[str]:
        announced = _maddrs_of(lookups.last_records, swarm_key) if lookups is not None else []
        if not config.initial_peers:
            return announced
        try:
            return [*await _initial_maddrs(config, dialer, digest, swarm_key is not None), *announced]
        except SwarmError as error:
            logger.debug("the initial peers do not help: %s", error)
            return announced

    directory = await HivemindDirectory.start(
        config.identity_path,
        initial,
        [HostPort.of(config.host, config.dht_port).multiaddress],
        swarm_key,
        announce_maddrs=[
            HostPort(HostPort.parse(target).host, config.dht_port).multiaddress for target in config.announce
        ],
        remembered_maddrs=remembered,
        more_maddrs=more_maddrs,
        join_timeout_seconds=config.timing.join_seconds if initial else config.timing.join_remembered_seconds,
    )
    if directory.isolated:
        logger.warning(
            "none of the peers that were met in an earlier run answers: the swarm begins anew, and is one with theirs"
            " when they return"
        )
    lookups = RecentLookups(directory, digest, swarm_key, time.time, config.timing)
    try:
        yield directory, lookups
    finally:
        await lookups.close()
        await directory.close()


async def remember_swarm(
    directory: HivemindDirectory, lookups: RecentLookups, remembered: RememberedPeers, swarm_key: SwarmKey | None,
    timing: PeerTiming,
) -> None:  # fmt: skip
    """Keep what is remembered up to date until cancelled; peers that leave are not expected back."""
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
    """The DHT addresses that some of the records announce, each of its owner."""
    maddrs: list[str] = []
    for record in random.sample(records, min(len(records), MAX_RECORDS_READ)):
        try:
            announced = open_peer_record(record, swarm_key).dht_maddrs
        except SwarmError as error:
            logger.debug("a record is ignored: %s", error)
            continue
        maddrs += [f"{maddr}/p2p/{record.peer_id}" for maddr in announced]
    return maddrs


def _bounded(maddrs: Sequence[object], limit: int) -> tuple[str, ...]:
    """The first of those that may be addresses."""
    return tuple(maddr for maddr in maddrs[:limit] if isinstance(maddr, str) and len(maddr) <= _MAX_MADDR_CHARS)


async def _initial_maddrs(config: PeerConfig, dialer: Dialer, digest: str, private: bool) -> list[str]:
    """The DHT addresses of the initial peers that answer; `private`: we have the key of a private swarm.

    Raises PeerUnavailable, AuthenticationError where somebody else answers, ModelMismatch, WrongKey, WrongSwarm (also
    for another version of the protocol).
    """

    peers = config.initial_peers

    async def ask(address: PeerAddress) -> PingReply | SwarmError:
        try:
            reply, _, _ = await ping(dialer.stub(address), address, config.timing.join_ping_seconds)
        except SwarmError as error:
            return error
        return reply

    answers = await asyncio.gather(*(ask(address) for address in peers))
    replies = [answer for answer in answers if isinstance(answer, PingReply)]
    if not replies:
        for answer in answers:
            if isinstance(answer, AuthenticationError | WrongSwarm):
                raise answer
        raise PeerUnavailable(
            f"none of the initial peers answers: {', '.join(map(str, peers))}",
            hint="Check the addresses and that one of them runs; --new-swarm begins a swarm without any.",
        )
    _check_privacy(replies, private)
    others = [reply for reply in replies if reply.model_digest and reply.model_digest != digest]
    if len(others) == len(replies):
        raise ModelMismatch(
            f"the initial peers serve {others[0].model_name} ({others[0].model_digest[:12]}), not this model"
            f" ({digest[:12]})"
        )
    maddrs = [maddr for reply in replies for maddr in _bounded(reply.dht_addresses, MAX_MADDRS_OF_A_PEER)]
    if not maddrs:  # without any, this peer would begin a swarm of its own
        raise PeerUnavailable(f"the initial peers are in no DHT yet: {', '.join(map(str, peers))}")
    return maddrs


def _check_privacy(replies: Sequence[PingReply], private: bool) -> None:
    """The peers of a private swarm do not tell strangers their model. Raises WrongKey, WrongSwarm."""
    public = [bool(reply.model_digest) for reply in replies]
    if not private and not any(public):
        raise WrongKey("the initial peers belong to a private swarm, and no swarm key was given")
    if private and all(public):
        raise WrongSwarm(
            "the initial peers belong to a public swarm, and the key of a private one was given",
            hint="Leave --swarm-key out, or name peers of the private swarm.",
        )
