"""The front part on guessed tokens gives what the model feeds to its first block when they come.

That it does so bit for bit in every family shows where right guesses are hits: `test_forwards.py`.
"""

from __future__ import annotations

import pytest
import torch
from blockswarm.client.model.guess.front import Front
from support.local_chain import ends_of
from support.prompts import full_model

TOKENS = [7, 8, 9]


@pytest.mark.parametrize("name", ["llama", "llama4"])
def test_where_positions_are_the_blocks_business_it_is_the_embedding(name: str):
    model = ends_of(full_model(name))
    hidden = Front(model, columns=5, position=5, mask=None, positions_given=True).hidden(TOKENS)
    assert torch.equal(hidden, model.get_input_embeddings()(torch.tensor(TOKENS)))


def test_positions_count_from_the_first_token_behind_the_padding():
    model = ends_of(full_model("gpt2"))
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    hidden = Front(model, columns=5, position=3, mask=mask, positions_given=True).hidden(TOKENS)
    body = model.transformer
    assert torch.equal(hidden, body.wte(torch.tensor(TOKENS)) + body.wpe(torch.tensor([3, 4, 5])))


def test_factors_and_norms_of_the_family_are_in_it():
    model = ends_of(full_model("gemma"))
    hidden = Front(model, columns=5, position=5, mask=None, positions_given=True).hidden(TOKENS)
    embedded = model.get_input_embeddings()(torch.tensor(TOKENS))
    torch.testing.assert_close(hidden, embedded * hidden[0, 0] / embedded[0, 0])
    bloom = ends_of(full_model("bloom"))
    hidden = Front(bloom, columns=5, position=5, mask=None, positions_given=False).hidden(TOKENS)
    body = bloom.transformer
    assert torch.equal(hidden, body.word_embeddings_layernorm(body.word_embeddings(torch.tensor(TOKENS))))


def test_guesses_may_stand_behind_other_guesses():
    model = ends_of(full_model("gpt2"))
    for mask, position in ((torch.tensor([[0, 0, 1, 1, 1]]), 3), (None, 5)):
        front = Front(model, columns=5, position=position, mask=mask, positions_given=True)
        together = front.hidden([*TOKENS, 4, 5])
        assert torch.equal(front.hidden([4, 5], behind=3), together[3:])


def test_what_the_family_cannot_embed_is_its_own_error():
    model = ends_of(full_model("gpt2"))
    with pytest.raises(IndexError):
        Front(model, columns=5, position=5, mask=None, positions_given=True).hidden([10**6])
