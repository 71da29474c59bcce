"""Keeps a 16-bit head and embedding in 16 bits, and a head in int8 on request: the head is most of a client's compute.

16-bit weights are widened to float32 in registers: half the bytes are read per token, and no weight changes.  Sums are
added in another order than torch's, so a logit may differ in its last bits, as it does between two processors.  Where
embedding and head are tied, the embedding reads its rows from the packed matrix.

An int8 head rounds its weights and, without the extra `fast`, its input to 15 or 13 bits; the peers still get exact
embeddings.  A row's logits do not depend, to the bit, on the rows that are computed with it, so guesses are judged by
the same logits that the text has without them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...proto.errors import UsageError
from ...proto.weights.forms import Packing, compiled_rows
from ...proto.weights.measure import INT8_FORMS, Trial
from ...proto.weights.packed import PackedMatrix
from ...proto.weights.trials import fastest_exact, fastest_right, int8_form
from .refusals import refuse_unknown_tokens

logger = logging.getLogger(__name__)

TryForms = Callable[[int, int, str, tuple[Packing, ...]], Mapping[Packing, Trial]]
"""As `proto.weights.trials.tried`."""
FEWEST_ELEMENTS = 1 << 20
"""Smaller heads fit into the processor's caches, so no form is compiled and tried for them."""
_EXACT_HINT = 'Leave out --head int8 (head="int8").'
_AT_ONCE = 1024
"""The number of embedding rows compared at a time."""


@torch.no_grad()
def pack_head(
    model: PreTrainedModel, stored: Collection[str], try_forms: TryForms, fewest_elements: int = FEWEST_ELEMENTS
) -> None:
    """Keep the head of `model`, and its embedding, in 16 bits where that is exact and the fastest form on this machine.

    `stored`: the dtypes of the checkpoint's matrices, by safetensors' names ("BF16"). Changes nothing for 32-bit
    matrices, whose compiled product gains nothing for the single row that a client mostly computes; without the extra
    `fast`; for ends in a dtype other than float32; for a head that is small or not a plain linear; and if the head's
    weight is tied to anything but a plain embedding.
    """
    head: Any = model.get_output_embeddings()
    form = compiled_rows(stored)
    if type(head) is not nn.Linear or head.weight.dtype != torch.float32 or not form.saves_memory:
        return
    shape: tuple[int, int] = (head.out_features, head.in_features)
    sharing = [module for module in model.modules() if getattr(module, "weight", None) is head.weight]
    if head.weight.numel() < fewest_elements or not all(map(_is_plain, sharing)) or not form.fits(*shape):
        return
    if fastest_exact(try_forms(*shape, "float32", (Packing.PLAIN, form))) is Packing.PLAIN:
        return
    matrix: Any = form.pack([head.weight])
    _replace(model, head, PackedHead(matrix, head, head.weight.dtype, "float32"))
    embedding: Any = model.get_input_embeddings()
    is_shared = embedding in sharing
    del head, sharing  # free the weight before a separate embedding is narrowed
    if is_shared:
        _replace(model, embedding, NarrowEmbedding(matrix.weights_of, *shape))
    elif type(embedding) is nn.Embedding and _is_plain(embedding):
        _narrow(model, embedding, stored)
    logger.debug("the head is %s, %d MiB", form.described, matrix.nbytes >> 20)


@torch.no_grad()
def round_head(model: PreTrainedModel, stored: Collection[str], try_forms: TryForms) -> None:
    """Hold the head of `model` in int8, in the fastest form on this machine that computes correct products.

    `stored` and `try_forms` as for `pack_head`. The embedding stays exact, in 16 bits if it was stored so. Raises
    UsageError for a head that is not a plain linear, and where this machine cannot compute int8 products.
    """
    head: Any = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UsageError("the head of this model is no plain matrix, it cannot be rounded", hint=_EXACT_HINT)
    shape: tuple[int, int] = (head.out_features, head.in_features)
    forms = [form for form in (Packing.INT8_ROWS, int8_form(shape[1])) if form.fits(*shape)]
    form = fastest_right(INT8_FORMS, try_forms(*shape, "float32", (Packing.PLAIN, *forms)))
    if form is None:
        raise UsageError("this machine cannot compute with an int8 head", hint=_EXACT_HINT)
    matrix = form.pack([head.weight])
    _replace(model, head, PackedHead(matrix, head, head.weight.dtype, "int8"))
    embedding: Any = model.get_input_embeddings()
    if type(embedding) is nn.Embedding and _is_plain(embedding) and embedding.weight.dtype == torch.float32:
        _narrow(model, embedding, stored)
    logger.debug("the head is %s, %d MiB", form.value, matrix.nbytes >> 20)


class _Narrow(nn.Module):
    """Has an empty `weight` of the right dtype: families take the dtype of activations from weights."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)


class PackedHead(_Narrow):
    """Replaces a model's head."""

    def __init__(self, matrix: PackedMatrix, head: nn.Linear, dtype: torch.dtype, numeric_format: str) -> None:
        """`matrix` holds the weight of `head`, which is not kept; `numeric_format` as peers announce theirs."""
        super().__init__(dtype)
        self.out_features, self.in_features = head.out_features, head.in_features
        self.bias = head.bias
        self.numeric_format = numeric_format
        self._matrix = matrix

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., vocabulary), on the input's device. The matrix stays in host memory if the model moves."""
        rows = hidden_states.reshape(-1, self.in_features)
        product = self._matrix.multiply(rows.cpu()).to(rows.device)
        output = product.view(*hidden_states.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


class NarrowEmbedding(_Narrow):
    """Replaces a model's plain embedding, with exactly the same values."""

    def __init__(self, rows_of: Callable[[torch.Tensor], torch.Tensor], count: int, width: int) -> None:
        """`rows_of` maps ids (...) to their rows (..., `width`)."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = count, width
        self._rows_of = rows_of

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(...) -> (..., H). Raises UsageError for an id without a row; indexing would wrap negative ids silently."""
        refuse_unknown_tokens(input, self.num_embeddings)
        return self._rows_of(input.cpu()).to(input.device, self.weight.dtype)


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.Embedding and module.max_norm is None)


def _narrow(model: nn.Module, embedding: nn.Embedding, stored: Collection[str]) -> None:
    """Keep an embedding in 16 bits if it was stored so and the conversion is exact."""
    narrow_dtypes = {"BF16": torch.bfloat16, "F16": torch.float16}
    dtype = narrow_dtypes.get(next(iter(stored))) if len(stored) == 1 else None
    if dtype is None:
        return
    table = embedding.weight.to(dtype)
    pieces = zip(table.split(_AT_ONCE), embedding.weight.split(_AT_ONCE), strict=True)
    if all(torch.equal(narrow.to(wide.dtype), wide) for narrow, wide in pieces):
        _replace(model, embedding, NarrowEmbedding(lambda ids: table[ids], *table.shape))


def _replace(model: nn.Module, module: nn.Module, replacement: nn.Module) -> None:
    path = next(path for path, found in model.named_modules() if found is module)
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, replacement)
