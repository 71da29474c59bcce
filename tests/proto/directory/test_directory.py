"""One set of promises for all directories: in memory, by look-up at known peers, and the DHT with real daemons."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence

import pytest
from blockswarm.proto.directory.directory import MAX_RECORDS_PER_KEY, LookupDirectory, MemoryDirectory, MemoryStore
from blockswarm.proto.directory.signed import SignedRecord, newest_per_peer, next_expiry
from blockswarm.proto.directory.swarm_key import dht_id
from blockswarm.proto.errors import LocalProtocolError, PeerUnavailable, UsageError, WrongKey
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.timing import MAX_RECORD_LIFETIME_SECONDS
from support.directories import DirectorySwarm, a_record, fresh_name, hivemind_swarm, lookup_swarm, memory_swarm

pytestmark = pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning")  # hivemind's

ALICE, BOB, CAROL = sorted((Identity.generate() for _ in range(3)), key=lambda identity: identity.peer_id)


@pytest.fixture(scope="module", params=["memory", "lookup", pytest.param("hivemind", marks=pytest.mark.swarm)])
def module_swarm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectorySwarm]:
    if request.param == "hivemind":
        swarm = hivemind_swarm(tmp_path_factory.mktemp("dht"), num_nodes=3)
    else:
        swarm = memory_swarm() if request.param == "memory" else lookup_swarm()
    yield swarm
    swarm.close()


@pytest.fixture
def swarm(module_swarm: DirectorySwarm) -> DirectorySwarm:
    module_swarm.clock.offset_seconds = 0.0
    return module_swarm


def expiry(swarm: DirectorySwarm, seconds: float = 60.0) -> float:
    return swarm.clock() + seconds


def test_what_one_announces_all_find(swarm: DirectorySwarm) -> None:
    name = fresh_name()
    record = a_record(ALICE, name, expiry(swarm))

    async def scenario() -> None:
        await swarm.announcers[0].announce(record)
        for reader in swarm.readers:
            assert await reader.lookup(name) == (record,)

    swarm.run(scenario())


def test_records_of_many_peers_come_in_order(swarm: DirectorySwarm) -> None:
    name = fresh_name()
    records = [a_record(owner, name, expiry(swarm)) for owner in (CAROL, ALICE, BOB)]

    async def scenario() -> None:
        for index, record in enumerate(records):
            await swarm.announcers[index % len(swarm.announcers)].announce(record)
        for reader in swarm.readers:
            assert await reader.lookup(name) == newest_per_peer(records)

    swarm.run(scenario())


def test_nobody_there_is_an_empty_answer(swarm: DirectorySwarm) -> None:
    for reader in swarm.readers:
        assert swarm.run(reader.lookup(fresh_name())) == ()


def test_a_later_record_replaces_and_an_earlier_one_is_refused(swarm: DirectorySwarm) -> None:
    name = fresh_name()
    first = a_record(ALICE, name, expiry(swarm), b"first")
    second = a_record(ALICE, name, next_expiry(first.expires_at_seconds, swarm.clock()), b"second")

    async def scenario() -> None:
        await swarm.announcers[0].announce(first)
        await swarm.announcers[1].announce(second)
        await swarm.announcers[0].announce(second)  # again, elsewhere: no harm
        for announcer in swarm.announcers:
            with pytest.raises(LocalProtocolError, match="later record"):
                await announcer.announce(first)
        for reader in swarm.readers:
            assert await reader.lookup(name) == (second,)

    swarm.run(scenario())


def test_records_vanish_when_their_time_is_over(swarm: DirectorySwarm) -> None:
    name = fresh_name()

    async def scenario() -> None:
        await swarm.announcers[0].announce(a_record(ALICE, name, expiry(swarm, 30)))
        await swarm.announcers[0].announce(a_record(BOB, name, expiry(swarm, 90)))
        swarm.clock.offset_seconds = 60.0
        for reader in swarm.readers:
            assert [record.peer_id for record in await reader.lookup(name)] == [BOB.peer_id]

    swarm.run(scenario())


def test_what_others_would_refuse_is_not_announced(swarm: DirectorySwarm) -> None:
    name = fresh_name()
    good = a_record(ALICE, name, expiry(swarm))
    bad = [
        dataclasses.replace(good, payload=b"changed"),
        dataclasses.replace(good, peer_id=BOB.peer_id),
        dataclasses.replace(good, key=dht_id(fresh_name())),
        dataclasses.replace(good, payload=bytes(5000)),
        a_record(ALICE, name, expiry(swarm, -1)),
        a_record(ALICE, name, expiry(swarm, MAX_RECORD_LIFETIME_SECONDS + 60)),
    ]

    async def scenario() -> None:
        for record in bad:
            with pytest.raises(LocalProtocolError):
                await swarm.announcers[0].announce(record)
        for reader in swarm.readers:
            assert await reader.lookup(name) == ()

    swarm.run(scenario())


def test_many_announce_and_look_up_at_once(swarm: DirectorySwarm) -> None:
    name = fresh_name()
    owners = [Identity.generate() for _ in range(12)]
    records = [a_record(owner, name, expiry(swarm)) for owner in owners]

    async def scenario() -> None:
        async with asyncio.TaskGroup() as group:
            for index, record in enumerate(records):
                group.create_task(swarm.announcers[index % len(swarm.announcers)].announce(record))
                group.create_task(swarm.readers[index % len(swarm.readers)].lookup(name))
        for reader in swarm.readers:
            assert await reader.lookup(name) == newest_per_peer(records)

    swarm.run(scenario())


# --- look-up at known peers ----------------------------------------------------------------------------------------


NOW = 1.7e9
NAME = "a model"


def lookup_directory(*answers: object, timeout_seconds: float = 5.0) -> LookupDirectory:
    """Asks peers that give these answers; an exception is raised, None never answers."""

    def ask(answer: object) -> object:
        async def call(name: str) -> Sequence[bytes]:
            if answer is None:
                await asyncio.Event().wait()
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[return-value]

        return call

    calls = {f"peer-{index}:1": ask(answer) for index, answer in enumerate(answers)}
    return LookupDirectory(calls, lambda: NOW, timeout_seconds=timeout_seconds, grace_seconds=0.01)  # type: ignore[arg-type]


def look_up(*answers: object, **options: float) -> tuple[SignedRecord, ...]:
    return asyncio.run(lookup_directory(*answers, **options).lookup(NAME))


def of(owner: Identity, lives_seconds: float = 60.0, name: str = NAME) -> SignedRecord:
    return a_record(owner, name, NOW + lives_seconds)


def test_a_peer_that_hides_records_is_made_up_for_by_another() -> None:
    everything = [of(ALICE), of(BOB)]
    assert look_up([], [record.encode() for record in everything]) == newest_per_peer(everything)
    assert look_up([of(ALICE).encode()], [of(BOB).encode()]) == newest_per_peer(everything)


def test_a_peer_that_serves_old_records_is_overruled() -> None:
    assert look_up([of(ALICE, 30).encode()], [of(ALICE, 60).encode()]) == (of(ALICE, 60),)


def test_forged_records_are_ignored_and_the_good_ones_kept() -> None:
    forged = dataclasses.replace(of(BOB), payload=b"forged").encode()
    elsewhere = of(BOB, name="another model").encode()
    over, for_ever = of(BOB, -1).encode(), of(BOB, 1e6).encode()
    assert look_up([forged, b"", b"junk", elsewhere, over, for_ever, bytes(9999), of(ALICE).encode()]) == (of(ALICE),)


def test_a_flood_of_records_is_cut() -> None:
    flood = [of(ALICE).encode()] * MAX_RECORDS_PER_KEY + [of(BOB).encode()]
    assert look_up(flood) == (of(ALICE),)


def test_silent_and_failing_peers_do_not_stop_a_look_up() -> None:
    good = [of(ALICE).encode()]
    assert look_up(PeerUnavailable("gone"), good, None, timeout_seconds=0.05) == (of(ALICE),)
    assert look_up(None, good, good, timeout_seconds=3600.0) == (of(ALICE),)  # two answers are enough


def test_no_answer_names_the_addresses() -> None:
    with pytest.raises(PeerUnavailable, match=r"peer-0:1, peer-1:1.*gone"):
        look_up(PeerUnavailable("gone"), None, timeout_seconds=0.01)
    with pytest.raises(PeerUnavailable, match="none was given"):
        look_up()


def test_the_reason_to_give_up_is_told_rather_than_silence() -> None:
    with pytest.raises(WrongKey):
        look_up(PeerUnavailable("gone"), WrongKey("private"))


def test_a_defect_is_not_mistaken_for_an_unreachable_peer() -> None:
    with pytest.raises(KeyError):
        look_up(KeyError("defect"), [])


def test_cancelling_a_look_up_leaves_no_task_behind() -> None:
    async def scenario() -> None:
        task = asyncio.create_task(lookup_directory(None, None, timeout_seconds=3600.0).lookup(NAME))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_clients_announce_nothing() -> None:
    with pytest.raises(UsageError):
        asyncio.run(lookup_directory([]).announce(of(ALICE)))


def test_the_memory_directory_takes_a_new_record_after_the_old_one_is_over() -> None:
    now = NOW
    directory = MemoryDirectory(MemoryStore(), lambda: now)
    asyncio.run(directory.announce(of(ALICE, 120)))
    now += 200
    record = a_record(ALICE, NAME, now + 30)
    asyncio.run(directory.announce(record))
    assert asyncio.run(directory.lookup(NAME)) == (record,)
