"""Compiled products against exact ones, and what a row's result may depend on."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite", reason="the extra `fast` is not installed")

from blockswarm.proto.weights.kernels.element import Element
from blockswarm.proto.weights.kernels.matrix import DTYPES, RowMatrix, fits
from blockswarm.proto.weights.packed import int8_weight

SHAPES = ((64, 64), (36, 176), (8, 16), (260, 1040), (4, 2816))
of_every_element = pytest.mark.parametrize("element", Element, ids=lambda element: element.value)


def weight_of(outputs: int, columns: int, element: Element, seed: int = 0) -> torch.Tensor:
    """In float32, every value a number of the element."""
    weight = torch.randn(outputs, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    return weight if element is Element.INT8 else weight.to(DTYPES[element]).float()


def matrix_of(weight: torch.Tensor, element: Element) -> tuple[RowMatrix, torch.Tensor]:
    """The matrix, and the weight that it has, in float64."""
    if element is Element.INT8:
        values, factors = int8_weight(weight)
        return RowMatrix([values], element, [factors]), values.double() * factors.double()[:, None]
    return RowMatrix([weight], element), weight.double()


def rows_with_outliers(count: int, columns: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, columns, generator=generator)
    rows[:, :: max(1, columns // 3)] *= 20
    return rows * torch.logspace(-6, 6, count)[:, None]


@pytest.mark.parametrize(("outputs", "columns"), SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 12, 48, 49, 101])
@of_every_element
def test_products_are_those_of_the_weights_in_float64(element: Element, outputs: int, columns: int, count: int) -> None:
    matrix, exact = matrix_of(weight_of(outputs, columns, element), element)
    rows = rows_with_outliers(count, columns)
    found, expected = matrix.multiply(rows).double(), rows.double() @ exact.T
    assert found.shape == (count, outputs)
    # Rounding grows with the terms of the sum, not with the sum, which may be small.
    terms = rows.double().abs() @ exact.abs().T
    assert ((found - expected).abs() <= 1e-6 * terms).all()


@pytest.mark.long
@of_every_element
@given(data=st.data(), count=st.integers(1, 70), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_rows_result_does_not_depend_on_the_batch(
    element: Element, data: st.DataObject, count: int, seed: int
) -> None:
    """Bit for bit: any other rows, in any number and any order, however large."""
    outputs, columns = data.draw(st.sampled_from(SHAPES))
    matrix, _ = matrix_of(weight_of(outputs, columns, element), element)
    rows = rows_with_outliers(count, columns, seed)
    alone = torch.cat([matrix.multiply(row) for row in rows.split(1)])
    order = random.Random(seed).sample(range(count), count)
    assert torch.equal(matrix.multiply(rows[order]), alone[order])
    some = order[: data.draw(st.integers(1, count))]
    assert torch.equal(matrix.multiply(rows[some]), alone[some])


@of_every_element
def test_a_result_does_not_depend_on_the_threads(element: Element) -> None:
    matrix, _ = matrix_of(weight_of(4100, 1040, element), element)
    rows = rows_with_outliers(7, 1040)
    alone = matrix.multiply(rows)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(matrix.multiply(rows), alone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@of_every_element
def test_a_row_that_is_not_finite_harms_no_other(element: Element, bad: float) -> None:
    matrix, _ = matrix_of(weight_of(64, 64, element), element)
    rows = rows_with_outliers(7, 64)
    poisoned = rows.clone()
    poisoned[3, 5] = bad
    found, alone = matrix.multiply(poisoned), matrix.multiply(rows)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(found[others], alone[others])
    assert not found[3].isfinite().any()


def test_weights_are_stacked_and_rows_keep_their_dtype() -> None:
    first, second = (weight_of(outputs, 64, Element.FLOAT32, seed) for outputs, seed in ((16, 1), (32, 2)))
    rows = rows_with_outliers(3, 64)
    apart = [RowMatrix([weight], Element.FLOAT32).multiply(rows) for weight in (first, second)]
    together = RowMatrix([first, second], Element.FLOAT32)
    assert torch.equal(together.multiply(rows), torch.cat(apart, dim=1))
    half = rows.bfloat16()
    assert torch.equal(together.multiply(half), together.multiply(half.float()).bfloat16())
    assert together.nbytes == 48 * 64 * 4


def test_half_of_the_bytes_hold_the_same_numbers() -> None:
    """16-bit weights are widened, not rounded: the sums are those of the same weights in float32, bit for bit."""
    weight, rows = weight_of(64, 64, Element.BFLOAT16), rows_with_outliers(5, 64)
    narrow, wide = RowMatrix([weight], Element.BFLOAT16), RowMatrix([weight], Element.FLOAT32)
    assert torch.equal(narrow.multiply(rows), wide.multiply(rows))
    assert 2 * narrow.nbytes == wide.nbytes


@pytest.mark.parametrize("element", [Element.BFLOAT16, Element.FLOAT16], ids=lambda element: element.value)
def test_weights_with_more_digits_are_refused(element: Element) -> None:
    with pytest.raises(ValueError, match="no numbers"):
        RowMatrix([torch.full((64, 64), 1 + 2**-20)], element)


def test_shapes_that_do_not_fit_are_known() -> None:
    assert fits(4, 64, Element.BFLOAT16)
    assert not fits(6, 64, Element.BFLOAT16)
    assert not fits(4, 66, Element.BFLOAT16)


def test_a_default_dtype_that_another_thread_sets_changes_nothing() -> None:
    """transformers does so while it builds a model: memory for products of 16 bits would be too small."""
    matrix, _ = matrix_of(weight_of(64, 64, Element.FLOAT32), Element.FLOAT32)
    rows = rows_with_outliers(7, 64)
    expected = matrix.multiply(rows)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(matrix.multiply(rows), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_default_device_of_the_moment_changes_nothing() -> None:
    """Empty models are built under one; the compiled code would write to an address that is none."""
    matrix, _ = matrix_of(weight_of(64, 64, Element.FLOAT32), Element.FLOAT32)
    rows = rows_with_outliers(7, 64)
    expected = matrix.multiply(rows)
    with torch.device("meta"):
        assert torch.equal(matrix.multiply(rows), expected)
    with pytest.raises(ValueError, match="device meta"):
        matrix.multiply(rows.to("meta"))


@of_every_element
def test_the_weights_of_some_outputs_are_read_back_as_they_were(element: Element) -> None:
    weight = weight_of(260, 1040, element)
    expected = int8_weight(weight)[0].float() if element is Element.INT8 else weight
    matrix, _ = matrix_of(weight, element)
    outputs = torch.tensor([[0, 259], [7, 7], [258, 4]])
    assert torch.equal(matrix.weights_of(outputs), expected[outputs])
    assert matrix.weights_of(outputs[:0]).shape == (0, 2, 1040)
