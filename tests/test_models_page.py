"""The page of served models says what a peer finds out, about every family that transformers has."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.sources import ROOT
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_it_has_every_family() -> None:
    assert [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if f"| `{name}` |" not in PAGE] == []


def test_no_reason_is_an_error_inside_a_familys_code() -> None:
    assert [line for line in PAGE.splitlines() if line.startswith("| `") and "Error" in line] == []


@pytest.mark.long
def test_its_rows_are_what_the_check_finds() -> None:
    families = ("llama", "gpt2", "llama4_text", "bert", "mamba", "dbrx", "deepseek_v32")
    shown = subprocess.run(
        [sys.executable, ROOT / "scripts" / "models", "--show", *families], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(shown) == len(families) + 1
    assert set(shown) <= set(PAGE.splitlines())
