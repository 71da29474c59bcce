"""Replay buffers stay within their memory: the least recently used session loses its own, for good."""

from __future__ import annotations

from blockswarm.peer.session.replay_store import ReplayStore
from blockswarm.proto.wire.steps import RowSlice, StepPlan
from blockswarm.routing.swarm import PeerId

TOKEN_BYTES = 10
ME = PeerId("me")


def append(store: ReplayStore, session: bytes, start: int, count: int) -> None:
    store.append(session, StepPlan((RowSlice(0, start, count, 0),)), bytes(count * TOKEN_BYTES))


def test_what_was_sent_is_kept_until_the_session_ends() -> None:
    store = ReplayStore(1000)
    store.begin(b"a", ME, TOKEN_BYTES)
    append(store, b"a", 0, 4)
    append(store, b"a", 4, 1)
    assert len(store) == 1
    buffer = store.get(b"a")
    assert buffer is not None
    assert (buffer.nbytes, store.nbytes) == (50, 50)
    store.end(b"a")
    assert (store.get(b"a"), store.nbytes, len(store)) == (None, 0, 0)
    store.end(b"a")  # twice is no error


def test_the_least_recently_used_buffer_is_evicted() -> None:
    store = ReplayStore(100)
    for session in (b"a", b"b"):
        store.begin(session, ME, TOKEN_BYTES)
        append(store, session, 0, 4)
    append(store, b"a", 4, 1)
    store.begin(b"c", ME, TOKEN_BYTES)
    append(store, b"c", 0, 4)
    assert store.get(b"b") is None
    assert store.get(b"a") is not None
    assert store.nbytes == 90


def test_an_evicted_session_stays_without_a_buffer() -> None:
    """A buffer that lacks its beginning could rebuild nothing."""
    store = ReplayStore(100)
    store.begin(b"a", ME, TOKEN_BYTES)
    append(store, b"a", 0, 11)
    assert (store.get(b"a"), store.nbytes) == (None, 0)
    append(store, b"a", 11, 1)
    assert (store.get(b"a"), store.nbytes) == (None, 0)


def test_what_was_truncated_does_not_evict_anybody() -> None:
    """The bound that is kept up with every step is too high after a rollback; it is counted again before eviction."""
    store = ReplayStore(100)
    for session in (b"a", b"b"):
        store.begin(session, ME, TOKEN_BYTES)
    append(store, b"a", 0, 4)
    for _ in range(5):
        append(store, b"b", 0, 4)
    assert store.get(b"a") is not None
    assert store.get(b"b") is not None
    assert store.nbytes <= 100


def test_the_client_that_holds_most_loses_first() -> None:
    """Many buffers of one client do not push out that of another, however long it rests."""
    store, other = ReplayStore(100), PeerId("other")
    store.begin(b"honest", other, TOKEN_BYTES)
    append(store, b"honest", 0, 4)
    for number in range(50):
        session = b"greedy %d" % number
        store.begin(session, ME, TOKEN_BYTES)
        append(store, session, 0, 3)
        assert store.get(b"honest") is not None
        assert store.nbytes <= 100
    assert store.get(b"greedy 49") is not None
    assert store.get(b"greedy 47") is None


def test_only_a_full_store_is_counted_and_there_is_room_for_some_steps_then() -> None:
    """Counting takes a while where there are many sessions, so neither an end nor a step may ask for it each time."""
    store = ReplayStore(1000)
    for session in (b"a", b"b"):
        store.begin(session, ME, TOKEN_BYTES)
        append(store, session, 0, 20)
        append(store, session, 0, 20)
    store.end(b"a")
    assert store.nbytes == 400, "the bound of the other one, whose first tokens are gone"
    for number in range(9):
        store.begin(b"%d" % number, PeerId(str(number)), TOKEN_BYTES)
        append(store, b"%d" % number, 0, 10)
    assert (len(store), store.nbytes) == (9, 900), "the one that held most is gone, and the others fit"


def test_a_buffer_that_begins_anew_is_counted_anew() -> None:
    store = ReplayStore(100)
    store.begin(b"a", ME, TOKEN_BYTES)
    append(store, b"a", 0, 4)
    store.begin(b"a", ME, TOKEN_BYTES)
    assert store.nbytes == 0
