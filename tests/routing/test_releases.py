"""Room over time: when a need fits, and merged releases that never promise too much."""

from __future__ import annotations

import math

import pytest
from blockswarm.routing.releases import Room, merge_releases
from blockswarm.routing.swarm import KvRelease
from hypothesis import given
from hypothesis import strategies as st


def test_a_room_says_when_a_need_fits() -> None:
    room = Room(10, (KvRelease(105.0, 20), KvRelease(130.0, 5)))
    assert [room.wait_seconds(need, 100.0) for need in (10, 11, 30, 31, 36)] == [0.0, 5.0, 5.0, 30.0, math.inf]


def test_an_overdue_release_counts_as_due_now() -> None:
    assert Room(0, (KvRelease(90.0, 5),)).wait_seconds(5, 100.0) == 0.0


@pytest.mark.long
@given(
    steps=st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 1000)), max_size=200),
    max_count=st.integers(2, 40),
)
def test_merged_releases_never_promise_too_much(steps: list[tuple[float, int]], max_count: int) -> None:
    releases = [KvRelease(moment, count) for moment, count in sorted(steps)]
    merged = merge_releases(releases, max_count)
    assert len(merged) <= max_count
    assert sum(release.tokens for release in merged) == sum(release.tokens for release in releases)
    assert [release.at_seconds for release in merged] == sorted(release.at_seconds for release in merged)
    for moment in [release.at_seconds for release in (*releases, *merged)]:
        promised = sum(release.tokens for release in merged if release.at_seconds <= moment)
        assert promised <= sum(release.tokens for release in releases if release.at_seconds <= moment)
    assert merged[: max_count // 2] == tuple(releases[: max_count // 2])
