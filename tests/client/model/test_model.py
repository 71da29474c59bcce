"""generate() through three stages in this process gives the tokens of the full model, in every way people call it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blockswarm.client
import pytest
import torch
from blockswarm.client.model.model import attach, load_ends
from blockswarm.client.model.remote import SwarmCache
from blockswarm.proto.errors import SessionLost, UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.model.family import random_model
from blockswarm.proto.wire.steps import StepPlan
from support.local_chain import LocalChain, LocalSession, connected_model
from support.tiny_models import SERVED_MODELS, tiny_model_config
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def full_model(name: str, **changes: Any) -> PreTrainedModel:
    model = random_model(tiny_model_config(name, **changes))
    model.generation_config.pad_token_id = 0
    # The full model as its users would run it; MPT's own configuration switches the cache off.
    model.config.use_cache = model.generation_config.use_cache = True
    return model


@functools.cache
def llama() -> tuple[PreTrainedModel, PreTrainedModel, LocalChain]:
    full = full_model("llama")
    return full, *connected_model(full)


@pytest.fixture
def full() -> PreTrainedModel:
    return llama()[0]


@pytest.fixture
def chain() -> LocalChain:
    chain = llama()[2]
    chain.sessions.clear()
    chain.block_before_step = None
    chain.waiting.clear()
    return chain


@pytest.fixture
def model(chain: LocalChain) -> Any:
    yield llama()[1]
    assert chain.open_sessions == 0, "a session was left open at the peers"


def prompt(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of prompts of these lengths, padded on the left."""
    ids = torch.randint(3, 199, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10}
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
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_setting_of_generate_works_as_in_the_full_model(
    full: PreTrainedModel, model: Any, setting: dict[str, Any]
):
    assert_same(full, model, **prompt(12, 3, 7), **GREEDY | setting)


@pytest.mark.parametrize("do_sample", [False, True])
def test_assistant_model(full: PreTrainedModel, model: Any, chain: LocalChain, do_sample: bool):
    """Several guesses are verified by one step, and refused ones are cropped by the next."""
    assistant = full_model("llama", num_hidden_layers=2)
    call = GREEDY | {"do_sample": do_sample, "max_new_tokens": 16}
    assert_same(full, model, **prompt(9), assistant_model=assistant, **call)
    good = full_model("llama")
    assert_same(full, model, **prompt(9), assistant_model=good, **GREEDY | {"max_new_tokens": 16})
    assert len(chain.plans) < 16


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
    expected, result = (one.generate(**prompt(6, 9), **call) for one in (full, model))
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


def test_a_model_without_a_swarm_says_so(full: PreTrainedModel, tmp_path: Path):
    full.save_pretrained(tmp_path)
    model: Any = load_ends(open_checkpoint(tmp_path))
    with pytest.raises(UsageError, match="not connected"):
        model.generate(torch.tensor([[5, 6]]), **GREEDY)


def test_ends_of_a_checkpoint(full: PreTrainedModel, model: Any, chain: LocalChain, tmp_path: Path):
    """The way that from_pretrained takes: only the tensors outside the blocks are read, generation defaults count."""
    full.save_pretrained(tmp_path, max_shard_size="50KB")
    GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=0).save_pretrained(tmp_path)
    for shard in tmp_path.glob("*.safetensors"):
        checkpoint = open_checkpoint(tmp_path)
        if all(tensor.file != shard.name for tensor in checkpoint.ends_tensors()):
            data = shard.read_bytes()
            header = 8 + int.from_bytes(data[:8], "little")
            shard.write_bytes(data[:header] + b"\xff" * (len(data) - header))
    loaded = attach(load_ends(open_checkpoint(tmp_path)), chain)
    assert sum(weight.numel() for weight in loaded.parameters()) == 2 * 257 * 64 + 64
    assert (
        loaded.generate(**prompt(5)).tolist() == full.generate(**prompt(5), **GREEDY | {"max_new_tokens": 7}).tolist()
    )


def test_from_pretrained_connects_to_the_swarm_of_the_checkpoint(
    full: PreTrainedModel, model: Any, chain: LocalChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, Any] = {}

    def connect(**options: Any) -> LocalChain:
        asked.update(options)
        return chain

    monkeypatch.setitem(sys.modules, "blockswarm.client.connect", SimpleNamespace(connect=connect))  # type: ignore[misc]
    full.save_pretrained(tmp_path)
    loaded = blockswarm.client.AutoSwarmModelForCausalLM.from_pretrained(
        tmp_path, initial_peers=["ID@localhost:1"], push=False
    )
    assert loaded.generate(**prompt(5), **GREEDY).tolist() == full.generate(**prompt(5), **GREEDY).tolist()
    assert (asked["initial_peers"], asked["push"]) == (["ID@localhost:1"], False)
    assert asked["checkpoint"].num_blocks == 6


