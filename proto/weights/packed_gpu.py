"""Matrices packed for a GPU, see `packed.py` for the processor's: rows (T, K) times a weight (N, K).

    Int8WeightMatrix  int8 weights with one scale per output, the same rounding as `TwoRowMatrix`; activations as they
                      come. Plain torch, on any device.
    Nf4Matrix         4-bit weights at the quantiles of a normal distribution, a scale per 64 of them; by bitsandbytes.

Both give the GPU's own product a piece of the weight at a time, unpacked to the dtype of the rows.  So a row's result
depends on the other rows no more than an ordinary product does (bitsandbytes' int8 does not promise that: it looks for
outliers among all rows), and what a product needs beside the weight is bounded by the piece.  Reading, unpacking and
reading again costs time: these formats are for models that would not fit otherwise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import UsageError
from .packed import int8_weight

PIECE_ELEMENTS = 1 << 25
"""A larger weight is cut along its outputs."""
NF4_GROUP = 64


class Int8WeightMatrix:
    """An int8 weight on `device`."""

    def __init__(
        self, weights: Sequence[torch.Tensor], device: torch.device, piece_elements: int = PIECE_ELEMENTS
    ) -> None:
        """`weights` (N_i, K) of one dtype are stacked; they may be elsewhere, and are quantised on `device`."""
        quantized = [int8_weight(piece.to(device)) for piece in pieces(weights, piece_elements)]
        self._pieces = [(values, scales.to(weights[0].dtype)[:, None]) for values, scales in quantized]
        self.nbytes = sum(values.nbytes + scales.nbytes for values, scales in self._pieces)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.nn.functional.linear(rows, values * scales) for values, scales in self._pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class Nf4Matrix:
    """A 4-bit weight on `device`, an NVIDIA GPU."""

    def __init__(self, weights: Sequence[torch.Tensor], device: torch.device) -> None:
        """As `Int8WeightMatrix`. `check_bitsandbytes` has passed."""
        from bitsandbytes.functional import quantize_4bit

        # Without the second quantisation, of the scales, which would save another half bit per weight.
        self._pieces: list[tuple[torch.Tensor, Any]] = [
            quantize_4bit(piece.to(device).contiguous(), blocksize=NF4_GROUP, quant_type="nf4")
            for piece in pieces(weights)
        ]
        self.nbytes = sum(packed.nbytes + state.absmax.nbytes for packed, state in self._pieces)

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        from bitsandbytes import matmul_4bit

        parts = [matmul_4bit(rows, packed.t(), quant_state=state) for packed, state in self._pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def pieces(weights: Sequence[torch.Tensor], piece_elements: int = PIECE_ELEMENTS) -> list[torch.Tensor]:
    """Cut along the outputs so that none has more than `piece_elements`, or only one output."""
    outputs = max(1, piece_elements // weights[0].shape[1])
    return [piece for weight in weights for piece in weight.detach().split(outputs)]


def int8_weight_bytes(outputs: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes that an `Int8WeightMatrix` of that shape, made from weights in `dtype`, holds."""
    return outputs * columns + outputs * dtype.itemsize


def nf4_bytes(outputs: int, columns: int) -> int:
    """Bytes that an `Nf4Matrix` of that shape holds."""
    return outputs * columns // 2 + outputs * columns // NF4_GROUP * torch.float32.itemsize


def check_bitsandbytes(find_package: Callable[[str], object] = importlib.util.find_spec) -> None:
    """Raises UsageError if the package is not there."""
    if find_package("bitsandbytes") is None:
        raise UsageError(
            "nf4 weights are computed by the package bitsandbytes, which is not installed",
            hint="pip install bitsandbytes, or start with --quantize int8.",
        )
