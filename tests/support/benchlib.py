"""The modules of the benchmarks (`scripts/benchlib`), which are no part of the installed package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).parents[2] / "scripts"


def benchlib(name: str) -> ModuleType:
    """The module of that name."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module(f"benchlib.{name}")
