"""The head in 16 bits: the same texts as with the plain one, from half of the memory, where it is possible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.model.head import FEWEST_ELEMENTS, NarrowEmbedding, PackedHead, pack_head
from blockswarm.client.model.load import attach, load_ends
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.kept import FORMS_FILE_NAME
from blockswarm.proto.weights.measure import TRIAL_ROWS, Trial
from support.local_chain import LocalChain
from support.prompts import GREEDY, prompt
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCABULARY, HIDDEN = 264, 64


def tried(plain: float, compiled: float) -> Any:
    """A trial in which products took these seconds."""

    def try_forms(outputs: int, columns: int, dtype: str, forms: tuple[Packing, ...]) -> Mapping[Packing, Trial]:
        assert (outputs, columns, dtype) == (VOCABULARY, HIDDEN, "float32")
        seconds = {form: plain if form is Packing.PLAIN else compiled for form in forms}
        return {form: Trial(dict.fromkeys(TRIAL_ROWS, taken), 1e-7) for form, taken in seconds.items()}

    return try_forms


FASTER, SLOWER = tried(2.0, 1.0), tried(1.0, 2.0)


def model_of(dtype: torch.dtype = torch.bfloat16, **options: Any) -> PreTrainedModel:
    """In float32, every number one of `dtype`."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape | options)).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.data = weight.to(dtype).float()
    return model


@pytest.fixture
def compiled() -> None:
    pytest.importorskip("llvmlite", reason="the extra `fast` is not installed")
    if not Packing.ROWS_BFLOAT16.fits(VOCABULARY, HIDDEN):
        pytest.skip("nothing can be compiled for this processor")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "stored"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_a_narrow_head_is_the_plain_one_up_to_the_order_of_sums(dtype: torch.dtype, stored: str, tied: bool) -> None:
    plain, packed = (model_of(dtype, tie_word_embeddings=tied) for _ in range(2))
    pack_head(packed, {stored}, FASTER, fewest_elements=1)
    assert isinstance(packed.get_output_embeddings(), PackedHead)
    rows = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = plain.get_output_embeddings()(rows)
    torch.testing.assert_close(packed.get_output_embeddings()(rows), expected, rtol=1e-5, atol=1e-6)
    ids = torch.arange(VOCABULARY).view(2, -1)
    assert isinstance(packed.get_input_embeddings(), NarrowEmbedding)
    assert torch.equal(packed.get_input_embeddings()(ids), plain.get_input_embeddings()(ids))
    for unknown in (-1, VOCABULARY):
        with pytest.raises(UsageError, match=f"token {unknown} is not in"):
            packed.get_input_embeddings()(torch.tensor([[unknown]]))
    held = sum(weight.numel() for weight in packed.parameters())
    assert held == sum(weight.numel() for weight in plain.parameters()) - (1 if tied else 2) * VOCABULARY * HIDDEN


@pytest.mark.usefixtures("compiled")
def test_texts_are_those_of_the_plain_head(tmp_path: Path) -> None:
    full = model_of()
    full.save_pretrained(tmp_path)
    packed = load_ends(open_checkpoint(tmp_path))
    pack_head(packed, {"BF16"}, FASTER, fewest_elements=1)
    assert isinstance(packed.get_output_embeddings(), PackedHead)
    found = attach(packed, LocalChain(full, [1])).generate(**prompt(5), **GREEDY)
    assert torch.equal(found, full.generate(**prompt(5), **GREEDY))


@pytest.mark.usefixtures("compiled")
def test_a_checkpoint_in_16_bits_is_tried_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the way that programs take: whatever the trial finds, the texts are the same, and it is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    vocabulary = FEWEST_ELEMENTS // HIDDEN
    model_of(vocab_size=vocabulary).bfloat16().save_pretrained(tmp_path / "model")
    full = model_of(vocab_size=vocabulary)
    chain = LocalChain(full, [1])
    kept = tmp_path / "cache" / "blockswarm" / FORMS_FILE_NAME
    plain = attach(load_ends(open_checkpoint(tmp_path / "model"), head="plain"), chain)
    assert type(plain.get_output_embeddings()) is nn.Linear
    assert not kept.exists()
    expected = full.generate(**prompt(5), **GREEDY)
    for _ in range(2):
        loaded = attach(load_ends(open_checkpoint(tmp_path / "model")), chain)
        assert torch.equal(loaded.generate(**prompt(5), **GREEDY), expected)
        (trial,) = json.loads(kept.read_text()).values()
        assert set(trial) == {"plain", "rows in bfloat16"}


@pytest.mark.usefixtures("compiled")
def test_a_bias_is_added_and_a_model_that_moves_to_another_dtype_keeps_its_head() -> None:
    model: Any = model_of()
    model.lm_head.bias = nn.Parameter(torch.arange(VOCABULARY).float(), requires_grad=False)
    rows = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = model.lm_head(rows)
    pack_head(model, {"BF16"}, FASTER, fewest_elements=1)
    torch.testing.assert_close(model.lm_head(rows), expected)
    model.bfloat16()
    assert (
        model.lm_head(rows.bfloat16()).dtype == model.get_input_embeddings()(torch.tensor([3])).dtype == torch.bfloat16
    )


@pytest.mark.usefixtures("compiled")
def test_an_embedding_that_16_bits_would_change_stays() -> None:
    model: Any = model_of()
    model.get_input_embeddings().weight[0, 0] = 1 / 3
    pack_head(model, {"BF16"}, FASTER, fewest_elements=1)
    assert isinstance(model.lm_head, PackedHead)
    assert type(model.get_input_embeddings()) is nn.Embedding


class ScaledEmbedding(nn.Embedding):
    pass


@pytest.mark.parametrize("reason", ["float32", "mixed", "slower", "small", "dtype", "embedding", "shape"])
def test_a_head_stays_plain(reason: str) -> None:
    """The reason "shape" is one for which nothing is compiled, as for none without the extra `fast`."""
    vocabulary = VOCABULARY - 2 if reason == "shape" else VOCABULARY
    model: Any = model_of(tie_word_embeddings=reason == "embedding", vocab_size=vocabulary)
    if reason == "dtype":
        model.bfloat16()
    if reason == "embedding":
        model.get_input_embeddings().__class__ = ScaledEmbedding
    stored = {"float32": {"F32"}, "mixed": {"BF16", "F32"}}.get(reason, {"BF16"})
    fewest = VOCABULARY * HIDDEN + 1 if reason == "small" else 1
    pack_head(model, stored, SLOWER if reason == "slower" else FASTER, fewest)
    assert type(model.lm_head) is nn.Linear


def test_an_unknown_way_to_hold_the_head_is_refused(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="int2"):
        load_ends(open_checkpoint(tmp_path), head="int2")
