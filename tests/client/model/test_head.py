"""The head in 16 bits: the same texts as with the plain one, from half of the memory, where it is possible."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from blockswarm.client.config import HeadForm
from blockswarm.client.model.head import FEWEST_ELEMENTS, NarrowEmbedding, PackedHead, pack_head, round_head
from blockswarm.client.model.load import AutoSwarmModelForCausalLM, attach, load_ends
from blockswarm.proto.errors import UsageError
from blockswarm.proto.model.checkpoint import open_checkpoint
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.kept import FORMS_FILE_NAME
from blockswarm.proto.weights.measure import TRIAL_ROWS, Trial, relative_error
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
    plain = attach(load_ends(open_checkpoint(tmp_path / "model"), head=HeadForm.PLAIN), chain)
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


def bias_and_odd_shape(model: Any, odd: bool) -> None:
    """Give the head a bias; `odd`: of a shape for which nothing is compiled, so that it is held by two rows."""
    assert model.lm_head.out_features % 4 == (2 if odd else 0)
    model.lm_head.bias = nn.Parameter(torch.arange(model.lm_head.out_features) / 100, requires_grad=False)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_in_int8_multiplies_with_the_rounded_weight(tied: bool, odd: bool) -> None:
    """Against the product in float64 with weights that are rounded here; the embedding keeps every number."""
    model: Any = model_of(torch.float32, tie_word_embeddings=tied, vocab_size=VOCABULARY - 2 * odd)
    bias_and_odd_shape(model, odd)
    weight, bias, embedding = model.lm_head.weight.double(), model.lm_head.bias, model.get_input_embeddings()
    scales = weight.abs().amax(1, keepdim=True) / 127
    rounded = (weight / scales).round() * scales
    assert not torch.allclose(rounded, weight, rtol=1e-4), "something is rounded"
    round_head(model, {"F32"}, trials_of_this_machine)
    rows = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = rows.double() @ rounded.T
    found = model.lm_head(rows) - bias
    assert (found - expected).norm() < 4e-3 * expected.norm(), "the promise of the format"
    assert model.get_input_embeddings() is embedding
    assert model.lm_head.numeric_format == "int8"
    for row in range(3):
        assert torch.equal(model.lm_head(rows[:, row : row + 1]), model.lm_head(rows)[:, row : row + 1])


def trials_of_this_machine(outputs: int, columns: int, dtype: str, forms: Sequence[Packing]) -> Mapping[Packing, Trial]:
    """Errors as they are, and no times: these are only compared."""
    return {
        form: Trial(dict.fromkeys(TRIAL_ROWS, 1.0), relative_error(form, columns) if form is not Packing.PLAIN else 0.0)
        for form in forms
    }


def test_a_wrong_product_is_no_head() -> None:
    def wrong(outputs: int, columns: int, dtype: str, forms: Sequence[Packing]) -> Mapping[Packing, Trial]:
        return {form: Trial(dict.fromkeys(TRIAL_ROWS, 1.0), 0.3) for form in forms}

    model: Any = model_of()
    with pytest.raises(UsageError, match="int8 head"):
        round_head(model, {"BF16"}, wrong)
    assert type(model.lm_head) is nn.Linear


def test_a_head_that_is_more_than_a_matrix_is_not_rounded() -> None:
    class Scaled(nn.Linear):
        pass

    model: Any = model_of()
    model.lm_head.__class__ = Scaled
    with pytest.raises(UsageError, match="no plain matrix"):
        round_head(model, {"BF16"}, trials_of_this_machine)


@pytest.mark.parametrize("sampling", [False, True])
def test_guesses_are_judged_by_the_head_in_int8(tmp_path: Path, sampling: bool) -> None:
    """A text with guesses is the text without them, and both are those of a model whose head was rounded by hand."""
    full: Any = model_of()
    full.save_pretrained(tmp_path)
    chain, loaded = LocalChain(full, [1]), load_ends(open_checkpoint(tmp_path))
    round_head(loaded, {"F32"}, trials_of_this_machine)
    model = attach(loaded, chain)
    assert model.head_format == "int8"
    scales = full.lm_head.weight.abs().amax(1, keepdim=True) / 127
    full.lm_head.weight.data = (full.lm_head.weight / scales).round() * scales
    wish = {**GREEDY, "do_sample": sampling, **({"temperature": 0.8} if sampling else {})}
    texts = []
    for text, guess in ((full, None), (model, "off"), (model, 4)):
        if guess is not None:
            text.guess = guess
        torch.manual_seed(7)
        texts.append(text.generate(**prompt(5), **wish))
    assert torch.equal(texts[1], texts[2])
    assert torch.equal(texts[0], texts[1])


def test_an_unknown_way_to_hold_the_head_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    nobody = "12D3KooWA29sxFFTDw3qgZr3igFR4Cz3XLFKKBWPuJ85BYzMzjiX@127.0.0.1:1"
    with pytest.raises(UsageError, match="int2"):
        AutoSwarmModelForCausalLM.from_pretrained(tmp_path / "no folder", initial_peers=nobody, head="int2")
