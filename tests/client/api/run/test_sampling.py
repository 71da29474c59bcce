"""Tokens are chosen as OpenAI's parameters say: against the probabilities, and against transformers' own sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from blockswarm.client.api.openai.requests import Sampling
from blockswarm.client.api.run.sampling import RecordedScores, SamplingDefaults, fixed_settings, processors
from blockswarm.proto.errors import UsageError
from transformers import GenerationConfig, LogitsProcessorList

LOGITS = torch.tensor([[2.0, 1.0, 0.5, -1.0, -3.0]])
PROMPT = torch.tensor([[4, 4]])


def chosen(
    sampling: Sampling, ids: torch.Tensor = PROMPT, defaults: SamplingDefaults | None = None, seed: int = 0
) -> Any:
    chain = LogitsProcessorList(processors(sampling, defaults or SamplingDefaults(), PROMPT.shape[1], seed))
    return chain(ids, LOGITS.expand(len(ids), -1).clone())


def frequencies(draws: int = 4000, **fields: Any) -> torch.Tensor:
    """How often each token is drawn, over as many rows of one batch."""
    scores = chosen(Sampling(**fields), PROMPT.expand(draws, -1))
    return torch.bincount(scores.argmax(dim=1), minlength=5) / draws


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, torch.softmax(LOGITS[0], 0)),
        ({"temperature": 2.0}, torch.softmax(LOGITS[0] / 2, 0)),
        ({"top_k": 2}, torch.softmax(torch.cat([LOGITS[0][:2], torch.full((3,), -torch.inf)]), 0)),
        ({"top_p": 0.5}, torch.tensor([1.0, 0, 0, 0, 0])),
        ({"min_p": 0.3}, torch.softmax(torch.cat([LOGITS[0][:2], torch.full((3,), -torch.inf)]), 0)),
        ({"logit_bias": ((4, 5.0),)}, torch.softmax(LOGITS[0] + torch.tensor([0, 0, 0, 0, 5.0]), 0)),
    ],
    ids=str,
)
def test_draws_have_the_probabilities_that_were_asked_for(fields: dict[str, Any], expected: torch.Tensor) -> None:
    """Four standard deviations of 4,000 draws are 0.032 at most."""
    assert torch.allclose(frequencies(seed=1, **fields), expected, atol=0.032)
    assert (frequencies(seed=1, **fields)[expected == 0] == 0).all()


def test_draws_do_not_depend_on_the_default_dtype() -> None:
    """transformers sets it for all threads while it builds a model."""
    asked = Sampling(seed=7, logit_bias=((4, 1 / 3),))
    first = chosen(asked)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(chosen(asked), first)
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_temperature_takes_the_likeliest_token() -> None:
    assert torch.equal(chosen(Sampling(temperature=0)), LOGITS)


def test_equal_seeds_draw_equal_tokens_at_each_position_and_row() -> None:
    """Other draws, of other threads or of a speculation that failed, change nothing."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 3]])
    first = chosen(Sampling(seed=7), ids)
    torch.rand(10)
    chosen(Sampling(seed=7), ids[:, :2])
    assert torch.equal(chosen(Sampling(seed=7), ids), first)
    assert not torch.equal(first[0], first[1]), "two answers to one prompt differ"
    assert not torch.equal(chosen(Sampling(seed=8), ids), first)
    assert not torch.equal(chosen(Sampling(seed=7), torch.cat([ids, ids], dim=1)), first)
    assert torch.equal(chosen(Sampling(), ids, seed=7), first), "the endpoint's own seed, without one in the request"


def test_penalties_count_the_answer_and_not_the_prompt() -> None:
    ids = torch.tensor([[4, 4, 0, 0, 1]])
    scores = chosen(Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25), ids)
    assert torch.allclose(LOGITS - scores, torch.tensor([[1.0, 0.75, 0, 0, 0]]))


def test_a_model_that_is_meant_to_draw_brings_its_own_settings() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1)
    assert SamplingDefaults.of(config) == SamplingDefaults(0.6, 0.95, 20, None, 1.1)
    greedy = SamplingDefaults.of(GenerationConfig(repetition_penalty=1.1))
    assert greedy == SamplingDefaults(repetition_penalty=1.1)
    ids = torch.tensor([[4, 4, 0]])
    assert torch.allclose(chosen(Sampling(temperature=0), ids, greedy)[0, 0], LOGITS[0, 0] / 1.1)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "temperature": ["hot", float("nan"), float("inf"), -1, True, [1.0]],
        "top_p": ["x", 1.5, -0.1, float("nan")],
        "top_k": ["x", -2, 10**30, {}],
        "min_p": ["x", 2.0],
        "repetition_penalty": ["x", 0.0, -1.0, float("nan"), float("inf")],
    }.items(),
)
def test_settings_of_a_model_with_which_no_request_could_be_answered(name: str, values: list[Any]) -> None:
    """The operator is told when the endpoint starts; every request would fail, with a traceback in the log."""
    for value in values:
        config = GenerationConfig(do_sample=True)
        setattr(config, name, value)
        with pytest.raises(UsageError, match=name):
            SamplingDefaults.of(config)


def test_settings_that_limit_nothing() -> None:
    config = GenerationConfig(do_sample=True, top_k=-1, top_p=1, temperature=2, repetition_penalty=2)
    defaults = SamplingDefaults.of(config)
    assert defaults.top_k is None
    assert torch.isfinite(chosen(Sampling(), defaults=defaults)).any(), "a penalty of 2 is one of 2.0"


def test_what_is_told_are_the_models_own_probabilities() -> None:
    recorded = RecordedScores()
    chain = LogitsProcessorList(processors(Sampling(logit_bias=((0, -9.0),)), SamplingDefaults(), 2, 0, recorded))
    chain(PROMPT, torch.zeros_like(LOGITS))
    chain(PROMPT, LOGITS.clone())
    assert torch.allclose(recorded.take(2), torch.log_softmax(LOGITS, -1)), "those of the last computation"
    with pytest.raises(KeyError):
        recorded.take(2)


def test_generate_itself_takes_the_likeliest() -> None:
    settings = fixed_settings((1, 2), 0, 5)
    assert settings["do_sample"] is False
    assert settings["eos_token_id"] == [1, 2]
    assert fixed_settings((), 0, 5)["eos_token_id"] is None
