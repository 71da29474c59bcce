"""One rule gives the format of every link, from what the peers announce."""

from __future__ import annotations

import itertools

import pytest
from blockswarm.client.chain.formats import AUTO, check_wire_format, link_format
from blockswarm.proto.errors import UsageError
from blockswarm.proto.wire.precision import WIRE_FORMATS


@pytest.mark.parametrize(("streams", "links"), [
    (("float32",), ("float32", "float32")),
    (("bfloat16",), ("bfloat16", "bfloat16")),
    (("bfloat16", "float32"), ("bfloat16", "bfloat16", "float32")),
    (("float32", "bfloat16"), ("float32", "float32", "bfloat16")),
    (("float16", "bfloat16", "float32"), ("float16", "float16", "bfloat16", "float32")),
])  # fmt: skip
def test_every_peer_sends_its_stream_and_the_first_one_is_sent_it(
    streams: tuple[str, ...], links: tuple[str, ...]
) -> None:
    chain = (None, *streams, None)
    assert tuple(link_format(AUTO, *link) for link in itertools.pairwise(chain)) == links


@pytest.mark.parametrize("chosen", WIRE_FORMATS)
def test_a_chosen_format_is_that_of_all_links(chosen: str) -> None:
    for link in ((None, "float32"), ("float32", "bfloat16"), ("bfloat16", None)):
        assert link_format(chosen, *link) == chosen


def test_only_known_formats_can_be_chosen() -> None:
    for chosen in (AUTO, *WIRE_FORMATS):
        check_wire_format(chosen)
    with pytest.raises(UsageError, match="float12"):
        check_wire_format("float12")
