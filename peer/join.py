"""How a peer gets into a swarm: the initial peers are asked whether they are the right ones, and lead into the DHT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ..proto import swarm_pb2 as pb
from ..proto.directory.swarm_key import SwarmKey
from ..proto.errors import AuthenticationError, ModelMismatch, PeerUnavailable, WrongKey, WrongSwarm
from ..proto.network.address import HostPort, PeerAddress
from ..proto.network.transport import Dialer, ping
from .config import PeerConfig

if TYPE_CHECKING:
    from ..proto.directory.hivemind.node import HivemindDirectory


@asynccontextmanager
async def join_swarm(
    config: PeerConfig, dialer: Dialer, digest: str, swarm_key: SwarmKey | None
) -> AsyncIterator[HivemindDirectory]:
    """A node of the DHT for the time of the block: of a new one, or of that of the initial peers."""
    from ..proto.directory.hivemind.node import HivemindDirectory

    initial: Sequence[str] = ()
    if config.initial_peers:
        initial = await _initial_maddrs(config, dialer, digest, swarm_key is not None)
    directory = await HivemindDirectory.start(
        config.identity_path,
        initial,
        [HostPort.of(config.host, config.dht_port).multiaddress],
        swarm_key,
        announce_maddrs=[
            HostPort(HostPort.parse(target).host, config.dht_port).multiaddress for target in config.announce
        ],
    )
    try:
        yield directory
    finally:
        await directory.close()


async def _initial_maddrs(config: PeerConfig, dialer: Dialer, digest: str, private: bool) -> list[str]:
    """The DHT addresses of the initial peers that answer; `private`: we have the key of a private swarm.

    Raises PeerUnavailable, AuthenticationError where somebody else answers, ModelMismatch, WrongKey, WrongSwarm (also
    for another version of the protocol).
    """

    peers = config.initial_peers

    async def ask(address: PeerAddress) -> pb.PingReply:
        reply, _, _ = await ping(dialer.stub(address), address, config.timing.join_ping_seconds)
        return reply

    answers = await asyncio.gather(*(ask(address) for address in peers), return_exceptions=True)
    replies = [answer for answer in answers if isinstance(answer, pb.PingReply)]
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
    return [maddr for reply in replies for maddr in reply.dht_addresses]


def _check_privacy(replies: Sequence[pb.PingReply], private: bool) -> None:
    """The peers of a private swarm do not tell strangers their model. Raises WrongKey, WrongSwarm."""
    public = [bool(reply.model_digest) for reply in replies]
    if not private and not any(public):
        raise WrongKey("the initial peers belong to a private swarm, and no swarm key was given")
    if private and all(public):
        raise WrongSwarm(
            "the initial peers belong to a public swarm, and the key of a private one was given",
            hint="Leave --swarm-key out, or name peers of the private swarm.",
        )
