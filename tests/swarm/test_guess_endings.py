"""A text that ends in any way while guesses are under way: peers keep what was said, and the next session is right."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.proto.wire.prefixes import PAGE_TOKENS
from support.drafters import KnowingDrafter, SlowDrafter
from support.guessing_swarm import AtToken, generate, prompt_of
from support.swarm import LocalSwarm
from support.swarm_model import with_swarm
from support.tiny_models import write_tiny_checkpoint
from support.tokenizers import byte_tokenizer
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

pytestmark = pytest.mark.swarm

END = 2 * PAGE_TOKENS
"""Tokens of a text at its end. The last one is never fed, so one page is full; with a guess more, two would be."""
EOS = 7


class Write(LogitsProcessor):
    """Has the model write these tokens at this place of the text."""

    def __init__(self, start: int, *tokens: int) -> None:
        self._start, self._tokens = start, tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        index = input_ids.shape[1] - self._start
        if 0 <= index < len(self._tokens):
            scores = torch.full_like(scores, -1e9)
            scores[:, self._tokens[index]] = 0.0
        return scores


def raise_interrupt() -> None:
    raise KeyboardInterrupt


async def at_eos(model: Any, prompt: torch.Tensor) -> None:
    options = {"eos_token_id": EOS, "logits_processor": LogitsProcessorList([Write(END - 1, EOS)])}
    tokens = await asyncio.to_thread(generate, model, prompt, max_new_tokens=200, **options)
    assert len(tokens) == END


async def at_a_stop_string(model: Any, prompt: torch.Tensor) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("#!", add_special_tokens=False)["input_ids"]
    options = {"tokenizer": tokenizer, "stop_strings": ["#!"]}
    options["logits_processor"] = LogitsProcessorList([Write(END - len(ids), *ids)])
    tokens = await asyncio.to_thread(generate, model, prompt, max_new_tokens=200, **options)
    assert len(tokens) == END


async def at_an_interrupt(model: Any, prompt: torch.Tensor) -> None:
    """As Ctrl-C does it in a program, between two tokens."""
    streamer = AtToken(END - prompt.shape[1], raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        await asyncio.to_thread(generate, model, prompt, max_new_tokens=200, streamer=streamer)


class HoldAt(LogitsProcessor):
    """Holds the text up, once it has this many tokens, until it may go on."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.go_on = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == self._length:
            assert self.go_on.wait(60)
        return scores


async def at_a_stream_that_is_left(model: Any, prompt: torch.Tensor) -> None:
    length, hold = prompt.shape[1], HoldAt(END - 1)
    options = {"max_new_tokens": 200, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    stream = model.astream(prompt, logits_processor=LogitsProcessorList([hold]), **options)
    async for _ in stream:
        length += 1
        if length == END - 1:
            break
    leaving = asyncio.create_task(stream.aclose())
    await asyncio.sleep(0)
    hold.go_on.set()
    await leaving


async def at_a_session_that_was_rewound(model: Any, prompt: torch.Tensor) -> None:
    """Its last words are other ones than those that were guessed and than those that it said before."""

    def talk() -> None:
        with model.session(400) as session:
            generate(session, prompt, max_new_tokens=END - prompt.shape[1])
            session.rewind(END - 10)
            options = {"logits_processor": LogitsProcessorList([Write(END - 5, 9, 9, 9, 9, 9)])}
            generate(session, torch.tensor([[3, 5, 8, 11, 14]]), max_new_tokens=5, **options)
            assert session.position == END

    await asyncio.to_thread(talk)


@pytest.mark.parametrize(
    ("ending", "drafter"),
    [
        (at_eos, KnowingDrafter),  # guesses travel with the step...
        (at_eos, SlowDrafter),  # ...or in steps of their own, the last of which nobody waits for
        (at_a_stop_string, SlowDrafter),
        (at_an_interrupt, SlowDrafter),
        (at_a_stream_that_is_left, SlowDrafter),
        (at_a_session_that_was_rewound, SlowDrafter),
    ],
    ids=lambda value: value.__name__,
)
def test_what_was_only_guessed_is_not_kept(ending: Callable[..., Any], drafter: Any, tmp_path: Path) -> None:
    """The guesses are right up to the end of the text and a little wrong behind it, where nobody ever gets."""
    folder = write_tiny_checkpoint("llama", tmp_path)
    alone, prompt = AutoModelForCausalLM.from_pretrained(folder).eval(), prompt_of(100)
    text = generate(alone, prompt, max_new_tokens=100)

    async def scenario(swarm: LocalSwarm, model: Any) -> None:
        model.make_drafters = lambda: [drafter(text, lambda position: position >= END)]
        await ending(model, prompt)
        for peer in swarm.peers:
            await peer.service.wait_idle()
        kept = [len(peer.parts.engine.pool.prefixes) for peer in swarm.peers]
        assert kept == [1, 1, 1]
        assert sum(peer.parts.counters.guessed_tokens for peer in swarm.peers) > 0
        longer = torch.tensor([text[: END + 20]])
        for guess in ("off", 30):
            model.guess = guess
            tokens = await asyncio.to_thread(generate, model, longer, max_new_tokens=30)
            assert tokens == generate(alone, longer, max_new_tokens=30)

    with_swarm(folder, scenario, prefix_bytes=1 << 30, guess=30)
