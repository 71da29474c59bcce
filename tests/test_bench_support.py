"""The long line of the benchmarks: the bytes stay what they are, and none of them comes early."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.benchlib import SCRIPTS, benchlib

PROXY = SCRIPTS / "benchlib" / "delay_proxy.py"
DELAY_SECONDS = 0.02


delay_proxy = benchlib("delay_proxy")


@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4))), st.floats(0, 2), st.floats(0, 2))
def test_everything_arrives_in_order_when_it_is_due(
    sent: list[tuple[float, bytes]], delay: float, opened_at: float
) -> None:
    """Each piece is due `delay` after it was sent, however many are on the way: a line is not a queue."""
    line, now, due = delay_proxy.DelayLine(delay, opened_at), 0.0, []
    for pause, data in sent:
        now += pause
        due.append(max(now, opened_at) + delay)
        assert line.send(data, now) == due[-1]
    for moment in sorted(set(due)):
        assert line.arrived(math.nextafter(moment, -math.inf)) == []
        assert line.arrived(moment) == [data for when, (_, data) in zip(due, sent, strict=True) if when == moment]
    assert line.arrived(math.inf) == []


@asynccontextmanager
async def proxied(port: int | None) -> AsyncIterator[int]:
    """A proxy in a process of its own, as the benchmarks use it; yields the port to connect to."""
    arguments = [str(PROXY), str(DELAY_SECONDS)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        listening = json.loads(await process.stdout.readline())["port"]
        if port is not None:
            process.stdin.write(json.dumps({"leads_to": port}).encode() + b"\n")
            assert json.loads(await process.stdout.readline()) == {}
        yield listening
    finally:
        process.stdin.close()
        await process.wait()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


def test_a_round_trip_takes_the_delay_twice_and_changes_no_byte() -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with asyncio.timeout(60), server, proxied(server.sockets[0].getsockname()[1]) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                started = time.perf_counter()
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
                assert time.perf_counter() - started >= 2 * DELAY_SECONDS
            content = random.Random(0).randbytes(8 << 20)
            writer.write(content)
            assert await reader.readexactly(len(content)) == content
            writer.close()

    asyncio.run(main())


def test_a_connection_takes_a_round_trip_to_set_up() -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with asyncio.timeout(60), server, proxied(server.sockets[0].getsockname()[1]) as port:
            started = time.perf_counter()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            assert time.perf_counter() - started >= 4 * DELAY_SECONDS
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("told", [True, False])
def test_a_line_that_leads_nowhere_closes_the_connection(told: bool) -> None:
    """To a port where nobody listens, or before it is told where it leads."""

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        async with asyncio.timeout(60), proxied(port if told else None) as listening:
            reader, writer = await asyncio.open_connection("127.0.0.1", listening)
            try:
                received = await reader.read()
            except ConnectionResetError:
                received = b""
            assert received == b""
            writer.close()

    asyncio.run(main())


def test_making_the_environment_leaves_standard_output_to_the_script() -> None:
    """Its answer may be JSON that another program reads."""
    code = (
        "import bootstrap; bootstrap.say('the environment is ready');"
        "bootstrap.announce({'torch': '2.13.0', 'numpy': '2.3.0'}, 'cpu', True);"
        "bootstrap.PYTHON = __import__('sys').executable; bootstrap.pip('--version')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "the environment is ready" in done.stderr
    assert "numpy 2.3.0" in done.stderr
    assert "pip " in done.stderr
