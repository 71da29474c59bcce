"""Keys: who is known, and which files are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from blockswarm.client.api.access.keys import KeyEntry, Keys, add_key, read_keys
from blockswarm.client.api.openai.errors import ApiError
from blockswarm.proto.errors import UsageError

HASH = hashlib.sha256(b"secret").hexdigest()


def clock() -> float:
    return 0.0


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer other", "Basic secret", "secret", "Bearer secret secret", "Bearer \udcff"],
)
def test_a_request_without_a_known_key_is_refused(header: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        Keys([KeyEntry("ann", HASH)], clock).allowance(header)
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert refused.value.headers() == {"WWW-Authenticate": "Bearer"}


def test_a_key_has_one_allowance_and_its_own() -> None:
    keys = Keys([KeyEntry("ann", HASH), KeyEntry("bob", hashlib.sha256(b"b").hexdigest())], clock)
    assert keys.allowance("Bearer secret") is keys.allowance("bearer secret") is not keys.allowance("Bearer b")


def test_without_keys_everybody_may_ask_and_with_an_empty_file_nobody() -> None:
    Keys(None, clock).allowance(None)
    with pytest.raises(ApiError):
        Keys([], clock).allowance("Bearer secret")


def test_a_key_is_no_part_of_a_comment_that_has_no_line_end(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("# the keys of the club")
    add_key(file, "ann", None, None, "random")
    assert [entry.name for entry in read_keys(file)] == ["ann"]


def test_what_is_added_is_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = add_key(file, "ann", 5, None, "random")
    add_key(file, "bob", None, 7, "other")
    assert read_keys(file) == (
        KeyEntry("ann", hashlib.sha256(key.encode()).hexdigest(), 5, None),
        KeyEntry("bob", hashlib.sha256(b"swarm-other").hexdigest(), None, 7),
    )
    Keys(read_keys(file), clock).allowance(f"Bearer {key}")


@pytest.mark.parametrize(
    "text",
    [
        "[[keys]",
        "keys = 5",
        '[[keys]]\nname = "a"',
        f'[[keys]]\nsha256 = "{HASH}"',
        '[[keys]]\nname = "a"\nsha256 = "secret"',
        f'[[keys]]\nname = 5\nsha256 = "{HASH}"',
        f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\ntokens_per_day = 0',
        f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\ntokens_per_day = true',
        f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrequest_per_minute = 5',
        f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\n' * 2,
        f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\ntokens_per_day = {"9" * 5000}',
    ],
    ids=range(11),
)
def test_a_file_that_is_not_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    """Also a misspelt limit: it would limit nothing."""
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(UsageError):
        read_keys(file)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError):
        read_keys(file)
    with pytest.raises(UsageError):
        read_keys(tmp_path)
