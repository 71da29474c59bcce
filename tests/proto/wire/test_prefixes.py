"""Digests of pages are packed and cut again; a client cannot name more than it has reserved."""

from __future__ import annotations

import pytest
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.prefixes import DIGEST_BYTES, PAGE_TOKENS, check_prefixes, pack_digests, unpack_digests
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.lists(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES), max_size=3).map(tuple), max_size=4))
def test_prefixes_arrive_as_they_were_sent(prefixes: list[tuple[bytes, ...]]) -> None:
    packed = pack_digests(prefixes)
    check_prefixes(packed, sum(map(len, prefixes)) * PAGE_TOKENS, len(prefixes))
    assert list(unpack_digests(packed)) == prefixes


@pytest.mark.parametrize(
    ("digests", "kv_tokens", "max_rows"),
    [
        ([bytes(DIGEST_BYTES)] * 2, 2 * PAGE_TOKENS - 1, 4),
        ([bytes(3 * DIGEST_BYTES)], 2 * PAGE_TOKENS, 4),
        ([b"", b""], 1000, 1),
    ],
)
def test_impossible_prefixes_are_refused(digests: list[bytes], kv_tokens: int, max_rows: int) -> None:
    with pytest.raises(RemoteProtocolError):
        check_prefixes(digests, kv_tokens, max_rows)
