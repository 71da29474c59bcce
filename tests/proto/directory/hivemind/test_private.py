"""A private swarm in the DHT: who has the key finds the others; a stranger reads nothing and stores nothing."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from blockswarm.proto.directory.hivemind.control import addresses_of
from blockswarm.proto.directory.hivemind.guard import CallGuard
from blockswarm.proto.directory.hivemind.node import HivemindDirectory
from blockswarm.proto.directory.hivemind.shim import DHTID, P2P, DHTNode, MSGPackSerializer, PeerID
from blockswarm.proto.directory.records import PeerRecord, open_peer_record, sign_peer_record
from blockswarm.proto.directory.swarm_key import SwarmKey, dht_id, swarm_key_name
from blockswarm.proto.errors import ClockSkew, PeerUnavailable, WrongKey
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.timing import DHT_CALL_AGE_SECONDS
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec
from support.directories import LOOPBACK, DirectorySwarm, a_record, fresh_name, hivemind_swarm

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),  # hivemind's
]

DIGEST = hashlib.sha256(b"a model").hexdigest()
ALICE, MALLORY = Identity.generate(), Identity.generate()
KEY, OTHER_KEY = SwarmKey.generate(), SwarmKey.generate()
NAME = swarm_key_name(DIGEST, KEY)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectorySwarm]:
    """Two members."""
    swarm = hivemind_swarm(tmp_path_factory.mktemp("dht"), num_nodes=2, swarm_key=KEY)
    yield swarm
    swarm.close()


def test_members_announce_and_find_each_other(swarm: DirectorySwarm) -> None:
    blocks = BlockRange(0, 4)
    spec = PeerSpec(id=ALICE.peer_id, blocks=blocks, cost=ComputeCost(0.01), block_hashes=(b"8" * 8,) * len(blocks))
    announced = PeerRecord(model_digest=DIGEST, spec=spec, public_name="Ada")

    async def scenario() -> None:
        await swarm.announcers[0].announce(sign_peer_record(ALICE, announced, KEY, swarm.clock() + 60))
        (found,) = await swarm.announcers[1].lookup(NAME)
        assert open_peer_record(found, KEY) == announced

    swarm.run(scenario())


@pytest.mark.parametrize(
    ("key", "error"), [(None, PeerUnavailable), (OTHER_KEY, WrongKey)], ids=["no key", "other key"]
)
def test_a_stranger_does_not_get_in(
    swarm: DirectorySwarm, tmp_path: Path, key: SwarmKey | None, error: type[Exception]
) -> None:
    async def scenario() -> None:
        maddrs = await swarm.announcers[0].visible_maddrs()
        with pytest.raises(error, match=maddrs[0]) as caught:
            await HivemindDirectory.start(tmp_path / "key", maddrs, LOOPBACK, key, join_timeout_seconds=0.0)
        assert "key" in caught.value.hint  # type: ignore[attr-defined]

    swarm.run(scenario())


def test_a_member_whose_clock_is_off_is_not_told_that_its_key_is_wrong(swarm: DirectorySwarm, tmp_path: Path) -> None:
    """Calls of another time are refused, and the reason is told to those who have the key."""

    async def scenario() -> None:
        maddrs = await swarm.announcers[0].visible_maddrs()
        with pytest.raises(ClockSkew, match=r"caller's clock is 27\.0 h \(97200 s\) behind") as caught:
            await HivemindDirectory.start(
                tmp_path / "key", maddrs, LOOPBACK, KEY, lambda: time.time() - 97200, join_timeout_seconds=0.0
            )
        assert "NTP" in caught.value.hint

    swarm.run(scenario())


@pytest.mark.parametrize("key", [None, OTHER_KEY], ids=["no key", "other key"])
def test_a_stranger_who_knows_ports_and_names_reads_and_stores_nothing(
    swarm: DirectorySwarm, key: SwarmKey | None
) -> None:
    name = fresh_name()
    secret = a_record(ALICE, name, swarm.clock() + 60)
    planted = a_record(MALLORY, name, swarm.clock() + 60)
    key_id = DHTID.from_bytes(dht_id(name))

    async def scenario() -> None:
        await swarm.announcers[0].announce(secret)
        maddrs = list(await swarm.announcers[0].visible_maddrs())
        p2p = await P2P.create(maddrs, nat_port_map=False, auto_nat=False, use_relay=False)
        try:
            authorizer = None if key is None else CallGuard(key, swarm.clock)
            node = await DHTNode.create(
                p2p=p2p, initial_peers=maddrs, authorizer=authorizer, ensure_bootstrap_success=False
            )
            for member in swarm.announcers:
                peer_id = PeerID.from_base58(member.peer_id)
                assert await node.protocol.call_find(peer_id, [key_id]) is None
                value = MSGPackSerializer.dumps(planted.encode())
                arguments = ([key_id], [value], [planted.expires_at_seconds])
                assert await node.protocol.call_store(peer_id, *arguments, subkeys=[MALLORY.peer_id]) is None
            await node.shutdown()
        finally:
            await p2p.shutdown()
        for member in swarm.announcers:
            assert await member.lookup(name) == (secret,)

    swarm.run(scenario())


def test_a_stranger_does_learn_who_the_members_are(swarm: DirectorySwarm) -> None:
    """Through libp2p's own DHT, which has no key; docs/security.md says so. If this fails, it has to say less."""

    async def scenario() -> None:
        first, second = swarm.announcers
        stranger = await P2P.create(
            list(await first.visible_maddrs()), nat_port_map=False, auto_nat=False, use_relay=False
        )
        try:
            told = await once_connected(lambda: addresses_of(stranger, PeerID.from_base58(second.peer_id), 20.0))
            assert set(told) == set(await second.visible_maddrs())
        finally:
            await stranger.shutdown()

    swarm.run(scenario())


