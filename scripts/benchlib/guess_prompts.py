"""Prompts for the demo model, new ones each time and the same in every run: code to continue, to copy, and turns."""

from __future__ import annotations

import ast
import functools
import itertools
import random
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NEW_TEXT, COPYING, CHAT = "new text", "copying", "chat"
KINDS = (NEW_TEXT, COPYING, CHAT)

PROMPT_BYTES = 320
TURNS = 3
"""The number of turns of a chat."""
VERBS = ("read", "write", "open", "close", "parse", "copy", "sort", "count", "split", "join", "send", "find")
NOUNS = ("file", "list", "string", "socket", "module", "class", "number", "path", "line", "message", "table", "key")


def prompts(kind: str, new_tokens: int, seed: int = 0) -> Iterator[Mapping[str, Any]]:
    """Turns, their new tokens, and the script of an answer that is a copy; none comes twice."""
    rng = random.Random(f"{kind} {seed}")
    makers = {NEW_TEXT: _continuations, COPYING: _copies, CHAT: _chats}
    yield from makers[kind](rng, new_tokens)


def _continuations(rng: random.Random, new_tokens: int) -> Iterator[Mapping[str, Any]]:
    places = [(text, start) for text in held_out_texts() for start in _line_starts(text)]
    rng.shuffle(places)
    for text, start in places:
        yield {"turns": [text[start : start + PROMPT_BYTES]], "new_tokens": new_tokens}


def _copies(rng: random.Random, new_tokens: int) -> Iterator[Mapping[str, Any]]:
    """A function, and the same again with a name changed, word for word as an editor would write it."""
    found = [source for text in held_out_texts() for source in functions(text, new_tokens)]
    rng.shuffle(found)
    for source in found:
        name = source.split("(")[0].removeprefix("def ")
        edited = source.replace(name, f"{name}_again") + "\n\n" + source
        prompt = f"{source}\n\n# The same once more:\n\n"
        yield {"turns": [prompt], "new_tokens": new_tokens, "script": edited[:new_tokens]}


def _chats(rng: random.Random, new_tokens: int) -> Iterator[Mapping[str, Any]]:
    questions = [f"how do I {verb} a {noun}" for verb, noun in itertools.product(VERBS, NOUNS)]
    rng.shuffle(questions)
    for first in range(0, len(questions) - TURNS + 1, TURNS):
        turns = [f"\n# Question: {question}?\n# Answer:" for question in questions[first : first + TURNS]]
        yield {"turns": turns, "new_tokens": new_tokens // TURNS}


@functools.cache
def held_out_texts() -> tuple[str, ...]:
    """The files of the standard library that the demo model has not read."""
    from train_demo_model import is_held_out, library_files  # brings torch

    paths: list[Path] = [path for path in library_files() if is_held_out(path)]
    texts = (path.read_text(encoding="utf-8", errors="ignore") for path in paths)
    return tuple(text for text in texts if text.isascii() and len(text) > 2 * PROMPT_BYTES)


def _line_starts(text: str) -> list[int]:
    starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]
    return [start for start in starts[::20] if start + PROMPT_BYTES <= len(text) and text[start] not in "\n"]


def functions(text: str, new_tokens: int) -> list[str]:
    """Functions about as long as the answer, from column 0 on."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            source = textwrap.dedent(" " * node.col_offset + (ast.get_source_segment(text, node) or ""))
            if 0.8 * new_tokens <= len(source) <= 2.5 * new_tokens and source.startswith("def "):
                found.append(source)
    return found
