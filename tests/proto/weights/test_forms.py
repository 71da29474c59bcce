"""Every matrix of a block has the form of its shape."""

from __future__ import annotations

from blockswarm.proto.weights.forms import Forms, Packing


def test_every_shape_has_a_form_of_its_own() -> None:
    forms = Forms(Packing.ROWS, {(64, 32): Packing.PREPACKED, (32, 64): Packing.PLAIN})
    assert [forms.at(64, 32), forms.at(32, 64), forms.at(128, 32)] == [Packing.PREPACKED, Packing.PLAIN, Packing.ROWS]
    assert forms.numeric_format("float32") == "float32"
    assert not forms.is_plain
    assert Forms(Packing.PLAIN, {(64, 32): Packing.PLAIN}).is_plain
