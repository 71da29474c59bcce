"""Forwards on their own: a session of one step each, and loops that hand the returned cache back go on with it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import PeerUnavailable, SessionLost
from support.local_chain import LocalChain
from support.prompts import prompt
from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("_no_gradients")


@pytest.fixture
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def greedy_loop(model: Any, count: int, **batch: torch.Tensor) -> list[list[int]]:
    """The loop of transformers' tutorials: `count` tokens for each row, with the cache that a forward returns."""
    mask, text, new, cache = batch["attention_mask"], batch["input_ids"], batch["input_ids"], None
    for _ in range(count):
        result = model(new, attention_mask=mask, past_key_values=cache)
        cache = result.past_key_values
        new = result.logits[:, -1:].argmax(-1)
        text, mask = torch.cat([text, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
    return text.tolist()


def test_a_loop_of_ones_own_goes_on_with_the_returned_cache(full: PreTrainedModel, model: Any, chain: LocalChain):
    assert greedy_loop(model, 12, **prompt(6)) == greedy_loop(full, 12, **prompt(6))
    tokens = [[plan.tokens for plan in session.plans] for session in chain.sessions]
    assert tokens == [[6], [7, *[1] * 7], [15, 1, 1]], "room is doubled, so little is computed twice"


def test_rows_of_a_padded_batch_grow_as_well(full: PreTrainedModel, model: Any):
    """The full model has no positions unless they are given, the peers always count from the first token."""
    expected = [greedy_loop(full, 9, **prompt(length, seed=length))[0][length:] for length in (6, 3)]
    ids = torch.stack([prompt(6, seed=6)["input_ids"][0], torch.zeros(6, dtype=torch.long)])
    ids[1, 3:] = prompt(3, seed=3)["input_ids"][0]
    mask = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    grown = greedy_loop(model, 9, input_ids=ids, attention_mask=mask)
    assert [row[6:] for row in grown] == expected


def test_what_is_done_to_the_cache_between_forwards_is_kept(full: PreTrainedModel, model: Any):
    """Rows are reordered and columns cropped, before and behind the point where another session begins."""
    ids = torch.stack([prompt(5, seed=seed)["input_ids"][0] for seed in (1, 2)])
    first = model(ids)
    first.past_key_values.batch_select_indices(torch.tensor([1, 0, 1]))
    first.past_key_values.crop(-2)
    new = torch.tensor([[7, 8], [9, 10], [11, 12]])
    second = model(new, past_key_values=first.past_key_values)
    second.past_key_values.crop(-1)
    third = model(new, past_key_values=second.past_key_values)
    text = torch.cat([ids[[1, 0, 1], :3], new[:, :1], new], dim=1)
    torch.testing.assert_close(third.logits, full(text).logits[:, -2:], atol=1e-5, rtol=0)
    third.past_key_values.reset()
    torch.testing.assert_close(
        model(ids, past_key_values=third.past_key_values).logits, full(ids).logits, atol=1e-5, rtol=0
    )


def test_embeddings_grow_as_ids_do(full: PreTrainedModel, model: Any):
    embeddings = full.get_input_embeddings()(prompt(9)["input_ids"])
    first = model(inputs_embeds=embeddings[:, :4])
    second = model(inputs_embeds=embeddings[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, full(inputs_embeds=embeddings).logits[:, 4:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_forward_that_wants_no_cache_gets_none(full: PreTrainedModel, model: Any, return_dict: bool):
    """As from transformers: loops look whether there is one."""
    ids = prompt(5)["input_ids"]
    expected = full(ids, use_cache=False, return_dict=return_dict)
    result = model(ids, use_cache=False, return_dict=return_dict)
    if return_dict:
        assert result.past_key_values is None
    else:
        assert len(result) == len(expected) == 1


def test_sessions_end_with_the_cache_that_has_them(model: Any, chain: LocalChain):
    """A forward alone leaves nothing open, a loop only what somebody still refers to."""
    result = model(prompt(5)["input_ids"])
    assert chain.open_sessions == 0
    result = model(torch.tensor([[7]]), past_key_values=result.past_key_values)
    assert chain.open_sessions == 1
    del result
    gc.collect()
    assert chain.open_sessions == 0


def test_a_cache_whose_step_failed_is_not_gone_on_with(model: Any, chain: LocalChain):
    result = model(prompt(5)["input_ids"])
    chain.failure = PeerUnavailable("gone")
    with pytest.raises(PeerUnavailable):
        model(torch.tensor([[7]]), past_key_values=result.past_key_values)
    chain.failure = None
    with pytest.raises(SessionLost, match="failed"):
        model(torch.tensor([[7]]), past_key_values=result.past_key_values)
