"""A client that finds no peer says why, if the initial peers know."""

from __future__ import annotations

import pytest
from blockswarm.client.swarm.absence import printable, raise_reason
from blockswarm.proto.errors import ClockSkew, ModelMismatch
from blockswarm.proto.wire.messages.calls import PingReply

MINE, OTHER = "a" * 64, "b" * 64


def status(digest: str, name: str = "") -> PingReply:
    return PingReply(model_digest=digest, model_name=name)


def test_another_model_is_named_if_all_serve_another_one() -> None:
    with pytest.raises(ModelMismatch, match=r"serve tiny \(bbbbbbbbbbbb\), not this model \(aaaaaaaaaaaa\)"):
        raise_reason([(status(OTHER, "ti\x1bny"), 0.0), (status(OTHER), 0.0)], MINE)
    with pytest.raises(ModelMismatch) as caught:
        raise_reason([(status("\x1b[2J\u202e" + OTHER), 0.0)], MINE)
    assert str(caught.value).isprintable(), "a digest, too, is what a peer says"
    raise_reason([(status(OTHER), 0.0), (status(MINE), 0.0)], MINE)
    raise_reason([(status(""), 0.0)], MINE)  # a private swarm says nothing


def test_a_clock_is_blamed_if_all_others_disagree_with_it() -> None:
    with pytest.raises(ClockSkew, match="clock is 40 s ahead of the clocks of the initial peers"):
        raise_reason([(status(MINE), -40.0), (status(MINE), -90.0)], MINE)
    raise_reason([(status(MINE), -40.0), (status(MINE), 0.1)], MINE)


def test_nobody_who_answers_knows_nothing() -> None:
    raise_reason([], MINE)


def test_what_a_peer_calls_its_model_is_harmless_on_a_terminal() -> None:
    assert printable("a\x1b[31m\n" + "b" * 200) == "a[31m" + "b" * 73
