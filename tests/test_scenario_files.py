"""The page about the simulator's files names every key that these may have."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scenarios" / "README.md").read_text(encoding="utf-8")


def keys_read(path: Path) -> set[str]:
    """The texts in calls of `keys(...)` and `child(...)` of a module that reads files."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("keys", "child"):
            inside = (inner for argument in node.args for inner in ast.walk(argument))
            found |= {inner.value for inner in inside if isinstance(inner, ast.Constant)}
    return {key for key in found if isinstance(key, str)}


def test_every_key_of_a_scenario_and_of_a_snapshot_is_explained() -> None:
    read = keys_read(ROOT / "routing" / "sim" / "worlds" / "scenario.py")
    read |= keys_read(ROOT / "routing" / "sim" / "worlds" / "churn_table.py")
    read |= keys_read(ROOT / "routing" / "sim" / "studies" / "plan.py")
    assert len(read) > 40
    missing = {key for key in read if not any(f"{before}{key}" in PAGE for before in ("`", ".", ", "))}
    assert not missing
