"""A text session computes only what is new, and gives the tokens of a new session over the whole text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockswarm.proto.errors import UsageError
from support.local_chain import LocalChain
from support.prompts import GREEDY, appended, prompt
from transformers import PreTrainedModel


@pytest.mark.long
def test_a_session_continues_over_several_calls(full: PreTrainedModel, model: Any, chain: LocalChain):
    """Only new tokens travel: the last generated one, and what was appended."""
    with model.session(max_length=100) as session:
        first = session.generate(**prompt(6), **GREEDY)
        second = session.generate(torch.tensor([[7, 8, 9]]), **GREEDY)
        third = session.generate(**GREEDY)
        assert session.position == 6 + 10 + 3 + 10 + 10
    assert second.tolist() == full.generate(appended(first, 7, 8, 9), **GREEDY).tolist()
    assert third.tolist() == full.generate(second, **GREEDY).tolist()
    assert len(chain.sessions) == 1
    assert [plan.tokens for plan in chain.plans if plan.tokens > 1] == [6, 4]


def test_inside_a_session_generate_takes_the_whole_text(full: PreTrainedModel, model: Any, chain: LocalChain):
    with model.session(max_length=100):
        first = model.generate(**prompt(6), **GREEDY)
        second = model.generate(appended(first, 7), **GREEDY)
    assert second.tolist() == full.generate(appended(first, 7), **GREEDY).tolist()
    assert [plan.tokens for plan in chain.plans if plan.tokens > 1] == [6, 2]


def test_rewind_is_free_and_exact(full: PreTrainedModel, model: Any, chain: LocalChain):
    with model.session(max_length=100) as session:
        text = session.generate(**prompt(6), **GREEDY)
        session.rewind(9)
        steps = len(chain.plans)
        again = session.generate(torch.tensor([[11, 12]]), **GREEDY)
        assert [(piece.start, piece.count) for piece in chain.plans[steps].rows] == [(9, 2)]
        with pytest.raises(UsageError, match="rewound"):
            session.rewind(1000)
    assert again.tolist() == full.generate(appended(text[:, :9], 11, 12), **GREEDY).tolist()
    assert len(chain.sessions) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "setting",
    [
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 4},
        {"do_sample": True, "num_return_sequences": 1},
        {"prefill_chunk_size": 2},
        {"return_dict_in_generate": True},
    ],
    ids=str,
)
def test_a_session_works_with_every_kind_of_generation(
    full: PreTrainedModel, model: Any, chain: LocalChain, setting: dict[str, Any]
):
    """Each kind leaves another cache behind; the next call finds what it can use in it."""
    with model.session(max_length=100, max_rows=3) as session:
        text = session.generate(**prompt(6), **GREEDY)
        torch.manual_seed(3)
        session.generate(torch.tensor([[7, 8, 9, 7, 8]]), **GREEDY | setting)
        torch.manual_seed(3)
        second = full.generate(appended(text, 7, 8, 9, 7, 8), **GREEDY | setting)
        second = second if isinstance(second, torch.Tensor) else second.sequences
        assert session.tokens.tolist() == second.tolist()
        third = session.generate(torch.tensor([[10]]), **GREEDY)
        assert third.tolist() == full.generate(appended(second, 10), **GREEDY).tolist()
    assert len(chain.sessions) == 1


def test_assisted_generation_in_a_session_computes_only_what_is_new(
    full: PreTrainedModel, model: Any, chain: LocalChain
):
    with model.session(max_length=100) as session:
        text = session.generate(**prompt(30), **GREEDY)
        steps = len(chain.plans)
        result = session.generate(assistant_model=full, **GREEDY)
        assert chain.plans[steps].tokens < 30
    assert result.tolist() == full.generate(text, **GREEDY).tolist()


def test_a_session_of_a_padded_batch(full: PreTrainedModel, model: Any, chain: LocalChain):
    batch = prompt(6, 3)
    new = torch.tensor([[7, 8], [9, 10]])
    with model.session(max_length=60, max_rows=2) as session:
        first = session.generate(**batch, **GREEDY)
        second = session.generate(new, **GREEDY)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 12, dtype=torch.long)], dim=1)
    expected = full.generate(torch.cat([first, new], dim=1), attention_mask=mask, **GREEDY)
    assert second.tolist() == expected.tolist()
    assert chain.plans[10].tokens == 6


def test_a_session_survives_a_failed_call(full: PreTrainedModel, model: Any, chain: LocalChain):
    """A step that failed costs a prefill in a new session, never tokens."""
    with model.session(max_length=60) as session:
        first = session.generate(**prompt(6), **GREEDY)
        session.cache.abort()
        second = session.generate(torch.tensor([[7]]), **GREEDY)
    assert second.tolist() == full.generate(appended(first, 7), **GREEDY).tolist()
    assert [session.closed for session in chain.sessions] == [True, True]


def test_a_session_that_is_full_or_closed_says_so(model: Any):
    with model.session(max_length=8) as session, pytest.raises(UsageError, match="up to 16 tokens"):
        session.generate(**prompt(6), **GREEDY)
    with pytest.raises(UsageError, match="closed"):
        session.generate(**prompt(6), **GREEDY)


def test_forwards_of_ones_own_with_a_sessions_cache(full: PreTrainedModel, model: Any):
    ids = prompt(8)["input_ids"]
    expected = full(ids).logits
    with model.session(max_length=20) as session:
        first = model(ids[:, :5], past_key_values=session.cache).logits
        second = model(ids[:, 5:], past_key_values=session.cache).logits
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected, atol=1e-5, rtol=0)
