"""The client keeps float32, whatever travels; what is no activation is refused in the format that it came in."""

from __future__ import annotations

import pytest
import torch
from blockswarm.client.codec import FloatCodec
from blockswarm.proto.errors import RemoteProtocolError
from blockswarm.proto.wire.precision import STREAM_FORMATS, WIRE_FORMATS
from blockswarm.proto.wire.tensors import DTYPES

HIDDEN = 70
CODEC = FloatCodec(HIDDEN)


def random_tokens(count: int = 3) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1))


def of(data: bytes, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype).view(-1, HIDDEN)


@pytest.mark.parametrize("name", STREAM_FORMATS)
def test_what_a_stream_of_that_dtype_holds_travels_unchanged(name: str) -> None:
    sent = random_tokens().to(DTYPES[name])
    own = CODEC.decode(sent.view(torch.uint8).numpy().tobytes(), name)
    assert torch.equal(of(own), sent.float())
    assert torch.equal(of(CODEC.encode(own, name), DTYPES[name]), sent)


@pytest.mark.parametrize("name", STREAM_FORMATS)
def test_what_a_first_peer_is_sent_is_what_it_would_round_to(name: str) -> None:
    own = random_tokens()
    sent = CODEC.encode(own.numpy().tobytes(), name)
    assert torch.equal(of(sent, DTYPES[name]), own.to(DTYPES[name]))
    assert len(sent) == 3 * CODEC.link_bytes(name)


@pytest.mark.parametrize("name", WIRE_FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    """Also an infinite one of this client's own: it must not become the largest number of a format on its way."""
    tokens = random_tokens()
    tokens[1, HIDDEN - 1] = value
    sent = CODEC.encode(tokens.numpy().tobytes(), name)
    for take in (CODEC.check, CODEC.decode):
        with pytest.raises(RemoteProtocolError):
            take(sent, name)


@pytest.mark.parametrize("name", WIRE_FORMATS)
def test_a_lost_guess_is_taken_at_the_end_and_nowhere_else(name: str) -> None:
    tokens = random_tokens(4)
    tokens[2:] = float("nan")
    sent = CODEC.encode(tokens.numpy().tobytes(), name)
    CODEC.check(sent, name, guesses=2)
    assert CODEC.finite_tokens(CODEC.decode(sent, name, guesses=2)) == 2
    for take in (CODEC.check, CODEC.decode):
        with pytest.raises(RemoteProtocolError):
            take(sent, name, guesses=1)


def test_nothing_is_nothing_in_every_format() -> None:
    assert all(CODEC.decode(CODEC.encode(b"", name), name) == b"" for name in WIRE_FORMATS)
