"""A request in its thread: an answer ends for a reason that the model gave, or the call fails."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from blockswarm.client.api.openai.errors import ApiError
from blockswarm.client.api.openai.requests import CompletionRequest, Sampling, TextWish, parse_chat
from blockswarm.client.api.pieces import CALLS, LENGTH, STOP, Piece
from blockswarm.client.api.run.call import Begun, Finished, answer
from blockswarm.client.api.run.reasoning import ReasoningMarks
from blockswarm.client.api.served import ServedModel, end_tokens, served_model
from blockswarm.client.model.generation import Cancellation
from blockswarm.client.program.talk import Talker
from blockswarm.proto.errors import PeerUnavailable, SessionLost, UsageError
from support.local_chain import LocalChain, connected_model
from support.prompts import full_model
from support.tokenizers import byte_tokenizer

GREEDY = Sampling(temperature=0)


@dataclass
class World:
    """A model whose blocks are in this process, and the model alone."""

    full: Any
    chain: LocalChain
    served: ServedModel

    def say(
        self, wish: TextWish, *prompts: str | tuple[int, ...], cancellation: Cancellation | None = None
    ) -> list[Any]:
        items: list[Any] = []
        request = CompletionRequest(wish, prompts or ("hello",))
        answer(self.served, request, 1, str, cancellation or Cancellation(), items.append)
        return items

    def alone(self, prompt: str, new_tokens: int) -> list[int]:
        ids = self.served.talker.tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = self.full.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
        return out[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def made() -> World:
    torch.set_num_threads(1)
    full = full_model("llama")
    model, chain = connected_model(full)
    return World(full, chain, served_model("m", Talker(model, byte_tokenizer(), None), "fp", 0, None, 16))


@pytest.fixture
def world(made: World) -> Any:
    made.chain.reset()
    yield made
    assert made.chain.open_sessions == 0


def wish(**fields: Any) -> TextWish:
    return TextWish("m", **{"max_tokens": 8, "sampling": GREEDY} | fields)


def with_end(world: World, token: int) -> World:
    """The same model, whose answers end with another token."""
    settings = copy.copy(world.served)
    return World(world.full, world.chain, ServedModel(**{**vars(settings), "end_tokens": (token,)}))


def test_the_pieces_are_the_text_of_the_model_alone(world: World) -> None:
    items = world.say(wish())
    assert isinstance(items[0], Begun)
    pieces = [item for item in items if isinstance(item, Piece)]
    expected = world.alone("hello", 8)
    assert "".join(piece.text for piece in pieces) == byte_tokenizer().decode(expected, skip_special_tokens=True)
    assert [piece.finish for piece in pieces if piece.finish] == [LENGTH]
    assert isinstance(items[-1], Finished)
    assert (items[-1].counts.prompt, items[-1].counts.completion) == (5, 8)


def test_the_models_own_end_is_a_stop_and_ends_the_work(world: World) -> None:
    tokens = world.alone("hello", 8)
    end = tokens[4]
    first = tokens.index(end)
    items = with_end(world, end).say(wish())
    assert [item.finish for item in items if isinstance(item, Piece) and item.finish] == [STOP]
    assert items[-1].counts.completion == first + 1
    assert len(world.chain.sessions[-1].plans) == first + 1, "no step after the end"


def test_a_stop_string_ends_the_work_with_its_token(world: World) -> None:
    text = byte_tokenizer().decode(world.alone("hello", 8), skip_special_tokens=True)
    stop = text[2]
    items = world.say(wish(stop=(stop,)))
    assert "".join(item.text for item in items if isinstance(item, Piece)) == text[: text.index(stop)]
    assert len(world.chain.sessions[-1].plans) < 8


def test_several_answers_are_one_batch_and_end_on_their_own(world: World) -> None:
    items = world.say(wish(choices=3, sampling=Sampling(seed=4), max_tokens=6))
    ends = {item.choice: item.finish for item in items if isinstance(item, Piece) and item.finish}
    assert sorted(ends) == [0, 1, 2]
    assert len(world.chain.sessions) == 1
    assert items[-1].counts.prompt == 5, "the prompt counts once"


def test_a_failure_of_the_peers_is_raised_and_nothing_is_finished(world: World) -> None:
    world.chain.failure = PeerUnavailable("gone")
    items: list[Any] = []
    with pytest.raises(PeerUnavailable):
        answer(world.served, CompletionRequest(wish(), ("hello",)), 1, str, Cancellation(), items.append)
    assert not any(isinstance(item, Finished) or getattr(item, "finish", None) for item in items)


def test_a_cut_that_the_model_did_not_make_is_an_error(world: World) -> None:
    """`generate` returns as if all were well when its time is up."""
    world.served.talker.model.generation_config.max_time = 0.0
    try:
        with pytest.raises(SessionLost, match="ended before"):
            world.say(wish())
    finally:
        world.served.talker.model.generation_config.max_time = None


def test_a_cancelled_request_is_an_error(world: World) -> None:
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(SessionLost):
        world.say(wish(), cancellation=cancellation)


# --- forms ---

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
)
PET = {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}}, "required": ["kind"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": PET}} for name in ("feed", "wash")]


def chat(
    world: World, template: str | None = TEMPLATE, reasoning: ReasoningMarks | None = None, **fields: Any
) -> list[Any]:
    """The items of a chat with the same model, whose answers end with token 0, which is no character."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    talker = Talker(world.served.talker.model, tokenizer, None)
    served = dataclasses.replace(world.served, talker=talker, end_tokens=(0,), reasoning=reasoning)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, **fields}
    items: list[Any] = []
    answer(served, parse_chat(body), 1, str, Cancellation(), items.append)
    return items


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_keeps_to_its_schema(world: World, temperature: float) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "pet", "schema": {**PET, "additionalProperties": False}}}
    items = chat(world, response_format=asked, temperature=temperature, n=2)
    for choice in range(2):
        pieces = [item for item in items if isinstance(item, Piece) and item.choice == choice]
        assert json.loads("".join(piece.text for piece in pieces))["kind"] in ("cat", "dog")
        assert pieces[-1].finish == STOP


