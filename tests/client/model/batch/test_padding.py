"""Rows with padding anywhere: brought to the left, compared by their tokens, and cut where they ended."""

from __future__ import annotations

import itertools
import operator

import pytest
import torch
from blockswarm.client.model.batch.padding import RowEnds, common_beginnings, padded_left, refuse_empty_rows
from blockswarm.proto.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

BATCHES = st.integers(1, 8).flatmap(
    lambda width: st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=width, max_size=width), min_size=1, max_size=4
    )
)


def visible_tokens(ids: list[int], mask: list[int]) -> list[int]:
    return [token for token, seen in zip(ids, mask, strict=True) if seen]


@given(BATCHES)
def test_padding_goes_to_the_left_and_every_visible_token_stays(batch: list[list[tuple[int, bool]]]) -> None:
    ids = torch.tensor([[token for token, _ in row] for row in batch])
    mask = torch.tensor([[int(seen) for _, seen in row] for row in batch])
    text, visible = padded_left(ids, mask)
    assert (visible.diff(dim=1) >= 0).all(), "no padding behind a token"
    assert text.shape[1] == mask.sum(dim=1).max(), "not wider than the longest row"
    for before, after in zip(zip(ids, mask, strict=True), zip(text, visible, strict=True), strict=True):
        assert visible_tokens(*map(torch.Tensor.tolist, before)) == visible_tokens(*map(torch.Tensor.tolist, after))


def test_what_is_padded_already_stays_as_it_is() -> None:
    ids, mask = torch.tensor([[0, 7, 8], [4, 5, 6]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    text, visible = padded_left(ids, mask)
    assert text.tolist() == ids.tolist()
    assert visible.tolist() == mask.tolist()


def test_a_filler_that_is_no_token_becomes_one() -> None:
    """Embeddings are looked up for padding as well."""
    text, _ = padded_left(torch.tensor([[5, -1], [5, 6]]), torch.tensor([[1, 0], [1, 1]]))
    assert text.tolist() == [[0, 5], [5, 6]]


ROWS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=3)


@given(st.just([]) | ROWS, ROWS)
def test_the_longest_common_beginning_is_found_whatever_the_padding(
    held: list[list[int]], wanted: list[list[int]]
) -> None:
    def padded(rows: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
        width = max((len(row) for row in rows), default=0)
        ids = [[filler] * (width - len(row)) + row for row in rows]
        paddings = torch.tensor([width - len(row) for row in rows], dtype=torch.long)
        return torch.tensor(ids, dtype=torch.long).reshape(len(rows), width), paddings

    rows, shared = common_beginnings(*padded(held, 1), *padded(wanted, 0))
    for text, row, length in zip(wanted, rows.tolist(), shared.tolist(), strict=True):
        beginnings = [sum(itertools.accumulate(map(operator.eq, text, other), min)) for other in held]
        assert length == max(beginnings, default=0)
        assert not held or beginnings[row] == length


def test_an_empty_row_is_named() -> None:
    refuse_empty_rows(torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(UsageError, match="row 1"):
        refuse_empty_rows(torch.tensor([[0, 1], [0, 0]]))


class TestEnds:
    def generated(self, ends: RowEnds) -> torch.Tensor:
        """Two texts of five tokens behind a prompt of one; the first ends with its third token, 9 is the end."""
        text = torch.tensor([[1, 2, 9, 9, 9, 9], [1, 3, 4, 5, 6, 7]])
        for length in range(2, 7):
            ends(text[:, :length], None)
        return text

    def test_what_follows_the_end_of_a_row_is_padding(self) -> None:
        ends = RowEnds(StoppingCriteriaList([MaxLengthCriteria(6), EosTokenCriteria(9)]), num_beams=1)
        assert ends.mask(self.generated(ends), 1).tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]

    def test_without_a_token_that_ends_texts_sampling_does_not_pad(self) -> None:
        ends = RowEnds(StoppingCriteriaList([MaxLengthCriteria(3)]), num_beams=1)
        assert ends.mask(self.generated(ends), 1).all()

    def test_beam_search_always_pads(self) -> None:
        ends = RowEnds(StoppingCriteriaList([MaxLengthCriteria(3)]), num_beams=2)
        assert ends.mask(self.generated(ends), 1).tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
