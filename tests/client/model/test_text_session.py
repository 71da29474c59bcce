"""A text session computes only what is new, and gives the tokens of a new session over the whole text."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from blockswarm.proto.errors import UsageError
from support.local_chain import LocalChain
from support.prompts import GREEDY, appended, prompt
from transformers import PreTrainedModel, StoppingCriteria


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


def test_padding_is_inferred_as_transformers_infers_it(full: PreTrainedModel, model: Any, chain: LocalChain):
    """People pass ids and no mask; then the ids of the padding say where it is, in a session as elsewhere."""
    ids = torch.tensor([[0, 0, 0, 41, 42, 43], [50, 51, 52, 53, 54, 55]])
    expected = full.generate(ids, pad_token_id=0, **GREEDY)
    with model.session(max_length=60, max_rows=2) as session:
        assert session.generate(ids, pad_token_id=0, **GREEDY).tolist() == expected.tolist()
    assert chain.plans[0].tokens == 9
    with model.session(max_length=60, max_rows=2):
        assert model.generate(ids, **GREEDY).tolist() == expected.tolist()
    assert chain.plans[0].tokens == 9


def alone(full: PreTrainedModel, text: list[int], **call: Any) -> list[int]:
    """The tokens that the full model generates behind one text alone."""
    ids = torch.tensor([text])
    generated: list[int] = full.generate(ids, attention_mask=torch.ones_like(ids), **call)[0, len(text) :].tolist()
    return generated


class EndsAt(StoppingCriteria):
    """Ends texts that have a certain token once they have a certain length."""

    def __init__(self, token: int, length: int) -> None:
        self.token = token
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return (input_ids == self.token).any(dim=1) & (input_ids.shape[1] >= self.length)


ENDINGS: dict[str, dict[str, Any]] = {
    "another pad": {"eos_token_id": 214, "pad_token_id": 0},
    "eos is the pad": {"eos_token_id": 214, "pad_token_id": 214},
    "a criterion": {"eos_token_id": 198, "pad_token_id": 198, "stopping_criteria": [EndsAt(41, 7)]},
    "beams": {"eos_token_id": 214, "pad_token_id": 0, "num_beams": 3, "length_penalty": -3.0, "early_stopping": True},
    "beams, eos is the pad": {"eos_token_id": 214, "num_beams": 3, "length_penalty": -3.0, "early_stopping": True},
}
"""Each ends the text that begins with 41, and not the one beside it."""


@pytest.mark.long
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_a_row_that_ended_before_the_others_goes_on_behind_its_own_end(
    full: PreTrainedModel, model: Any, chain: LocalChain, ending: dict[str, Any]
):
    """The padding that generate puts behind it is no part of the text, whatever id it has."""
    prompts, new = [[41, 42, 43, 44], [50, 51, 52, 53]], [60, 61]
    on = {**GREEDY, "eos_token_id": None}
    texts = [row + alone(full, row, **GREEDY | ending) for row in prompts]
    assert len(texts[0]) < len(texts[1]) == 14
    with model.session(max_length=60, max_rows=6) as session:
        first = session.generate(torch.tensor(prompts), **GREEDY | ending)
        assert first.tolist() == full.generate(torch.tensor(prompts), **GREEDY | ending).tolist()
        second = session.generate(torch.tensor([new, new]), **on)
        assert second[:, :16].tolist() == [[*row, *new] for row in first.tolist()]
        texts = [text + new for text in texts]
        assert second[:, 16:].tolist() == [alone(full, text, **on) for text in texts]
        assert chain.plans[10].tokens == 6, "what the peers hold is not computed again"
        session.rewind(16)
        assert session.generate(**on).tolist() == second.tolist()
        session.rewind(14)
        assert model.generate(second[:, :16], **on).tolist() == second.tolist()


def test_new_texts_of_other_lengths_are_padded_and_follow_their_rows(full: PreTrainedModel, model: Any):
    """With a mask, and without one; on whichever side."""
    prompts = [[41, 42, 43, 44], [50, 51, 52, 53]]
    with model.session(max_length=60, max_rows=2) as session:
        first = session.generate(torch.tensor(prompts), eos_token_id=None, **GREEDY)
        texts = [[*first[0].tolist(), 60], [*first[1].tolist(), 61, 62, 63]]
        expected = [alone(full, text, eos_token_id=None, **GREEDY) for text in texts]
        for new, mask in [
            ([[0, 0, 60], [61, 62, 63]], None),
            ([[7, 8, 60], [61, 62, 63]], [[0, 0, 1], [1, 1, 1]]),
            ([[60, 9, 9], [61, 62, 63]], [[1, 0, 0], [1, 1, 1]]),
        ]:
            session.rewind(14)
            visible = None if mask is None else torch.tensor(mask)
            second = session.generate(torch.tensor(new), visible, eos_token_id=None, **GREEDY)
            assert second[:, :17].tolist() == [[*row, *more] for row, more in zip(first.tolist(), new, strict=True)]
            assert second[:, 17:].tolist() == expected


def test_a_row_of_padding_only_is_named(model: Any):
    """There is nothing to continue in it. transformers' own error would be about positions."""
    ids, mask = torch.tensor([[41, 42], [5, 6]]), torch.tensor([[1, 1], [0, 0]])
    with pytest.raises(UsageError, match="row 1 of the batch has no tokens"):
        model.generate(ids, attention_mask=mask, **GREEDY)
    with model.session(max_length=60, max_rows=2) as session:
        with pytest.raises(UsageError, match="row 1 of the batch has no tokens"):
            session.generate(ids, mask, **GREEDY)
        with pytest.raises(UsageError, match="shape"):
            session.generate(ids, mask[:1], **GREEDY)


