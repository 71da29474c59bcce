"""Tokens as text and bytes."""

from __future__ import annotations

from blockswarm.client.api.run.vocabulary import byte_letters, likely_token
from support.tokenizers import byte_tokenizer
from tokenizers import pre_tokenizers


def test_a_part_of_a_character_is_told_by_its_bytes() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("\u20ac")["input_ids"]
    told = [likely_token(tokenizer, token, -1.0) for token in ids]
    assert b"".join(bytes(token.utf8) for token in told).decode() == "\u20ac"
    assert likely_token(tokenizer, tokenizer("a")["input_ids"][0], -1.0).utf8 == (97,)


def test_every_letter_of_byte_level_vocabularies_has_its_byte() -> None:
    assert sorted(byte_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_letters().values()) == list(range(256))
