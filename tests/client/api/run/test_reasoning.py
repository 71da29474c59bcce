"""Reasoning is told from the answer's text wherever the tokens cut it, and nothing of either is lost."""

from __future__ import annotations

import pytest
from blockswarm.client.api.pieces import STOP, LikelyToken, Piece, ScoredToken
from blockswarm.client.api.run.reasoning import ReasoningMarks, ReasoningReader, reasoning_marks
from blockswarm.client.api.run.texts import RowText
from hypothesis import example, given
from hypothesis import strategies as st
from support.tokenizers import byte_tokenizer

MARKS = ReasoningMarks("<t>", "</t>")
PARTS = st.lists(st.sampled_from(["<", "t", ">", "/", "<t>", "</t>", " ", "\n", "a", "</", "so"]), max_size=12)


def split(text: str, begun: bool) -> tuple[str, str]:
    """The same of a whole text, by its own definition."""
    if not begun:
        if not text.lstrip().startswith(MARKS.begin):
            return "", text
        text = text.lstrip()[len(MARKS.begin) :]
    reasoning, mark, content = text.lstrip().partition(MARKS.end)
    return reasoning, content.lstrip() if mark else ""


def read(parts: list[str], begun: bool) -> list[Piece]:
    """One score for every part, as of a token."""
    reader = ReasoningReader(MARKS, begun)
    pieces, offset = [], 0
    for part in parts:
        pieces.append(reader.read(Piece(0, part, (ScoredToken(LikelyToken(part, None, -1.0), (), offset),))))
        offset += len(part)
    return [*pieces, reader.read(Piece(0, finish=STOP))]


@given(PARTS, st.booleans())
@example(["<", "t", ">", "\n", "hm", "<", "/t", ">\n", "yes"], False)
@example(["hm", "</t>", "\n", " "], True)
@example(["<", "b", ">"], False)
def test_the_parts_are_those_of_the_whole_text(parts: list[str], begun: bool) -> None:
    pieces = read(parts, begun)
    found = "".join(piece.reasoning for piece in pieces), "".join(piece.text for piece in pieces)
    assert found == split("".join(parts), begun)
    assert [piece.finish for piece in pieces] == [None] * len(parts) + [STOP]


@given(PARTS, st.booleans())
def test_probabilities_are_those_of_tokens_that_begin_in_the_content(parts: list[str], begun: bool) -> None:
    pieces = read(parts, begun)
    whole, content = "".join(parts), "".join(piece.text for piece in pieces)
    told = [score.offset for piece in pieces for score in piece.scores]
    assert told == sorted(told)
    starts = [len("".join(parts[:index])) for index, _ in enumerate(parts)]
    assert told == [start for start in starts if content and start >= len(whole) - len(content)]


def test_reasoning_goes_out_as_it_comes() -> None:
    pieces = read(["<t>", "one ", "two <", "b> ", "</", "t>", "\n\n", "yes"], False)
    assert [piece.reasoning for piece in pieces] == ["", "one ", "two ", "<b> ", "", "", "", "", ""]
    assert [piece.text for piece in pieces] == [""] * 7 + ["yes", ""]


def test_marks_are_those_that_the_tokenizer_or_the_template_knows() -> None:
    tokenizer = byte_tokenizer()
    assert reasoning_marks(tokenizer) is None
    tokenizer.add_tokens(["<think>", "</think>"])
    assert reasoning_marks(tokenizer) == ReasoningMarks("<think>", "</think>", (257, 258))
    taught = byte_tokenizer(chat_template="{{ messages[0].content.split('[/THINK]')[-1] }}")
    assert reasoning_marks(taught) == ReasoningMarks("[THINK]", "[/THINK]")


def test_marks_that_texts_leave_out_otherwise_are_shown() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "[OTHER]"]})
    marks = reasoning_marks(tokenizer)
    assert marks == ReasoningMarks("[THINK]", "[/THINK]", (257, 258), frozenset({257, 258}))
    for shown, expected in ((marks.shown, "[THINK]hm é[/THINK]yes"), (frozenset[int](), "hm éyes")):
        row = RowText(0, tokenizer, (), {0}, 100, shown)
        for token in tokenizer("[THINK]hm é[OTHER][/THINK]yes")["input_ids"]:
            row.take(token)
        row.take(0)
        piece = row.piece()
        assert piece is not None
        assert piece.text == expected


@pytest.mark.parametrize(("prompt", "begun"), [("hi<think>\n", True), ("hi<think>", True), ("<think>hi", False)])
def test_a_prompt_may_begin_the_reasoning(prompt: str, begun: bool) -> None:
    tokenizer = byte_tokenizer()
    marks = ReasoningMarks("<think>", "</think>")
    assert marks.begun_by(tokenizer, tokenizer("much text before " + prompt)["input_ids"]) is begun
