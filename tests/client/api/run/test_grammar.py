"""An answer that must be JSON of a schema is, whatever the model would rather say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from blockswarm.client.api.openai.errors import ApiError
from blockswarm.client.api.run.grammar import SchemaMask, grammar_tokenizer
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


def mask(schema: Any, rows: int = 1) -> SchemaMask:
    return SchemaMask(json.dumps(schema), GRAMMAR, rows, len(PROMPT), "response_format")


def drawn(schema: Any, seed: int, most: int = 200) -> list[int]:
    """An answer of a model that has no idea."""
    generator = torch.Generator().manual_seed(seed)
    masked, ids = mask(schema), list(PROMPT)
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


def test_a_schema_may_contain_itself() -> None:
    child = {"type": "object", "properties": {"child": {"$ref": "#/$defs/tree"}}, "additionalProperties": False}
    tree = {"$ref": "#/$defs/tree", "$defs": {"tree": child}}
    assert isinstance(json.loads(TOKENIZER.decode(drawn(tree, 0)[:-1])), dict)


def test_a_model_without_an_end_cannot_keep_to_a_form() -> None:
    with pytest.raises(ApiError):
        grammar_tokenizer(TOKENIZER, 257, [])
