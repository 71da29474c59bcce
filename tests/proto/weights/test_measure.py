"""Products of every form, timed and checked on the machine that runs the tests."""

from __future__ import annotations

import math

import pytest
import torch
from blockswarm.peer.engine.weights.choose import choose_packing
from blockswarm.proto.weights.forms import Packing
from blockswarm.proto.weights.measure import TWO_ROW_FORMS, relative_error, try_packings
from blockswarm.proto.weights.trials import MAX_ERRORS, int8_form


def test_this_machine_is_tried() -> None:
    here = [packing for packing in Packing if packing is not Packing.NF4]
    found = try_packings(256, 512, torch.float32, here)
    assert found[Packing.PLAIN].relative_error < 1e-5
    assert found[Packing.PREPACKED].relative_error < 1e-5
    assert found[Packing.INT8_REDUCED].relative_error < 1e-3
    assert 0.002 < found[Packing.INT8_WEIGHTS].relative_error < 0.02  # all of the rounding of the weights
    assert 0.01 < found[Packing.INT4].relative_error < MAX_ERRORS[Packing.INT4]
    computed = [tried for tried in found.values() if math.isfinite(tried.relative_error)]
    assert all(0 < seconds < 1 for tried in computed for seconds in tried.seconds.values())


@pytest.mark.long
@pytest.mark.parametrize("columns", [64, 512, 4096, 28672])
def test_the_int8_form_of_this_machine_is_as_exact_as_its_bits_allow(columns: int) -> None:
    """Whichever form that is: full bits where a processor computes them right, one less in each row elsewhere."""
    form = int8_form(columns)
    assert relative_error(form, columns) < {Packing.INT8: 5e-4, Packing.INT8_REDUCED: 2e-3}[form]
    trials = try_packings(64, columns, torch.float32, [Packing.PLAIN, *TWO_ROW_FORMS])
    assert choose_packing("int8", trials).packing is form


def test_products_are_right_or_far_from_right() -> None:
    """A form of int8 that this processor does not compute is rejected by a wide margin, never nearly taken."""
    for form in TWO_ROW_FORMS:
        error = relative_error(form, 512)
        assert error < MAX_ERRORS[form] / 2 or error > 20 * MAX_ERRORS[form]
        assert error <= MAX_ERRORS[form] or form is not int8_form(512)
