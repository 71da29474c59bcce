"""API keys: a file with the hash and the limits of each.

    [[keys]]
    name = "ann"
    sha256 = "..."                  # of the key, which is written nowhere
    requests_per_minute = 60        # both limits may be left out
    tokens_per_day = 100000

Keys are 256 random bits, so a plain hash hides them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ....proto.errors import UsageError
from ....proto.settings import placed, read_toml, shown
from ..openai.errors import ApiError
from .allowance import Allowance

PREFIX = "swarm-"
MAX_FILE_BYTES = 1 << 22
MAX_LIMIT = 1 << 50
NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key of the file, by its hash."""

    name: str
    sha256: str
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError("a key's name has 1 to 64 letters, digits, or any of . _ @ -")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise UsageError(f"the key {self.name} has no sha256 of 64 hexadecimal digits")
        for limit in (self.requests_per_minute, self.tokens_per_day):
            if limit is not None and not 1 <= limit <= MAX_LIMIT:
                raise UsageError(f"a limit of the key {self.name} is not between 1 and {MAX_LIMIT}")

    def as_toml(self) -> str:
        lines = ["[[keys]]", f'name = "{self.name}"', f'sha256 = "{self.sha256}"']
        limits = {"requests_per_minute": self.requests_per_minute, "tokens_per_day": self.tokens_per_day}
        lines += [f"{name} = {limit}" for name, limit in limits.items() if limit is not None]
        return "\n".join(lines) + "\n"


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path) -> tuple[KeyEntry, ...]:
    """Read a file of keys. Raises UsageError if it cannot be read or is invalid."""
    missing = "Make a key, and the file, with: swarm-client new-api-key FILE NAME"
    form = "Write a [[keys]] with name and sha256 for each key, as swarm-client new-api-key does."
    listed = read_toml(file, MAX_FILE_BYTES, missing=missing, form=form).get("keys", [])
    with placed(file):
        entries = tuple(_entry(fields) for fields in (listed if isinstance(listed, list) else [listed]))
    if len({entry.name for entry in entries}) < len(entries):
        raise UsageError(f"{file} has two keys of the same name")
    return entries


def _entry(fields: object) -> KeyEntry:
    kinds = {"name": str, "sha256": str, "requests_per_minute": int, "tokens_per_day": int}
    if not isinstance(fields, dict) or not fields.keys() <= kinds.keys() or not fields.keys() >= {"name", "sha256"}:
        raise UsageError(f"a key has name, sha256, and maybe {' and '.join([*kinds][2:])}, and nothing else")
    for name, value in fields.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            raise UsageError(f"{name} of a key cannot be {shown(value)}")
    return KeyEntry(**fields)


def add_key(file: Path, name: str, requests_per_minute: int | None, tokens_per_day: int | None, secret: str) -> str:
    """Add a key to the file, created if missing, and return it. `secret` is random. Raises UsageError."""
    key = PREFIX + secret
    entry = KeyEntry(name, hash_of(key), requests_per_minute, tokens_per_day)
    known = read_keys(file) if file.exists() else ()
    if any(other.name == name for other in known):
        raise UsageError(f"{file} has a key of the name {name} already", hint="Choose another name.")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "a", encoding="utf-8") as out:
            out.write(("\n" if out.tell() else "") + entry.as_toml())  # the last line may lack its line end
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error}") from None
    return key


class Keys:
    """The keys that an endpoint knows, and the allowance of each."""

    def __init__(self, entries: Sequence[KeyEntry] | None, clock: Callable[[], float]) -> None:
        """`entries` None: no key is needed, and there are no limits."""
        self._open = None if entries is not None else Allowance(None, None, clock)
        self._by_hash: Mapping[str, Allowance] = {
            entry.sha256: Allowance(entry.requests_per_minute, entry.tokens_per_day, clock) for entry in entries or ()
        }

    @property
    def are_needed(self) -> bool:
        return self._open is None

    def allowance(self, authorization: str | None) -> Allowance:
        """Return the allowance for this `Authorization` header. Raises ApiError with status 401."""
        if self._open is not None:
            return self._open
        scheme, _, key = (authorization or "").partition(" ")
        known = self._by_hash.get(hash_of(key.strip())) if scheme.lower() == "bearer" else None
        if known is None:
            message = "an API key is needed" if authorization is None else "the API key is not known"
            raise ApiError(401, f"{message}: send Authorization: Bearer KEY", code="invalid_api_key")
        return known
