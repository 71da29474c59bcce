"""The server before clients that mean no good, over real sockets: each costs little, and the others are served."""

from __future__ import annotations

import selectors
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
from blockswarm.client.dashboard.server import is_loopback
from blockswarm.client.dashboard.timing import DashboardTiming
from blockswarm.client.dashboard.web.stream import MOST_STREAMS
from support.dashboards import ServedSite, served_site
from support.sightings import FACTS, known, seen, site_of

pytestmark = pytest.mark.long

TIMING = DashboardTiming(send=0.5, stream_pause=0.0)


@pytest.fixture(scope="module")
def served() -> Iterator[ServedSite]:
    crowd = seen(*(known(f"{index % 8}:{index % 8 + 1}", f"peer {index}") for index in range(600)))
    with served_site(site_of(crowd, timing=TIMING)) as site:
        yield site


def connected(
    served: ServedSite, target: str = "", *, receive_bytes: int | None = None, headers: str = ""
) -> socket.socket:
    """A connection that has asked for `target`, if any; `headers` are lines."""
    host, port = served.root.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.settimeout(60)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((host, int(port)))
    if target:
        connection.sendall(f"GET {target} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n".encode())
    return connection


def read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def one_ends(streams: Sequence[socket.socket]) -> bool:
    """Read from all until one has its last chunk; False if that does not come within a minute."""
    read = dict.fromkeys(streams, b"")
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        until = time.monotonic() + 60
        while not any(tail.endswith(b"\r\n0\r\n\r\n") for tail in read.values()):
            if time.monotonic() > until:
                return False
            for key, _ in selector.select(1.0):
                assert isinstance(key.fileobj, socket.socket)
                read[key.fileobj] = (read[key.fileobj] + key.fileobj.recv(1 << 16))[-7:]
    return True


def is_served(served: ServedSite) -> bool:
    with urllib.request.urlopen(served.root + "/api/v1/status", timeout=60) as response:
        return response.status == 200


def test_clients_that_take_nothing_are_dropped_and_others_are_served(served: ServedSite) -> None:
    """A whole answer does not fit into the buffers on the way: the server gives up, and the kernel hangs up."""
    with ExitStack() as stack:
        stuck = [stack.enter_context(connected(served, "/api/v1/peers", receive_bytes=4096)) for _ in range(20)]
        for connection in stuck:
            assert connection.recv(1)
        assert is_served(served)
        served.wait_connections(0)
        assert is_served(served)
        assert max(len(read_all(connection)) for connection in stuck) < 200_000


def test_streams_are_bounded(served: ServedSite) -> None:
    served.wait_no_streams()
    with ExitStack() as stack:
        streams = [stack.enter_context(connected(served, "/api/v1/stream")) for _ in range(MOST_STREAMS)]
        for stream in streams:
            assert stream.recv(12) == b"HTTP/1.1 200"
        with connected(served, "/api/v1/stream") as further:
            assert further.recv(12) == b"HTTP/1.1 503"
        assert is_served(served)


def test_an_address_that_holds_all_streams_gives_its_oldest_to_another(served: ServedSite) -> None:
    """A proxy of this machine names the address of each client."""
    served.wait_no_streams()
    with ExitStack() as stack:
        streams = [stack.enter_context(connected(served, "/api/v1/stream")) for _ in range(MOST_STREAMS)]
        for stream in streams:
            assert stream.recv(12) == b"HTTP/1.1 200"
        other = stack.enter_context(connected(served, "/api/v1/stream", headers="x-forwarded-for: 192.0.2.1\r\n"))
        assert other.recv(12) == b"HTTP/1.1 200"
        assert one_ends(streams)
        assert served.site.streams.count == MOST_STREAMS
        with connected(served, "/api/v1/stream") as further:
            assert further.recv(12) == b"HTTP/1.1 503"


def test_large_heads_and_bodies_and_nonsense_are_refused(served: ServedSite) -> None:
    for sent in (
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * (1 << 20),
        b"\x00\xff" * 1000 + b"\r\n\r\n",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\nconnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
    ):
        with connected(served) as connection:
            try:
                connection.sendall(sent)
            except (BrokenPipeError, ConnectionResetError):
                continue
            answer = read_all(connection)
            assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 405", b"HTTP/1.1 413", b"HTTP/1.1 414", b""), answer[:80]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(served.root + "/models/%00%ff", timeout=60)
    assert is_served(served)


def test_a_storm_of_different_questions_is_told_to_come_back_and_ends(served: ServedSite) -> None:
    with ExitStack() as stack:
        path = f"/models/{FACTS.id}/peers?q="
        asked = [stack.enter_context(connected(served, f"{path}{index}")) for index in range(300)]
        answers = [connection.recv(12) for connection in asked]
    assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    assert answers.count(b"HTTP/1.1 200") >= 64
    assert is_served(served)


def test_which_hosts_are_this_machine() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip
