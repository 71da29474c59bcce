"""The blocks of docs/screens.md, without what differs from run to run, and the commands that succeed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

MODEL = "scripts/demo_model"
PAGE = Path(__file__).parents[2] / "docs" / "screens.md"

MEASURED: Sequence[tuple[str, str]] = (
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", "TIME"),
    (r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}", "ID"),
    (r"\.\.[1-9A-HJ-NP-Za-km-z]{6}\b", "..ID"),
    (r"127\.0\.0\.1:[1-9]\d{1,4}", "127.0.0.1:PORT"),
    (r"(TIME INFO)? ?cpu, in float32: .*", r"\1 cpu, in float32: ..."),
    (r"\b[0-9a-f]{12}\b", "DIGEST"),
    (r"\b\d+(?= (KV tokens free|pushed|relayed|answered|tokens rebuilt|bytes kept))", "N"),
    (r"\d+ threads? (is|are) used .*", "N threads are used (measured ...)"),
    (r"(with|cpu,) \d+ threads?", r"\1 N threads"),
    (r"(?<![\d.])[+-]?\d+\.\d+(?![\d.])", "N"),
    (r"(?<=\S) {2,}", "  "),
)
"""Patterns of that which differs from run to run, each with its place-holder."""


def shown(text: str, places: Mapping[str, str]) -> str:
    """The text of a screen without what differs from run to run; `places` are folders and their names here."""
    for place, name in places.items():
        text = text.replace(place, name)
    for pattern, replacement in MEASURED:
        text = re.sub(pattern, replacement, text)
    lines = [re.sub(r"(?<=  )\d+\b(?!:)", "N", line) if line.startswith("..ID") else line for line in text.splitlines()]
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def block(line: str, told: str, places: Mapping[str, str]) -> str:
    """A command and what it printed, as the page shows them."""
    return f"```console\n$ {shown(line, places)}\n{shown(told, places)}\n```"


def page_part(title: str) -> str:
    """A block of the page, by the heading above it."""
    return PAGE.read_text(encoding="utf-8").partition(f"\n### {title}\n\n")[2].partition("\n\n#")[0]


SUCCESSES: Mapping[str, str] = {
    "The peers of a model": f"swarm-client peers {MODEL} --initial-peers FIRST",
    "The chain that a request would get": f"swarm-client route {MODEL} --initial-peers FIRST",
    "A peer that is asked for its pulse": "swarm-client ping FIRST",
    "A text": f'swarm-client generate {MODEL} --initial-peers FIRST --prompt "class Reader: def __init__(self, " -n 12',
    "The simulator's choices": "swarm-sim list",
}
