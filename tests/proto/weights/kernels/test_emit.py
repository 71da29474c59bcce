"""The code of products, for processors other than this one."""

from __future__ import annotations

import pytest

pytest.importorskip("llvmlite", reason="the extra `fast` is not installed")

from blockswarm.proto.weights.kernels.element import Element
from blockswarm.proto.weights.kernels.emit import Vectors, emit
from llvmlite import binding


@pytest.mark.parametrize("element", Element, ids=lambda element: element.value)
@pytest.mark.parametrize("vectors", [Vectors(4, 32), Vectors(16, 32)], ids=["neon", "avx512"])
def test_code_for_other_processors_is_valid(element: Element, vectors: Vectors) -> None:
    """As far as LLVM's own checks tell: this processor cannot run it."""
    binding.parse_assembly(emit(element, vectors)).verify()
