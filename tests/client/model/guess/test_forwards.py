"""With guesses the tokens are those of the full model, in every way people generate, and right guesses save trips."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from blockswarm.client.model.guess.drafter import Drafter
from blockswarm.client.model.guess.suffix import SuffixDrafter
from blockswarm.client.report import Trip
from support.drafters import NONSENSE, KnowingDrafter, NonsenseDrafter, RandomDrafter, SlowDrafter, TestDrafter
from support.local_chain import LocalChain, connected_model
from support.prompts import GREEDY, appended, full_model, prompt
from support.tiny_models import SERVED_MODELS
from transformers import LogitsProcessor, PreTrainedModel

VOCABULARY = 257
LONG: dict[str, Any] = GREEDY | {"max_new_tokens": 24, "eos_token_id": None}

DRAFTERS: dict[str, Callable[[Sequence[int]], list[Drafter]]] = {
    "right": lambda text: [KnowingDrafter(text)],
    "wrong": lambda text: [KnowingDrafter(text, wrong_at=lambda position: True)],
    "mixed": lambda text: [KnowingDrafter(text, wrong_at=lambda position: position % 5 == 2)],
    "slow": lambda text: [SlowDrafter(text, wrong_at=lambda position: position % 7 == 2)],
    "random": lambda text: [RandomDrafter(len(text), VOCABULARY)],
    "suffix": lambda text: [SuffixDrafter()],
    "several": lambda text: [RandomDrafter(1, VOCABULARY), KnowingDrafter(text), SuffixDrafter()],
}


@pytest.fixture
def guessing(model: Any) -> Iterator[Any]:
    """The model, guessing 5 tokens ahead."""
    makes = model.make_drafters
    model.guess = 5
    yield model
    model.guess, model.make_drafters = "auto", makes


def follow(model: Any, drafters: list[Drafter]) -> None:
    model.make_drafters = lambda: drafters


def generated(model: Any, **call: Any) -> torch.Tensor:
    torch.manual_seed(1)
    return model.generate(**call)


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_right_guesses_are_hits_in_every_family(name: str):
    """A guessed token feeds to the first block, bit for bit, what it feeds when it is real; padded or not."""
    full = full_model(name)
    model, chain = connected_model(full)
    model.guess = 5
    call = GREEDY | {"max_new_tokens": 14, "eos_token_id": None}
    padded = {key: value[1:] for key, value in prompt(11, 7).items()}
    for inputs in (prompt(9), padded):
        text = full.generate(**inputs, **call)[0]
        padding = int((inputs["attention_mask"] == 0).sum())
        follow(model, [KnowingDrafter(text[padding:].tolist())])
        assert model.generate(**inputs, **call)[0].tolist() == text.tolist()
        report = model.last_generation.guesses
        assert (report.trips, report.right) == (2, 12), "the prompt, and the token behind it"
        assert len(chain.plans) == report.trips + report.guess_steps


class Odd(LogitsProcessor):
    """A processor of the user's own, that looks at the text."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + (torch.arange(scores.shape[1]) % 3 == input_ids.sum() % 3) * 0.5


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 1.3},
    "top-p": {"do_sample": True, "top_p": 0.7, "top_k": 0},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "processor": {"logits_processor": [Odd()]},
    "prompt look-up": {"prompt_lookup_num_tokens": 3},
    "chunked prompt": {"prefill_chunk_size": 4},
}


@pytest.mark.long
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_tokens_are_those_of_plain_generate(
    full: PreTrainedModel, guessing: Any, setting: dict[str, Any], drafter: str
):
    call = prompt(12) | LONG | setting
    text = generated(full, **call)
    follow(guessing, DRAFTERS[drafter](text[0].tolist()))
    assert generated(guessing, **call).tolist() == text.tolist()


@pytest.mark.long
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_an_assistant_model_on_top(full: PreTrainedModel, guessing: Any, drafter: str):
    assistant = full_model("llama", num_hidden_layers=2)
    text = generated(full, **prompt(9), **LONG, assistant_model=assistant)
    follow(guessing, DRAFTERS[drafter](text[0].tolist()))
    assert generated(guessing, **prompt(9), **LONG, assistant_model=assistant).tolist() == text.tolist()


