"""A draft model has the tokens of the model that it guesses for, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from blockswarm.client.model.guess.open_draft import open_draft
from blockswarm.proto.errors import UsageError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SCRIPTS = Path(__file__).parents[4] / "scripts"
MODEL, DRAFT = SCRIPTS / "demo_model", SCRIPTS / "demo_draft"


def test_the_demos_draft_model_is_small_and_fits():
    assert open_draft(DRAFT, MODEL).model.config.num_hidden_layers == 2
    assert sum(path.stat().st_size for path in DRAFT.iterdir()) < 2_000_000


def test_other_tokens_are_refused(tmp_path: Path):
    other = shutil.copytree(DRAFT, tmp_path / "other")
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace('"</s>"', '"<end>"'), encoding="utf-8")
    with pytest.raises(UsageError, match="other tokens"):
        open_draft(other, MODEL)


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be loaded"):
        open_draft(tmp_path, MODEL)


def test_what_to_do_is_said_of_the_mistake_that_was_made(tmp_path: Path):
    with pytest.raises(UsageError, match="neither a folder") as missing:
        open_draft(tmp_path / "missing", MODEL)
    assert "tokenizer" not in missing.value.hint
    with pytest.raises(UsageError, match="not list"):
        open_draft([DRAFT], MODEL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", "eight"), ("num_attention_heads", 0), ("vocab_size", -1), ("num_hidden_layers", 10**9),
     ("hidden_size", 10**9), ("model_type", [])],
)  # fmt: skip
def test_a_configuration_that_makes_no_sense_is_one_line(tmp_path: Path, key: str, value: object):
    """Whatever class of error the libraries raise, and before it takes the machine's memory."""
    other = shutil.copytree(DRAFT, tmp_path / "other")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, key: value}), encoding="utf-8")
    with pytest.raises(UsageError, match="cannot be loaded"):
        open_draft(other, MODEL)


@pytest.mark.parametrize("content", ["{}", "[]", "x"])
def test_a_tokenizer_that_cannot_be_read_is_one_line(tmp_path: Path, content: str):
    other = shutil.copytree(DRAFT, tmp_path / "other")
    (other / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError):
        open_draft(other, MODEL)


def test_a_missing_weight_is_not_made_up(tmp_path: Path):
    other = shutil.copytree(DRAFT, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights.pop(next(name for name in weights if "mlp" in name))
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="missing"):
        open_draft(other, MODEL)


def test_it_computes_what_transformers_computes():
    ours, theirs = open_draft(DRAFT, MODEL).model, AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32)
    tokens = torch.arange(3, 40)[None]
    torch.testing.assert_close(ours(input_ids=tokens).logits, theirs.eval()(input_ids=tokens).logits)
