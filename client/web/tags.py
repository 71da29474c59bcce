"""Entity tags: a client that already has the body of an answer is told so and is not sent it again."""

from __future__ import annotations

import hashlib


def tag_of(body: bytes) -> str:
    """Return the tag of a body, as in the header `ETag`."""
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def has_body(if_none_match: str, tag: str) -> bool:
    """Return whether this `If-None-Match` includes the tag, also as a weak one: compressing proxies mark it as weak."""
    known = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return tag in known or "*" in known
