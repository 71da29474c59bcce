"""The forms in which a matrix of weights may be held, and which of them each matrix of a block gets."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .kernels.element import Element
from .packed import (
    Int4Matrix,
    PackedMatrix,
    PrepackedMatrix,
    TwoRowMatrix,
    int4_bytes,
    int4_group,
    prepacked_bytes,
    two_row_bytes,
)
from .packed_gpu import NF4_GROUP, Int8WeightMatrix, Nf4Matrix, int8_weight_bytes, nf4_bytes
from .row_forms import row_bytes, row_fits, row_matrix

_CPU = torch.device("cpu")
FEWEST_OUTPUTS, FEWEST_COLUMNS = 16, 2
"""Smaller matrices stay as they are."""


class Packing(enum.Enum):
    """How a matrix is held."""

    PLAIN = "plain"
    """As it was loaded."""
    PREPACKED = "prepacked"
    """In oneDNN's layout, the values unchanged."""
    ROWS = "rows"
    """For the compiled product of rows, the values unchanged."""
    ROWS_BFLOAT16 = "rows in bfloat16"
    """For the same product, float32 weights whose values are all bfloat16: half of the bytes, the same numbers."""
    ROWS_FLOAT16 = "rows in float16"
    INT8 = "int8"
    INT8_REDUCED = "int8 reduced"
    """int8 with one bit less in the activations, for processors without VNNI."""
    INT8_ROWS = "int8 rows"
    """int8 for the compiled product of rows, which does not round activations."""
    INT4 = "int4"
    INT8_WEIGHTS = "int8 weights"
    """int8 without rounding activations, for GPUs."""
    NF4 = "nf4"
    """For GPUs."""

    @property
    def keeps_numbers(self) -> bool:
        """Whether products are those of the weights as they were loaded, up to the order of sums."""
        return self in _EXACT

    @property
    def saves_memory(self) -> bool:
        return self not in (Packing.PLAIN, Packing.PREPACKED, Packing.ROWS)

    @property
    def described(self) -> str:
        """For people: how the weights are held."""
        if self not in _COMPILED:
            return "packed"
        return f"held in {_COMPILED[self].value}, their products compiled"

    @property
    def is_plain(self) -> bool:
        """Whether nothing is packed."""
        return self is Packing.PLAIN

    def at(self, outputs: int, columns: int) -> Packing:
        """As `Forms.at`: every matrix in this form."""
        return self

    def numeric_format(self, dtype: str) -> str:
        """The format that is announced for weights loaded in `dtype` ("float32"), see `proto/wire/precision.py`."""
        if self.keeps_numbers:
            return dtype
        return self.value if self in (Packing.INT4, Packing.NF4) else "int8"

    def fits(self, outputs: int, columns: int) -> bool:
        """Whether a linear of that shape is packed."""
        if self is Packing.PLAIN or outputs < FEWEST_OUTPUTS or columns < FEWEST_COLUMNS:
            return False
        if self in _COMPILED:
            return row_fits(outputs, columns, _COMPILED[self])
        if self is Packing.NF4:
            return columns % NF4_GROUP == 0
        return self is not Packing.INT4 or int4_group(outputs, columns) is not None

    def pack(self, weights: Sequence[torch.Tensor], device: torch.device = _CPU) -> PackedMatrix:
        """One matrix of weights (N_i, K), stacked; those for GPUs are packed on `device`, wherever the weights are.

        Raises RuntimeError if this torch or processor cannot.
        """
        if self in _COMPILED:
            return row_matrix(weights, _COMPILED[self])
        makers: dict[Packing, Callable[[Sequence[torch.Tensor]], PackedMatrix]] = {
            Packing.PREPACKED: PrepackedMatrix,
            Packing.INT8: TwoRowMatrix,
            Packing.INT8_REDUCED: functools.partial(TwoRowMatrix, reduce_range=True),
            Packing.INT4: Int4Matrix,
            Packing.INT8_WEIGHTS: functools.partial(Int8WeightMatrix, device=device),
            Packing.NF4: functools.partial(Nf4Matrix, device=device),
        }
        return makers[self](weights)

    def nbytes(self, outputs: int, columns: int, dtype: torch.dtype) -> int:
        """Bytes that a packed matrix of that shape, loaded in `dtype`, will hold."""
        if self in _COMPILED:
            return row_bytes(outputs, columns, _COMPILED[self])
        match self:
            case Packing.PREPACKED:
                return prepacked_bytes(outputs, columns, dtype)
            case Packing.INT4:
                return int4_bytes(outputs, columns)
            case Packing.INT8_WEIGHTS:
                return int8_weight_bytes(outputs, columns, dtype)
            case Packing.NF4:
                return nf4_bytes(outputs, columns)
        return two_row_bytes(outputs, columns)


_COMPILED: Mapping[Packing, Element] = {
    Packing.ROWS: Element.FLOAT32,
    Packing.ROWS_BFLOAT16: Element.BFLOAT16,
    Packing.ROWS_FLOAT16: Element.FLOAT16,
    Packing.INT8_ROWS: Element.INT8,
}
"""The forms for the compiled product, and what they hold."""
_EXACT = (Packing.PLAIN, Packing.PREPACKED, Packing.ROWS, Packing.ROWS_BFLOAT16, Packing.ROWS_FLOAT16)


def compiled_rows(stored: Collection[str]) -> Packing:
    """The form for the compiled product that keeps numbers stored in these dtypes, as safetensors calls them ("BF16").

    They are held as they are stored if all are stored alike.
    """
    narrow = {"BF16": Packing.ROWS_BFLOAT16, "F16": Packing.ROWS_FLOAT16}
    return narrow.get(next(iter(stored)), Packing.ROWS) if len(stored) == 1 else Packing.ROWS


@dataclass(frozen=True)
class Forms:
    """The form of every matrix of a block, by its shape; all of one numeric format."""

    others: Packing
    by_shape: Mapping[tuple[int, int], Packing] = field(default_factory=dict)
    """(N, K), of linears with the same input together -> the form."""

    def at(self, outputs: int, columns: int) -> Packing:
        """The form of a matrix, if it fits."""
        return self.by_shape.get((outputs, columns), self.others)

    @property
    def all(self) -> tuple[Packing, ...]:
        """Every form that a matrix may have, each once."""
        return tuple(dict.fromkeys((self.others, *self.by_shape.values())))

    @property
    def is_plain(self) -> bool:
        """Whether nothing is packed."""
        return self.all == (Packing.PLAIN,)

    @property
    def name(self) -> str:
        """For people, and for telling measurements apart."""
        return ", ".join(form.value for form in self.all)

    def numeric_format(self, dtype: str) -> str:
        """The format that is announced, see `Packing.numeric_format`."""
        (found,) = {form.numeric_format(dtype) for form in self.all}
        return found
