"""One key per node: its file, its id, its signatures, and TLS that is pinned to the id."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from pathlib import Path

import grpc
import pytest
from blockswarm.proto.errors import AuthenticationError, SwarmError, UsageError
from blockswarm.proto.identity import (
    Identity,
    LeafRenewer,
    public_key_of,
    synthetic_root_pem,
    tls_name,
    verify,
)
from blockswarm.proto.wire.timing import LEAF_LIFETIME_SECONDS
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

DAY = 86400.0


def test_key_file_is_private_and_gives_the_same_identity_again(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "identity"
    first = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Identity.load_or_create(path)
    assert again.peer_id == first.peer_id
    verify(first.peer_id, again.sign(b"message"), b"message")


def test_key_file_has_the_format_of_libp2p(tmp_path: Path) -> None:
    """The daemon of the DHT reads the same file and the same id; hivemind's own classes are the judge."""
    base58 = pytest.importorskip("base58")
    path = tmp_path / "identity"
    identity = Identity.load_or_create(path)
    content = path.read_bytes()
    assert content[:4] == b"\x08\x01\x12\x40"
    public = content[36:]
    assert base58.b58decode(identity.peer_id) == b"\x00\x24\x08\x01\x12\x20" + public
    assert public_key_of(identity.peer_id).public_bytes_raw() == public


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_key_file_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    Identity.load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="0640") as caught:
        Identity.load_or_create(path)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x00\x12\x40" + bytes(64), b"\x08\x01\x12\x40" + bytes(64), bytes(5000)]
)
def test_damaged_key_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not an Ed25519 identity file"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("where", ["folder", "below_a_file"])
def test_impossible_path_is_a_usage_error(tmp_path: Path, where: str) -> None:
    path = tmp_path / "folder"
    if where == "folder":
        path.mkdir()
    else:
        path.write_text("a file")
        path = path / "identity"
    with pytest.raises(UsageError):
        Identity.load_or_create(path)


def test_representation_does_not_show_the_key(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    identity = Identity.load_or_create(path)
    leaf = identity.tls_leaf(0.0)
    assert repr(identity) == f"Identity({identity.peer_id})"
    assert "PRIVATE" not in repr(leaf)


@given(data=st.binary(max_size=64), position=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_changed_signature_message_or_signer_does_not_verify(data: bytes, position: int, bit: int) -> None:
    alice, bob = ALICE, BOB
    signature = bytearray(alice.sign(data))
    verify(alice.peer_id, bytes(signature), data)
    signature[position] ^= 1 << bit
    for peer_id, forged, message in [
        (alice.peer_id, bytes(signature), data),
        (alice.peer_id, alice.sign(data), data + b"\0"),
        (bob.peer_id, alice.sign(data), data),
        (alice.peer_id, alice.sign(data)[:-1], data),
    ]:
        with pytest.raises(AuthenticationError):
            verify(peer_id, forged, message)


@given(text=st.one_of(st.text(max_size=60), st.text("123456789ABCDEFGHJKLMNPQRSTUVWXYZ", min_size=52, max_size=52)))
def test_what_is_no_peer_id_is_an_authentication_error(text: str) -> None:
    with pytest.raises(AuthenticationError):
        public_key_of(text)


def test_renewer_keeps_a_peer_reachable_for_a_year() -> None:
    """The clock is injected: at every hour the leaf handed out has at least half of its life before it."""
    now = 1.7e9
    renewer = LeafRenewer(ALICE, clock=lambda: now)
    seen = {renewer.leaf().certificate_chain_pem}
    for _ in range(366 * 24):
        now += 3600.0
        leaf = renewer.leaf()
        seen.add(leaf.certificate_chain_pem)
        assert leaf.not_after - now > LEAF_LIFETIME_SECONDS / 2 - 1
        certificate = x509.load_pem_x509_certificate(leaf.certificate_chain_pem)
        assert certificate.not_valid_before_utc.timestamp() <= now
    assert 24 <= len(seen) <= 26  # 366 days in steps of 15


def test_renewer_makes_nothing_while_the_leaf_is_young() -> None:
    now = 1.7e9
    renewer = LeafRenewer(ALICE, clock=lambda: now)
    assert renewer.renew_if_due() is None
    now += 16 * DAY
    fresh = renewer.renew_if_due()
    assert fresh is not None
    assert renewer.renew_if_due() is None
    assert renewer.leaf() is fresh


def test_renewer_follows_a_clock_that_is_set_back() -> None:
    """A machine that started with a clock a year ahead must not keep a leaf that is not valid yet."""
    now = 1.7e9 + 365 * DAY
    renewer = LeafRenewer(ALICE, clock=lambda: now)
    now -= 365 * DAY
    certificate = x509.load_pem_x509_certificate(renewer.leaf().certificate_chain_pem)
    assert certificate.not_valid_before_utc.timestamp() <= now


async def call_over_tls(server: Identity, *, expected: Identity, leaf_signed_by: Identity | None = None) -> bytes:
    """Serve with the leaf of `server`, call while expecting `expected`; returns the echo or raises AioRpcError."""
    now = time.time()
    leaf = (leaf_signed_by or server).tls_leaf(now)

    async def echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return request

    handler = grpc.method_handlers_generic_handler("t.Echo", {"Call": grpc.unary_unary_rpc_method_handler(echo)})
    grpc_server = grpc.aio.server()
    grpc_server.add_generic_rpc_handlers((handler,))
    credentials = grpc.ssl_server_credentials([(leaf.private_key_pem, leaf.certificate_chain_pem)])
    port = grpc_server.add_secure_port("127.0.0.1:0", credentials)
    await grpc_server.start()
    try:
        root = grpc.ssl_channel_credentials(synthetic_root_pem(expected.peer_id, now))
        options = [("grpc.ssl_target_name_override", tls_name(expected.peer_id))]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", root, options=options) as channel:
            return await channel.unary_unary("/t.Echo/Call")(b"hello", timeout=20)
    finally:
        await grpc_server.stop(None)


def test_tls_accepts_the_owner_of_the_peer_id() -> None:
    assert asyncio.run(call_over_tls(ALICE, expected=ALICE)) == b"hello"


def test_tls_refuses_everybody_else() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(call_over_tls(BOB, expected=ALICE))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_tls_refuses_a_leaf_that_only_bears_the_name() -> None:
    """The forger takes Alice's names but can only sign with his own key."""
    forger = Identity.generate()
    forger.peer_id = ALICE.peer_id
    with pytest.raises(grpc.aio.AioRpcError):
        asyncio.run(call_over_tls(BOB, expected=ALICE, leaf_signed_by=forger))


def test_errors_here_are_of_the_one_tree(tmp_path: Path) -> None:
    with pytest.raises(SwarmError) as caught:
        synthetic_root_pem("nobody", 0.0)  # type: ignore[arg-type]
    assert caught.value.code == "authentication"
    assert caught.value.hint


ALICE, BOB = Identity.generate(), Identity.generate()
