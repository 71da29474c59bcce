"""A long line in front of one peer: `delay_proxy.py` as a process, and the options of the peer behind it."""

from __future__ import annotations

from pathlib import Path

from .processes import SCRIPTS, Child, listening_port


class LongLine:
    """Every byte takes half of `rtt_seconds`, in each direction. Also a context manager."""

    def __init__(self, rtt_seconds: float, log: Path) -> None:
        self._proxy = Child(SCRIPTS / "benchlib" / "delay_proxy.py", str(rtt_seconds / 2), log=log)
        self._port = self._proxy.read()["port"]

    @property
    def options(self) -> tuple[str, ...]:
        """Those of the peer. Nobody is asked whether it is reached: the line leads nowhere before the peer is ready."""
        return "--announce", f"127.0.0.1:{self._port}", "--reach", "direct"

    def lead_to(self, peer: Child) -> None:
        """Lead to the port on which a peer that is ready listens."""
        self._proxy.ask(leads_to=listening_port(peer.pid))

    def end(self) -> None:
        self._proxy.end()

    def __enter__(self) -> LongLine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()