@pytest.mark.parametrize("rows", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}, {"padded": True}])
def test_batches_and_beams_get_no_guesses(
    full: PreTrainedModel, guessing: Any, chain: LocalChain, rows: dict[str, Any]
):
    """They have the tokens of plain generate; guessing is for one sequence."""
    inputs = prompt(12, 3, 7) if rows == {"padded": True} else prompt(12)
    call = inputs | LONG | {key: value for key, value in rows.items() if key != "padded"}
    follow(guessing, [RandomDrafter(1, VOCABULARY, silent_share=0)])
    assert generated(guessing, **call).tolist() == generated(full, **call).tolist()
    assert guessing.last_generation.guesses.guessed == 0
    assert len(chain.plans) == 24


@pytest.mark.parametrize("answer", NONSENSE, ids=repr)
def test_nonsense_is_harmless(full: PreTrainedModel, guessing: Any, answer: Any):
    drafters: list[Drafter] = [NonsenseDrafter(answer), SuffixDrafter()]
    follow(guessing, drafters)
    assert generated(guessing, **prompt(12), **LONG).tolist() == generated(full, **prompt(12), **LONG).tolist()


@pytest.mark.parametrize("makes", [lambda: 1 / 0, lambda: None, lambda: [None, 7], lambda: iter([SuffixDrafter()])])
def test_a_text_needs_none_of_its_drafters(full: PreTrainedModel, guessing: Any, makes: Any):
    guessing.make_drafters = makes
    assert generated(guessing, **prompt(12), **LONG).tolist() == generated(full, **prompt(12), **LONG).tolist()


def test_a_front_part_that_fails_ends_the_guessing(full: PreTrainedModel, guessing: Any, chain: LocalChain):
    """A family's own code on tokens that nobody asked for."""

    follow(guessing, [KnowingDrafter(list(range(5, 40)))])
    body = guessing.base_model
    refuse = body.register_forward_pre_hook(_refuses_guesses, with_kwargs=True)
    try:
        result = generated(guessing, **prompt(12), **LONG)
    finally:
        refuse.remove()
    assert result.tolist() == generated(full, **prompt(12), **LONG).tolist()
    assert guessing.last_generation.guesses.guessed == 0
    assert len(chain.plans) == 24


