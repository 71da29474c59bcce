"""An answer that must be JSON of a schema is, whatever the model would rather say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from blockswarm.client.api.openai.errors import ApiError
from blockswarm.client.api.run.grammar import SchemaMask, grammar_tokenizer
from blockswarm.client.api.run.reasoning import ReasoningTokens
from support.tokenizers import byte_tokenizer

END = 0
TOKENIZER = byte_tokenizer()
GRAMMAR = grammar_tokenizer(TOKENIZER, 257, [END])
PROMPT = [5, 6]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


def mask(schema: Any, rows: int = 1, reasoning: ReasoningTokens | None = None) -> SchemaMask:
    return SchemaMask(json.dumps(schema), GRAMMAR, rows, len(PROMPT), "response_format", reasoning)


def drawn(schema: Any, seed: int, most: int = 200, reasoning: ReasoningTokens | None = None) -> list[int]:
    """An answer of a model that has no idea."""
    generator = torch.Generator().manual_seed(seed)
    masked, ids = mask(schema, reasoning=reasoning), list(PROMPT)
    while len(ids) < most and ids[-1] != END:
        ids.append(int(masked(torch.tensor([ids]), torch.randn((1, 257), generator=generator)).argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("seed", range(5))
def test_random_tokens_become_json_of_the_schema_and_end(seed: int) -> None:
    answer = drawn(SCHEMA, seed)
    assert answer[-1] == END
    said = json.loads(TOKENIZER.decode(answer[:-1]))
    assert said.keys() == {"kind", "count"}
    assert said["kind"] in ("cat", "dog")
    assert 0 <= said["count"] <= 99


def test_white_space_cannot_go_on_for_ever() -> None:
    """A model that likes spaces best still gets on."""
    space = TOKENIZER(" ")["input_ids"][0]
    masked, ids = mask(SCHEMA), list(PROMPT)
    for _ in range(300):
        scores = torch.zeros((1, 257))
        scores[0, space] = 1
        ids.append(int(masked(torch.tensor([ids]), scores).argmax()))
        if ids[-1] == END:
            break
    assert ids[-1] == END


def test_tokens_that_are_given_up_are_forgotten() -> None:
    """Speculation looks ahead and comes back: the mask is a function of the text, not of the calls so far."""
    answer = drawn(SCHEMA, 3)
    masked = mask(SCHEMA)
    zeros = torch.zeros((1, 257))
    expected = [mask(SCHEMA)(torch.tensor([[*PROMPT, *answer[:count]]]), zeros) for count in range(len(answer))]
    for count in [5, 2, 9, 0, len(answer) - 1, 7]:
        assert torch.equal(masked(torch.tensor([[*PROMPT, *answer[:count]]]), zeros), expected[count])


BEGIN_MARK, END_MARK = 250, 251
"""Two bytes that no JSON text has."""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("begun", [True, False])
def test_what_a_model_reasons_before_its_json_is_free_and_does_not_end_the_answer(seed: int, begun: bool) -> None:
    answer = drawn(SCHEMA, seed, 5000, ReasoningTokens(BEGIN_MARK, END_MARK, begun))
    reasons = begun or answer[0] == BEGIN_MARK
    start = answer.index(END_MARK) + 1 if reasons else 0
    assert END not in answer[:start]
    assert answer[-1] == END
    assert json.loads(TOKENIZER.decode(answer[start:-1])).keys() == {"kind", "count"}


def test_a_model_may_reason_or_begin_its_json() -> None:
    masked = mask({"type": "integer"}, reasoning=ReasoningTokens(BEGIN_MARK, END_MARK, begun=False))
    first = masked(torch.tensor([PROMPT]), torch.zeros(1, 257))[0]
    plain = mask({"type": "integer"})(torch.tensor([PROMPT]), torch.zeros(1, 257))[0]
    assert torch.isfinite(first).nonzero().flatten().tolist() == sorted(
        [*torch.isfinite(plain).nonzero().flatten().tolist(), BEGIN_MARK]
    )
    later = masked(torch.tensor([[*PROMPT, *TOKENIZER("7")["input_ids"]]]), torch.zeros(1, 257))[0]
    assert not torch.isfinite(later[BEGIN_MARK])


def test_speculation_may_give_up_the_end_of_the_reasoning() -> None:
    reasoning = ReasoningTokens(BEGIN_MARK, END_MARK, begun=False)
    answer = [BEGIN_MARK, 7, 8, END_MARK, *TOKENIZER("12")["input_ids"]]
    masked, zeros = mask({"type": "integer"}, reasoning=reasoning), torch.zeros((1, 257))
    for count in [6, 2, 5, 0, 4, 3, 6]:
        ids = torch.tensor([[*PROMPT, *answer[:count]]])
        assert torch.equal(masked(ids, zeros), mask({"type": "integer"}, reasoning=reasoning)(ids, zeros))


def test_rows_are_kept_apart_and_one_that_has_ended_is_left_alone() -> None:
    ended = [*TOKENIZER("7")["input_ids"], END, END]
    open_still = TOKENIZER("123")["input_ids"]
    ids = torch.tensor([[*PROMPT, *ended], [*PROMPT, *open_still]])
    scores = mask({"type": "integer"}, rows=2)(ids, torch.zeros(2, 257))
    assert torch.isfinite(scores[0]).all(), "nothing is asked of the tokens that fill a row"
    digits = TOKENIZER("0123456789")["input_ids"]
    assert torch.isfinite(scores[1]).nonzero().flatten().tolist() == sorted([END, *digits])


@pytest.mark.parametrize(
    "schema", [{"type": "poem"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}], ids=str
)
def test_an_impossible_schema_is_the_requests_fault(schema: Any) -> None:
    with pytest.raises(ApiError) as refused:
        mask(schema)
    assert (refused.value.status, refused.value.param) == (400, "response_format")


@pytest.mark.parametrize("inside", [False, True], ids=["at the begin", "within"])
def test_a_schema_without_a_way_out_ends_with_an_error_and_not_as_an_answer(inside: bool) -> None:
    """The library finds it out where the answer gets there, and would end the answer as if the model had."""
    endless: dict[str, Any] = {"$ref": "#/$defs/endless"}
    schema = {"type": "object", "properties": {"a": endless}, "required": ["a"]} if inside else endless
    with pytest.raises(ApiError) as refused:
        drawn({**schema, "$defs": {"endless": endless}}, 0)
    assert (refused.value.status, refused.value.param) == (400, "response_format")


def test_a_schema_may_contain_itself() -> None:
    child = {"type": "object", "properties": {"child": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    tree = {"$ref": "#/$defs/tree", "$defs": {"tree": child}}
    assert isinstance(json.loads(TOKENIZER.decode(drawn(tree, 0)[:-1])), dict)


def test_a_model_without_an_end_cannot_keep_to_a_form() -> None:
    with pytest.raises(ApiError):
        grammar_tokenizer(TOKENIZER, 257, [])
