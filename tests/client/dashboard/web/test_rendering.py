"""A body is made once for all that ask for it, and neither memory nor waiting grows without bound."""

from __future__ import annotations

import asyncio
import threading

import pytest
from blockswarm.client.dashboard.web.rendering import MOST_REMEMBERED_BYTES, MOST_WAITING, BodyMaker, Overloaded


def test_a_body_is_made_once_for_all_that_ask_meanwhile_and_remembered() -> None:
    made: list[int] = []
    go = threading.Event()

    def make() -> bytes:
        made.append(threading.get_ident())
        go.wait(60)
        return b"body"

    async def play() -> None:
        maker = BodyMaker()
        asking = [asyncio.create_task(maker.body("key", make)) for _ in range(10)]
        await asyncio.sleep(0)
        go.set()
        bodies = await asyncio.gather(*asking)
        assert {body.plain for body in bodies} == {b"body"}
        assert await maker.body("key", make) is bodies[0]

    asyncio.run(play())
    assert len(made) == 1
    assert made[0] != threading.get_ident(), "it is made off the loop"


def test_the_body_is_made_on_when_the_first_reader_is_gone() -> None:
    go = threading.Event()

    def make() -> bytes:
        go.wait(60)
        return b"body"

    async def play() -> None:
        maker = BodyMaker()
        first = asyncio.create_task(maker.body("key", make))
        second = asyncio.create_task(maker.body("key", make))
        await asyncio.sleep(0)
        first.cancel()
        go.set()
        assert (await second).plain == b"body"

    asyncio.run(play())


def test_an_error_is_told_to_all_and_not_remembered() -> None:
    def fail() -> bytes:
        raise KeyError("x")

    async def play() -> None:
        maker = BodyMaker()
        errors = await asyncio.gather(*(maker.body("key", fail) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [KeyError] * 3
        assert (await maker.body("key", lambda: b"x")).plain == b"x"

    asyncio.run(play())


def test_many_different_bodies_at_once_are_refused() -> None:
    go = threading.Event()

    async def play() -> None:
        maker = BodyMaker()

        def make() -> bytes:
            go.wait(60)
            return b""

        asking = [asyncio.create_task(maker.body(key, make)) for key in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await maker.body("another", make)
        go.set()
        await asyncio.gather(*asking)

    asyncio.run(play())


def test_old_bodies_are_forgotten() -> None:
    large, made = MOST_REMEMBERED_BYTES // 4, 0

    async def play() -> None:
        nonlocal made
        maker = BodyMaker()

        def make() -> bytes:
            nonlocal made
            made += 1
            return bytes(large)

        for key in (*range(5), 4, 0):
            await maker.body(key, make)

    asyncio.run(play())
    assert made == 6, "the last is remembered, the first is not"


def test_addresses_that_are_remembered_with_bodies_of_nothing_are_bounded_too() -> None:
    """A reader makes up addresses of two kilobytes as fast as they are answered, and every answer is "[]"."""
    most = MOST_REMEMBERED_BYTES // 2048
    made: list[int] = []

    async def play() -> None:
        maker = BodyMaker()
        for number in (*range(most), most - 1, 0):
            await maker.body(number, lambda number=number: made.append(number) or b"[]")  # type: ignore[misc]

    asyncio.run(play())
    assert made == [*range(most), 0], "the last is remembered, the first is not"


def test_bodies_are_packed_where_that_is_shorter() -> None:
    async def play() -> None:
        maker = BodyMaker()
        assert (await maker.body(1, lambda: b"short")).packed is None
        body = await maker.body(2, lambda: b"a" * 5000)
        assert body.packed is not None
        assert len(body.packed) < 100
        other = await maker.body(3, lambda: b"b" * 5000)
        assert other.etag != body.etag

    asyncio.run(play())
