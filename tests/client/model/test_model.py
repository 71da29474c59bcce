"""generate() through three stages in this process gives the tokens of the full model, in every way people call it."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest
import torch
from blockswarm.client.model.remote import SwarmCache
from blockswarm.proto.errors import PeerUnavailable, UsageError
from support.local_chain import LocalChain, connected_model
from support.prompts import GREEDY, full_model, prompt
from support.tiny_models import SERVED_MODELS
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

REPETITIVE = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])


def assert_same(full: PreTrainedModel, model: Any, **call: Any) -> None:
    torch.manual_seed(1)
    expected = full.generate(**call)
    torch.manual_seed(1)
    assert model.generate(**call).tolist() == expected.tolist()


@pytest.mark.parametrize("name", SERVED_MODELS)
def test_every_family_generates_what_the_full_model_does(name: str):
    """Greedy, a padded batch, beams and prompt look-up; a prompt longer than the windows of the families."""
    full = full_model(name)
    model, chain = connected_model(full)
    call = GREEDY | {"max_new_tokens": 6}
    assert_same(full, model, **prompt(11), **call)
    assert_same(full, model, **prompt(11, 4, 9), **call)
    assert_same(full, model, **prompt(9, 6), num_beams=3, **call)
    assert_same(full, model, input_ids=REPETITIVE, prompt_lookup_num_tokens=3, **call)
    assert chain.open_sessions == 0


SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 1.3},
    "top-k": {"do_sample": True, "top_k": 5},
    "top-p": {"do_sample": True, "top_p": 0.7, "top_k": 0},
    "min-p": {"do_sample": True, "min_p": 0.05},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "sampling beams": {"do_sample": True, "num_beams": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True},
    "chunked prompt": {"prefill_chunk_size": 4},
    "chunked prompt with beams": {"prefill_chunk_size": 4, "num_beams": 2},
    "minimum length": {"min_new_tokens": 8},
    "cache implementation": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "guidance": {"guidance_scale": 1.5},
    "guidance with sampling": {"guidance_scale": 1.5, "do_sample": True},
}


@pytest.mark.long
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_setting_of_generate_works_as_in_the_full_model(
    full: PreTrainedModel, model: Any, setting: dict[str, Any]
):
    assert_same(full, model, **prompt(12, 3, 7), **GREEDY | setting)


@pytest.mark.long
@pytest.mark.parametrize("do_sample", [False, True])
def test_assistant_model(full: PreTrainedModel, model: Any, chain: LocalChain, do_sample: bool):
    """Several guesses are verified by one step, and refused ones are cropped by the next."""
    assistant = full_model("llama", num_hidden_layers=2)
    call = GREEDY | {"do_sample": do_sample, "max_new_tokens": 16}
    assert_same(full, model, **prompt(9), assistant_model=assistant, **call)
    good = full_model("llama")
    assert_same(full, model, **prompt(9), assistant_model=good, **GREEDY | {"max_new_tokens": 16})
    assert len(chain.plans) < 16


@pytest.mark.long
def test_an_assistant_whose_blocks_are_in_a_swarm(full: PreTrainedModel, model: Any, chain: LocalChain):
    """It is called once for each guess, with the cache of its last call."""
    call = GREEDY | {"max_new_tokens": 16}
    assistant, other_chain = connected_model(full_model("llama", num_hidden_layers=2), cuts=[1])
    expected = full.generate(**prompt(9), **call).tolist()
    assert full.generate(**prompt(9), assistant_model=assistant, **call).tolist() == expected
    other_chain.reset()
    assert model.generate(**prompt(9), assistant_model=assistant, **call).tolist() == expected
    assert other_chain.open_sessions == 0
    assert len(other_chain.sessions) == 1, "one session has room for the whole text"
    chain.reset()
    assert model.generate(**prompt(9), assistant_model=model, **call).tolist() == expected
    assert len(chain.sessions) == 2


@pytest.mark.long
@pytest.mark.parametrize("call", [{"guidance_scale": 3.0}, {"assistant_early_exit": 2}], ids=str)
def test_generation_that_calls_the_model_on_the_way(
    full: PreTrainedModel, model: Any, chain: LocalChain, call: dict[str, Any]
):
    assert_same(full, model, **prompt(9), **GREEDY | call)
    assert chain.open_sessions == 0
    if "guidance_scale" in call:
        chain.reset()
        negative = torch.arange(20, 45)[None]
        assert_same(full, model, **prompt(9), negative_prompt_ids=negative, **GREEDY | call | {"eos_token_id": None})
        assert len(chain.sessions) == 3, "the text, the prompt to be avoided, and that again with room for the text"


@pytest.mark.long
def test_prompt_lookup_saves_steps(full: PreTrainedModel, model: Any, chain: LocalChain):
    plain = full.generate(input_ids=REPETITIVE, **GREEDY | {"max_new_tokens": 40})
    assert_same(full, model, input_ids=plain, prompt_lookup_num_tokens=5, **GREEDY | {"max_new_tokens": 30})
    assert len(chain.plans) < 30


def test_stopping_strings(full: PreTrainedModel, model: Any):
    names = [chr(token if chr(token) in "abcdef" else 0x4E00 + token) for token in range(257)]
    letters = Tokenizer(WordLevel({name: token for token, name in enumerate(names)}, unk_token=names[0]))
    letters.pre_tokenizer, letters.decoder = Split("", "isolated"), Fuse()
    whole = full.generate(**prompt(5), **GREEDY)[0].tolist()
    stop = "".join(names[token] for token in whole[8:10])
    call = GREEDY | {"stop_strings": [stop], "tokenizer": PreTrainedTokenizerFast(tokenizer_object=letters)}
    assert_same(full, model, **prompt(5), **call)
    stopped = model.generate(**prompt(5), **call)[0].tolist()
    assert stopped == whole[: len(stopped)]
    assert stopped[-2:] == whole[8:10]
    assert len(stopped) <= 10


def test_scores_and_logits_are_those_of_the_full_model(full: PreTrainedModel, model: Any):
    call = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    expected, result = (either.generate(**prompt(6, 9), **call) for either in (full, model))
    torch.testing.assert_close(torch.stack(result.logits), torch.stack(expected.logits), atol=1e-5, rtol=0)


def test_streamers_get_every_token(full: PreTrainedModel, model: Any):
    class Collect(BaseStreamer):
        def __init__(self) -> None:
            self.parts: list[list[int]] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.parts.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    streamer = Collect()
    tokens = model.generate(**prompt(6), streamer=streamer, **GREEDY)
    assert [token for part in streamer.parts for token in part] == tokens[0].tolist()
    assert len(streamer.parts) == 11
    assert streamer.ended


def test_embeddings_instead_of_ids(full: PreTrainedModel, model: Any):
    embeddings = full.get_input_embeddings()(prompt(6)["input_ids"]).detach()
    assert_same(full, model, inputs_embeds=embeddings, **GREEDY)
    assert_same(full, model, inputs_embeds=embeddings, num_beams=2, **GREEDY)


def test_a_forward_of_its_own_computes_all_logits_and_the_loss(full: PreTrainedModel, model: Any, chain: LocalChain):
    """Without a cache a forward is a session of one step."""
    batch = prompt(6, 9)
    expected = full(**batch, labels=batch["input_ids"], use_cache=False)
    result = model(batch["input_ids"], batch["attention_mask"], labels=batch["input_ids"])
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(result.logits[real], expected.logits[real], atol=1e-5, rtol=0)
    single = prompt(9)["input_ids"]
    assert model(single, labels=single).loss == pytest.approx(full(single, labels=single).loss.item(), abs=1e-5)
    assert [len(session.plans) for session in chain.sessions] == [1, 1]


def test_only_the_wanted_tokens_come_back(model: Any, chain: LocalChain):
    model.generate(**prompt(9, 4), **GREEDY)
    assert chain.plans[0].tokens == 13
    assert chain.plans[0].answers == 2


@pytest.mark.long
def test_room_is_reserved_for_rows_times_beams(model: Any, chain: LocalChain):
    """The hook that knows batch, beams and length is private to transformers; this notices when it goes."""
    assert "_prepare_cache_for_generation" in vars(GenerationMixin)
    assert list(inspect.signature(GenerationMixin._prepare_cache_for_generation).parameters)[1:] == [
        "generation_config",
        "model_kwargs",
        "generation_mode",
        "batch_size",
        "max_cache_length",
    ]
    model.generate(**prompt(9, 4), num_beams=3, num_return_sequences=2, **GREEDY)
    assert (chain.sessions[-1].max_tokens, chain.sessions[-1].max_rows) == (6 * 19, 6)


def test_the_private_methods_that_a_session_calls_are_there():
    """A session infers padding and notes the ends of rows by them; this notices when they go."""
    parameters = {
        name: list(inspect.signature(getattr(GenerationMixin, name)).parameters)[1:]
        for name in (
            "_prepare_generation_config",
            "_prepare_special_tokens",
            "_prepare_attention_mask_for_generation",
            "_get_stopping_criteria",
        )
    }
    assert parameters == {
        "_prepare_generation_config": ["generation_config", "kwargs"],
        "_prepare_special_tokens": ["generation_config", "kwargs_has_attention_mask", "device", "batch_size"],
        "_prepare_attention_mask_for_generation": ["inputs_tensor", "generation_config", "model_kwargs"],
        "_get_stopping_criteria": ["generation_config", "stopping_criteria", "tokenizer"],
    }


def test_the_signature_that_generate_inspects_is_the_familys(full: PreTrainedModel, model: Any):
    """With *args and **kwargs in it, generate would silently stop passing position_ids."""
    assert inspect.signature(model.forward) == inspect.signature(full.forward)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hidden states": ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
    "attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    "cache of another kind": ({"past_key_values": DynamicCache()}, "DynamicCache"),
    "hole in the mask": ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "behind the first token"),
    "padding on the right": ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "behind the first token"),
    "other positions": ({"position_ids": torch.tensor([[0, 2, 4, 6]])}, "position_ids"),
}


@pytest.mark.parametrize(("call", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_swarm_cannot_do_is_refused(model: Any, call: dict[str, Any], reason: str):
    with pytest.raises(UsageError, match=reason):
        model.generate(torch.tensor([[5, 6, 7, 8]]), **GREEDY | call)


def test_the_losses_of_routers_are_refused():
    """They are over the blocks, which are at the peers; the family's own code would fail on an empty list."""
    model, _ = connected_model(full_model("mixtral"))
    with pytest.raises(UsageError, match="output_router_logits"):
        model(torch.tensor([[5, 6]]), output_router_logits=True)


