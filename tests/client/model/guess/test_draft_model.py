"""A draft model guesses what it would generate itself, in its own thread, and reads again only what has changed."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from blockswarm.client.model.guess.draft_model import CHUNK_TOKENS, DraftModel, ModelDrafter
from blockswarm.client.model.guess.panel import DraftPanel
from blockswarm.proto.errors import UsageError
from support.prompts import full_model

TEXT = [5, 9, 7, 30, 12, 44, 9]


class Waiting:
    """Waits until a drafter has as many guesses as it wants to make, or nothing more to think of."""

    def __init__(self, drafter: ModelDrafter) -> None:
        self.drafter = drafter
        self.woken = threading.Event()
        drafter.call_when_ready(self.woken.set)

    def guesses(self, most: int, behind: list[int] | None = None) -> list[int]:
        self.drafter.draft(most, behind or [])
        while self.drafter.thinking:
            assert self.woken.wait(60)
            self.woken.clear()
        return [guess.token for guess in self.drafter.draft(most, behind or [])]


@pytest.fixture(scope="module")
def model() -> Any:
    return full_model("llama")


def continued(model: Any, text: list[int], count: int) -> list[int]:
    found = list(text)
    for _ in range(count):
        with torch.inference_mode():
            found.append(int(model(input_ids=torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(text) :]


def same_beginning(guesses: list[int], expected: list[int]) -> bool:
    """Guesses end where all of them together are unlikely; there is at least one."""
    return 0 < len(guesses) <= len(expected) and guesses == expected[: len(guesses)]


def test_it_guesses_what_it_would_generate(model: Any):
    waiting = Waiting(DraftModel(model).drafter())
    waiting.drafter.note(0, TEXT)
    assert same_beginning(waiting.guesses(6), continued(model, TEXT, 6))


def test_it_follows_a_text_that_goes_on_otherwise_is_cut_and_begins_anew(model: Any):
    waiting, text = Waiting(DraftModel(model).drafter()), list(TEXT)
    waiting.drafter.note(0, text)
    for start, new in [(7, [50]), (8, [51, 52]), (4, [3]), (5, [8, 8]), (0, [1, 2, 3, 4])]:
        waiting.guesses(3)
        waiting.drafter.note(start, new)
        text = text[:start] + new
        assert same_beginning(waiting.guesses(3), continued(model, text, 3))
        assert same_beginning(waiting.guesses(3, [77, 78]), continued(model, [*text, 77, 78], 3))


def test_nothing_is_thought_before_it_is_asked(model: Any):
    drafter = DraftModel(model).drafter()
    drafter.note(0, TEXT)
    assert not drafter.thinking


def test_no_guess_is_made_for_a_text_that_it_cannot_read(model: Any):
    drafter = DraftModel(model).drafter()
    for unknown in (-1, 10**6):
        drafter.note(0, [5, unknown, 7])
        assert drafter.draft(4, []) == []
        assert not drafter.thinking


def test_a_model_that_fails_guesses_no_more_for_the_text(model: Any):
    class Failing(DraftModel):
        broken = False

        def new_cache(self) -> Any:
            if self.broken:
                raise MemoryError("no room")
            return super().new_cache()

    failing = Failing(model)
    failing.broken = True
    waiting = Waiting(failing.drafter())
    waiting.drafter.note(0, TEXT)
    assert waiting.drafter.draft(4, []) == []
    waiting.drafter.call_when_ready(waiting.woken.set)
    assert waiting.guesses(4) == []


def test_guesses_of_others_that_were_given_up_are_not_its_own(model: Any):
    """They would be offered as certain."""
    waiting = Waiting(DraftModel(model).drafter())
    waiting.drafter.note(0, TEXT)
    expected = continued(model, TEXT, 4)
    others = [expected[0] ^ 1, 5]
    assert same_beginning(waiting.guesses(4, others), continued(model, TEXT + others, 4))
    assert same_beginning(waiting.guesses(4), expected)


def test_a_model_that_computes_no_numbers_guesses_nothing(model: Any, caplog: pytest.LogCaptureFixture):
    broken = copy.deepcopy(model)
    broken.get_output_embeddings().weight.data.fill_(float("nan"))
    waiting = Waiting(DraftModel(broken).drafter())
    waiting.drafter.note(0, TEXT)
    assert waiting.guesses(4) == []
    (told,) = caplog.records
    assert "the draft model failed" in told.message
    assert "not finite" in str(told.exc_info)


def test_a_text_that_has_ended_is_read_no_further(model: Any):
    """A long prompt whose reader has gone would keep the thread from the texts of others."""
    beginning, fed = threading.Event(), threading.Semaphore(0)

    class Held(DraftModel):
        held = False

        def new_cache(self) -> Any:
            if self.held:
                beginning.set()
                assert fed.acquire(timeout=60)
            return super().new_cache()

    held, reads = Held(model), []
    held.held = True
    hook = model.register_forward_hook(lambda *_: reads.append(1))
    try:
        panel = DraftPanel([held.drafter()], {}, lambda: None)
        panel.note(0, [5] * (CHUNK_TOKENS + 20))
        panel.offer(8, [], 1 << 20, len)
        assert beginning.wait(60)
        panel.stop()
        fed.release()
        for thread in threading.enumerate():
            if thread.name == "blockswarm-draft":
                thread.join(60)
    finally:
        hook.remove()
    assert len(reads) == 1


def test_a_model_whose_cache_cannot_be_cut_is_refused(model: Any):
    class Uncut:
        is_croppable = False

    class Stateful(DraftModel):
        def new_cache(self) -> Any:
            return Uncut()

    with pytest.raises(UsageError, match="cannot draft"):
        Stateful(model)
