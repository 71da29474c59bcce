"""One rule gives the format of every link, from what the peers announce."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from blockswarm.client.chain.formats import AUTO, Links, check_wire_format, link_format
from blockswarm.client.codec import FloatCodec
from blockswarm.proto.errors import RemoteProtocolError, UsageError
from blockswarm.proto.wire.frames import WireStep
from blockswarm.proto.wire.precision import WIRE_FORMATS
from blockswarm.proto.wire.steps import RowSlice, StepPlan


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


@pytest.mark.parametrize(
    ("answers", "finite", "lost"), [((3, 2), 3, 2), ((3, 2), 5, 0), ((3, 2), 4, 1), ((1, 1), 0, 0)]
)
def test_the_lost_guesses_of_an_operation_are_at_its_end(answers: tuple[int, int], finite: int, lost: int) -> None:
    """Its last steps may consist of guesses only. Where not all guesses are answered, nobody knows."""
    first = StepPlan((RowSlice(0, 4, 3, answers[0]),), guessed=1)
    steps = (first, StepPlan((RowSlice(0, 7, 2, answers[1]),), guessed=2))
    tokens = torch.zeros(sum(answers), 4)
    tokens[finite:] = torch.nan
    packed = [part.numpy().tobytes() for part in tokens.split(answers)]
    assert Links(AUTO, FloatCodec(4)).lost_guesses(steps, packed) == lost


def test_the_lost_guesses_of_any_hop_are_taken() -> None:
    links, peer = Links(AUTO, FloatCodec(4)), SimpleNamespace(stream_format="float16")
    plan = StepPlan((RowSlice(0, 4, 3, 2),), guessed=1)
    for last, lost, taken in ((False, [2], True), (False, [1, 2], False), (True, [1], True), (True, [0, 1], False)):
        tokens = torch.zeros(plan.answers if last else plan.tokens, 4, dtype=torch.float16)
        tokens[lost] = torch.nan
        step = WireStep(1, 1, plan, tokens.numpy().tobytes(), acked_seq=0, timeout_seconds=1.0)
        take = links.taking_from(peer, last)  # type: ignore[arg-type]
        with nullcontext() if taken else pytest.raises(RemoteProtocolError):
            take(step)
