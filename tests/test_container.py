"""The container file: it copies all that the package is built from, and runs as a user without rights."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.+)$", (ROOT / "docs/container/Containerfile").read_text(), re.MULTILINE)
LAST_STAGE = INSTRUCTIONS[max(index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]


def test_it_copies_what_the_build_needs_and_nothing_else() -> None:
    copied = [shlex.split(given)[:-1] for name, given in INSTRUCTIONS if name == "COPY" and "--from" not in given]
    top = {package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"]}
    files = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert {name for names in copied for name in names} == top | files
    assert all((ROOT / name).exists() for names in copied for name in names)


def test_it_installs_extras_and_programs_that_there_are() -> None:
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', " ".join(given for _, given in INSTRUCTIONS))
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    (command,) = [given for name, given in LAST_STAGE if name == "CMD"]
    assert json.loads(command)[0] in PROJECT["project"]["scripts"]


def test_it_does_not_run_as_root() -> None:
    names = [name for name, _ in LAST_STAGE]
    assert dict(LAST_STAGE)["USER"] == "swarm"
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])


def test_its_torch_is_the_one_that_the_package_needs() -> None:
    (needed,) = [wanted for wanted in PROJECT["project"]["dependencies"] if wanted.startswith("torch")]
    (given,) = [given for name, given in INSTRUCTIONS if name == "ARG" and given.startswith("TORCH=")]
    assert given.strip('"').endswith(needed)
