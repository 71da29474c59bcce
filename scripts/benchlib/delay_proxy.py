"""A TCP proxy that delivers every byte later: a long line between two processes of one machine.

    python delay_proxy.py 0.025

listens on a free port of 127.0.0.1 and prints {"port": 31337}.  Then it is told on standard input where the line
leads, {"leads_to": 41337} for a port of 127.0.0.1, and answers {}.  Before that it closes connections: so nobody has to
guess a port that will be free later.

Bytes arrive in order, each the given number of seconds after they were sent, in both directions; how many are on the
way is not limited, so a long line is not a slow line.  A connection's set-up takes the round trip that TCP needs.
What a real line also has, and this one has not: loss, jitter, slow start, a limited bandwidth.

Ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial


class DelayLine:
    """The data on the way in one direction. Time arrives as an argument; seconds of any one clock."""

    def __init__(self, delay_seconds: float, opened_at: float = float("-inf")) -> None:
        """Nothing leaves the sender before `opened_at`, when the connection stands."""
        self._delay_seconds = delay_seconds
        self._opened_at = opened_at
        self._on_the_way: deque[tuple[float, bytes]] = deque()

    def send(self, data: bytes, now: float) -> float:
        """Put `data` on the line (empty: the end of the stream); returns when it will arrive."""
        arrives_at = max(now, self._opened_at) + self._delay_seconds
        self._on_the_way.append((arrives_at, data))
        return arrives_at

    def arrived(self, now: float) -> list[bytes]:
        """Take from the line, in order, what has arrived by `now`."""
        found = []
        while self._on_the_way and self._on_the_way[0][0] <= now:
            found.append(self._on_the_way.popleft()[1])
        return found


class _End(asyncio.Protocol):
    """One end of a proxied connection: what it receives goes over `line` to the `other` end."""

    def __init__(self, line: DelayLine, on_connected: Callable[[_End], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._line = line
        self._on_connected = on_connected
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        arrives_at = self._line.send(data, self._loop.time())
        self._loop.call_at(arrives_at, self._deliver, arrives_at)

    def eof_received(self) -> bool:
        self.data_received(b"")
        return True  # what is on the way in the other direction still arrives

    def connection_lost(self, exc: Exception | None) -> None:
        self.data_received(b"")

    def pause_writing(self) -> None:
        self._pace(lambda sender: sender.pause_reading())

    def resume_writing(self) -> None:
        self._pace(lambda sender: sender.resume_reading())

    def _pace(self, change: Callable[[asyncio.Transport], None]) -> None:
        """The receiver is slow: so is the sender, or its bytes would pile up here."""
        if self.other is not None and self.other.transport is not None:
            change(self.other.transport)

    def _deliver(self, now: float) -> None:
        receiver = self.other.transport if self.other is not None else None
        for data in self._line.arrived(now):
            if receiver is None or receiver.is_closing():
                continue
            if data:
                receiver.write(data)
            else:
                receiver.close()


class Line:
    """One listening port, and where it leads."""

    def __init__(self, delay_seconds: float) -> None:
        self.target_port: int | None = None
        self._delay_seconds = delay_seconds
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> int:
        """Begin to accept connections; returns the port."""
        loop = asyncio.get_running_loop()

        def make_client_end() -> _End:
            opened_at = loop.time() + 2 * self._delay_seconds
            return _End(DelayLine(self._delay_seconds, opened_at), self._accepted)

        server = await loop.create_server(make_client_end, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    def _accepted(self, client: _End) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: _End) -> None:
        assert client.transport is not None
        if self.target_port is None:
            client.transport.abort()
            return
        client.transport.pause_reading()
        try:
            _, server = await asyncio.get_running_loop().create_connection(
                lambda: _End(DelayLine(self._delay_seconds), lambda end: None), "127.0.0.1", self.target_port
            )
        except OSError:
            client.transport.abort()
            return
        client.other, server.other = server, client
        client.transport.resume_reading()


async def run(delay_seconds: float) -> None:
    """Carry the line, led as standard input says, until that is closed."""
    line = Line(delay_seconds)
    print(json.dumps({"port": await line.listen()}), flush=True)
    while told := await asyncio.to_thread(sys.stdin.readline):
        line.target_port = json.loads(told)["leads_to"]
        print("{}", flush=True)


def main(arguments: Sequence[str]) -> None:
    # epoll, asyncio's default, waits whole milliseconds; select waits microseconds.
    loop_factory = partial(asyncio.SelectorEventLoop, selectors.SelectSelector())
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run(float(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