def test_a_failure_closes_the_session(model: Any, chain: LocalChain, monkeypatch: pytest.MonkeyPatch):
    """Also when Ctrl-C hits in the middle of a step."""

    def interrupted(self: object, plan: object, hidden: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalSession, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate(**prompt(5), **GREEDY)
    assert len(chain.sessions) == 1


def test_a_returned_cache_is_over_with_its_call(model: Any):
    result = model.generate(**prompt(5), return_dict_in_generate=True, **GREEDY)
    assert isinstance(result.past_key_values, SwarmCache)
    with pytest.raises(SessionLost, match=r"gone"):
        model.generate(result.sequences, past_key_values=result.past_key_values, **GREEDY)


def test_a_model_is_used_by_several_threads(
    full: PreTrainedModel, model: Any, chain: LocalChain, monkeypatch: pytest.MonkeyPatch
):
    expected = {seed: full.generate(**prompt(6, seed=seed), **GREEDY).tolist() for seed in range(4)}
    results: dict[int, Any] = {}
    one_at_a_time = threading.Lock()  # as a peer does it: a stage is used by one thread
    run = LocalSession.run

    def locked_run(session: LocalSession, plan: StepPlan, hidden: torch.Tensor) -> torch.Tensor:
        with one_at_a_time:
            return run(session, plan, hidden)

    monkeypatch.setattr(LocalSession, "run", locked_run)

    def work(seed: int) -> None:
        results[seed] = model.generate(**prompt(6, seed=seed), **GREEDY).tolist()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == expected


# Sessions.


def appended(tokens: torch.Tensor, *new: int) -> torch.Tensor:
    return torch.cat([tokens, torch.tensor([list(new)])], dim=1)


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


# Streams, and running inside a loop.


def test_generate_works_inside_a_running_loop(full: PreTrainedModel, model: Any):
    async def cell() -> torch.Tensor:
        return model.generate(**prompt(5), **GREEDY)  # type: ignore[no-any-return]

    assert asyncio.run(cell()).tolist() == full.generate(**prompt(5), **GREEDY).tolist()


def test_astream_yields_the_tokens_of_generate(full: PreTrainedModel, model: Any):
    async def collect(**call: Any) -> list[int]:
        return [token async for token in model.astream(**call)]

    plain = full.generate(**prompt(5), **GREEDY)[0, 5:].tolist()
    assert asyncio.run(collect(**prompt(5), **GREEDY)) == plain
    # Several tokens at once.
    assert asyncio.run(collect(**prompt(5), assistant_model=full, **GREEDY)) == plain


def test_astream_raises_what_generate_raises(model: Any):
    async def collect() -> None:
        async for _ in model.astream(**prompt(5, 4), **GREEDY):
            pass

    with pytest.raises(UsageError, match="one sequence"):
        asyncio.run(collect())


def test_leaving_a_stream_closes_its_session(model: Any, chain: LocalChain):
    async def leave_early() -> list[int]:
        stream = model.astream(**prompt(5), **GREEDY | {"max_new_tokens": 400, "eos_token_id": None})
        seen = []
        async for token in stream:
            seen.append(token)
            if len(seen) == 3:
                break
        await stream.aclose()
        assert chain.open_sessions == 0
        return seen

    assert len(asyncio.run(leave_early())) == 3
    assert len(chain.plans) < 400


def test_cancelling_a_stream_fails_its_pending_step(model: Any, chain: LocalChain):
    """The step would wait for ever; the task's cancellation ends it and frees the peers."""
    chain.block_before_step = 2

    async def cancel() -> None:
        async def read() -> None:
            async for _ in model.astream(**prompt(5), **GREEDY):
                pass

        task = asyncio.create_task(read())
        assert await asyncio.to_thread(chain.waiting.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert chain.open_sessions == 0

    asyncio.run(asyncio.wait_for(cancel(), 60))
    assert len(chain.plans) == 2


def test_a_session_goes_on_after_a_cancelled_stream(full: PreTrainedModel, model: Any, chain: LocalChain):
    async def leave_early() -> None:
        stream = model.astream(**prompt(5), **GREEDY)
        assert isinstance(await anext(stream), int)
        await stream.aclose()

    with model.session(max_length=50):
        asyncio.run(leave_early())
        assert model.generate(**prompt(5), **GREEDY).tolist() == full.generate(**prompt(5), **GREEDY).tolist()


def test_the_class_is_exported():
    assert blockswarm.client.AutoSwarmModelForCausalLM.__name__ == "AutoSwarmModelForCausalLM"
    with pytest.raises(AttributeError):
        _ = blockswarm.client.nothing
