"""The text of an answer: whole up to the first stop string, however the tokens cut it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from blockswarm.client.api.pieces import LENGTH, STOP, LikelyToken, ScoredToken
from blockswarm.client.api.run.texts import RowText, StopText
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import byte_tokenizer, fallback_tokenizer, in_bytes

TOKENIZER = byte_tokenizer()
END = 300
"""A token that the tokenizer does not know: it is never decoded."""


class CountingTokenizer:
    """A tokenizer that falls back to bytes; counts the tokens that it decodes."""

    def __init__(self) -> None:
        self.decoded_tokens = 0
        self._tokenizer = fallback_tokenizer([])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, tokens: Sequence[int], **options: Any) -> Any:
        self.decoded_tokens += len(tokens)
        return self._tokenizer.decode(tokens, **options)


ALPHABET = st.text(st.sampled_from("ab"), max_size=12)


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


@given(st.lists(ALPHABET, max_size=8), st.lists(ALPHABET.filter(bool), max_size=3))
def test_text_ends_before_the_first_stop_string(parts: list[str], stops: list[str]) -> None:
    """Against a search in the whole text; and nothing that goes out is taken back."""
    stop = StopText(stops)
    out = [stop.push(part) for part in parts]
    stopped = stop.stopped
    whole = "".join(parts)
    ends = [whole.find(text) for text in stops if text in whole]
    expected = whole[: min(ends)] if ends else whole
    assert "".join(out) + ("" if stopped else stop.end()) == expected
    assert stopped == bool(ends)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stop = StopText(["\n\nUser"])
    assert [stop.push(part) for part in ("one\n", "two\n\nUs", "ing")] == ["one", "\ntwo", "\n\nUsing"]


def pieces_of(
    tokens: Sequence[int], stops: Sequence[str] = (), max_tokens: int = 1000, scored: bool = False
) -> tuple[RowText, str, list[ScoredToken]]:
    row = RowText(0, TOKENIZER, stops, {END}, max_tokens)
    text, scores = "", []
    for token in tokens:
        score = ScoredToken(LikelyToken(str(token), None, -1.0), (), row.decoded_chars) if scored else None
        row.take(token, score)
        if (piece := row.piece()) is not None:
            text += piece.text
            scores += piece.scores
        if row.finish is not None:
            assert piece is not None
            assert piece.finish == row.finish
            assert row.piece() is None, "the end is told once"
            break
    return row, text, scores


@pytest.mark.long
@given(st.text(max_size=20), st.integers(1, 30))
def test_all_text_comes_out_whatever_ends_it(text: str, limit: int) -> None:
    """Also half a character that the limit has cut in two."""
    ids = ids_of(text)
    row, whole, _ = pieces_of([*ids, END], max_tokens=limit)
    assert whole == TOKENIZER.decode(ids[:limit], skip_special_tokens=True)
    assert row.finish == (STOP if len(ids) < limit else LENGTH)
    assert row.tokens == min(limit, len(ids) + 1)


def test_a_stop_string_ends_an_answer_within_a_token() -> None:
    row, text, _ = pieces_of(ids_of("one two three"), ["tw", "three"])
    assert (row.finish, text) == (STOP, "one ")


def test_a_stop_string_of_single_bytes_ends_an_answer_at_once() -> None:
    """A later byte may make them invalid, but none comes after the end."""
    tokenizer = fallback_tokenizer(["one", "two"])
    row = RowText(0, tokenizer, ["\n\n"], {END}, 1000)
    tokens = tokenizer.convert_tokens_to_ids(["one", *in_bytes(b"!\n"), "two", *in_bytes(b"?\n\n")])
    for token in tokens:
        assert row.finish is None
        row.take(token)
    piece = row.piece()
    assert piece is not None
    assert (piece.text, piece.finish, row.tokens) == ("one!\ntwo?", STOP, len(tokens))


def test_a_run_of_single_bytes_is_not_decoded_anew_with_every_token_where_no_stop_string_can_end_it() -> None:
    """That took a time that grew with the square of the run's length."""
    tokenizer = CountingTokenizer()
    row = RowText(0, tokenizer, [], {END}, 1000)
    for token in tokenizer.convert_tokens_to_ids(in_bytes(bytes(200))):
        row.take(token)
    assert tokenizer.decoded_tokens == 0
    row.take(END)
    piece = row.piece()
    assert piece is not None
    assert piece.text == "\0" * 200


def test_a_stop_string_at_the_limit_is_a_stop() -> None:
    row, text, _ = pieces_of(ids_of("abc"), ["c"], max_tokens=3)
    assert (row.finish, text) == (STOP, "ab")


def test_a_stop_string_of_several_bytes_is_found_across_tokens() -> None:
    row, text, _ = pieces_of(ids_of("caf\u00e9!"), ["\u00e9"])
    assert (row.finish, text) == (STOP, "caf")


def test_probabilities_go_with_the_text_of_their_tokens() -> None:
    """Those of a stop string, and of the end, are not part of the answer; those of text that was held back are."""
    _, text, scores = pieces_of(ids_of("abXbXY"), ["XY"], scored=True)
    assert (text, [score.token.text for score in scores]) == ("abXb", [str(token) for token in ids_of("abXb")])
    _, text, scores = pieces_of([*ids_of("abX"), END], ["XY"], scored=True)
    assert (text, len(scores)) == ("abX", 3)
    assert [score.offset for score in scores] == [0, 1, 2]
