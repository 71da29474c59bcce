"""The packed attention by itself, against obvious code: what a captured mask says of each row, attention over it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from blockswarm.peer.engine.blocks.attention import CapturedMask, MaskFunction, PackedRows, Sight, packed_attention
from blockswarm.peer.engine.blocks.rows import RowSpan
from blockswarm.peer.engine.cache.row import RowKV
from blockswarm.routing.swarm import BlockRange
from torch import nn
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

CPU = torch.device("cpu")
PIECES = ((0, 7), (12, 1), (30, 1), (8, 1), (5, 9), (0, 1), (21, 4))
"""(start, count) of the rows of a step: prompts, chunks behind others, single tokens in and beyond a window of 8."""
CAPPED_SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


def middle_is_hidden(row: object, head: object, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """No window: the oldest tokens are seen, and the newest, but not what is between them."""
    return (key <= query) & ((key < 2) | (key > query - 4))


RULES: dict[str, MaskFunction] = {
    "causal": causal_mask_function,
    "window": sliding_window_causal_mask_function(8),
    "chunk": chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long)),
    "hole": middle_is_hidden,
}


def step(value_size: int = 16, kv_heads: int = 2) -> list[RowSpan]:
    """Rows of one block, already filled up to where the step starts."""
    rows = []
    for index, (start, count) in enumerate(PIECES):
        kv = RowKV(BlockRange(3, 4), max_tokens=64)
        if start:
            kv.update(*states(start, kv_heads, value_size, seed=100 + index), 3)
            kv.advance(start)
        rows.append(RowSpan(kv, start, count))
    return rows


def states(count: int, heads: int, value_size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, heads, count, 16, generator=generator)
    return keys, torch.randn(1, heads, count, value_size, generator=generator)


def obvious_mask(rule: MaskFunction, row: RowSpan) -> torch.Tensor:
    """(count, stop) bool, token by token."""
    seen = [
        [
            bool(rule(torch.tensor(0), torch.tensor(0), torch.tensor(query), torch.tensor(key)))
            for key in range(row.stop)
        ]
        for query in range(row.start, row.stop)
    ]
    return torch.tensor(seen)


def mask_of(sight: Sight, row: RowSpan) -> torch.Tensor:
    seen = torch.ones(row.count, row.stop - sight.first, dtype=torch.bool) if sight.mask is None else sight.mask
    if sight.is_causal:
        seen = seen.tril()
    return nn.functional.pad(seen, (sight.first, 0))


@pytest.mark.parametrize("as_masks", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_captured_rule_says_of_every_row_what_the_rule_says(rule: str, as_masks: bool) -> None:
    rows = step()
    sights = CapturedMask(RULES[rule]).sights(rows, CPU, as_masks=as_masks)
    for sight, row in zip(sights, rows, strict=True):
        assert torch.equal(mask_of(sight, row), obvious_mask(RULES[rule], row))
        assert not (as_masks and sight.is_causal)


def test_single_tokens_need_no_mask_where_they_see_all_that_is_not_too_old() -> None:
    """They are most of what a peer computes; a window of 8 is then a shorter cache."""
    rows = [RowSpan(RowKV(BlockRange(3, 4), 64), start, 1) for start in (30, 3, 7, 8)]
    window = CapturedMask(RULES["window"]).sights(rows, CPU, as_masks=False)
    assert window == [Sight(first=23), Sight(), Sight(), Sight(first=1)]
    assert CapturedMask(RULES["causal"]).sights(rows, CPU, as_masks=True) == [Sight()] * 4
    hole = CapturedMask(RULES["hole"]).sights(rows, CPU, as_masks=False)
    assert [sight.mask is None for sight in hole] == [False, True, False, False]


def test_a_rule_is_evaluated_once_per_step() -> None:
    calls: list[int] = []

    def counting(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return key <= query

    mask, rows = CapturedMask(counting), step()
    first = mask.sights(rows, CPU, as_masks=False)
    calls_of_first = len(calls)
    assert mask.sights(rows, CPU, as_masks=False) is first
    assert len(calls) == calls_of_first == 1 + sum(count > 1 for _, count in PIECES)


def obvious_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """(heads, count, size) over (kv heads, length, size), head by head -> (count, heads, value size)."""
    outputs = []
    for head in range(query.shape[0]):
        kv_head = head // (query.shape[0] // keys.shape[0])
        scores = query[head] @ keys[kv_head].T * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.exp() * mask
        total = weights.sum(1, keepdim=True)
        if sinks is not None:
            total = total + sinks[head].exp()
        outputs.append(weights / total @ values[kv_head])
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("kv_heads", "value_size"), [(4, 16), (2, 16), (1, 16), (2, 10)])
@pytest.mark.parametrize(("softcap", "sinks"), [(None, None), (3.0, None), (None, CAPPED_SINKS), (3.0, CAPPED_SINKS)])
def test_attention_over_packed_rows_is_attention_row_by_row(
    rule: str, kv_heads: int, value_size: int, softcap: float | None, sinks: torch.Tensor | None
) -> None:
    """Heads that share keys, values of another size than keys, capped scores, sinks; every kind of mask."""
    rows = step(value_size, kv_heads)
    tokens = sum(row.count for row in rows)
    query = torch.randn(1, tokens, 4, 16, generator=torch.Generator().manual_seed(1)).transpose(1, 2)
    packed = PackedRows(rows, set())
    mask = CapturedMask(RULES[rule])
    keys, values = packed.update(*states(tokens, kv_heads, value_size, seed=2), 3)
    output, _ = packed_attention(
        nn.Identity(), query, keys, values, mask, scaling=0.3, softcap=softcap, s_aux=sinks, past_rows=packed
    )
    expected = expected_outputs(rows, query, RULES[rule], softcap, sinks)
    torch.testing.assert_close(output[0], torch.cat(expected), atol=2e-6, rtol=2e-6)


def expected_outputs(
    rows: Sequence[RowSpan],
    query: torch.Tensor,
    rule: MaskFunction,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> list[torch.Tensor]:
    outputs, position = [], 0
    for row in rows:
        row.kv.advance(row.count)
        (cached,) = row.kv.export()
        part = query[0, :, position : position + row.count]
        outputs.append(
            obvious_attention(part, cached.keys, cached.values, obvious_mask(rule, row), 0.3, softcap, sinks)
        )
        position += row.count
    return outputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("sinks", [None, CAPPED_SINKS], ids=["plain", "sinks"])
def test_attention_in_sixteen_bits_stays_in_them(dtype: torch.dtype, sinks: torch.Tensor | None) -> None:
    outputs = []
    for wanted in (torch.float32, dtype):
        rows = [RowSpan(RowKV(BlockRange(3, 4), 64), 0, count) for count in (5, 1)]
        packed = PackedRows(rows, set())
        new = [tensor.to(wanted) for tensor in states(6, 2, 16, seed=0)]
        query = torch.randn(1, 4, 6, 16, generator=torch.Generator().manual_seed(1)).to(wanted)
        mask = CapturedMask(causal_mask_function)
        keys, values = packed.update(new[0], new[1], 3)
        output, _ = packed_attention(nn.Identity(), query, keys, values, mask, s_aux=sinks, past_rows=packed)
        assert output.dtype == wanted
        outputs.append(output.float())
    torch.testing.assert_close(outputs[1], outputs[0], atol=3e-2, rtol=0)


def test_a_block_that_expands_its_cache_is_given_all_tokens_of_all_rows() -> None:
    """As latent attention does: what the family makes of them is what is attended over."""
    rows = step(kv_heads=2)
    tokens = sum(row.count for row in rows)
    direct_blocks: set[int] = set()
    packed = PackedRows(rows, direct_blocks)
    keys, values = packed.update(*states(tokens, 2, 16, seed=2), 3)
    assert keys.shape == values.shape == (1, 2, sum(row.stop for row in rows), 16)
    pairs = packed.take(keys * 2, values)
    for row, (row_keys, row_values) in zip(rows, pairs, strict=True):
        row.kv.advance(row.count)
        (cached,) = row.kv.export()
        assert torch.equal(row_keys[0], cached.keys * 2)
        assert torch.equal(row_values[0], cached.values)
    assert not direct_blocks


def test_a_block_that_attends_over_its_cache_as_it_is_never_copies_it_again() -> None:
    direct_blocks: set[int] = set()
    for first_time in (True, False):
        rows = step()
        tokens = sum(row.count for row in rows)
        packed = PackedRows(rows, direct_blocks)
        new = states(tokens, 2, 16, seed=2)
        returned = packed.update(*new, 3)
        assert (returned[0] is new[0]) is not first_time
        assert packed.take(*returned)[0][0].shape == (1, 2, rows[0].stop, 16)
        assert direct_blocks == {3}
    packed.update(*new, 3)
    with pytest.raises(RuntimeError, match="block 3"):
        packed.take(new[0] + 1, new[1])


def test_a_family_that_does_not_pass_on_what_is_needed_is_an_error() -> None:
    query = torch.zeros(1, 4, 1, 16)
    mask = CapturedMask(causal_mask_function)
    with pytest.raises(TypeError, match="Identity"):
        packed_attention(nn.Identity(), query, query, query, mask)
    with pytest.raises(TypeError, match="Identity"):
        packed_attention(nn.Identity(), query, query, query, None, past_rows=PackedRows(step(), set()))  # type: ignore[arg-type]