@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_a_text_longer_than_the_models_positions_is_refused_before_a_peer_is_asked(name: str):
    """Some models have a table of positions, here or at the peers; padding needs none."""
    full = full_model(name, n_positions=40)
    model, chain = connected_model(full)
    call = GREEDY | {"max_new_tokens": 32}
    with pytest.raises(UsageError, match="the model has 40 positions, 41 tokens are asked"):
        model.generate(**prompt(10), **call)
    with pytest.raises(UsageError, match="40 positions"):
        model(torch.full((1, 41), 5))
    assert not chain.sessions
    assert_same(full, model, **prompt(9), **call)
    assert_same(full, model, **prompt(5, 9), **call)


@pytest.mark.parametrize("token", [-1, 257])
def test_tokens_that_the_model_does_not_have_are_refused_before_a_peer_is_asked(
    model: Any, chain: LocalChain, token: int
):
    with pytest.raises(UsageError, match=f"token {token} is not in the model's vocabulary of 257"):
        model.generate(torch.tensor([[5, token, 6]]), attention_mask=torch.ones(1, 3, dtype=torch.long), **GREEDY)
    assert not chain.sessions


def test_masks_of_four_dimensions_are_refused(model: Any):
    with pytest.raises(UsageError, match="two dimensions"):
        model(torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 1, 2, 2))


