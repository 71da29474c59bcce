"""Fixtures of the routing tests: the validators that all tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def validators() -> ModuleType:
    """tests/support/validators.py: validate_route, validate_chain, validate_placement."""
    path = Path(__file__).parents[1] / "support" / "validators.py"
    spec = importlib.util.spec_from_file_location("support_validators", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
