"""The rules of scripts/house_rules.py find what they are meant to find, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RULES = Path(__file__).resolve().parent.parent / "scripts" / "house_rules.py"


@pytest.fixture(scope="module")
def house() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("house_rules", RULES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def found(house: ModuleType, rule: str, text: str, path: str = "peer/a.py", *others: tuple[str, str]) -> list[Any]:
    """The findings of one rule in a file, beside other files."""
    sources = [house.Source(path, text), *(house.Source(*other) for other in others)]
    return house.find_all(sources)[rule].get(path, [])


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 60
WRONG = {
    "long file": ["x = 1\n" * 401],
    "long function": [LONG_FUNCTION, "async " + LONG_FUNCTION],
    "unwanted words": [
        "# So many repairs are allowed.\n",
        "# wait so\n# long\n".replace("\n# long", " long"),
        '"""Whoever asks."""\n',
        "# Who finds no room goes away.\n",
        '"""Peers wait; Who is late waits longer."""\n',
    ],
    "docstring opening": [
        '"""What a peer says."""\n',
        'X = 1\n"""Of a negative number nothing is left."""\n',
        'def f():\n    """For so long it waits."""\n',
    ],
    "variable named one": ["[one for one in x]\n", "one = 1\n", "def f(one): pass\n"],
    "broad except": [
        "try:\n    f()\nexcept Exception:\n    pass\n",
        "try:\n    f()\nexcept:\n    pass\n",
        "try:\n    f()\nexcept (OSError, BaseException) as error:\n    log(error)\n",
    ],
    "seconds outside the timing modules": [
        "CLOSE_SECONDS = 3.0\n",
        "_CLOSE_SECONDS: float = 3.0\n",
        "TRIES, CLOSE_SECONDS = 5, 3.0\n",
    ],
}
RIGHT = {
    "long file": ["x = 1\n" * 400],
    "long function": ["def f():\n" + "    x = 1\n" * 59],
    "unwanted words": [
        "# It holds so long as the peer lives, so much that nobody asks.\n",
        "# Who may ask? Whole peers.\n",
        "# The peer who asked.\n",
    ],
    "docstring opening": ['"""What is a peer?"""\n', '"""Whatever comes, it is kept."""\n', 'x = "What a string"\n'],
    "variable named one": ["print(one)\n", "zero = 1\n"],
    "broad except": [
        "try:\n    f()\nexcept Exception as error:\n    raise SwarmError from error\n",
        "try:\n    f()\nexcept OSError:\n    pass\n",
    ],
    "seconds outside the timing modules": ["def f():\n    CLOSE_SECONDS = 3.0\n", "seconds = 3.0\n"],
}


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in WRONG.items() for text in texts])
def test_what_breaks_a_rule_is_found(house: ModuleType, rule: str, text: str) -> None:
    assert len(found(house, rule, text)) == 1


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in RIGHT.items() for text in texts])
def test_what_keeps_a_rule_is_not_found(house: ModuleType, rule: str, text: str) -> None:
    assert not found(house, rule, text)


def test_time_outs_have_their_modules(house: ModuleType) -> None:
    for path in house.TIMING_MODULES:
        assert not found(house, "seconds outside the timing modules", "CLOSE_SECONDS = 3.0\n", path)


def test_sizes_are_for_the_product(house: ModuleType) -> None:
    assert not found(house, "long file", "x = 1\n" * 500, "tests/test_a.py")
    assert not found(house, "long function", LONG_FUNCTION, "scripts/a.py")


def test_a_folder_is_one_concept(house: ModuleType) -> None:
    files = [house.Source(f"peer/a{number}.py", "x = 1\n") for number in range(12)]
    rest = [house.Source("peer/__init__.py", ""), house.Source("peer/offer/b.py", "x = 1\n")]
    assert not house.full_folders([*files, *rest])
    assert set(house.full_folders([*files, *rest, house.Source("peer/b.py", "x = 1\n")])) == {"peer"}


def test_a_class_name_has_one_meaning(house: ModuleType) -> None:
    other = ("routing/b.py", "class Room: ...\n")
    (finding,) = found(house, "class name used twice", "class Room: ...\nclass Door: ...\n", "peer/a.py", other)
    assert finding == (1, "class Room is also defined in routing/b.py")
    assert not found(
        house, "class name used twice", "class _Room: ...\n", "peer/a.py", ("proto/b.py", "class _Room: ...\n")
    )


PRODUCT = (
    "_LIMIT = 3\nclass Table:\n    def __init__(self):\n        self._queue = []\n    def _shrink(self): ...\n"
    "    def add(self): ...\nclass Longer(Table): ...\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "from blockswarm.peer.table import _LIMIT\n",
        "table._queue.clear()\n",
        "self.table._shrink()\n",
        "from blockswarm.peer import table\nmonkeypatch.setattr(table, 'LIMIT', 1)\n",
        "from blockswarm.peer.table import Table\nmonkeypatch.setattr(Table, 'add', None)\n",
        "monkeypatch.setattr('blockswarm.peer.table.LIMIT', 1)\n",
        "mock.patch('blockswarm.peer.table.LIMIT')\n",
        "from blockswarm.peer import table\ntable.LIMIT = 1\n",
        "from blockswarm.peer import table\nwith monkeypatch.context() as patch:\n    patch.setattr(table, 'f', g)\n",
        "from blockswarm.peer import table\nsetattr(table, name, 1)\n",
        "from blockswarm.peer import table\ndel table.LIMIT\n",
        "from blockswarm.peer import table\nmock.patch.object(table, 'f')\n",
        "import blockswarm.peer.table\nblockswarm.peer.table.LIMIT = 1\n",
        "import blockswarm.peer.table as table\ntable.LIMIT = 1\n",
        "monkeypatch.setitem(sys.modules, 'blockswarm.peer.table', None)\n",
        "from blockswarm.peer.table import Table\ntable = Table()\ntable.add = 1\n",
        "from blockswarm.peer.table import Table\ndef f(table: Table):\n    table.add = 1\n",
        "from blockswarm.peer.table import Longer\nwith Longer() as table:\n    table.add = 1\n",
        "def f(peer):\n    monkeypatch.setattr(peer.table, 'add', None)\n",
        "def add(self): ...\ndef f(peer):\n    table = peer.table\n    table.add = add\n",
        "def f(peer):\n    peer.table.add = lambda: None\n",
    ],
)
def test_tests_that_touch_what_is_private_are_found(house: ModuleType, text: str) -> None:
    rule, product = "private names in tests", ("peer/table.py", PRODUCT)
    assert len(found(house, rule, text, "tests/test_a.py", product)) == 1
    assert not found(house, rule, text, "peer/b.py", product), "the product may"


@pytest.mark.parametrize(
    "text",
    [
        "class Fake:\n    def __init__(self):\n        self._queue = []\nfake._queue.clear()\n",
        "import os\nos._shrink(1)\n",
        "import time\nmonkeypatch.setattr(time, 'sleep', None)\n",
        "from blockswarm.peer.table import Table\ntable = Table()\ntable.limit = 1\n",
        "class Fake:\n    add: object = None\nfake = Fake()\nfake.add = lambda: None\n",
        "from somewhere import Other\nother = Other()\nother.add = 1\n",
        "import os\nmonkeypatch.setattr(os, 'add', None)\n",
        "monkeypatch.setitem(sys.modules, 'uvicorn', None)\n",
        "monkeypatch.setitem(options, 'blockswarm', None)\n",
    ],
)
def test_tests_may_touch_what_is_their_own_or_another_library_s(house: ModuleType, text: str) -> None:
    assert not found(house, "private names in tests", text, "tests/test_a.py", ("peer/table.py", PRODUCT))


def test_a_debt_may_only_shrink(house: ModuleType) -> None:
    rule, other = "long file", "broad except"
    two = {rule: {"peer/a.py": [(1, "x"), (2, "y")]}, other: {}}
    assert house.compare(two, {rule: {"peer/a.py": 2}}) == []
    assert len(house.compare(two, {rule: {"peer/a.py": 1}})) == 2, "all are shown, because nobody knows which is new"
    assert len(house.compare(two, {})) == 2
    (paid,) = house.compare(two, {rule: {"peer/a.py": 3}})
    assert "1 of 3 debts are paid" in paid
    assert house.shrunk(two, {rule: {"peer/a.py": 5, "peer/gone.py": 1}, other: {"peer/b.py": 1}}) == {
        rule: {"peer/a.py": 2},
        other: {},
    }
    assert house.shrunk(two, {rule: {"peer/a.py": 1}}) == {rule: {"peer/a.py": 1}}


def test_debts_are_read_as_they_were_written(house: ModuleType) -> None:
    import tomllib

    debts = {"long file": {"peer/a.py": 2}, "broad except": {"peer/b.py": 1, "proto/c d.py": 3}}
    assert tomllib.loads(house.written(debts)) == debts