def test_a_text_of_which_nothing_is_given_begins_as_transformers_begins_it(full: PreTrainedModel, model: Any):
    expected = full.generate(None, **GREEDY).tolist()
    assert model.generate(None, **GREEDY).tolist() == expected
    with model.session(max_length=60) as session:
        assert session.generate(**GREEDY).tolist() == expected
        assert model.generate(None, **GREEDY).tolist() == expected
        session.rewind(0)
        with pytest.raises(UsageError, match="no token that begins a text"):
            session.generate(bos_token_id=None)


# --- threads ---


class Meanwhile:
    """A streamer that does something at the first token, by default in another thread."""

    def __init__(self, work: Callable[[], object], here: bool = False) -> None:
        self._work = work
        self._here = here
        self.result: Any = None

    def put(self, tokens: torch.Tensor) -> None:
        if self.result is None:
            with ThreadPoolExecutor(1) as other:
                try:
                    self.result = self._work() if self._here else other.submit(self._work).result(60)
                except UsageError as error:
                    self.result = error

    def end(self) -> None:
        pass


def call_of(session: Any, name: str) -> Callable[[], object]:
    """A call that changes the text of a session, or its cache."""
    return {
        "generate": lambda: session.generate(**prompt(6), **GREEDY),
        "generate_full": lambda: session.generate_full(prompt(6)["input_ids"], **GREEDY),
        "rewind": lambda: session.rewind(0),
        "forward": lambda: session.model(prompt(6)["input_ids"], past_key_values=session.cache),
    }[name]


@pytest.mark.parametrize("call", ["generate", "generate_full", "rewind", "forward"])
def test_two_threads_in_one_session_lose_no_text(full: PreTrainedModel, model: Any, call: str) -> None:
    """Each took the other's tokens for its own text."""
    with model.session(max_length=100) as session:
        meanwhile = Meanwhile(call_of(session, call))
        text = session.generate(**prompt(6), **GREEDY, streamer=meanwhile)
        assert "another thread uses this session" in str(meanwhile.result)
        with ThreadPoolExecutor(1) as later:  # one after the other they may all use it
            longer = later.submit(lambda: session.generate(**GREEDY)).result(60)
    assert text.tolist() == full.generate(**prompt(6), **GREEDY).tolist()
    assert longer.tolist() == full.generate(text, **GREEDY).tolist()


@pytest.mark.parametrize("call", ["generate", "generate_full", "rewind", "forward"])
def test_a_callback_of_a_sessions_call_cannot_change_its_text(full: PreTrainedModel, model: Any, call: str) -> None:
    """The running call would go on behind the other text."""
    with model.session(max_length=100) as session:
        meanwhile = Meanwhile(call_of(session, call), here=True)
        text = session.generate(**prompt(6), **GREEDY, streamer=meanwhile)
        assert "this is a callback" in str(meanwhile.result)
        longer = session.generate(**GREEDY)
    assert text.tolist() == full.generate(**prompt(6), **GREEDY).tolist()
    assert longer.tolist() == full.generate(text, **GREEDY).tolist()


def test_generate_in_a_callback_of_a_sessions_call_has_a_text_of_its_own(full: PreTrainedModel, model: Any) -> None:
    with model.session(max_length=100) as session:
        meanwhile = Meanwhile(lambda: model.generate(**prompt(9, seed=1), **GREEDY), here=True)
        text = session.generate(**prompt(6), **GREEDY, streamer=meanwhile)
        longer = session.generate(**GREEDY)
    assert meanwhile.result.tolist() == full.generate(**prompt(9, seed=1), **GREEDY).tolist()
    assert text.tolist() == full.generate(**prompt(6), **GREEDY).tolist()
    assert longer.tolist() == full.generate(text, **GREEDY).tolist()


def test_generate_in_a_thread_of_a_session_says_that_it_is_none_of_it(full: PreTrainedModel, model: Any) -> None:
    """Context variables do not follow into threads; so it would be two sessions without a word."""
    expected = full.generate(**prompt(6), **GREEDY).tolist()
    with model.session(max_length=100) as session, ThreadPoolExecutor(1) as other:
        with pytest.warns(UserWarning, match="another thread is inside"):
            assert other.submit(lambda: model.generate(**prompt(6), **GREEDY)).result(60).tolist() == expected
        assert session.position == 0
    with ThreadPoolExecutor(1) as other:  # no warning where no block is open
        assert other.submit(lambda: model.generate(**prompt(6), **GREEDY)).result(60).tolist() == expected
