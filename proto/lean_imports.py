"""Programs of ours leave out what torch and transformers import and no peer or client uses.

transformers imports torch's compiler and its distributed tensors, and with them sympy, and scipy for losses: more than
a thousand modules, 90 MB, and half of the time that imports take.  Here it finds no distributed torch and no scipy,
which it knows how to do without; the compiler and sympy are modules that run when they are used.  A program calls
`lighten_imports` first of all; nothing else does, since a process that belongs to somebody else may train or compile.

What a version of these libraries does otherwise than is known here is imported as it would have been.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_SYMBOLS = "torch.fx.experimental.symbolic_shapes"
_ASKED_BACK = (
    "expect_true",
    "guard_or_false",
    "guard_or_true",
    "guard_size_oblivious",
    "guarding_hint_or_throw",
    "statically_known_true",
)
"""Functions of it whose answer for a plain number is that number."""
_BY_THEMSELVES = ("torch._dynamo._trace_wrapped_higher_order_op",)
"""Modules of the compiler that need no other one of it."""
_FEATURES = "transformers.utils.import_utils"
_LEFT_OUT = ("is_torch_distributed_available", "is_scipy_available")
"""Questions of that module, all answered with no."""
_SCAN = "create_import_structure_from_path"
"""A function of it that reads the head of every file of a folder; all models are asked for twice."""
_LARGE = ("numpy", "torch", "transformers", "transformers.modeling_utils", "transformers.generation.utils")
"""Modules that import a thousand others: collecting garbage meanwhile takes a sixth of the time, and finds none.

An interrupt waits until they are there: some of them swallow it and fail later, abort the process, or never end."""


def lighten_imports() -> None:
    """For the whole process, before it imports torch or transformers. Idempotent."""
    if not any(isinstance(finder, _LeanFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeanFinder())


class _LeanFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = sys.modules.get(fullname.rpartition(".")[0])
        if isinstance(package, _Later) and fullname not in _BY_THEMSELVES:
            return _found_in_whole_package(package, fullname)
        makers: dict[str, Callable[[Loader], Loader]] = {_FEATURES: _FewerFeatures}
        makers |= dict.fromkeys(_STAND_INS, _LaterLoader) | dict.fromkeys(_LARGE, _Undisturbed)
        if fullname not in makers:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = makers[fullname](spec.loader)
        return spec


class _WrappedLoader(Loader):
    """A loader that does something beside what another one does."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        """Others want the path and the source of the loader of a file."""
        return getattr(self._inner, name)


class _Undisturbed(_WrappedLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _collector_paused(), _interrupt_held():
            self._inner.exec_module(module)


class _FewerFeatures(_WrappedLoader):
    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        for question in _LEFT_OUT:
            if hasattr(module, question):
                setattr(module, question, lambda: False)
        if scan := getattr(module, _SCAN, None):
            setattr(module, _SCAN, _remembering_last(scan))


class _LaterLoader(_WrappedLoader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Later(spec.name, self._inner)

    def exec_module(self, module: ModuleType) -> None:
        """It runs when it is used, see `_Later`."""


class _Later(ModuleType):
    """A module whose own code runs when a name of it is used for which there is no stand-in."""

    def __init__(self, name: str, loader: Loader) -> None:
        super().__init__(name)
        self.__dict__["_later"] = (loader, threading.RLock(), [])

    def __getattr__(self, name: str) -> Any:
        if (stand_in := _STAND_INS[self.__name__].get(name)) is not None:
            return stand_in
        if name.startswith("__") or not self.run():
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self, name)

    def run(self) -> bool:
        """Run the module's own code; False if that is what is going on in this thread."""
        loader, lock, running = self.__dict__["_later"]
        with lock:
            if running:
                return False
            if type(self) is _Later:
                running.append(True)
                try:
                    with _collector_paused():
                        loader.exec_module(self)
                finally:
                    running.clear()
                self.__class__ = ModuleType  # type: ignore[assignment]
        return True


def _found_in_whole_package(package: _Later, fullname: str) -> ModuleSpec | None:
    """For a module of a package that has not run, which the module may expect: it may have been imported by that."""
    package.run()
    module = sys.modules.get(fullname)
    return None if module is None else ModuleSpec(fullname, _Imported(module))


class _Imported(Loader):
    """Gives a module that has been imported already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """Decorates a function with nothing, called with it or with options alone."""
    return function if function is not None else _unmarked


def _of_plain_values(name: str, answer: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function about symbolic numbers as it answers for a plain one; others exist only when the module has run."""

    def stand_in(value: Any, *arguments: Any, **options: Any) -> Any:
        return answer(value) if isinstance(value, int) else _real(name)(value, *arguments, **options)

    return stand_in


def _same_sizes(first: Any, second: Any) -> Any:
    """`sym_eq` of plain sizes."""
    if all(isinstance(sizes, tuple) and all(type(size) is int for size in sizes) for sizes in (first, second)):
        return first == second
    return _real("sym_eq")(first, second)


def _real(name: str) -> Callable[..., Any]:
    """A function about symbolic numbers itself."""
    module = sys.modules[_SYMBOLS]
    if isinstance(module, _Later):
        module.run()
    function: Callable[..., Any] = module.__dict__[name]
    return function


class _NothingYet:
    """A class without instances."""


_STAND_INS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    # Decorators that tell the compiler how to treat a function. In a program that compiles nothing they do nothing.
    "torch._dynamo": dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _unmarked),
    # Questions that torch asks when it finds out the shape of a result, of plain numbers too.
    _SYMBOLS: {
        **{name: _of_plain_values(name, lambda value: value) for name in _ASKED_BACK},
        "has_guarding_hint": _of_plain_values("has_guarding_hint", lambda value: True),
        "sym_and": lambda *conditions: functools.reduce(operator.and_, conditions),
        "sym_eq": _same_sizes,
        "sym_or": lambda *conditions: functools.reduce(operator.or_, conditions),
        "is_nested_int": _of_plain_values("is_nested_int", lambda value: False),
    },
    # While sympy has not run there is nothing of it.
    "sympy": dict.fromkeys(("Basic", "Symbol", "Expr"), _NothingYet),
}
"""Modules that run later, and what stands for names of them until then."""


def _remembering_last(scan: Callable[[str], Any]) -> Callable[[Any], Any]:
    """`scan` of the folder of a path; asked again for the folder that was asked for last, it does not look again."""
    last = functools.lru_cache(maxsize=1)(scan)

    def scanned(path: Any) -> Any:
        text = os.fspath(path)
        return last(os.path.dirname(text) if os.path.isfile(text) else text)

    return scanned


_pausing = threading.Lock()
_pauses: list[bool] = []
"""Whether the collector was on, for every import that has paused it."""


@contextlib.contextmanager
def _interrupt_held() -> Iterator[None]:
    """Raise the KeyboardInterrupt of an interrupt that came inside at the end; another thread gets none anyway."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Collect no garbage; at the end spare the collector what is there now, which stays for as long as the process."""
    with _pausing:
        _pauses.append(gc.isenabled() if not _pauses else _pauses[0])
        gc.disable()
    try:
        yield
    finally:
        with _pausing:
            was_enabled = _pauses.pop()
            if not _pauses:
                gc.freeze()
                if was_enabled:
                    gc.enable()
