"""The history of a model: the outcomes of its probes over a day, a week or a month, in equal buckets of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....proto.errors import UsageError
from ..history.entries import Bucket, NumberedEvent


@dataclass(frozen=True, slots=True)
class Span:
    """A period of history that can be shown, up to now."""

    name: str
    title: str
    buckets: int
    bucket_seconds: float


SPANS: Mapping[str, Span] = {
    span.name: span
    for span in (
        Span("24h", "24 hours", 96, 900.0),
        Span("7d", "7 days", 84, 7200.0),
        Span("30d", "30 days", 90, 28800.0),
    )
}


UNREAD = "the history cannot be read"


def parse_span(text: str) -> Span:
    """Return the span of this name; "" is a day. Raises UsageError."""
    span = SPANS.get(text or "24h")
    if span is None:
        raise UsageError(f"span must be one of {', '.join(SPANS)}")
    return span


@dataclass(frozen=True, slots=True)
class HistoryBoard:
    """The history of one model over one span."""

    model: str
    span: str
    bucket_seconds: float
    buckets: tuple[Bucket, ...] | None
    """The oldest first, without gaps; this and the next three are None if the history cannot be read."""
    probes: int | None
    good_probes: int | None
    events: tuple[NumberedEvent, ...] | None
    """The newest first."""
    trouble: str | None
    """Why the history cannot be written or read, in words."""
    trouble_since: float | None
    """Unix time, if known."""
    replaced: str | None
    """The name of a damaged file that was renamed."""


def history_board(
    model: str, span: Span, buckets: Sequence[Bucket] | None, events: Sequence[NumberedEvent] | None,
    trouble: tuple[str, float | None] | None, replaced: str | None,
) -> HistoryBoard:  # fmt: skip
    """Build the board; `buckets` and `events` are None if they cannot be read."""
    if buckets is None or events is None:
        trouble = trouble or (UNREAD, None)
    return HistoryBoard(
        model=model,
        span=span.name,
        bucket_seconds=span.bucket_seconds,
        buckets=tuple(buckets) if buckets is not None else None,
        probes=sum(bucket.probes for bucket in buckets) if buckets is not None else None,
        good_probes=sum(bucket.good_probes for bucket in buckets) if buckets is not None else None,
        events=tuple(events) if events is not None else None,
        trouble=trouble[0] if trouble is not None else None,
        trouble_since=trouble[1] if trouble is not None else None,
        replaced=replaced,
    )
