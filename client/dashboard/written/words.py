"""Numbers and states in words, as pages show them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

FAILURES: Mapping[str, str] = {
    "peer-unavailable": "no peer answers",
    "deadline-exceeded": "the peers did not answer in time",
    "peer-busy": "the peers are full",
    "no-chain": "no chain of peers has all blocks",
    "session-lost": "the session was lost",
    "wrong-swarm": "the initial peers belong to another swarm, or speak another version of the protocol",
    "wrong-key": "the swarm is private, and the key is missing or another one",
    "authentication": "a peer's identity does not hold",
    "model-mismatch": "the initial peers serve another model",
    "clock-skew": "the clocks of this machine and of the peers disagree",
    "probe-ended": "the program that probes has ended",
}
"""Error codes in words for pages, because the errors' own texts may have addresses."""


def failure_words(code: str) -> str:
    return FAILURES.get(code, f"it failed ({code})")


def span_words(seconds: float) -> str:
    """Format a duration in its largest suitable unit: "3 s", "5 min", "2 h", "4 days"."""
    seconds = max(0.0, seconds)
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock_words(at_seconds: float) -> str:
    """Format a Unix time for people: "2027-01-15 08:00:00 UTC"."""
    return _utc(at_seconds).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso_time(at_seconds: float) -> str:
    """Format a Unix time for HTML's `datetime`."""
    return _utc(at_seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def _utc(at_seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_seconds, datetime.UTC)


def blocks_words(blocks: tuple[int, int] | None) -> str:
    """Format a half-open range: "3:8", or "none"."""
    return f"{blocks[0]}:{blocks[1]}" if blocks is not None else "none"


def count_words(count: int, noun: str) -> str:
    """Format a count with its noun: "1 peer", "2 peers"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def bytes_words(size: float) -> str:
    """Format a size: "1.5 GiB"."""
    for unit, each in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if size >= each:
            return f"{size / each:.1f} {unit}"
    return f"{size:.0f} B"


def percent_words(good: int, count: int) -> str:
    """Format a share: "99.6 %"; "100 %" and "0 %" only for all or none."""
    tenths = round(1000 * good / count)
    if good < count:
        tenths = min(tenths, 999)
    if good:
        tenths = max(tenths, 1)
    return f"{tenths / 10:.1f} %" if tenths % 1000 else f"{tenths // 10} %"
