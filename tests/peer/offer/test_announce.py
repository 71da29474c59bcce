"""A peer's own record is always among those that it serves, however slow the directory is."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from blockswarm.peer.offer.announce import Announcer
from blockswarm.peer.offer.lookups import RecentLookups
from blockswarm.peer.timing import PeerTiming
from blockswarm.proto.directory.records import PeerRecord, sign_peer_record
from blockswarm.proto.directory.signed import SignedRecord, sign_record, verify_record
from blockswarm.proto.directory.swarm_key import dht_id, swarm_key_name
from blockswarm.proto.errors import PeerUnavailable
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.handshake import PROTOCOL_VERSION
from blockswarm.routing.swarm import BlockRange, ComputeCost, PeerSpec, PeerState
from support.virtual_time import VirtualTimeLoop

DIGEST = "ab" * 32
NAME = swarm_key_name(DIGEST, None)


class SlowDirectory:
    """Finds `found`, late."""

    def __init__(self) -> None:
        self.announced: list[SignedRecord] = []
        self.found: tuple[SignedRecord, ...] = ()
        self.isolated = False
        self.failure: PeerUnavailable | None = None
        self.answer = asyncio.Event()

    async def announce(self, record: SignedRecord) -> None:
        self.announced.append(record)
        if self.failure is not None:
            raise self.failure

    async def lookup(self, name: str) -> Sequence[SignedRecord]:
        await self.answer.wait()
        if self.failure is not None and not self.isolated:
            raise self.failure
        return self.found

    async def close(self) -> None:
        """Nothing to do."""


class Peer:
    """A peer's announcer and look-ups, with Unix time in `now`."""

    def __init__(self, **timing: float) -> None:
        self.now = 1_000_000.0
        self.identity, self.directory = Identity.generate(), SlowDirectory()
        self.directory.answer.set()
        times, clock = PeerTiming(**timing), lambda: self.now
        self.lookups = RecentLookups(self.directory, DIGEST, None, clock, times)
        self.announcer = Announcer(
            self.directory, self.identity, None, clock, random.Random(1), self.lookups.announced, times
        )
        self.announcer.make_record = self.record

    def record(self, state: PeerState, issued_seconds: float) -> PeerRecord:
        assert issued_seconds == self.now
        spec = PeerSpec(self.identity.peer_id, BlockRange(0, 2), ComputeCost(1e-3), state, block_hashes=(b"8" * 8,) * 2)
        return PeerRecord(
            model_digest=DIGEST, spec=spec, addresses=("127.0.0.1:1",), incarnation=7, protocol_version=PROTOCOL_VERSION
        )

    async def told(self) -> list[bytes]:
        """The answer to a client that asks for everything."""
        return [record.encode() for record in (await self.lookups.lookup(NAME, "192.0.2.0/24")).records]

    def others_record(self) -> SignedRecord:
        return sign_record(Identity.generate(), dht_id(NAME), b"payload", self.now + 60)


def test_who_asks_at_once_finds_the_peer_itself() -> None:
    async def scenario() -> None:
        peer = Peer()
        directory = peer.directory
        assert await peer.lookups.records() == ()  # seen before the peer was announced
        directory.answer.clear()
        await peer.announcer.change(PeerState.SERVING)
        assert await peer.told() == [directory.announced[0].encode()]
        peer.now += 10
        await peer.announcer.change(PeerState.LEAVING)
        assert await peer.told() == [directory.announced[1].encode()]
        peer.now += 1000
        directory.answer.set()
        assert await peer.told() == []
        await peer.lookups.close()

    asyncio.run(scenario())


def test_a_peer_that_reaches_nobody_still_answers_with_what_it_knows() -> None:
    """A client that reaches it can use it, whatever has become of the DHT."""

    async def scenario() -> None:
        peer = Peer(lookup_max_age_seconds=-1.0, lookup_stale_seconds=-1.0)
        directory = peer.directory
        other = peer.others_record()
        directory.found = (other,)
        await peer.announcer.change(PeerState.SERVING)
        assert set(await peer.told()) == {other.encode(), directory.announced[0].encode()}
        directory.failure, directory.found, directory.isolated = PeerUnavailable("nobody is there"), (), True
        peer.now += 30
        with pytest.raises(PeerUnavailable):
            await peer.announcer.change(PeerState.SERVING)
        assert set(await peer.told()) == {other.encode(), directory.announced[1].encode()}
        directory.isolated = False  # now looking itself fails
        assert set(await peer.told()) == {other.encode(), directory.announced[1].encode()}
        with pytest.raises(PeerUnavailable):
            await peer.lookups.records()
        peer.now += 31
        assert await peer.told() == [directory.announced[1].encode()]
        assert peer.lookups.last_records == (other,)
        await peer.lookups.close()

    asyncio.run(scenario())


