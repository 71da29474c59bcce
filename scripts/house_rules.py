#!/usr/bin/env python3
"""Rules that no other tool checks: sizes, words, time-outs, and what tests may touch.

scripts/house_rules.py             report what breaks a rule; exit 1 if anything does
scripts/house_rules.py --shrink    write down in house_debts.toml that some debts are paid

What broke a rule when the rule came is a debt, counted by file in `house_debts.toml`.  A debt may only shrink: more
than the debt is an error, and so is less, until the file says so.  Only the standard library is used here.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEBTS = ROOT / "scripts" / "house_debts.toml"
PRODUCT = ("routing", "proto", "peer", "client")
NOT_OURS = re.compile(r".*_pb2(_grpc)?\.py")
ABOUT_WORDS = {"scripts/house_rules.py", "tests/test_house_rules.py"}
"""These two quote the words that are not wanted."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FOLDER_FILES = 12
TIMING_MODULES = {"proto/wire/timing.py", "routing/timing.py", "peer/timing.py", "client/timing.py"}

WORDS = {
    r"\b[Ss]o\s+(many|much)\b(?!\s+that)": "name the number: 'at most N', 'after this many'",
    r"\b[Ss]o\s+long\b(?!\s+as)": "say 'how long' or 'until'",
    r"\b[Ww]ho ?ever\b": "name the subject: 'the caller', 'a peer that'",
    r"(^|[.:;]\s|\"{3})[\s#*>-]*Who\s+[a-z]+\b(?![^.\n]*\?)": "name the subject: 'a client that', 'the peer that'",
}
"""Phrases that stop a native reader, and the advice for each."""
BAD_OPENING = re.compile(r"(What|Of|Who|For so long)\b(?![^.]*\?)")


@dataclass(frozen=True)
class Source:
    """A file of the repository, by its path below the root."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @property
    def is_python(self) -> bool:
        return not self.path.endswith(".md")

    @property
    def is_product(self) -> bool:
        return self.path.partition("/")[0] in PRODUCT

    @property
    def is_test(self) -> bool:
        return self.path.startswith("tests/")


Findings = Iterator[tuple[int, str]]
"""Line, and what is wrong there."""


def read_sources(root: Path = ROOT) -> list[Source]:
    """Our Python files, scripts without a suffix included, and the documents."""
    found = [path for folder in (*PRODUCT, "tests", "scripts") for path in (root / folder).rglob("*")]
    found += [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    ours = sorted(path for path in found if path.is_file() and is_source(path))
    return [Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in ours]


def is_source(path: Path) -> bool:
    if path.suffix in (".py", ".md"):
        return not NOT_OURS.fullmatch(path.name)
    if path.suffix:
        return False
    with path.open("rb") as file:
        return file.readline().startswith(b"#!/usr/bin/env python3")


# --- sizes ---


def long_file(source: Source) -> Findings:
    lines = source.text.count("\n")
    if source.is_product and lines > MAX_FILE_LINES:
        yield lines, f"{lines} lines: split it at {MAX_FILE_LINES}"


def long_function(source: Source) -> Findings:
    if not source.is_product:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {lines} lines: more than a screen ({MAX_FUNCTION_LINES})"


def full_folders(sources: list[Source]) -> dict[str, list[tuple[int, str]]]:
    """A folder's own files count, those below it do not; nor do empty files that only make a package."""
    sizes = Counter(s.path.rpartition("/")[0] for s in sources if s.is_product and s.is_python and s.text.strip())
    message = "{} Python files: more than " + f"{MAX_FOLDER_FILES} are no concept, but several"
    return {folder: [(0, message.format(size))] for folder, size in sizes.items() if size > MAX_FOLDER_FILES}


# --- names and words ---


def unwanted_words(source: Source) -> Findings:
    if source.path in ABOUT_WORDS:
        return
    for pattern, advice in WORDS.items():
        for match in re.finditer(pattern, source.text, re.MULTILINE):
            words = " ".join(match.group().strip('".:;#*> \n').split())
            yield source.text.count("\n", 0, match.end()) + 1, f"{words!r}: {advice}"


