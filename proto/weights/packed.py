"""Matrices packed once for the products that a peer computes again and again: rows (T, K) times a weight (N, K).

    PrepackedMatrix   float32 or bfloat16 in oneDNN's own layout.  `F.linear` packs the weight anew at every call with a
                      few rows; this does not.
    TwoRowMatrix      int8 weights with one scale per output, activations of about 15 bits ("W8A16 by two rows").
    Int4Matrix        4-bit weights in groups with a scale and an offset each, bfloat16 activations.

How the two rows work.  The int8 product of fbgemm quantises its input to 8 bits, with one grid for the whole batch.
With few rows its time is that of reading the weights, so every row x may enter as two: with s = max|x| / 127 the
nearest integers h = round(x / s), and what they miss, magnified to the same range, r = 254 (x / s - h).  Then
x W' = s (h W' + r W' / 254) up to the rounding of r to integers, which is 1/64516 of the largest value of the row.

The grid must not depend on the other rows, or one session's results would depend on who else is there.  One more row,
the sentinel, holds the smallest and the largest value, -127.5 and 127.5; every other value lies strictly between.  The
256 steps of the grid are then the integers, exactly.  What happens to a row apart from the integer product is element
by element, one correctly rounded operation at a time; so a row's result is the same, bit for bit, in any batch.

A row that is not finite gives a row that is not finite, and harms no other.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

ROWS_AT_ONCE = 64
"""More rows than this are computed in pieces: beyond it the int8 product gains nothing, and what is around it falls
out of the caches (measured: 512 rows in one piece take 1.3x to 1.4x the time)."""

_INT8_MAX = 127
_QUANTISED_AT_ONCE = 1024
"""Outputs that are rounded at a time."""
_ENGINE = "x86"  # fbgemm; the others are slower, and onednn keeps a second copy of the weights
_PACKED_ROWS, _PACKED_COLUMNS = 16, 512
"""fbgemm pads a packed matrix to multiples of these."""
_BYTES_PER_ROW = 28
"""And keeps scales, zero points and a sum for each row."""
_PREPACKED_ROWS, _PREPACKED_COLUMN_BYTES = 64, 64
"""oneDNN pads too, with AVX-512; with less it pads less."""

_INT4_GROUP_SIZES = (128, 64, 32)
_INT4_OUTPUTS = 16
"""The 4-bit kernels of the CPU want a multiple of this many outputs."""
_INT4_TILES = 2


class PackedMatrix(Protocol):
    """A weight (N, K), ready for products."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """(T, K) -> (T, N), in the dtype of `rows`."""


class PrepackedMatrix:
    """A weight in the layout of oneDNN; float32 products differ from `F.linear` by the order of sums."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        """`weights` (N_i, K), float32 or bfloat16, are stacked. Raises RuntimeError if torch comes without oneDNN."""
        (weight,) = weights if len(weights) == 1 else (torch.cat(list(weights)),)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.nbytes: int = torch.ops.mkldnn._nbytes(self._weight)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, None, "none", [], "")
        return product


class TwoRowMatrix:
    """An int8 weight and the two-row product, see above."""

    def __init__(self, weights: Sequence[torch.Tensor], *, reduce_range: bool = False) -> None:
        """`weights` (N_i, K), K at least 2, are stacked.

        `reduce_range` leaves one bit of the activations unused: processors without VNNI add pairs of products in 16
        bits, which would overflow. Raises RuntimeError if torch has no int8 product for this processor.
        """
        levels = _INT8_MAX // 2 if reduce_range else _INT8_MAX
        columns = weights[0].shape[1]
        self._reduce_range = reduce_range
        self._levels = levels
        self._packed = _pack_int8(weights)
        self._sentinel = torch.zeros(1, columns, dtype=torch.float32)
        self._sentinel[0, 0], self._sentinel[0, 1] = levels + 0.5, -levels - 0.5
        self.nbytes = two_row_bytes(sum(weight.shape[0] for weight in weights), columns)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        exact = rows.float()
        if exact.shape[0] <= ROWS_AT_ONCE:
            return self._multiply(exact).to(rows.dtype)
        return torch.cat([self._multiply(part) for part in exact.split(ROWS_AT_ONCE)]).to(rows.dtype)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        count = rows.shape[0]
        scale = rows.abs().amax(-1, keepdim=True).div_(self._levels)
        # A row of zeros, or one that is not finite, becomes zeros here; its scale makes it what it should be below.
        values = (rows / scale).nan_to_num_(0.0, 0.0, 0.0)
        high = values.round()
        low = values.sub_(high).mul_(2 * self._levels)
        stacked = torch.cat((high, low, self._sentinel))
        product = torch.ops.quantized.linear_dynamic(stacked, self._packed, self._reduce_range)
        high, low, _ = product.split((count, count, 1))
        # Not fused into one operation: whether that rounds once or twice may depend on the place in the batch.
        result: torch.Tensor = low.mul_(1 / (2 * self._levels)).add_(high).mul_(scale)
        return result


class Int4Matrix:
    """A 4-bit weight; products are computed in bfloat16."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        """`weights` (N_i, K), for which `int4_group(N, K)` is not None, are stacked."""
        weight = torch.cat([weight.detach().float() for weight in weights])
        outputs, columns = weight.shape
        group = int4_group(outputs, columns)
        assert group is not None
        self._group = group
        grouped = weight.view(outputs, columns // group, group)
        lowest, highest = grouped.aminmax(dim=-1)
        scale = ((highest - lowest) / 15).clamp_min(1e-12)
        levels = ((grouped - lowest[..., None]) / scale[..., None]).round_().clamp_(0, 15)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            levels.view(outputs, columns).to(torch.int32), _INT4_TILES
        )
        # The kernel computes (level - 8) * scale + zero.
        self._scales_and_zeros = (
            torch.stack((scale, lowest + 8 * scale), dim=-1).transpose(0, 1).bfloat16().contiguous()
        )
        self.nbytes = self._packed.nbytes + self._scales_and_zeros.nbytes

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows.bfloat16(), self._packed, self._group, self._scales_and_zeros
        )
        return product.to(rows.dtype)


def prepacked_bytes(outputs: int, columns: int, dtype: torch.dtype) -> int:
    """The most bytes that a `PrepackedMatrix` of that shape holds."""
    columns = _round_up(columns, _PREPACKED_COLUMN_BYTES // dtype.itemsize)
    return _round_up(outputs, _PREPACKED_ROWS) * columns * dtype.itemsize


def two_row_bytes(outputs: int, columns: int) -> int:
    """Bytes that a `TwoRowMatrix` of that shape holds."""
    padded = _round_up(outputs, _PACKED_ROWS) * _round_up(columns, _PACKED_COLUMNS)
    return padded + outputs * _BYTES_PER_ROW + columns * torch.float32.itemsize


def int4_bytes(outputs: int, columns: int) -> int:
    """Bytes that an `Int4Matrix` of that shape holds."""
    group = int4_group(outputs, columns)
    assert group is not None
    return outputs * columns // 2 + outputs * (columns // group) * 2 * torch.bfloat16.itemsize


def int4_group(outputs: int, columns: int) -> int | None:
    """How many neighbouring weights share a scale; None for a shape that 4-bit products cannot do."""
    if outputs % _INT4_OUTPUTS:
        return None
    return next((size for size in _INT4_GROUP_SIZES if columns % size == 0), None)


def int8_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 per output: (N, K) -> values (N, K) int8 in -127..127 and scales (N,) float32."""
    exact = weight.detach().float()
    scales = exact.abs().amax(-1).div_(_INT8_MAX).clamp_min_(torch.finfo(torch.float32).tiny)
    return (exact / scales[:, None]).round_().to(torch.int8), scales


def int8_weights(weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """`int8_weight` of weights (N_i, K), stacked, piece by piece: no second copy of them in float32.

    Into tensors that are there from the beginning: pieces that are kept among temporary ones split the heap up, and
    hundreds of megabytes stayed with the process.
    """
    outputs, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    values, scales = torch.empty(outputs, columns, dtype=torch.int8), torch.empty(outputs, dtype=torch.float32)
    filled = 0
    for piece in (piece for weight in weights for piece in weight.split(_QUANTISED_AT_ONCE)):
        span = slice(filled, filled + piece.shape[0])
        values[span], scales[span] = int8_weight(piece)
        filled = span.stop
    return values, scales


def _pack_int8(weights: Sequence[torch.Tensor]) -> Any:
    values, scales = int8_weights(weights)
    with warnings.catch_warnings(), _quantized_engine(_ENGINE):
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        quantized = torch._make_per_channel_quantized_tensor(
            values, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0
        )
        return torch.ops.quantized.linear_prepack(quantized, None)


@contextlib.contextmanager
def _quantized_engine(name: str) -> Iterator[None]:
    """torch chooses by a global variable how weights are packed. Raises RuntimeError if there is no such engine."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