def test_training_is_refused(model: Any):
    ids = torch.tensor([[5, 6]])
    model.train()
    with pytest.raises(UsageError, match="train"):
        model(ids)
    model.eval()
    with pytest.raises(UsageError, match="gradients"):
        model(inputs_embeds=torch.zeros(1, 2, 64, requires_grad=True))


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), PeerUnavailable("gone")], ids=["interrupt", "error"])
def test_a_failure_closes_the_session(model: Any, chain: LocalChain, failure: BaseException):
    """Also when Ctrl-C hits in the middle of a step."""
    chain.failure = failure
    with pytest.raises(type(failure)):
        model.generate(**prompt(5), **GREEDY)
    assert [session.closed for session in chain.sessions] == [True]


def test_a_returned_cache_can_be_handed_back(full: PreTrainedModel, model: Any, chain: LocalChain):
    """As in transformers' pages on caches. Between the calls nothing is reserved for it."""
    call = GREEDY | {"return_dict_in_generate": True}
    first = model.generate(**prompt(5), **call)
    assert isinstance(first.past_key_values, SwarmCache)
    assert chain.open_sessions == 0
    text = torch.cat([first.sequences, torch.tensor([[7, 8]])], dim=1)
    second = model.generate(text, past_key_values=first.past_key_values, **call)
    assert second.sequences.tolist() == full.generate(text, **GREEDY).tolist()
    assert chain.open_sessions == 0
    assert chain.plans[0].tokens == text.shape[1]


@pytest.mark.long
def test_a_model_is_used_by_several_threads(full: PreTrainedModel, model: Any):
    expected = {seed: full.generate(**prompt(6, seed=seed), **GREEDY).tolist() for seed in range(4)}
    results: dict[int, Any] = {}

    def work(seed: int) -> None:
        results[seed] = model.generate(**prompt(6, seed=seed), **GREEDY).tolist()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == expected
