"""docs/programs.md says what `--help` says."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def programs() -> ModuleType:
    """The script as a module."""
    loader = importlib.machinery.SourceFileLoader("programs", str(ROOT / "scripts" / "programs"))
    spec = importlib.util.spec_from_loader("programs", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.long
def test_the_page_is_what_the_programs_say() -> None:
    module = programs()
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run .venv/bin/python scripts/programs"