def docstring_opening(source: Source) -> Findings:
    """The strings after definitions and constants; a question may begin with what it likes."""
    if not source.is_python or source.path in ABOUT_WORDS:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            opening = BAD_OPENING.match(node.value.value.strip())
            if opening:
                yield node.lineno, f"a docstring begins with {opening.group()!r}: begin with a noun or an imperative"


def variable_one(source: Source) -> Findings:
    """`one` is a number and a pronoun."""
    if not source.is_python:
        return
    for node in ast.walk(source.tree):
        match node:
            case ast.Name(id="one", ctx=ast.Store()) | ast.arg(arg="one"):
                yield node.lineno, "a variable is named `one`: name it after the thing that it holds"


def repeated_class(sources: list[Source]) -> dict[str, list[tuple[int, str]]]:
    """One meaning per name, over the whole product."""
    places = defaultdict(list)
    for source in sources:
        if source.is_product and source.is_python:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append((source.path, node.lineno))
    found = defaultdict(list)
    for name, where in places.items():
        for path, line in where if len(where) > 1 else ():
            others = ", ".join(sorted({other for other, _ in where} - {path}))
            found[path].append((line, f"class {name} is also defined in {others}"))
    return found


# --- errors and time-outs ---


def broad_except(source: Source) -> Findings:
    """A handler of everything passes it on, as it is or translated."""
    if not source.is_product or not source.is_python:
        return
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.ExceptHandler)
            and is_broad(node.type)
            and not any(isinstance(below, ast.Raise) for below in ast.walk(node))
        ):
            yield node.lineno, "catches every exception and raises none: name those that are expected"


def is_broad(caught: ast.expr | None) -> bool:
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def seconds_constant(source: Source) -> Findings:
    if not source.is_product or not source.is_python or source.path in TIMING_MODULES:
        return
    for node in source.tree.body:
        match node:
            case ast.Assign(targets=targets):
                pass
            case ast.AnnAssign(target=single):
                targets = [single]
            case _:
                continue
        for name in (name for target in targets for name in ast.walk(target)):
            if isinstance(name, ast.Name) and re.fullmatch(r"_?[A-Z][A-Z0-9_]*_SECONDS", name.id):
                yield node.lineno, f"{name.id}: time-outs live in the timing modules and are injected"


# --- what tests may touch ---


def private_touches(sources: list[Source]) -> dict[str, list[tuple[int, str]]]:
    """Tests use what the product offers: no underscored name of it, nothing replaced in its parts."""
    product = [source for source in sources if source.is_product and source.is_python]
    tests = [source for source in sources if source.is_test and source.is_python]
    names = ProductNames(
        frozenset(name for source in product for name in private_names(source.tree)),
        methods_of(product),
        frozenset(
            name for source in tests if source.path.startswith("tests/support/") for name in defined_in(source.tree)
        ),
    )
    return {source.path: found for source in tests if (found := sorted(set(touches(source, names))))}


@dataclass(frozen=True)
class ProductNames:
    """Names by which what tests do to the product is seen, since nothing here knows the types of things."""

    private: frozenset[str]
    methods: dict[str | None, frozenset[str]]
    """By class, inherited ones too; functions of modules under None."""
    supported: frozenset[str]
    """Names of the stand-ins in tests/support: an attribute with one of these may be theirs."""


