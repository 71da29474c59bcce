"""Pages have one name for one text and one client, and another one for everything else."""

from __future__ import annotations

from pathlib import Path

from blockswarm.client.chain.prefixes import PageNames
from blockswarm.proto.identity import Identity
from blockswarm.proto.wire.prefixes import DIGEST_BYTES, PAGE_TOKENS
from hypothesis import given
from hypothesis import strategies as st

TOKEN_BYTES = 2
PAGE_BYTES = PAGE_TOKENS * TOKEN_BYTES
IDENTITY = Identity.generate()


def names(identity: Identity = IDENTITY, model: str = "m", wire: str = "float32") -> PageNames:
    return PageNames(identity, model, wire, TOKEN_BYTES)


def row(text: str, rest: int = 0) -> bytes:
    """A page per letter."""
    return b"".join(letter.encode() * PAGE_BYTES for letter in text) + b"x" * rest


@given(st.text("ab", max_size=4), st.text("ab", max_size=4), st.integers(0, PAGE_BYTES - 1))
def test_pages_have_equal_names_if_all_up_to_their_end_is_equal(text: str, other: str, rest: int) -> None:
    ours, theirs = names().chain(row(text, rest)), names().chain(row(other))
    assert len(ours) == len(text)
    for length in range(1, min(len(text), len(other)) + 1):
        assert (ours[length - 1] == theirs[length - 1]) == (text[:length] == other[:length])


def test_nobody_else_has_the_same_names() -> None:
    variants = [
        names(),
        names(Identity.generate()),
        names(model="n"),
        names(wire="int8"),
    ]
    all_names = {variant.at_peer(variant.chain(row("ab")), ()) for variant in variants}
    assert len(all_names) == len(variants)


def test_names_depend_on_the_formats_of_the_peers_before() -> None:
    chain = names().chain(row("ab"))
    formats = [(), ("float32",), ("int8",), ("float32", "int8"), ("int8", "float32")]
    all_names = {names().at_peer(chain, before) for before in formats}
    assert len(all_names) == len(formats)
    assert all(len(digest) == DIGEST_BYTES for digests in all_names for digest in digests)


def test_the_same_key_file_gives_the_same_names(tmp_path: Path) -> None:
    """Or nothing that peers keep would be found after the client was started again."""
    first, again = (Identity.load_or_create(tmp_path / "client.key") for _ in range(2))
    assert names(first).chain(row("a")) == names(again).chain(row("a")) != names().chain(row("a"))