def test_nobody_is_crowded_out_of_answers_by_the_choice_of_an_id() -> None:
    """Answers are cut at 3 MB; in ascending order of ids an attacker with small ones had them for itself."""

    async def scenario() -> None:
        peer = Peer()
        await peer.announcer.change(PeerState.SERVING)
        peer.directory.found = tuple(peer.others_record() for _ in range(30))
        places = Counter[bytes]()
        for _ in range(200):
            answer = await peer.told()
            assert answer[0] == peer.directory.announced[0].encode()
            assert len(answer) == 31
            places.update(answer[:16])
        assert min(places[record.encode()] for record in peer.directory.found) > 50  # 100 on average
        await peer.lookups.close()

    asyncio.run(scenario())


def test_a_peer_that_announced_nothing_says_no_goodbye() -> None:
    """A start that fails before the first record ends with its own reason."""

    async def scenario() -> None:
        peer = Peer()
        fresh = Announcer(
            peer.directory,
            peer.identity,
            None,
            lambda: peer.now,
            random.Random(1),
            peer.lookups.announced,
            PeerTiming(),
        )
        await fresh.say_goodbye()
        assert peer.directory.announced == []
        await peer.announcer.change(PeerState.SERVING)
        await peer.announcer.say_goodbye()
        assert len(peer.directory.announced) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("step", [-3600.0, -60.0, 3600.0])
def test_a_peer_whose_clock_is_set_announces_itself_at_once(step: float) -> None:
    """A clock set back by an hour made a peer invisible for that hour: each record had to end after the one before."""

    async def scenario() -> None:
        peer = Peer()
        await peer.announcer.change(PeerState.SERVING)
        peer.now += step
        await peer.announcer.change(PeerState.SERVING)
        before, now = peer.directory.announced
        assert before != now
        verify_record(now, peer.now)
        assert await peer.told() == [now.encode()]
        await peer.lookups.close()

    asyncio.run(scenario())


def test_the_time_since_the_last_announcement_is_known() -> None:
    async def scenario() -> None:
        peer = Peer()
        await asyncio.sleep(0.2)
        assert peer.announcer.seconds_since_announced >= 0.2
        peer.directory.failure = PeerUnavailable("nobody is there")
        await peer.announcer.renew()
        assert peer.announcer.seconds_since_announced >= 0.2
        peer.directory.failure = None
        await peer.announcer.renew()
        assert peer.announcer.seconds_since_announced < 0.2

    with contextlib.closing(VirtualTimeLoop()) as loop:
        loop.run(scenario())


def test_records_of_one_moment_are_announced_one_after_the_other() -> None:
    """A change of state and a renewal meet at the start; the directory refuses a record that is older than the last."""

    async def scenario() -> None:
        peer, latest = Peer(), [0.0]
        kept = peer.directory.announce

        async def announce(record: SignedRecord) -> None:
            first = not peer.directory.announced
            await kept(record)
            await asyncio.sleep(1.0 if first else 0.0)  # the first one takes its time
            assert record.expires_at_seconds > latest[0], "a later record is there already"
            latest[0] = record.expires_at_seconds

        peer.directory.announce = announce  # type: ignore[method-assign]
        await asyncio.gather(peer.announcer.renew(), peer.announcer.change(PeerState.SERVING))
        assert len(peer.directory.announced) == 2

    VirtualTimeLoop().run(scenario())


def test_where_a_relay_is_says_its_own_record() -> None:
    async def scenario() -> None:
        peer, relay = Peer(), Identity.generate()
        assert peer.lookups.addresses_of(relay.peer_id) == ()
        spec = PeerSpec(relay.peer_id, None, ComputeCost(0.01), PeerState.JOINING)
        record = PeerRecord(DIGEST, spec, addresses=("192.0.2.1:4000", "relay.example:1"))
        peer.directory.found = (sign_peer_record(relay, record, None, peer.now + 60),)
        await peer.lookups.records()
        assert peer.lookups.addresses_of(relay.peer_id) == record.addresses
        assert peer.lookups.addresses_of(peer.identity.peer_id) == ()
        peer.now += 61
        assert peer.lookups.addresses_of(relay.peer_id) == (), "its record is over"

    VirtualTimeLoop().run(scenario())
