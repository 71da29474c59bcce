"""One Ed25519 key per node: its peer id, its signatures, and the anchor of its TLS certificates.

* The key file has the format of libp2p (protobuf {type=Ed25519, data=seed||public}), so that the DHT daemon uses the
  same key and reports the same peer id.
* A peer id is the base58 form of the "identity" multihash, so it contains the public key: a node that knows
  the id can check signatures, without a directory of keys.
* TLS cannot use Ed25519 leaves here (BoringSSL offers no such signature scheme), so a node makes short-lived P-256
  leaves and signs them with its identity.  The other side trusts a root that it synthesises from the peer id alone:
  the signature of a trust anchor is never checked, only its name and public key are used (RFC 5280, section 6.1.1).
"""

from __future__ import annotations

import datetime
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..routing.swarm import PeerId
from .base58 import base58_decode, base58_encode
from .errors import AuthenticationError, UsageError
from .wire.timing import LEAF_LIFETIME_SECONDS, ROOT_LIFETIME_SECONDS

SIGNATURE_BYTES = 64

_ALWAYS = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
"""Start of validity of every certificate: a clock that is behind is then reported as that, not as a wrong identity."""

_PRIVATE_PREFIX = b"\x08\x01\x12\x40"  # protobuf: field 1 (type) = Ed25519, field 2 (data) of 64 bytes
_PUBLIC_PREFIX = b"\x00\x24\x08\x01\x12\x20"  # identity multihash of 36 bytes: type = Ed25519, data of 32 bytes
_PEER_ID_CHARS = 52  # the length of every such id: the prefix fixes the leading digits "12D3KooW"


@dataclass(frozen=True, slots=True)
class TlsLeaf:
    """The certificate and key that a TLS server presents; `not_after` is the end of its validity in Unix seconds."""

    certificate_chain_pem: bytes
    private_key_pem: bytes = field(repr=False)
    not_after: float


class Identity:
    """A node's key pair. The private key leaves this object only into the key file."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        public = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.peer_id: PeerId = PeerId(base58_encode(_PUBLIC_PREFIX + public))

    @classmethod
    def generate(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Identity:
        """Read the key file, or create one with mode 0600 if there is none.

        Raises UsageError if the file is readable by others, is not an Ed25519 key file, or cannot be read or written.
        """
        path = Path(path)
        if not path.exists():
            identity = cls.generate()
            if create_secret_file(path, identity._to_file()):
                return identity
        return cls._from_file(path, read_secret_file(path, max_bytes=4096))

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) of `data`; callers begin `data` with a tag that names its purpose."""
        return self._private_key.sign(data)

    def tls_leaf(self, now: float) -> TlsLeaf:
        """A fresh P-256 key and its certificate, signed by this identity, valid for 30 days after `now` (Unix s)."""
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _certificate(f"{self.peer_id}-tls", self.peer_id, leaf_key.public_key(), now, LEAF_LIFETIME_SECONDS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(tls_name(self.peer_id))]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._private_key, None)
        )
        return TlsLeaf(
            certificate_chain_pem=certificate.public_bytes(Encoding.PEM),
            private_key_pem=leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            not_after=certificate.not_valid_after_utc.timestamp(),
        )

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def _to_file(self) -> bytes:
        seed = self._private_key.private_bytes_raw()
        return _PRIVATE_PREFIX + seed + self._private_key.public_key().public_bytes_raw()

    @classmethod
    def _from_file(cls, path: Path, data: bytes) -> Identity:
        if len(data) == 68 and data.startswith(_PRIVATE_PREFIX):
            private_key = Ed25519PrivateKey.from_private_bytes(data[4:36])
            if private_key.public_key().public_bytes_raw() == data[36:]:
                return cls(private_key)
        raise UsageError(
            f"{path} is not an Ed25519 identity file ({len(data)} bytes)",
            hint="Name another file, or move this one away: if there is none, a new identity is created.",
        )


