"""docs/programs.md says what `--help` says."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
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


@pytest.mark.parametrize("script", ["programs", "limits"])
@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--chekc", 2)])
def test_a_script_that_is_asked_for_help_or_wrongly_writes_nothing(script: str, option: str, status: int) -> None:
    pages = [ROOT / "docs" / f"{name}.md" for name in ("programs", "protocol")]
    before = [page.stat().st_mtime_ns for page in pages]
    command = [sys.executable, ROOT / "scripts" / script, option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith("Write ")
    assert [page.stat().st_mtime_ns for page in pages] == before