async def once_connected(ask: Callable[[], Awaitable[tuple[str, ...]]]) -> tuple[str, ...]:
    """The answer once a daemon knows anybody: it is there before its connection to the first node is."""
    async with asyncio.timeout(60):
        while True:
            with suppress(PeerUnavailable):
                return await ask()
            await asyncio.sleep(0.05)


# --- the authorizer ------------------------------------------------------------------------------------------------


class AuthorizedCalls:
    """A client and a servicer that share a key, with a clock that stands."""

    def __init__(self) -> None:
        self.now = 1.7e9
        self.elapsed = 0.0
        self.client = CallGuard(KEY, lambda: self.now)
        self.servicer = CallGuard(KEY, lambda: self.now, lambda: self.elapsed)

    def request(self, authorizer: CallGuard | None = None) -> Any:
        from hivemind.proto import dht_pb2

        request = dht_pb2.FindRequest(keys=[b"k" * 20])
        asyncio.run((authorizer or self.client).sign_request(request, None))
        return request

    def accepts(self, request: Any) -> bool:
        return asyncio.run(self.servicer.validate_request(request))


def test_a_request_is_good_once_and_for_a_minute() -> None:
    calls = AuthorizedCalls()
    request, late = calls.request(), calls.request()
    assert calls.accepts(request)
    assert not calls.accepts(request)
    calls.now += DHT_CALL_AGE_SECONDS + 1
    with pytest.raises(ClockSkew, match="the caller's clock is 61 s behind the other node's"):
        calls.accepts(late)
    assert calls.accepts(calls.request())


def test_a_changed_or_foreign_request_is_refused() -> None:
    calls = AuthorizedCalls()
    changed = calls.request()
    changed.keys[0] = b"x" * 20
    unsigned = calls.request()
    unsigned.auth.ClearField("signature")
    timeless = calls.request()
    timeless.auth.time = float("nan")
    foreign = calls.request(CallGuard(OTHER_KEY, lambda: calls.now))
    assert not any(calls.accepts(request) for request in (changed, unsigned, timeless, foreign))


def test_an_answer_belongs_to_its_request() -> None:
    from hivemind.proto import dht_pb2

    calls = AuthorizedCalls()
    first, second = calls.request(), calls.request()
    response = dht_pb2.FindResponse()
    asyncio.run(calls.servicer.sign_response(response, first))
    assert asyncio.run(calls.client.validate_response(response, first))
    assert not asyncio.run(calls.client.validate_response(response, second))
    response.results.add()
    assert not asyncio.run(calls.client.validate_response(response, first))
    mirrored = dht_pb2.FindResponse()
    mirrored.auth.nonce, mirrored.auth.signature = first.auth.nonce, first.auth.signature
    assert not asyncio.run(calls.client.validate_response(mirrored, first))


def test_remembered_requests_are_bounded() -> None:
    calls = AuthorizedCalls()
    for second in range(300):
        assert calls.accepts(calls.request())
        calls.now += 1.0 if second != 150 else -3600.0  # the clock is set back
        calls.elapsed += 1.0
    assert calls.servicer.remembered_calls <= 2 * DHT_CALL_AGE_SECONDS + 2