def private_names(tree: ast.Module) -> Iterator[str]:
    """The underscored functions, classes, constants and attributes that a file defines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                pass
            case _:
                continue
        if is_private(name):
            yield name


def methods_of(product: Sequence[Source]) -> dict[str | None, frozenset[str]]:
    """As in `ProductNames`. A class name has one meaning in the whole product."""
    bases: dict[str | None, list[str]] = {None: []}
    found: defaultdict[str | None, set[str]] = defaultdict(set)
    for source in product:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                found[node.name] |= set(function_names(node.body))
        found[None] |= set(function_names(source.tree.body))

    def inherited(name: str | None, below: frozenset[str | None] = frozenset()) -> set[str]:
        above = [base for base in bases.get(name, []) if base not in below]
        return found[name].union(*(inherited(base, below | {name}) for base in above))

    return {name: frozenset(inherited(name)) for name in bases}


def function_names(body: Sequence[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__"):
            yield node.name


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def touches(source: Source, product: ProductNames) -> Findings:
    """A name that a test file defines itself is its own, whatever it is called."""
    own = defined_in(source.tree)
    _, foreign = imported_names(source.tree)
    for node in ast.walk(source.tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("blockswarm"):
                for alias in names:
                    if is_private(alias.name):
                        yield node.lineno, f"imports {alias.name}"
            case ast.Attribute(attr=name) if name in product.private - own and root_name(node) not in foreign:
                yield node.lineno, f"touches {ast.unparse(node)}"
    yield from replacements(source, product)


def replacements(source: Source, product: ProductNames) -> Findings:
    """Where something takes the place of a part of the product, as far as names show it."""
    own = defined_in(source.tree)
    ours, foreign = imported_names(source.tree)
    fakes = [defined_in(node) for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    objects = dict(pair for node in ast.walk(source.tree) for pair in objects_of(node, ours))
    functions = frozenset().union(*product.methods.values())
    for node in ast.walk(source.tree):
        match node:
            case ast.Attribute(ctx=ast.Store() | ast.Del()) if root_name(node) in ours:
                yield node.lineno, f"replaces {ast.unparse(node)}"
            case ast.Attribute(value=ast.Name(id=name), attr=method, ctx=ast.Store() | ast.Del()) if (
                name in objects and method in product.methods.get(objects[name], ())
            ):
                yield node.lineno, f"replaces {ast.unparse(node)}"
            case ast.Assign(targets=[ast.Attribute(attr=method) as target], value=value) if (
                method in functions.difference(product.supported, *fakes)
                and root_name(target) not in {*foreign, "self", "cls"}
                and (isinstance(value, ast.Lambda) or (isinstance(value, ast.Name) and value.id in own))
            ):
                yield node.lineno, f"replaces {ast.unparse(target)}"
            case ast.Call(func=function, args=[target, *rest]) if is_patching(function) and (
                of_product(target, ours)
                or (ast.unparse(target) == "sys.modules" and any(of_product(key, set()) for key in rest[:1]))
                or (root_name(target) not in foreign and is_named(rest[:1], functions))
            ):
                yield node.lineno, f"replaces {', '.join(map(ast.unparse, node.args[:2]))}"


def defined_in(tree: ast.AST) -> set[str]:
    return {name for node in ast.walk(tree) for name in own_names(node)}


def own_names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case (
            ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store())
            | ast.AnnAssign(target=ast.Name(id=name))
        ):
            yield name


def imported_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The names under which a test knows parts of the product, and parts of other libraries."""
    ours: set[str] = set()
    foreign: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                known = ours if module.startswith("blockswarm") else foreign
                known.update(alias.asname or alias.name for alias in names)
            case ast.Import(names=names):
                for alias in names:
                    known = ours if alias.name.startswith("blockswarm") else foreign
                    known.add(alias.asname or alias.name.partition(".")[0])
    return ours, foreign


