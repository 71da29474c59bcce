"""Boards as JSON."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass

from blockswarm.client.dashboard.written.values import as_json


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Thing:
    """A value of all kinds."""

    name: str
    size: float
    parts: tuple[int, ...] = ()
    colour: Colour = Colour.RED


def test_values_become_plain_and_what_is_not_finite_null() -> None:
    found = json.loads(as_json({"a": [Thing("x", math.inf, (1, 2)), Thing("y", 1.5)]}))
    assert found == {
        "a": [
            {"name": "x", "size": None, "parts": [1, 2], "colour": "red"},
            {"name": "y", "size": 1.5, "parts": [], "colour": "red"},
        ]
    }


def test_no_markup_is_in_it() -> None:
    """Whatever a browser takes it for."""
    text = "<script>&amp;\u2028"
    encoded = as_json([text])
    assert not set(b"<>&") & set(encoded)
    assert json.loads(encoded) == [text]