def _refuses_guesses(body: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if type(kwargs["past_key_values"]).__name__ == "FrontCache":
        raise RuntimeError("no guesses here")


def test_no_prompt_takes_more_trips_than_without_guesses(guessing: Any, chain: LocalChain):
    for seed in range(5):
        follow(guessing, [RandomDrafter(seed, VOCABULARY)])
        guessing.generate(**prompt(12, seed=seed), **LONG)
        assert guessing.last_generation.guesses.trips <= 24


def test_guesses_stay_within_the_text_and_the_room(full: PreTrainedModel, guessing: Any, chain: LocalChain):
    """The model may have no positions behind, and the peers no room."""
    text = full.generate(**prompt(12), **LONG)[0].tolist()
    follow(guessing, [KnowingDrafter(text + [5] * 50)])
    guessing.guess = 64
    guessing.generate(**prompt(12), **LONG)
    assert max(plan.rows[0].stop for plan in chain.plans) == 12 + 24 - 1  # the last token is never fed
    with guessing.session(max_length=200) as session:
        session.generate(prompt(12)["input_ids"], **LONG)
    assert max(plan.rows[0].stop for plan in chain.plans) == 12 + 24 - 1


def test_the_first_step_has_no_guesses(guessing: Any, chain: LocalChain):
    """Peers name the pages of what it feeds and keep them for later sessions."""
    follow(guessing, [RandomDrafter(1, VOCABULARY, silent_share=0)])
    guessing.generate(**prompt(12), **LONG)
    assert chain.plans[0].tokens == 12
    assert max(plan.tokens for plan in chain.plans[1:]) > 1


@pytest.mark.long
@pytest.mark.parametrize("drafter", ["mixed", "random", "suffix"])
def test_a_session_with_rewinds_gives_what_new_texts_give(full: PreTrainedModel, guessing: Any, drafter: str):
    text = full.generate(**prompt(12), **LONG)
    follow(guessing, DRAFTERS[drafter](text[0].tolist()))
    with guessing.session(max_length=160) as session:
        assert session.generate(prompt(12)["input_ids"], **LONG).tolist() == text.tolist()
        session.rewind(20)
        again = appended(text[:, :20], 9, 8, 7)
        expected = full.generate(again, **LONG)
        assert session.generate(torch.tensor([[9, 8, 7]]), **LONG).tolist() == expected.tolist()
        session.rewind(12)
        assert session.generate(**LONG).tolist() == full.generate(session.tokens[:, :12], **LONG).tolist()
        whole = session.tokens
        assert guessing.generate(whole, **LONG).tolist() == full.generate(whole, **LONG).tolist()


@pytest.mark.long
def test_one_session_goes_from_one_sequence_to_beams_and_back(full: PreTrainedModel, guessing: Any):
    """Guessed tokens behind a row are dropped wherever the row goes."""
    follow(guessing, [RandomDrafter(3, VOCABULARY, silent_share=0)])
    with guessing.session(max_length=100, max_rows=3) as session:
        text = prompt(12)["input_ids"]
        for call in (LONG, GREEDY | {"num_beams": 3}, LONG, GREEDY | {"num_beams": 2}, LONG):
            expected = full.generate(text[:, :40], **call)
            session.rewind(min(session.position, 40))
            assert guessing.generate(text[:, :40], **call).tolist() == expected.tolist()
            text = expected


class Reader(TestDrafter):
    """Knows what it was told."""

    def __init__(self) -> None:
        self.text: list[int] = []

    def note(self, start: int, tokens: Sequence[int]) -> None:
        assert start <= len(self.text)
        self.text[start:] = tokens


@pytest.mark.parametrize("since", ["no guesses", "another setting", "a batch"])
def test_drafters_are_told_what_they_have_missed_of_a_session(guessing: Any, since: str):
    """A draft model that lacks the beginning of a text cannot guess what follows."""
    readers: list[Reader] = []

    def make() -> list[Drafter]:
        readers.append(Reader())
        return [readers[-1]]

    guessing.make_drafters = make
    guessing.guess = "off" if since == "no guesses" else 5
    with guessing.session(max_length=100, max_rows=2) as session:
        begin = prompt(12, 9) if since == "a batch" else prompt(12)
        session.generate(**begin, **LONG)
        guessing.guess = 5 if since == "a batch" else 3
        row = session.tokens[-1:, 3 if since == "a batch" else 0 :]
        guessing.generate(appended(row, 9, 8, 7), **LONG)
        assert readers[-1].text == session.tokens[0, :-1].tolist(), "the last token is never fed"


def test_the_end_of_a_session_knows_what_was_only_guessed(guessing: Any, chain: LocalChain):
    follow(guessing, [RandomDrafter(1, VOCABULARY, silent_share=0)])
    with guessing.session(max_length=200) as session:
        session.generate(prompt(12)["input_ids"], **LONG | {"max_new_tokens": 7})
    (ended,) = chain.sessions
    assert ended.confirmed == (12 + 6,)


def test_a_text_that_has_ended_lets_its_drafters_go(guessing: Any):
    """Also where somebody still holds the session, or what it raised: a draft model thinks for living texts only."""
    made: list[weakref.ref[Drafter]] = []

    def make() -> list[Drafter]:
        drafter = RandomDrafter(1, VOCABULARY, silent_share=0)
        made.append(weakref.ref(drafter))
        return [drafter]

    guessing.make_drafters = make
    with guessing.session(40) as session:
        session.generate(prompt(12)["input_ids"], **LONG)
        assert made[0]() is not None
    report = guessing.last_generation.guesses
    gc.collect()
    assert made[0]() is None
    assert session.position == 36
    assert guessing.last_generation.guesses == report
    assert report.guessed > 0


def test_a_stream_gets_the_tokens_and_can_be_left(full: PreTrainedModel, guessing: Any, chain: LocalChain):
    text = full.generate(**prompt(12), **LONG)[0].tolist()

    async def stream(most: int) -> list[int]:
        tokens = []
        async for token in guessing.astream(**prompt(12), **LONG):
            tokens.append(token)
            if len(tokens) == most:
                break
        return tokens

    for drafter in DRAFTERS.values():
        follow(guessing, drafter(text))
        assert asyncio.run(stream(99)) == text[12:]
        assert asyncio.run(stream(5)) == text[12:17]


def test_the_report_counts_trips_and_guesses(full: PreTrainedModel, guessing: Any, chain: LocalChain):
    text = full.generate(**prompt(12), **LONG)[0].tolist()
    follow(guessing, [KnowingDrafter(text, wrong_at=lambda position: position == 20)])
    guessing.generate(**prompt(12), **LONG)
    report = guessing.last_generation.guesses
    assert (report.setting, report.forwards, report.tokens) == ("5", 24, 12 + 23)
    assert report.trips + report.guess_steps == len(chain.plans)
    assert report.trips == 3, "the prompt, the token behind it, and the one that was guessed wrong"
    (draft,) = report.drafts
    sent = sum(plan.tokens for plan in chain.plans)
    assert draft.guessed == sent - (report.tokens - draft.right)
    assert report.forwards == report.trips + draft.right
    assert report.forwards_per_trip == 24 / report.trips


def test_the_trips_of_a_cache_that_is_returned_are_counted(guessing: Any, chain: LocalChain):
    """It gets no guesses, since the caller may begin another session with it; each forward is a trip."""
    follow(guessing, [RandomDrafter(1, VOCABULARY, silent_share=0)])
    output, call = guessing.generate(**prompt(12), **LONG, return_dict_in_generate=True, return_report=True)
    assert (call.guesses.setting, call.guesses.trips, call.guesses.tokens) == ("off", 24, 12 + 23)
    assert call.guesses.guessed == 0
    more, call = guessing.generate(output.sequences, past_key_values=output.past_key_values, **LONG, return_report=True)
    assert (call.guesses.trips, call.guesses.guessed) == (24, 0)
    assert more.shape == (1, 60)


AWAY = Trip(tokens=1, seconds=0.1, queue_seconds=0.001, compute_seconds=0.01, row_seconds=0.0003)
HERE = Trip(tokens=1, seconds=0.011, queue_seconds=0.0005, compute_seconds=0.01, row_seconds=0.0003)


def test_auto_guesses_where_trips_are_long(full: PreTrainedModel, guessing: Any, chain: LocalChain):
    guessing.guess, chain.trip = "auto", AWAY
    text = full.generate(**prompt(12), **LONG)[0].tolist()
    follow(guessing, [KnowingDrafter(text)])
    assert guessing.generate(**prompt(12), **LONG)[0].tolist() == text
    assert guessing.last_generation.guesses.trips < 5


@pytest.mark.parametrize("trip", [HERE, None])
def test_auto_guesses_nothing_on_this_machine(guessing: Any, chain: LocalChain, trip: Trip | None):
    guessing.guess, chain.trip = "auto", trip
    follow(guessing, [RandomDrafter(1, VOCABULARY, silent_share=0)])
    guessing.generate(**prompt(12), **LONG)
    assert guessing.last_generation.guesses.guessed == 0
    assert len(chain.plans) == 24


def test_off_asks_no_drafter(guessing: Any, chain: LocalChain):
    drafter = NonsenseDrafter(ValueError("asked"))
    guessing.guess, chain.trip = "off", AWAY
    follow(guessing, [drafter])
    guessing.generate(**prompt(12), **LONG)
    assert drafter.asked == 0
    assert len(chain.plans) == 24