def objects_of(node: ast.AST, ours: set[str]) -> Iterator[tuple[str, str]]:
    """The name that `node` gives to an object of one of these classes, made here or annotated, and its class."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=made)):
            kind = made
        case ast.withitem(context_expr=ast.Call(func=made), optional_vars=ast.Name(id=name)):
            kind = made
        case ast.arg(arg=name, annotation=ast.Name() | ast.Attribute() as kind):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name() | ast.Attribute() as kind):
            pass
        case _:
            return
    if root_name(kind) in ours:
        yield name, ast.unparse(kind).rpartition(".")[2]


def is_patching(function: ast.expr) -> bool:
    """setattr of anything, monkeypatch.setitem, mock.patch, mock.patch.object, and their like."""
    return re.search(r"(^|\.)((set|del)(attr|item)|patch(\.\w+)?)$", ast.unparse(function)) is not None


def of_product(target: ast.expr, imported: set[str]) -> bool:
    if isinstance(target, ast.Constant):
        return str(target.value).startswith("blockswarm")
    return root_name(target) in imported


def is_named(arguments: Sequence[ast.expr], names: frozenset[str]) -> bool:
    return any(isinstance(argument, ast.Constant) and argument.value in names for argument in arguments)


def root_name(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


# --- rules, debts, report ---

FILE_RULES: dict[str, Callable[[Source], Findings]] = {
    "long file": long_file,
    "long function": long_function,
    "unwanted words": unwanted_words,
    "docstring opening": docstring_opening,
    "variable named one": variable_one,
    "broad except": broad_except,
    "seconds outside the timing modules": seconds_constant,
}
TREE_RULES: dict[str, Callable[[list[Source]], Mapping[str, list[tuple[int, str]]]]] = {
    "full folder": full_folders,
    "class name used twice": repeated_class,
    "private names in tests": private_touches,
}

Found = dict[str, dict[str, list[tuple[int, str]]]]
"""By rule and path."""


def find_all(sources: list[Source]) -> Found:
    found: Found = {}
    for rule, check in FILE_RULES.items():
        by_file = {
            source.path: list(check(source)) for source in sources if source.is_python or check is unwanted_words
        }
        found[rule] = {path: findings for path, findings in by_file.items() if findings}
    for rule, check_tree in TREE_RULES.items():
        found[rule] = dict(check_tree(sources))
    return found


def compare(found: Found, debts: dict[str, dict[str, int]]) -> list[str]:
    """A line for everything that is more, or less, than its debt."""
    lines = [f"{DEBTS.name}: there is no rule {rule!r}" for rule in debts.keys() - found.keys()]
    for rule, by_file in found.items():
        allowed = debts.get(rule, {})
        for path in sorted(by_file.keys() | allowed.keys()):
            here, debt = by_file.get(path, []), allowed.get(path, 0)
            if len(here) > debt:
                known = f" ({debt} of these {len(here)} are known)" if debt else ""
                lines += [f"{path}:{line}: {rule}: {text}{known}" for line, text in here]
            elif len(here) < debt:
                paid = debt - len(here)
                lines.append(f"{path}: {rule}: {paid} of {debt} debts are paid: run scripts/house_rules.py --shrink")
    return lines


def shrunk(found: Found, debts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The debts that are left; none grows, and none is added."""
    left = {
        rule: {path: min(debt, len(found.get(rule, {}).get(path, []))) for path, debt in by_file.items()}
        for rule, by_file in debts.items()
    }
    return {rule: {path: debt for path, debt in by_file.items() if debt} for rule, by_file in left.items()}


def written(debts: dict[str, dict[str, int]]) -> str:
    lines = ["# What breaks the rules of house_rules.py still, by rule and file. Debts may only shrink."]
    for rule, by_file in sorted(debts.items()):
        if by_file:
            lines += ["", f'["{rule}"]', *(f'"{path}" = {debt}' for path, debt in sorted(by_file.items()))]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Check the rules of the house.")
    parser.add_argument("--shrink", action="store_true", help="write down which debts are paid")
    asked = parser.parse_args(arguments)
    found = find_all(read_sources())
    debts = tomllib.loads(DEBTS.read_text(encoding="utf-8"))
    if asked.shrink:
        debts = shrunk(found, debts)
        DEBTS.write_text(written(debts), encoding="utf-8")
    problems = compare(found, debts)
    print(*problems, sep="\n", end="\n" if problems else "")
    owed = sum(debt for by_file in debts.values() for debt in by_file.values())
    print(f"{len(problems)} problems, {owed} known debts")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