def test_reasoning_comes_before_an_answer_that_keeps_to_a_schema(world: World) -> None:
    """The marks are two letters: the template has written the first, and the model is made to write the second."""
    (end,) = byte_tokenizer()("~")["input_ids"]
    (begin,) = byte_tokenizer()("i")["input_ids"]
    asked = {"type": "json_schema", "json_schema": {"name": "pet", "schema": {**PET, "additionalProperties": False}}}
    items = chat(
        world,
        reasoning=ReasoningMarks("i", "~", (begin, end)),
        response_format=asked,
        logit_bias={str(end): 3},
        temperature=0.7,
        max_tokens=400,
    )
    pieces = [item for item in items if isinstance(item, Piece)]
    assert "".join(piece.reasoning for piece in pieces)
    assert json.loads("".join(piece.text for piece in pieces))["kind"] in ("cat", "dog")
    assert pieces[-1].finish == STOP


def test_a_demanded_call_is_one(world: World) -> None:
    pieces = [item for item in chat(world, tools=TOOLS, tool_choice="required") if isinstance(item, Piece)]
    assert "".join(piece.text for piece in pieces) == ""
    (call,) = pieces[-1].calls
    assert call.name in ("feed", "wash")
    assert json.loads(call.arguments)["kind"] in ("cat", "dog")
    assert pieces[-1].finish == CALLS


def test_the_template_is_told_of_the_tools(world: World) -> None:
    assert chat(world, tools=TOOLS, max_tokens=1)[0].prompt_tokens == len("feed wash hi")
    assert chat(world, tools=TOOLS, tool_choice="none", max_tokens=1)[0].prompt_tokens == len("hi")
    with pytest.raises(ApiError) as refused:
        chat(world, template=None, tools=TOOLS)
    assert refused.value.param == "tools"


def test_reasoning_is_told_from_the_answer(world: World) -> None:
    """With marks that the texts really have: the prompt's letters, and some of those that the model writes."""

    def texts(reasoning: ReasoningMarks | None = None) -> tuple[str, str]:
        items = chat(world, reasoning=reasoning, temperature=0, max_tokens=60)
        pieces = [item for item in items if isinstance(item, Piece)]
        return "".join(piece.reasoning for piece in pieces), "".join(piece.text for piece in pieces)

    reasoning, text = texts()
    assert not reasoning
    mark = text[20:22]
    assert mark.strip()
    expected, _, content = text.lstrip().partition(mark)
    assert texts(ReasoningMarks("hi", mark)) == (expected, content.lstrip())
    assert texts(ReasoningMarks("not in the prompt", mark)) == ("", text)


def test_what_a_template_refuses_is_the_requests_fault(world: World) -> None:
    for template in ("{{ raise_exception('no such role') }}", "{{ 1 // 0 }}", "{% broken"):
        with pytest.raises(ApiError) as refused:
            chat(world, template=template)
        assert (refused.value.status, refused.value.param) == (400, "messages")


def test_answers_end_with_the_models_tokens_and_the_tokenizers() -> None:
    assert end_tokens([5, 3], 7) == (3, 5, 7)
    assert end_tokens(5, 5) == (5,)
    assert end_tokens(None, None) == ()
    for ends in ("abc", [[1]], float("inf"), {"a": 1}, [True], [2**40], [None, "x"]):
        with pytest.raises(UsageError, match="eos_token_id"):
            end_tokens(ends, 7)
