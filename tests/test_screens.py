"""The page of first screens shows what the programs print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
def test_errors_at_the_start_are_those_of_the_page() -> None:
    """Those that need no peer; `scripts/screens --check` compares the others, too, and takes a minute or two."""
    line = [sys.executable, ROOT / "scripts" / "screens", "--alone"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
