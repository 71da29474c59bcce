"""A weight laid out for the compiled product, and rows multiplied with it by several threads."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from .element import Element
from .emit import RUN_OUTPUTS
from .host import product, vectors

DTYPES = {
    Element.FLOAT32: torch.float32,
    Element.BFLOAT16: torch.bfloat16,
    Element.FLOAT16: torch.float16,
    Element.INT8: torch.int8,
}
_ROWS_AT_ONCE = 48
"""More rows fall out of the caches."""
_BYTES_PER_THREAD = 1 << 20
"""Smaller parts of a weight are read faster than a thread is woken."""
_OUTPUTS_AT_ONCE = 1024
"""Are laid out at a time: packing needs no second copy of the weights."""


class RowMatrix:
    """A weight (N, K) for `emit.NAME`: a row's product is the same, bit for bit, in any batch.

    Exact: it differs from `F.linear` by the order of sums, which is the same for every number of rows and threads.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], element: Element, factors: Sequence[torch.Tensor] | None = None
    ) -> None:
        """`weights` (N_i, K), each of a shape that `fits` and in any dtype whose values are all numbers of `element`,
        are stacked; int8 comes with `factors` (N_i,). Raises RuntimeError where nothing can be compiled here, and
        ValueError for values that `element` has not.
        """
        self._product = product(element)
        self._element = element
        self.outputs = sum(weight.shape[0] for weight in weights)
        self.columns = weights[0].shape[1]
        self._weight = torch.empty(self.outputs * self.columns, dtype=DTYPES[element])
        filled = 0
        for piece in (piece for weight in weights for piece in weight.split(_OUTPUTS_AT_ONCE)):
            self._weight[filled : filled + piece.numel()] = _laid_out(piece, element)
            filled += piece.numel()
        self._factors = torch.cat(list(factors)) if factors is not None else torch.empty(0, dtype=torch.float32)
        self.nbytes = self._weight.nbytes + self._factors.nbytes

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """(T, K) -> (T, N), in the dtype of `rows`. Raises ValueError for rows that the compiled code cannot read."""
        values = rows.float().contiguous()
        if values.shape[1] != self.columns:
            raise ValueError(f"rows of {values.shape[1]} columns for a weight of {self.columns}")
        if values.device.type != "cpu":
            raise ValueError(f"rows on the device {values.device}, whose addresses are none here")
        # The defaults may be others for a moment: transformers sets the dtype for all threads.
        products = torch.empty(len(values), self.outputs, dtype=torch.float32, device=values.device)
        bounds = _bounds(self.outputs, self.nbytes, torch.get_num_threads())
        if len(bounds) == 2:
            self._multiply(values, products, 0, self.outputs)
        else:
            others = [
                _threads(len(bounds) - 2).submit(self._multiply, values, products, start, stop)
                for start, stop in itertools.pairwise(bounds[1:])
            ]
            self._multiply(values, products, 0, bounds[1])
            for other in others:
                other.result()
        return products.to(rows.dtype)

    def weights_of(self, outputs: torch.Tensor) -> torch.Tensor:
        """The weights of outputs (...) as they were given, exactly: (..., K) float32, for int8 without its factors."""
        group, lanes = self._element.group, _lanes()
        grouped = self._weight.view(self.outputs // group, self.columns // lanes, group, lanes)
        found = grouped[outputs // group, :, outputs % group]
        return found.reshape(*outputs.shape, self.columns).float()

    def _multiply(self, values: torch.Tensor, products: torch.Tensor, start: int, stop: int) -> None:
        """The outputs from `start` to `stop`, of all rows."""
        count, columns = values.shape
        weight = self._weight.data_ptr() + start * columns * self._element.nbytes
        factors = self._factors.data_ptr() + 4 * start if self._element is Element.INT8 else 0
        source, target = values.data_ptr(), products.data_ptr() + 4 * start
        for first in range(0, count, _ROWS_AT_ONCE):
            self._product(
                weight,
                source + 4 * first * columns,
                target + 4 * first * self.outputs,
                factors,
                min(_ROWS_AT_ONCE, count - first),
                stop - start,
                columns,
                self.outputs,
            )


def fits(outputs: int, columns: int, element: Element) -> bool:
    """Whether the product can be compiled here for weights of that shape."""
    found = vectors()
    return found is not None and outputs % element.group == 0 and columns % found.lanes == 0


def _laid_out(weight: torch.Tensor, element: Element) -> torch.Tensor:
    """As `emit` has it: groups of outputs, in each a vector of every output, then the next columns. Flat."""
    exact = weight.detach().to(DTYPES[element])
    if exact.dtype != weight.dtype and not torch.equal(exact.to(weight.dtype), weight):
        raise ValueError(f"weights that are no numbers of {element.value}")
    outputs, columns = weight.shape
    grouped = exact.reshape(outputs // element.group, element.group, columns // _lanes(), _lanes())
    return grouped.transpose(1, 2).reshape(-1)


def _lanes() -> int:
    """For a matrix that exists, so that products can be compiled here."""
    found = vectors()
    assert found is not None
    return found.lanes


@functools.cache
def _bounds(outputs: int, nbytes: int, threads: int) -> list[int]:
    """Where the parts of the threads begin and end; each a multiple of `RUN_OUTPUTS` but for the last."""
    parts = max(1, min(threads, nbytes // _BYTES_PER_THREAD, outputs // RUN_OUTPUTS))
    return [*(outputs * part // parts // RUN_OUTPUTS * RUN_OUTPUTS for part in range(parts)), outputs]


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="product")
