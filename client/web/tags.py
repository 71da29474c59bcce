"""Entity tags: a client that has the body of an answer already is told so, and is not sent it again."""

from __future__ import annotations

import hashlib


def tag_of(body: bytes) -> str:
    """The tag of a body, as the header `ETag` has it."""
    return f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'


def has_body(if_none_match: str, tag: str) -> bool:
    """Whether a client that says so has the body; servers that pack bodies on their way mark tags as weak."""
    known = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return tag in known or "*" in known
