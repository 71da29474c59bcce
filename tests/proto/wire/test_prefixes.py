"""Digests of pages survive the wire; a client cannot name more than it has reserved."""

from __future__ import annotations

import pytest
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.prefixes import DIGEST_BYTES, PAGE_TOKENS, decode_prefixes, encode_prefixes
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.lists(st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES), max_size=3).map(tuple), max_size=4))
def test_prefixes_arrive_as_they_were_sent(prefixes: list[tuple[bytes, ...]]) -> None:
    message = pb.Open.FromString(pb.Open(prefixes=encode_prefixes(prefixes)).SerializeToString())
    pages = sum(map(len, prefixes))
    assert list(decode_prefixes(message.prefixes, pages * PAGE_TOKENS, len(prefixes))) == prefixes


@pytest.mark.parametrize(
    ("digests", "kv_tokens", "max_rows"),
    [
        ([bytes(DIGEST_BYTES - 1)], 1000, 4),
        ([bytes(DIGEST_BYTES + 1)], 1000, 4),
        ([bytes(DIGEST_BYTES)] * 2, 2 * PAGE_TOKENS - 1, 4),
        ([bytes(3 * DIGEST_BYTES)], 2 * PAGE_TOKENS, 4),
        ([b"", b""], 1000, 1),
    ],
)
def test_impossible_prefixes_are_refused(digests: list[bytes], kv_tokens: int, max_rows: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_prefixes([pb.Prefix(digests=row) for row in digests], kv_tokens, max_rows)