class LeafRenewer:
    """Hands out a TLS leaf that is never older than half its life; safe to call from any thread.

    `clock` gives Unix seconds.
    """

    def __init__(self, identity: Identity, clock: Callable[[], float]) -> None:
        self._identity = identity
        self._clock = clock
        self._lock = threading.Lock()
        self._issue(clock())

    def leaf(self) -> TlsLeaf:
        """The current leaf: a fresh one if half of the old one's life is over, or the clock was set by as much."""
        self.renew_if_due()
        return self._leaf

    def renew_if_due(self) -> TlsLeaf | None:
        """A fresh leaf if one was due, else None (as `grpc.dynamic_ssl_server_credentials` requires)."""
        now = self._clock()
        with self._lock:
            if abs(now - self._issued_at_seconds) < LEAF_LIFETIME_SECONDS / 2:
                return None
            self._issue(now)
            return self._leaf

    def _issue(self, now: float) -> None:
        self._leaf = self._identity.tls_leaf(now)
        self._issued_at_seconds = now


def public_key_of(peer_id: str) -> Ed25519PublicKey:
    """The public key inside a peer id. Raises AuthenticationError if it is not the id of an Ed25519 key."""
    if not isinstance(peer_id, str) or len(peer_id) != _PEER_ID_CHARS:
        raise AuthenticationError("not a peer id: it has 52 characters and begins with 12D3KooW")
    return _public_key(peer_id)


def verify(peer_id: str, signature: bytes, data: bytes) -> None:
    """Check that the owner of `peer_id` signed `data`. Raises AuthenticationError if not."""
    try:
        public_key_of(peer_id).verify(signature, data)
    except InvalidSignature:
        raise AuthenticationError(f"the signature is not by peer {peer_id}") from None


def tls_name(peer_id: PeerId) -> str:
    """The DNS name in the certificates of that peer, for `grpc.ssl_target_name_override`."""
    return f"{peer_id.lower()}.peer"


def synthetic_root_pem(peer_id: PeerId, now: float) -> bytes:
    """A trust anchor (PEM) under which exactly the TLS leaves of `peer_id` verify; `now` in Unix seconds.

    Raises AuthenticationError if `peer_id` is not the id of an Ed25519 key.
    """
    return (
        _certificate(peer_id, peer_id, public_key_of(peer_id), now, ROOT_LIFETIME_SECONDS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())  # any key: this signature is never checked
        .public_bytes(Encoding.PEM)
    )


def create_secret_file(path: Path, content: bytes) -> bool:
    """Write `content` to a new file of mode 0600; False if another process created it first.

    Raises UsageError if it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise UsageError(
            f"cannot create {path}: {error.strerror}",
            hint="Name a file in a folder that you own; for a peer, set the folder with --data.",
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="Free some disk space.") from error
    return True


def read_secret_file(path: Path, max_bytes: int) -> bytes:
    """Read at most the first `max_bytes` of a file that only its owner may read.

    Raises UsageError if it is not a regular file, can be read by others, or cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UsageError(f"{path} is not a regular file", hint="Name a key file.")
            if os.name == "posix" and mode & 0o077:
                raise UsageError(
                    f"{path} can be read by others (mode {stat.S_IMODE(mode):04o})",
                    hint=f"Run `chmod 600 {path}`; if others have had access, make a new key.",
                )
            return file.read(max_bytes)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="Name a key file that you may read.") from error


@lru_cache(maxsize=4096)
def _public_key(peer_id: str) -> Ed25519PublicKey:
    try:
        raw = base58_decode(peer_id, num_bytes=len(_PUBLIC_PREFIX) + 32)
    except ValueError:
        raise AuthenticationError("not a peer id: it is not base58") from None
    if not raw.startswith(_PUBLIC_PREFIX):
        raise AuthenticationError("not a peer id of an Ed25519 key")
    return Ed25519PublicKey.from_public_bytes(raw[len(_PUBLIC_PREFIX) :])


def _certificate(
    subject: str, issuer: str, public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey, now: float, lifetime: float
) -> x509.CertificateBuilder:
    def name(common_name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])

    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_ALWAYS)
        .not_valid_after(datetime.datetime.fromtimestamp(now + lifetime, datetime.UTC))
    )
