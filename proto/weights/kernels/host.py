"""Compiles for the processor that it runs on. Takes about a tenth of a second for each kind of weight."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

from .element import Element
from .emit import NAME, Vectors, emit

Product = Callable[[int, int, int, int, int, int, int, int], None]
"""See `emit.NAME`. Lets other threads run meanwhile."""


@functools.cache
def vectors() -> Vectors | None:
    """None: this processor has no fused multiplication and addition, or none that is known here."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return Vectors(16, 32)
    if features.get("avx2") and features.get("fma") and features.get("f16c"):
        return Vectors(8, 16)
    if features.get("neon"):
        return Vectors(4, 32)
    return None


@functools.cache
def product(element: Element) -> Product:
    """The product for weights of that kind, compiled once per process. Raises RuntimeError where it cannot be."""
    found = vectors()
    if found is None:
        raise RuntimeError("this processor has no fused multiplication and addition of vectors")
    return _compile(emit(element, found))


_compiled: list[Any] = []
"""The code lives as long as these."""


def _compile(source: str) -> Product:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(source), machine)
    engine.finalize_object()
    _compiled.append(engine)
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 4)
    compiled: Product = kind(engine.get_function_address(NAME))
    return compiled
