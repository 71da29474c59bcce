"""Packed matrices against exact products, and what a row's result may depend on."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
import torch
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.measure import TWO_ROW_FORMS
from blockswarm.proto.weights.measure import relative_error as error_here
from blockswarm.proto.weights.packed import (
    Int4Matrix,
    PrepackedMatrix,
    TwoRowMatrix,
    int4_group,
    int8_weight,
)
from blockswarm.proto.weights.trials import MAX_ERRORS
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPES = ((64, 64), (33, 67), (96, 2), (200, 515), (1024, 352))

BOUNDS = {Packing.INT8: 5e-4, Packing.INT8_REDUCED: 2e-3}
"""Relative error of a row's product with int8 weights: 15 bits of activations, and two bits less."""
FORMS_HERE = [form for form in TWO_ROW_FORMS if error_here(form, 512) <= MAX_ERRORS[form]]
"""The int8 forms that the product may choose on this processor; `test_choose.py` has that it chooses no other."""
of_every_form = pytest.mark.parametrize("form", FORMS_HERE, ids=lambda form: form.value)


def weight_of(outputs: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def rows_with_outliers(count: int, columns: int, seed: int = 1) -> torch.Tensor:
    """Some channels are much larger than the others, as in real models, and rows differ in size by far."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, columns, generator=generator)
    rows[:, :: max(1, columns // 3)] *= 20
    return rows * torch.logspace(-6, 6, count)[:, None]


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest of the rows'."""
    return ((found - exact).norm(dim=1) / exact.norm(dim=1)).max().item()


def int8_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product with the int8 weight in float64: the truth for two rows."""
    values, scales = int8_weight(weight)
    return rows.double() @ (values.double() * scales.double()[:, None]).T


@pytest.mark.parametrize(("outputs", "columns"), SHAPES)
@pytest.mark.parametrize("count", [1, 7, 64, 65, 130])
@of_every_form
def test_two_rows_are_the_exact_int8_product(form: Packing, outputs: int, columns: int, count: int) -> None:
    """15 bits, or 13: far below the error of the weights."""
    weight, rows = weight_of(outputs, columns), rows_with_outliers(count, columns)
    found = form.pack([weight]).multiply(rows)
    assert relative_error(found, int8_product(rows, weight)) < BOUNDS[form]
    assert relative_error(found, rows.double() @ weight.double().T) < 2e-2


@pytest.mark.skipif(Packing.INT8_REDUCED not in FORMS_HERE, reason="torch has no int8 product for this processor")
def test_a_reduced_range_costs_two_bits() -> None:
    weight, rows = weight_of(256, 512), rows_with_outliers(16, 512)
    found = TwoRowMatrix([weight], reduce_range=True).multiply(rows)
    assert 2e-4 < relative_error(found, int8_product(rows, weight)) < 2e-3


@pytest.mark.parametrize(("outputs", "columns"), SHAPES)
@of_every_form
def test_extreme_values_do_not_saturate(form: Packing, outputs: int, columns: int) -> None:
    """All weights and all activations at the ends of their ranges: 16-bit sums of products would overflow."""
    signs = torch.randint(0, 2, (outputs, columns), generator=torch.Generator().manual_seed(3)) * 2.0 - 1
    rows = torch.cat([signs[:1], -signs[:1], torch.ones(1, columns), -torch.ones(1, columns)]) * 1e3
    found = form.pack([signs]).multiply(rows)
    exact = rows.double() @ signs.double().T
    assert ((found - exact).abs() <= 1e-4 * 1e3 * columns).all()


@pytest.mark.long
@given(data=st.data(), count=st.integers(1, 70), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
@of_every_form
def test_a_rows_result_does_not_depend_on_the_batch(form: Packing, data: st.DataObject, count: int, seed: int) -> None:
    """Bit for bit: any other rows, in any number and any order, however large."""
    outputs, columns = data.draw(st.sampled_from(SHAPES))
    matrix = form.pack([weight_of(outputs, columns)])
    rows = rows_with_outliers(count, columns, seed)
    alone = torch.cat([matrix.multiply(row) for row in rows.split(1)])
    order = random.Random(seed).sample(range(count), count)
    assert torch.equal(matrix.multiply(rows[order]), alone[order])
    some = order[: data.draw(st.integers(1, count))]
    assert torch.equal(matrix.multiply(rows[some]), alone[some])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@of_every_form
def test_a_row_that_is_not_finite_harms_no_other(form: Packing, bad: float) -> None:
    matrix = form.pack([weight_of(48, 64)])
    rows = rows_with_outliers(3, 64)
    poisoned = torch.cat([rows[:1], rows[1:2], rows[2:]])
    poisoned[1, 5] = bad
    found = matrix.multiply(poisoned)
    assert torch.equal(found[[0, 2]], matrix.multiply(rows)[[0, 2]])
    assert not found[1].isfinite().any()


@of_every_form
def test_rows_of_zeros_stay_zeros(form: Packing) -> None:
    rows = torch.zeros(3, 64)
    rows[1] = 1.0
    assert torch.equal(form.pack([weight_of(48, 64)]).multiply(rows)[[0, 2]], torch.zeros(2, 48))


@of_every_form
def test_stacked_weights_give_what_they_give_alone(form: Packing) -> None:
    """Bit for bit: a scale belongs to one output."""
    weights = [weight_of(48, 64, 1), weight_of(32, 64, 2)]
    rows = rows_with_outliers(5, 64)
    apart = torch.cat([form.pack([weight]).multiply(rows) for weight in weights], dim=1)
    assert torch.equal(form.pack(weights).multiply(rows), apart)


@pytest.mark.parametrize(("outputs", "columns"), SHAPES)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_prepacked_float32_is_float32(outputs: int, columns: int, count: int) -> None:
    weight, rows = weight_of(outputs, columns), rows_with_outliers(count, columns)
    assert relative_error(PrepackedMatrix([weight]).multiply(rows), rows.double() @ weight.double().T) < 2e-6


@pytest.mark.skipif(
    error_here(Packing.PREPACKED, 96, torch.bfloat16) == math.inf, reason="oneDNN has no bfloat16 for this processor"
)
def test_prepacked_bfloat16_is_bfloat16() -> None:
    weight, rows = weight_of(64, 96).bfloat16(), rows_with_outliers(3, 96).bfloat16()
    found = PrepackedMatrix([weight, weight]).multiply(rows)
    assert found.dtype == torch.bfloat16
    assert relative_error(found.double(), (rows.double() @ weight.double().T).repeat(1, 2)) < 8e-3


@pytest.mark.parametrize(("outputs", "columns"), [(64, 64), (48, 96), (256, 1024)])
def test_int4_is_coarse(outputs: int, columns: int) -> None:
    weight, rows = weight_of(outputs, columns), rows_with_outliers(4, columns)
    found = Int4Matrix([weight]).multiply(rows)
    assert found.dtype == torch.float32
    assert 1e-2 < relative_error(found, rows.double() @ weight.double().T) < 0.25


def test_int4_refuses_odd_shapes() -> None:
    assert int4_group(64, 1024) == 128
    assert int4_group(64, 96) == 32
    assert int4_group(60, 1024) is None
    assert int4_group(64, 100) is None


_MEASURE = """
import ctypes, torch
from blockswarm.proto.weights.packed import PrepackedMatrix, TwoRowMatrix

def resident():
    ctypes.CDLL(None).malloc_trim(0)  # as the loader does
    return int(open("/proc/self/statm").read().split()[1]) * 4096

torch.set_num_threads(1)
weight = torch.randn(1024, 1024)
for make in (TwoRowMatrix, PrepackedMatrix):
    make([weight]).multiply(torch.randn(4, 1024))
    before = resident()
    held = [make([weight]) for _ in range(64)]
    for matrix in held:
        matrix.multiply(torch.randn(4, 1024))
    print((resident() - before) / sum(matrix.nbytes for matrix in held))
    del held
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_bytes_stated_are_those_the_process_holds() -> None:
    """Blocks are chosen by them. In a process of its own, so that nothing else comes and goes."""
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True)
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == 2
    assert all(0.9 < ratio < 1.1 for ratio in ratios), ratios
