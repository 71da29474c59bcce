"""The templates of the pages, with the filters and values that they use. All output is escaped."""

from __future__ import annotations

import functools
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined

from ..board.coverage import SESSION_TOKENS
from ..board.history import SPANS
from ..board.join import PACES
from ..board.peers import SILENT
from ..written import words
from ..written.chart import HEIGHT, WIDTH

SCREENS = (
    ("", "Blocks"),
    ("/peers", "Peers"),
    ("/routes", "Routes"),
    ("/placement", "Placement"),
    ("/join", "Join"),
    ("/history", "History"),
)
"""The screens of a model: the end of the URL, and the title."""


@functools.cache
def environment() -> Environment:
    """Return the templates' environment, with autoescape: peers' names are untrusted text."""
    folder = files(__package__) / "templates"
    sources = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    made = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(
        span=words.span_words,
        clock=words.clock_words,
        iso=words.iso_time,
        blocks=words.blocks_words,
        size=words.bytes_words,
    )
    made.globals.update(
        screens=SCREENS,
        spans=SPANS,
        paces=PACES,
        session_tokens=SESSION_TOKENS,
        silent=SILENT,
        chart_size=(WIDTH, HEIGHT),
        count=words.count_words,
        percent=words.percent_words,
        failure_words=words.failure_words,
    )
    return made
