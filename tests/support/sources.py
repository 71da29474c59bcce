"""The repository's own sources, read: its modules, and what they import."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("routing", "proto", "peer", "client")
GENERATED = re.compile(r".*_pb2(_grpc)?\.py")


@dataclass(frozen=True)
class Import:
    """One imported module, by its full dotted name."""

    path: str
    line: int
    module: str
    names: tuple[str, ...]
    is_relative: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def relative_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def package_files() -> tuple[Path, ...]:
    """The hand-written modules of the four folders."""
    found = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return tuple(path for path in found if not GENERATED.fullmatch(path.name))


def all_files() -> tuple[Path, ...]:
    """Package, tests and scripts."""
    rest = [path for folder in ("tests", "scripts") for path in sorted((ROOT / folder).rglob("*"))]
    return package_files() + tuple(path for path in rest if path.is_file() and is_python(path))


def is_python(path: Path) -> bool:
    """By its suffix or, for a script without one, by its first line."""
    if path.suffix:
        return path.suffix == ".py"
    with path.open("rb") as file:
        return file.readline().startswith(b"#!/usr/bin/env python3")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node`, functions included, except what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if is_for_type_checkers(child):
            assert isinstance(child, ast.If)
            children: list[ast.AST] = list(child.orelse)
        else:
            yield child
            children = [child]
        for below in children:
            yield from executed_nodes(below)


@functools.cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """The imports of a file when it runs, at its top or later, with relative imports resolved."""
    return tuple(find_imports(path))


def find_imports(path: Path) -> Iterator[Import]:
    name = relative_path(path)
    package = ["blockswarm", *Path(name).parts[:-1]]
    for node in executed_nodes(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, node.lineno, alias.name, (), False)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(name, node.lineno, module, tuple(alias.name for alias in node.names), node.level > 0)
