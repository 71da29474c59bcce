"""A peer with something wrong in it: the product's own program, in which one thing is replaced before it starts.

    python -m benchlib.breaking.odd_peer KIND [SECONDS] -- ARGUMENTS OF swarm-peer

clock SECONDS       the clock is off by SECONDS from the start
set-clock SECONDS   the same from SIGUSR1 on
slow-load SECONDS   each load of other blocks than the first takes SECONDS longer
shape, nan, old     from SIGUSR1 on its outputs have a token too few, no numbers in the middle, or are a step of
                    another session

Python's clock is shifted, not the system's: that of the DHT daemon, and of TLS, stays right.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockswarm.proto.wire.frames import WireStep

begun = threading.Event()
"""Set by SIGUSR1."""


def off_clock(seconds: float, begins: bool) -> None:
    """Replace Python's clock; it has to come before the product takes hold of it."""
    right, right_ns = time.time, time.time_ns
    if begins:
        begun.set()
    time.time = lambda: right() + (seconds if begun.is_set() else 0.0)
    time.time_ns = lambda: right_ns() + (int(seconds * 1e9) if begun.is_set() else 0)


def slow_load(seconds: float) -> None:
    """Have every load beside the first one take longer; it can still be given up."""
    from blockswarm.peer import hosting

    def source(load: Callable[..., Any], hashes: Callable[..., Any]) -> Any:
        def slow(blocks: Any, reuse: Any, check: Callable[[], None]) -> Any:
            until = time.monotonic() + (seconds if reuse is not None else 0.0)
            while time.monotonic() < until:
                check()
                time.sleep(0.1)
            return load(blocks, reuse, check)

        return original(slow, hashes)

    original, node = hosting.BlockSource, sys.modules["blockswarm.peer.node"]
    node.BlockSource = source  # type: ignore[attr-defined]


def lie(change: Callable[[object, WireStep], WireStep]) -> None:
    """Change every step that goes out, to the client or to the next peer; given is also through what it goes."""
    from blockswarm.peer.session.outlet import ClientOutlet
    from blockswarm.peer.session.push import PushLink

    for kind, name in ((ClientOutlet, "step"), (PushLink, "send")):
        original = getattr(kind, name)

        async def changed(self: Any, step: WireStep, original: Callable[..., Any] = original) -> None:
            await original(self, change(self, step))

        setattr(kind, name, changed)


def a_token_too_few(_: object, step: WireStep) -> WireStep:
    return replace(step, data=step.data[: len(step.data) // 2]) if begun.is_set() else step


def no_numbers(_: object, step: WireStep) -> WireStep:
    """NaN as a float32 in the middle."""
    middle = len(step.data) // 8 * 4
    data = step.data[:middle] + b"\x00\x00\xc0\x7f" + step.data[middle + 4 :]
    return replace(step, data=data) if begun.is_set() else step


class OfAnotherSession:
    """The last step of an earlier session in place of each one."""

    def __init__(self) -> None:
        self._last: dict[int, WireStep] = {}

    def __call__(self, way: object, step: WireStep) -> WireStep:
        if not begun.is_set():
            self._last[id(way)] = step
            return step
        return next((other for key, other in self._last.items() if key != id(way)), step)


def main(arguments: list[str]) -> None:
    middle = arguments.index("--")
    (kind, *seconds), rest = arguments[:middle], arguments[middle + 1 :]
    signal.signal(signal.SIGUSR1, lambda *_: begun.set())
    if kind in ("clock", "set-clock"):
        off_clock(float(seconds[0]), begins=kind == "clock")
    from blockswarm.peer import cli, node  # noqa: F401 - the parts to be replaced

    if kind == "slow-load":
        slow_load(float(seconds[0]))
    elif kind in LIES:
        lie(LIES[kind])
    sys.argv = ["swarm-peer", *rest]
    cli.main()


LIES: dict[str, Callable[[object, WireStep], WireStep]] = {
    "shape": a_token_too_few,
    "nan": no_numbers,
    "old": OfAnotherSession(),
}

if __name__ == "__main__":
    main(sys.argv[1:])
