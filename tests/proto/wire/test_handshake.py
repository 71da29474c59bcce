"""Hellos and capabilities: each says one thing, to one peer, for a while."""

from __future__ import annotations

import dataclasses

import pytest
from blockswarm.proto import swarm_pb2 as pb
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.errors import (
    AuthenticationError,
    ClockSkew,
    ModelMismatch,
    RemoteProtocolError,
    SwarmError,
    WrongKey,
    WrongSwarm,
)
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.handshake import (
    PROTOCOL_VERSION,
    Grant,
    HelloChecker,
    check_capability,
    check_protocol_of,
    sign_capability,
    sign_hello,
)
from blockswarm.proto.wire.messages.opening import Signed
from blockswarm.proto.wire.timing import HELLO_CLOCK_SKEW_SECONDS
from blockswarm.routing.swarm import BlockRange

NOW = 1_800_000_000.0
SESSION = bytes(range(16))
CLIENT, PEER, OTHER = Identity.generate(), Identity.generate(), Identity.generate()


def checker(swarm_key: SwarmKey | None = None, now: float = NOW, allowed: tuple[str, ...] = ()) -> HelloChecker:
    return HelloChecker(PEER.peer_id, lambda: now, swarm_key, allowed)


def test_a_hello_proves_its_sender_once() -> None:
    hello = sign_hello(CLIENT, PEER.peer_id, SESSION, NOW, None)
    peer = checker()
    assert peer.check(hello) == (CLIENT.peer_id, SESSION)
    with pytest.raises(AuthenticationError, match="used before"):
        peer.check(hello)


def test_a_hello_for_another_peer_is_refused() -> None:
    with pytest.raises(AuthenticationError, match="another peer"):
        checker().check(sign_hello(CLIENT, OTHER.peer_id, SESSION, NOW, None))


@pytest.mark.parametrize("offset", [-HELLO_CLOCK_SKEW_SECONDS - 1, HELLO_CLOCK_SKEW_SECONDS + 1])
def test_a_hello_of_another_time_is_a_clock_problem(offset: float) -> None:
    told = f"the caller's clock is 31 s {'behind' if offset < 0 else 'ahead of'} the peer's"
    with pytest.raises(ClockSkew, match=told):
        checker().check(sign_hello(CLIENT, PEER.peer_id, SESSION, NOW + offset, None))


def test_a_hello_of_no_time_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        checker().check(sign_hello(CLIENT, PEER.peer_id, SESSION, float("nan"), None))


def test_a_changed_or_foreign_hello_is_refused() -> None:
    hello = sign_hello(CLIENT, PEER.peer_id, SESSION, NOW, None)
    for forged in (
        Signed(payload=hello.payload + b"\0", signer=hello.signer, signature=hello.signature),
        Signed(payload=hello.payload, signer=OTHER.peer_id, signature=hello.signature),
        Signed(payload=hello.payload, signer="nobody", signature=hello.signature),
        Signed(),
    ):
        with pytest.raises(SwarmError):
            checker().check(forged)


def test_a_private_swarm_wants_its_key_or_a_known_id() -> None:
    key = SwarmKey.generate()
    assert checker(key).check(sign_hello(CLIENT, PEER.peer_id, SESSION, NOW, key))
    for wrong in (None, SwarmKey.generate()):
        with pytest.raises(WrongKey):
            checker(key).check(sign_hello(CLIENT, PEER.peer_id, SESSION, NOW, wrong))
    assert checker(key, allowed=(CLIENT.peer_id,)).check(sign_hello(CLIENT, PEER.peer_id, SESSION, NOW, None))


def test_another_protocol_is_another_swarm() -> None:
    payload = pb.Hello(peer_id=PEER.peer_id, protocol=99).SerializeToString()
    signature = CLIENT.sign(b"blockswarm-hello-1\0" + payload)
    signed = Signed(payload=payload, signer=CLIENT.peer_id, signature=signature)
    for check_version in (checker().check, check_protocol_of):
        with pytest.raises(WrongSwarm, match=rf"protocol {PROTOCOL_VERSION} .* 99\b"):
            check_version(signed)


def test_nonces_are_forgotten_when_the_hello_could_not_be_used_anyway() -> None:
    now, elapsed = NOW, 0.0
    peer = HelloChecker(PEER.peer_id, lambda: now, None, monotonic=lambda: elapsed)
    for number in range(50):
        peer.check(sign_hello(CLIENT, PEER.peer_id, SESSION, now, None))
        now += 10 if number != 25 else -3600  # the clock is set back
        elapsed += 10
    assert peer.remembered_nonces <= 2 * HELLO_CLOCK_SKEW_SECONDS / 10 + 2


def test_a_hello_is_good_once_also_where_the_clock_is_set_ahead_and_back() -> None:
    """By the clock that was ahead for a moment, all nonces were old enough to be forgotten."""
    now = NOW
    peer = HelloChecker(PEER.peer_id, lambda: now, None, monotonic=lambda: 0.0)
    hello = sign_hello(CLIENT, PEER.peer_id, SESSION, NOW, None)
    peer.check(hello)
    now += 3600
    for _ in range(5):
        peer.check(sign_hello(CLIENT, PEER.peer_id, SESSION, now, None))
    now -= 3600
    with pytest.raises(AuthenticationError, match="used before"):
        peer.check(hello)


GRANT = Grant(
    session_id=SESSION, epoch=3, client=CLIENT.peer_id, peer=PEER.peer_id, blocks=BlockRange(2, 5), kv_tokens=100,
    max_rows=4, predecessor=None, successor=OTHER.peer_id, wire_format="bfloat16", input_format="float32",
    expires_at_seconds=NOW + 60, model_digest="aa", prompt_tokens=40,
)  # fmt: skip


def check(signed: Signed) -> Grant:
    return check_capability(
        signed, client=CLIENT.peer_id, session_id=SESSION, me=PEER.peer_id, model_digest="aa", max_rows=16, now=NOW
    )


def test_a_capability_says_exactly_what_the_client_granted() -> None:
    assert check(sign_capability(CLIENT, GRANT)) == GRANT


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"peer": OTHER.peer_id}, AuthenticationError),
        ({"session_id": bytes(16)}, AuthenticationError),
        ({"expires_at_seconds": NOW - 1}, AuthenticationError),
        ({"expires_at_seconds": NOW + 1e9}, AuthenticationError),
        ({"expires_at_seconds": float("nan")}, RemoteProtocolError),
        ({"model_digest": "bb"}, ModelMismatch),
        ({"kv_tokens": 0}, RemoteProtocolError),
        ({"kv_tokens": 1 << 40}, RemoteProtocolError),
        ({"max_rows": 0}, RemoteProtocolError),
        ({"max_rows": 17}, RemoteProtocolError),
        ({"prompt_tokens": 101}, RemoteProtocolError),
        ({"successor": "nobody"}, AuthenticationError),
        ({"wire_format": "auto"}, RemoteProtocolError),
        ({"input_format": ""}, RemoteProtocolError),
        ({"input_format": "float64"}, RemoteProtocolError),
    ],
)
def test_what_a_capability_must_not_say(changes: dict[str, object], error: type[SwarmError]) -> None:
    with pytest.raises(error):
        check(sign_capability(CLIENT, dataclasses.replace(GRANT, **changes)))


def test_only_the_client_of_the_session_can_grant() -> None:
    with pytest.raises(AuthenticationError):
        check(sign_capability(OTHER, GRANT))
    with pytest.raises(AuthenticationError):
        check(dataclasses.replace(sign_capability(OTHER, GRANT), signer=CLIENT.peer_id))
