"""Compiled products are an extra: a peer serves without them, whatever is wrong with what is installed."""

from __future__ import annotations

import logging
from types import ModuleType

import pytest
from blockswarm.proto.weights.row_forms import kernels


@pytest.mark.parametrize(
    "error",
    [OSError("Could not find/load shared object file 'libllvmlite.so'"),
     TypeError("PointerType.__init__() missing 1 required positional argument: 'pointee'"),
     AttributeError("module 'llvmlite.ir' has no attribute 'PointerType'")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_broken_or_old_llvm_is_no_reason_not_to_serve(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def load() -> ModuleType:
        raise error

    with caplog.at_level(logging.WARNING):
        assert kernels(load) is None
    assert "llvmlite cannot be used" in caplog.text
    assert str(error) in caplog.text


def test_a_missing_llvm_needs_no_word(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> ModuleType:
        raise ModuleNotFoundError("No module named 'llvmlite'", name="llvmlite")

    assert kernels(load) is None
    assert not caplog.text


def test_what_works_is_used() -> None:
    assert kernels(lambda: pytest) is pytest
