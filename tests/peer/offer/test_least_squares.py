"""Least squares with coefficients that are not negative, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from blockswarm.peer.offer.least_squares import nonnegative_least_squares
from scipy.optimize import nnls


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_fit_is_that_of_scipy(columns: int) -> None:
    rng = np.random.default_rng(columns)
    for _ in range(50):
        rows = rng.uniform(0, 1, (6, columns))
        values = rows @ rng.normal(size=columns) + rng.normal(scale=0.1, size=6)
        expected, _ = nnls(rows, values)
        np.testing.assert_allclose(nonnegative_least_squares(rows, values), expected, atol=1e-9)


def test_what_only_negative_coefficients_would_fit_gets_none() -> None:
    np.testing.assert_array_equal(nonnegative_least_squares(np.ones((3, 2)), -np.ones(3)), [0.0, 0.0])


def test_columns_that_say_the_same_are_fitted() -> None:
    rows = np.array([[1.0, 2.0], [2.0, 4.0]])
    fitted = nonnegative_least_squares(rows, np.array([3.0, 6.0]))
    np.testing.assert_allclose(rows @ fitted, [3.0, 6.0])
    assert fitted.min() >= 0
