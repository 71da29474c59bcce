"""The committed demo model: small, loadable as a folder, and trained (not random)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "demo_model"

# Written for this test, so that no training text contains it.
PROGRAM = '''\
class ShoppingList:
    """Things to buy, in the order in which they were thought of."""

    def __init__(self, shop, items=None):
        self.shop = shop
        self.items = list(items) if items is not None else []

    def add(self, item, count=1):
        if count < 1:
            raise ValueError("count must be positive")
        self.items.append((item, count))

    def total(self, prices):
        result = 0
        for item, count in self.items:
            result += prices[item] * count
        return result
'''


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_checkpoint_is_small_and_has_enough_blocks(model: PreTrainedModel):
    """It is downloaded with every clone; three peers and a spare need blocks to share."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000
    assert model.config.num_hidden_layers >= 8


@pytest.mark.parametrize(
    "text", ["def main():\n\treturn 0\n", "naïve €5 “quote” 日本 🙂", " leading and trailing ", ""]
)
def test_tokens_are_bytes(tokenizer: PreTrainedTokenizerBase, text: str):
    """Any text goes in and comes back unchanged, after the token that begins a context."""
    ids = tokenizer(text)["input_ids"]
    assert ids == [tokenizer.bos_token_id, *text.encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_batches_are_padded_on_the_left(tokenizer: PreTrainedTokenizerBase):
    """Generation continues at the right end of every row."""
    batch = tokenizer(["a", "abc"], padding=True)
    assert batch["input_ids"][0] == [tokenizer.pad_token_id] * 2 + [tokenizer.bos_token_id, ord("a")]
    assert batch["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_model_has_learned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
    """A guess costs log(256) = 5.5 nats per byte; on new code it comes near its recorded held-out loss."""
    recorded = json.loads((FOLDER / "TRAINING.json").read_text(encoding="utf-8"))
    held_out = recorded["held_out_loss_nats_per_byte_by_window"]["256"]
    ids = tokenizer(PROGRAM, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < 1.25 * held_out < 2.0
