"""The key of a private swarm: what only its holders can name, prove and read."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from blockswarm.proto.directory.swarm_key import SwarmKey, swarm_key_name
from blockswarm.proto.errors import (
    UsageError,
)

DIGEST = hashlib.sha256(b"a model").hexdigest()
OTHER_DIGEST = hashlib.sha256(b"another model").hexdigest()
SWARM_KEY, OTHER_SWARM_KEY = SwarmKey.generate(), SwarmKey.generate()


def test_names_tell_models_and_swarms_apart() -> None:
    names = {
        swarm_key_name(digest, key) for digest in (DIGEST, OTHER_DIGEST) for key in (None, SWARM_KEY, OTHER_SWARM_KEY)
    }
    assert len(names) == 6
    assert not any(DIGEST in name for name in names - {swarm_key_name(DIGEST, None)})


def test_proofs_need_the_key_and_the_message() -> None:
    proof = SWARM_KEY.proof(b"session 1")
    assert SWARM_KEY.check(b"session 1", proof)
    assert not SWARM_KEY.check(b"session 2", proof)
    assert not OTHER_SWARM_KEY.check(b"session 1", proof)
    assert not SWARM_KEY.check(b"session 1", b"")


def test_swarm_key_file(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    SWARM_KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SwarmKey.load(path).check(b"m", SWARM_KEY.proof(b"m"))
    with pytest.raises(UsageError, match="exists"):
        OTHER_SWARM_KEY.save(path)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="0644"):
        SwarmKey.load(path)


@pytest.mark.parametrize("text", [b"", b"not base64!", b"QUJD", b"\xff" * 44, b"A" * 2000])
def test_what_is_no_swarm_key_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "swarm.key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="not a swarm key"):
        SwarmKey.load(path)


def test_missing_swarm_key_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        SwarmKey.load(tmp_path / "nothing")


def test_the_secret_is_not_shown() -> None:
    assert repr(SWARM_KEY) == "SwarmKey(...)"
