"""The secret of a private swarm, and the names under which public and private swarms are found.

In a private swarm the name is an HMAC under the swarm key and payloads are sealed (ChaCha20-Poly1305, RFC 8439; subkeys
by HKDF, RFC 5869), so a stranger that obtains a record can neither read it nor tell which model it is about.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from pathlib import Path

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...routing.swarm import PeerId
from ..errors import UsageError, WrongKey
from ..identity import create_secret_file, read_secret_file

_NONCE_BYTES = 12


class SwarmKey:
    """The secret that the members of a private swarm share; every use has its own subkey."""

    SECRET_BYTES = 32

    def __init__(self, secret: bytes) -> None:
        if len(secret) != self.SECRET_BYTES:
            raise ValueError(f"a swarm key has {self.SECRET_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self._proof_key = self.subkey(b"proof")
        self._name_key = self.subkey(b"name")
        self._seal = ChaCha20Poly1305(self.subkey(b"seal"))

    @classmethod
    def generate(cls) -> SwarmKey:
        return cls(os.urandom(cls.SECRET_BYTES))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SwarmKey:
        """Read a key file (base64 text, mode 0600). Raises UsageError if it is no such file."""
        text = read_secret_file(Path(path), max_bytes=1024)
        try:
            return cls(base64.b64decode(text.strip(), validate=True))
        except (binascii.Error, ValueError):
            raise UsageError(
                f"{path} is not a swarm key: it holds 32 bytes in base64",
                hint="Ask the owner of the private swarm for the key file.",
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a new key file. Raises UsageError if the file exists or cannot be written."""
        if not create_secret_file(Path(path), base64.b64encode(self._secret) + b"\n"):
            raise UsageError(f"{path} exists already", hint="Name a new file, or use the key that is there.")

    def subkey(self, purpose: bytes) -> bytes:
        """A key of 32 bytes for one purpose; one subkey reveals nothing about another."""
        return HKDF(SHA256(), length=32, salt=None, info=b"blockswarm-1 " + purpose).derive(self._secret)

    def proof(self, message: bytes) -> bytes:
        """32 bytes that only a holder of the key can make for `message`."""
        return hmac.digest(self._proof_key, message, "sha256")

    def check(self, message: bytes, proof: bytes) -> bool:
        """Whether `proof` is the proof for `message`."""
        return hmac.compare_digest(self.proof(message), proof)

    def name(self, public_name: str) -> str:
        """The name that members use in place of `public_name`."""
        return hmac.digest(self._name_key, public_name.encode(), "sha256").hex()

    def seal(self, payload: bytes, key: bytes, peer_id: PeerId) -> bytes:
        """Encrypt `payload`, 28 bytes longer, so that only members can open it, and only for that key and owner."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, payload, key + peer_id.encode())

    def open(self, sealed: bytes, key: bytes, peer_id: PeerId) -> bytes:
        """The payload in `sealed`. Raises WrongKey if it was not sealed with this key for that key and owner."""
        try:
            return self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], key + peer_id.encode())
        except (InvalidTag, ValueError):
            raise WrongKey(f"the record of {peer_id} is not sealed with this swarm's key") from None

    def __repr__(self) -> str:
        return "SwarmKey(...)"


def swarm_key_name(model_digest: str, swarm_key: SwarmKey | None) -> str:
    """The name under which the peers that serve a model are announced and looked up."""
    public_name = f"blockswarm/1/{model_digest}"
    return public_name if swarm_key is None else f"blockswarm/1/private/{swarm_key.name(public_name)}"


def dht_id(name: str) -> bytes:
    """The 20 bytes under which the DHT keeps `name` (hivemind: SHA-1 of the name in msgpack)."""
    return hashlib.sha1(msgpack.packb(name), usedforsecurity=False).digest()
