"""Which bodies a client has already."""

from __future__ import annotations

import pytest
from blockswarm.client.web.tags import has_body, tag_of

TAG = tag_of(b"a body")


@pytest.mark.parametrize("said", [TAG, f"W/{TAG}", f'"other", {TAG}', f'"other",W/{TAG}', "*"])
def test_a_client_that_names_the_tag_has_the_body(said: str) -> None:
    assert has_body(said, TAG)


@pytest.mark.parametrize("said", ["", '"other"', TAG.strip('"'), tag_of(b"another body")])
def test_a_client_that_does_not_name_it_has_not(said: str) -> None:
    assert not has_body(said, TAG)


def test_a_tag_is_a_quoted_text_of_the_body_alone() -> None:
    assert tag_of(b"a body") == TAG
    assert TAG[0] == TAG[-1] == '"'
    assert TAG.isascii()
