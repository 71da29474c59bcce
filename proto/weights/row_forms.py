"""The compiled product of rows as a form of the weights; without the extra `fast` no matrix fits it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from .kernels.element import Element
from .packed import int8_weights

if TYPE_CHECKING:
    from .kernels.matrix import RowMatrix

logger = logging.getLogger(__name__)


def _compiled_products() -> ModuleType:
    from .kernels import matrix  # brings LLVM

    matrix.fits(1, 1, Element.FLOAT32)  # its library is loaded now, not with the package
    return matrix


@functools.cache
def kernels(load: Callable[[], ModuleType] = _compiled_products) -> ModuleType | None:
    """The module of the compiled product; None where there is no LLVM, or one that is too old or broken: a word then.

    Asked once: programs run without it.
    """
    try:
        return load()
    except ModuleNotFoundError:
        return None
    except (AttributeError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        logger.warning("products are not compiled, llvmlite cannot be used: %s: %s", type(error).__name__, error)
        return None


def row_fits(outputs: int, columns: int, element: Element) -> bool:
    """Whether rows can be multiplied with such a matrix here."""
    found = kernels()
    return found is not None and bool(found.fits(outputs, columns, element))


def row_matrix(weights: Sequence[torch.Tensor], element: Element) -> RowMatrix:
    """Weights (N_i, K), stacked, in one matrix of `element`; in float32 if 16 bits would change a value.

    Raises RuntimeError where the product cannot be compiled.
    """
    if kernels() is None:
        raise RuntimeError("the extra `fast` is not installed, or cannot be used")
    from .kernels.matrix import RowMatrix

    if element is Element.INT8:
        values, factors = int8_weights(weights)
        return RowMatrix([values], element, [factors])
    try:
        return RowMatrix(weights, element)
    except ValueError:
        return RowMatrix([weight.float() for weight in weights], Element.FLOAT32)


def row_bytes(outputs: int, columns: int, element: Element) -> int:
    """Bytes that such a matrix holds."""
    factors = torch.float32.itemsize * outputs if element is Element.INT8 else 0
    return outputs * columns * element.nbytes + factors
