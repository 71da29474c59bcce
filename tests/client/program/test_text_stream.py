"""All the text that comes is in the end what the tokenizer makes of all tokens at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from blockswarm.client.program.text_stream import CleanUp, TextStream
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import byte_tokenizer, fallback_tokenizer, in_bytes
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

PIECES = ["hello", "wor", "n", "t", "s", "m", "ve", "re", "don", "do", "not", ".", "?", "!", ",", "'", "n't", "'s", "'"]
SPECIAL = "<pad>"


def loaded(tokenizer: Tokenizer, decoder: Any, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL, **options)


def numbered(pieces: Iterable[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def word_pieces(cleanup: bool = False, **options: Any) -> PreTrainedTokenizerFast:
    vocabulary = numbered([*PIECES, *("##" + piece for piece in PIECES), " ", "##  ", "## ", "## '", "[UNK]"])
    return loaded(Tokenizer(models.WordPiece(vocabulary)), decoders.WordPiece(cleanup=cleanup), **options)


def spaced(pieces: Iterable[str]) -> list[str]:
    """With the mark that stands for a blank."""
    return [*("▁" + piece for piece in pieces), *pieces, "▁", "▁▁"]


def unigrams(decoder: Any, **options: Any) -> PreTrainedTokenizerFast:
    model = models.Unigram([(piece, -1.0) for piece in numbered(spaced(PIECES))], unk_id=0)
    return loaded(Tokenizer(model), decoder, **options)


def merged_pairs(decoder: Any, pieces: Iterable[str], **options: Any) -> PreTrainedTokenizerFast:
    return loaded(Tokenizer(models.BPE(vocab=numbered(pieces), merges=[])), decoder, **options)


def with_bytes(*last: Any, **options: Any) -> PreTrainedTokenizerFast:
    return fallback_tokenizer([*spaced(PIECES), "\N{REPLACEMENT CHARACTER}"], *last, **options)


CLEAN: dict[str, Any] = {"clean_up_tokenization_spaces": True}
FORCED = CLEAN | {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}
LIKE_LLAMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
TOKENIZERS = {
    "word pieces": word_pieces(),
    "word pieces, cleaned up": word_pieces(**CLEAN),
    "word pieces, each cleaned up": word_pieces(cleanup=True),
    "word pieces, cleaned up twice": word_pieces(cleanup=True, **CLEAN),
    "bytes": byte_tokenizer(),
    "bytes, not cleaned up": byte_tokenizer(**CLEAN),
    "bytes, cleaned up": byte_tokenizer(**FORCED),
    "metaspace": unigrams(decoders.Metaspace()),
    "metaspace, cleaned up": unigrams(decoders.Metaspace(), **CLEAN),
    "metaspace, first one kept": unigrams(decoders.Metaspace(prepend_scheme="never"), **CLEAN),
    "metaspace of pairs": merged_pairs(LIKE_LLAMA, spaced(PIECES), **CLEAN),
    "metaspace of pairs, cleaned up": merged_pairs(LIKE_LLAMA, spaced(PIECES), **FORCED),
    "single bytes": with_bytes(),
    "single bytes, first blank removed": with_bytes(decoders.Strip(" ", 1, 0)),
    "single bytes, cleaned up": with_bytes(**FORCED),
    "ends of words": merged_pairs(decoders.BPEDecoder("</w>"), [*PIECES, *(p + "</w>" for p in PIECES)], **FORCED),
}


def streamed(tokenizer: Any, tokens: list[int], at_once: int = 1, shown: frozenset[int] = frozenset()) -> list[str]:
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append, lambda: 0.0, shown)
    stream.put(torch.zeros(1, 3, dtype=torch.long))  # the prompt
    for start in range(0, len(tokens), at_once):
        stream.put(torch.tensor(tokens[start : start + at_once]))
    stream.end()
    assert stream.text == "".join(pieces)
    assert stream.token_ids == tokens
    assert "" not in pieces
    return pieces


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_pieces_are_the_text_of_all_tokens(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=25))
    pieces = streamed(tokenizer, tokens, data.draw(st.integers(1, 4)))
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_special_tokens_that_are_shown_stay(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=25))
    shown = frozenset(tokenizer.all_special_ids)
    assert "".join(streamed(tokenizer, tokens, shown=shown)) == tokenizer.decode(tokens, skip_special_tokens=False)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith("single bytes")])
@given(data=st.data())
def test_an_invalid_byte_changes_the_bytes_before_it_and_all_are_written_as_decoded(
    name: str, data: st.DataObject
) -> None:
    """Also where a special token or one beyond the vocabulary is between them: `decode` leaves both out."""
    tokenizer = TOKENIZERS[name]
    whole = st.characters(codec="utf-8").map(lambda letter: in_bytes(letter.encode()))
    parts = st.one_of(
        whole, st.binary(min_size=1, max_size=2).map(in_bytes), st.sampled_from([[SPECIAL], ["s"], ["▁do"], ["beyond"]])
    )
    names = [each for part in data.draw(st.lists(parts, max_size=10)) for each in part]
    beyond = len(tokenizer) + 7
    tokens = [beyond if each == "beyond" else tokenizer.convert_tokens_to_ids(each) for each in names]
    pieces = streamed(tokenizer, tokens, data.draw(st.integers(1, 4)))
    assert "".join(pieces) == tokenizer.decode(tokens, skip_special_tokens=True)


def test_single_bytes_are_written_once_another_token_comes() -> None:
    tokenizer = TOKENIZERS["single bytes"]
    names = ["do", *in_bytes("é!".encode()), "▁not", *in_bytes(b"A\xff"), "s", *in_bytes(b"B")]
    pieces = streamed(tokenizer, tokenizer.convert_tokens_to_ids(names))
    assert pieces == ["do", "é! not", "\N{REPLACEMENT CHARACTER}" * 2 + "s", "B"]


def test_what_the_end_would_write_is_known_before() -> None:
    tokenizer = TOKENIZERS["single bytes, cleaned up"]
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append, lambda: 0.0)
    stream.put(None)
    for name, ahead in (("▁do", ""), ("▁", ""), ("<0x21>", "!"), ("<0x0A>", "!\n"), ("n", "")):
        stream.put(torch.tensor([tokenizer.convert_tokens_to_ids(name)]))
        assert stream.preview() == ahead
    stream.end()
    assert "".join(pieces) == " do!\nn"


@given(st.text(max_size=40), st.integers(1, 5))
def test_a_stream_writes_no_half_characters(text: str, at_once: int) -> None:
    tokenizer = byte_tokenizer()
    pieces = streamed(tokenizer, tokenizer(text)["input_ids"], at_once)
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_words_are_not_held_back() -> None:
    tokenizer = word_pieces(**CLEAN)
    words = ["hello", ",", "do", "n't", "wor", "'", "s", "hello", "not"]
    tokens = [tokenizer.convert_tokens_to_ids(word) for word in words]
    assert streamed(tokenizer, tokens) == ["hello", ",", " do", "n't", " wor", "'s", " hello", " not"]


# --- the clean-up ---


def clean(text: str) -> str:
    return word_pieces().clean_up_tokenization(text)


@given(st.lists(st.text(" 'ntsmvre.?!,x", max_size=4), max_size=8))
def test_text_is_cleaned_up_in_pieces_as_at_once(pieces: list[str]) -> None:
    clean_up = CleanUp(clean)
    assert "".join([*map(clean_up.push, pieces), clean_up.end()]) == clean("".join(pieces))


@given(st.text(" 'ntsmvre.?!,x", max_size=12))
def test_only_what_may_still_change_is_held_back(text: str) -> None:
    clean_up = CleanUp(clean)
    given_out = "".join(map(clean_up.push, text))
    held = clean_up.end()
    assert given_out + held == clean(text)
    assert not held.strip(" 'nvr")
